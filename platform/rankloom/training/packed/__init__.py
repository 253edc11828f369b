"""Many trials at once on one resident base."""
