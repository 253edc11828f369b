"""A search's run folder: its configuration, tokenised data, logs and Ray's own state."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rankloom.config import SearchConfig, parse_config
from rankloom.errors import SearchError
from rankloom_registry.files import write_atomically

RECORD = "search.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a run folder says of its search.

    Attributes:
        folder: The run folder, absolute.
        search_id: Id of the search in the registry.
        name: Name of the search and of the folder.
        config: Its configuration; objects that were passed in Python stand as text.
        base_path: Folder of the base.
        base_content_root: Fingerprint of the base.
    """

    folder: Path
    search_id: str
    name: str
    config: dict[str, Any]
    base_path: str
    base_content_root: str

    @property
    def data(self) -> Path:
        """Folder of the tokenised rows."""
        return self.folder / "data"

    @property
    def adapters(self) -> Path:
        """Folder where lanes leave adapters."""
        return self.folder / "adapters"

    @property
    def tune(self) -> Path:
        """Folder of Ray Tune's experiment."""
        return self.folder / "tune" / "trials"

    def save(self) -> None:
        """Write the record: with it, the folder is one that can be resumed."""
        values = {**asdict(self), "folder": None}
        write_atomically(self.folder / RECORD, json.dumps(values, indent=2).encode())

    def search_config(self) -> SearchConfig:
        """Return the configuration as it was checked."""
        return parse_config(self.config, source=str(self.folder / RECORD))


def plain_config(config: SearchConfig) -> dict[str, Any]:
    """Return a configuration as JSON-ready values; objects become their text."""
    values: dict[str, Any] = json.loads(json.dumps(config.model_dump(), default=_plain))
    return values


def _plain(value: Any) -> Any:
    to_dict = getattr(value, "to_dict", None)
    if callable(to_dict) and hasattr(value, "parameters"):
        return to_dict()
    return str(value) if isinstance(value, Path) else f"<{getattr(value, '__name__', type(value).__name__)}>"


def open_run(name_or_path: str | Path, storage: Path) -> Run:
    """Read the record of a run folder.

    Args:
        name_or_path: A search's name below `storage`, or the path of its run folder.
        storage: Folder of run folders.

    Raises:
        SearchError: There is no such run, or it never got as far as its first trial.
    """
    folder = Path(name_or_path).expanduser()
    if not (folder / RECORD).is_file():
        folder = storage / Path(name_or_path).name
    if not folder.is_dir():
        known = sorted(path.parent.name for path in storage.glob(f"*/{RECORD}"))
        raise SearchError(
            f"no search {str(name_or_path)!r} to resume in {storage}; "
            + (f"there are: {', '.join(known)}" if known else "start it without --resume")
        )
    if not (folder / RECORD).is_file():
        raise SearchError(f"{folder} holds no {RECORD}: the search never began; remove the folder and start it again")
    values = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    return Run(**{**values, "folder": folder.absolute()})
