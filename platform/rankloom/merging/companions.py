"""Which files of a model go along with its weights, wherever they go."""

from __future__ import annotations

from pathlib import Path

from rankloom.outputs import MANIFEST

# What a loader reads, by the names that transformers writes, and what a licence asks to pass on.
_PATTERNS = ("*.json", "*.jinja", "*.txt", "*.model", "LICEN[CS]E*", "NOTICE*", "additional_chat_templates/*.jinja")


def companions(folder: Path) -> list[Path]:
    """Find configuration, tokenizer, chat templates and licence of a model.

    Code stays behind, an index of weights too, and what is said of the folder itself and not of the model.

    Args:
        folder: The model's.

    Returns:
        The files; some may lie in subfolders.
    """
    found = {path for pattern in _PATTERNS for path in folder.glob(pattern) if path.is_file()}
    return sorted(
        path
        for path in found
        if not path.name.startswith((".", "adapter_"))
        and not path.name.endswith(".index.json")
        # A base may be a promoted model itself.
        and path.name != MANIFEST
    )
