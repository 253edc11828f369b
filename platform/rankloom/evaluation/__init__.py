"""Measuring adapters and their base on the same rows, and telling whether a difference is one."""
