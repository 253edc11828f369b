"""The command line: `rankloom --help` loads nothing heavy, each command imports what it needs."""

from __future__ import annotations

from rankloom.cli.main import main

__all__ = ["main"]
