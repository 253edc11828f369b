"""The files that weights come in, read without torch."""
