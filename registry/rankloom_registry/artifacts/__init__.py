"""The files of adapters: what is let in, where it is kept, and how it comes out again."""

from __future__ import annotations

from rankloom_registry.artifacts.checks import FLAGS, check_folder
from rankloom_registry.artifacts.fit import check_against_base
from rankloom_registry.artifacts.place import CONFIG, MANIFEST, WEIGHTS
from rankloom_registry.artifacts.store import ArtifactStore

__all__ = ["CONFIG", "FLAGS", "MANIFEST", "WEIGHTS", "ArtifactStore", "check_against_base", "check_folder"]
