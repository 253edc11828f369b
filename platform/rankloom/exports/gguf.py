"""GGUF files for llama.cpp and what is built on it: a merged model, or a LoRA to lay over its base.

The conversion is llama.cpp's own. PyPI has its converter inside auto-round, which keeps it up to date under a name of
its own and works with the official `gguf` package; both come with the `gguf` extra. `gguf_worker` runs it in a process
of its own. `LLAMA_CPP_ROOT`, the folder of a llama.cpp checkout, puts another version of the converter before it.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rankloom.errors import MergeError, ModelError
from rankloom.merging.changes import Change, LoraUpdate
from rankloom_registry.errors import FingerprintError
from rankloom_registry.files import sync_folder
from rankloom_registry.formats.checkpoint import Checkpoint, open_checkpoint

# Bits a weight. The two small types are for the matrices of attention and feed-forward; the rest is q8_0 then.
_BITS = {"f32": 32.0, "bf16": 16.0, "f16": 16.0, "q8_0": 8.5, "q5_1": 6.0, "q4_1": 5.0}
GGUF_TYPES = tuple(_BITS)
GGUF_LORA_TYPES = ("f32", "bf16", "f16")

OnBytes = Callable[[int, int], None]


def export_gguf(merged: Path, output: Path, *, type: str, progress: OnBytes | None = None) -> None:
    """Convert a model to GGUF, tokenizer and chat template included.

    Args:
        merged: Folder of an unquantized Transformers model in safetensors, with its tokenizer.
        output: The .gguf file to make; it appears whole or not at all.
        type: How weights are stored: 'f32', 'bf16', 'f16', 'q8_0', or smaller, 'q5_1' or 'q4_1'.
        progress: Called with (bytes written, bytes in total); the total is an estimate.

    Raises:
        ModelError: The converter does not know the architecture or the tokenizer, the folder is no such model, or
            the `gguf` extra is not installed. Nothing is left behind.
    """
    _check_request(output, type, GGUF_TYPES)
    checkpoint = _open(merged)
    expected = sum(math.prod(span.shape) for span in checkpoint.tensors.values()) * _BITS[type] / 8
    _convert(output, {"model": str(merged.absolute()), "type": type}, int(expected), progress)


def export_gguf_lora(adapter: Path, base: Path, output: Path, *, type: str = "f16") -> None:
    """Convert a LoRA adapter to GGUF, for `llama-server --lora` and Ollama's `ADAPTER`.

    Each module's scale goes into its B, so rank-stabilized scales and patterns come out right from any adapter, a
    normalised one included. Ranks are made equal with zeros.

    Args:
        adapter: Folder with PEFT's `adapter_config.json` and `adapter_model.safetensors`: plain LoRA or rsLoRA.
        base: Folder of its full-precision base in safetensors.
        output: The .gguf file to make; it appears whole or not at all.
        type: How A and B are stored: 'f32', 'bf16' or 'f16'.

    Raises:
        MergeError: The adapter is not plain LoRA, or does not fit the base.
        ModelError: llama.cpp has no place for one of its modules, or what `export_gguf` raises it for.
    """
    from rankloom.merging.merge import planned_merge

    _check_request(output, type, GGUF_LORA_TYPES)
    _open(base)
    with planned_merge(adapter, base, "full-precision", None) as plan:
        updates = [_plain_update(name, change) for name, change in plan.changes.items()]
    request = {
        "model": str(base.absolute()),
        "adapter": str(adapter.absolute()),
        "type": type,
        "updates": updates,
    }
    _convert(output, request, 0, None)


def require_converter() -> None:
    """Check that GGUF files can be made here at all.

    Raises:
        ModelError: The `gguf` extra is not installed.
    """
    if missing := [name for name in ("auto_round", "gguf") if importlib.util.find_spec(name) is None]:
        raise ModelError(f"GGUF files need {' and '.join(missing)}: pip install 'rankloom[gguf]'")


def _plain_update(name: str, change: Change) -> dict[str, Any]:
    """What one matrix receives, if it is nothing but scale · B·A."""
    match change.updates:
        case (LoraUpdate(magnitude=None, experts=1, first_row=0) as update,) if change.replaced_by is None:
            return {"target": name, "transposed": change.transposed, **asdict(update)}
    raise MergeError(
        f"llama.cpp takes plain LoRA of whole matrices, but {name} receives more than that; "
        "merge the adapter, and export the model as GGUF"
    )


def _check_request(output: Path, type: str, types: tuple[str, ...]) -> None:
    if type not in types:
        raise ModelError(f"this GGUF file can be stored as {', '.join(types)}, got {type!r}; choose one of them")
    if output.suffix != ".gguf" or output.exists():
        raise ModelError(f"the output must be a new .gguf file, got {output}; choose another name, or remove it first")
    require_converter()


def _open(folder: Path) -> Checkpoint:
    try:
        checkpoint = open_checkpoint(folder)
    except FingerprintError as error:
        raise ModelError(str(error)) from error
    if not checkpoint.config or checkpoint.quantization:
        raise ModelError(
            f"GGUF is made of a model whose config.json has no quantization_config, got {folder}; "
            "give the folder of the full-precision model"
        )
    return checkpoint


def _convert(output: Path, request: dict[str, Any], expected: int, progress: OnBytes | None) -> None:
    from rankloom.exports import gguf_worker

    with _staged(output) as file:
        asked, said, log = (file.with_suffix(suffix) for suffix in (".json", ".out", ".log"))
        # An adapter of a large model asks for more than an argument may hold.
        asked.write_text(json.dumps({**request, "output": str(file), "name": output.stem}), encoding="utf-8")
        with (
            said.open("wb") as stdout,
            log.open("wb") as stderr,
            # -P: this folder has modules that are named like packages, `gguf` for one. The pipe is never written to:
            # it closes when this process ends, however that happens, and then the worker leaves, too.
            subprocess.Popen(
                [sys.executable, "-P", gguf_worker.__file__, asked],
                stdin=subprocess.PIPE,
                stdout=stdout,
                stderr=stderr,
                env={**os.environ, "HF_HUB_OFFLINE": "1", "AUTO_ROUND_GGUF_AUTO_UPDATE": "0"},
            ) as worker,
        ):
            try:
                while worker.poll() is None:
                    with suppress(subprocess.TimeoutExpired):
                        worker.wait(timeout=0.2)
                    _report(file, expected, progress)
            finally:
                worker.kill()
        if worker.returncode == gguf_worker.REFUSED:
            raise ModelError(_last_line(said))
        if worker.returncode < 0:
            raise ModelError(
                f"llama.cpp's converter was ended by {signal.Signals(-worker.returncode).name} on {request['model']}; "
                "is there memory enough? export it again"
            )
        if worker.returncode:
            raise ModelError(
                f"llama.cpp's converter failed on {request['model']}: {_last_line(log)}; is the model whole, and "
                "auto-round new enough to know it?"
            )
    if progress is not None:
        size = output.stat().st_size
        progress(size, size)


def _last_line(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace").strip().rpartition("\n")[2]


def _report(file: Path, expected: int, progress: OnBytes | None) -> None:
    if progress is not None and file.exists():
        written = file.stat().st_size
        progress(written, max(written, expected))


@contextmanager
def _staged(output: Path) -> Iterator[Path]:
    """A file name in a folder beside `output`; the file takes its own name at the end, and the folder goes."""
    folder = output.absolute().with_name(f".{output.name}.{os.getpid()}.tmp")
    shutil.rmtree(folder, ignore_errors=True)  # In a container, an export that was killed had this process id too.
    folder.mkdir()
    try:
        file = folder / "model.gguf"
        yield file
        with file.open("rb") as written:
            os.fsync(written.fileno())
        file.rename(output)
        sync_folder(output.absolute().parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
