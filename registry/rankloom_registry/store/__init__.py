"""The file: what it holds, whose turn it is, who owns it, and how it comes back after a crash."""
