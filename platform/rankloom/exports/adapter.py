"""The adapter alone: PEFT's folder, and where an engine would misread it, its normalised form beside it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from rankloom.exports.normalised import normalise
from rankloom.exports.verdicts import verdicts
from rankloom.outputs import whole_folder
from rankloom_registry.artifacts.place import CONFIG, MANIFEST

NORMALISED = "normalised"


def export_adapter(files: Path, output: Path, *, base_name: str, card: str | None = None) -> None:
    """Copy an adapter out of the registry as a folder that PEFT loads.

    Args:
        files: The adapter's files, as `Registry.checkout` gave them.
        output: Folder to make; it may exist only if it is empty. Its subfolder `normalised` is made where one of the
            `verdicts` needs it.
        base_name: Hub id or path of the base, for PEFT to find.
        card: README.md; by default the adapter's own, if it has one.

    Raises:
        PromotionError: The files are not an adapter's, or the output exists.
        ArtifactError: The weights are not a sound safetensors file.
    """
    found = verdicts(files)
    with whole_folder(output) as folder:
        for file in files.iterdir():
            if file.name != MANIFEST:
                shutil.copyfile(file, folder / file.name)  # without its mode: what the registry keeps is read-only
        values = json.loads((folder / CONFIG).read_bytes()) | {"base_model_name_or_path": base_name}
        (folder / CONFIG).write_text(json.dumps(values, indent=2, sort_keys=True), encoding="utf-8")
        if card is not None:
            (folder / "README.md").write_text(card, encoding="utf-8")
        if any(verdict.needs_normalised for verdict in found):
            normalise(folder, folder / NORMALISED)
