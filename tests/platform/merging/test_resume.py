from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rankloom.errors import MergeError
from rankloom.merging.merge import MergeReport, merge_adapter

SHARDS = 6


@pytest.fixture(scope="module")
def saved(made: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    made.adapter(folder / "adapter", made.base(folder / "base", dtype=torch.bfloat16, max_shard_size="14KB"))
    return folder


@pytest.fixture
def world(tmp_path: Path, saved: Path) -> Path:
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    assert len(list((tmp_path / "base").glob("*.safetensors"))) >= SHARDS
    return tmp_path


def merge(world: Path, output: str = "merged", **options: Any) -> MergeReport:
    return merge_adapter(adapter=world / "adapter", base=world / "base", output=world / output, **options)


def names(world: Path) -> set[str]:
    return {path.name for path in world.iterdir()}


def interrupt_after(files: int, world: Path) -> Callable[[int, int], None]:
    """Stops a merge at three quarters, once its journal names this many files."""

    def interrupt(done: int, total: int) -> None:
        assert not (world / "merged").exists()
        if done > 0.75 * total:
            wait_for(files, world)
            raise KeyboardInterrupt

    return interrupt


def wait_for(files: int, world: Path) -> None:
    while len(finished(world)) < files:  # they are synced by a thread of their own
        time.sleep(0.01)


def finished(world: Path) -> list[str]:
    journal = world / ".merged.partial" / "journal"
    return [line.split("  ")[1] for line in journal.read_text().split("\n")[:-1]] if journal.exists() else []


def test_interrupted_merge_goes_on(world: Path) -> None:
    whole = merge(world, "whole")
    with pytest.raises(KeyboardInterrupt):
        merge(world, progress=interrupt_after(3, world))
    assert names(world) == {"base", "adapter", "whole", ".merged.partial"}
    kept = {name: (world / ".merged.partial/model" / name).stat().st_ino for name in finished(world)}
    calls: list[tuple[int, int]] = []
    report = merge(world, progress=lambda *call: calls.append(call))
    assert report.resumed_files == len(kept) >= 3 and whole.resumed_files == 0
    assert report.output_sha256 == whole.output_sha256
    assert {name: (world / "merged" / name).stat().st_ino for name in kept} == kept
    assert calls[0][0] == sum((world / "merged" / name).stat().st_size for name in kept) and len(set(calls)) > 1
    assert calls[-1] == (whole.bytes_written, whole.bytes_written)
    assert names(world) == {"base", "adapter", "whole", "merged"}
    assert {path.name for path in (world / "merged").iterdir()} == {path.name for path in (world / "whole").iterdir()}


def killed(world: Path, ready: Any) -> None:
    def progress(done: int, total: int) -> None:
        if done > 0.75 * total:
            wait_for(2, world)
            ready.set()
            signal.pause()

    merge(world, progress=progress)


def test_killed_merge_goes_on(world: Path) -> None:
    whole = merge(world, "whole")
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=killed, args=(world, ready), daemon=True)
    process.start()
    assert ready.wait(60)
    with pytest.raises(MergeError, match="another process is writing"):
        merge(world)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not (world / "merged").exists()
    report = merge(world)
    assert report.resumed_files >= 2 and report.output_sha256 == whole.output_sha256


@pytest.mark.parametrize("harm", ["cut", "changed", "unknown", "torn line"])
def test_what_is_not_as_the_journal_says_is_made_again(world: Path, harm: str) -> None:
    whole = merge(world, "whole")
    with pytest.raises(KeyboardInterrupt):
        merge(world, progress=interrupt_after(3, world))
    folder = world / ".merged.partial/model"
    done = finished(world)
    if harm == "cut":
        os.truncate(folder / done[0], 10)
    elif harm == "changed":
        data = bytearray((folder / done[0]).read_bytes())
        data[-1] ^= 1
        (folder / done[0]).write_bytes(data)
    elif harm == "unknown":
        (folder / "evil.safetensors").write_bytes(b"x")
    else:
        journal = folder.parent / "journal"
        journal.write_text(journal.read_text().rstrip("\n")[:-4])
    report = merge(world)
    assert report.resumed_files == len(done) - (harm != "unknown")
    assert report.output_sha256 == whole.output_sha256
    assert not (world / "merged" / "evil.safetensors").exists()


@pytest.mark.parametrize("other", ["adapter", "base", "recipe"])
def test_another_plan_starts_afresh(made: Any, world: Path, other: str) -> None:
    from rankloom.config import QuantizationConfig

    with pytest.raises(KeyboardInterrupt):
        merge(world, progress=interrupt_after(3, world))
    options: dict[str, Any] = {}
    if other == "adapter":
        config = world / "adapter/adapter_config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"lora_alpha": 9}))
    elif other == "base":
        shard = next((world / "base").glob("*.safetensors"))
        shard.write_bytes(shard.read_bytes())
    else:
        options = {"recipe": "as-trained", "quantization": QuantizationConfig()}
    report = merge(world, **options)
    assert report.resumed_files == 0
    assert report.output_sha256 == merge(world, "again", **options).output_sha256


def test_a_refusal_midway_leaves_nothing(world: Path) -> None:
    from safetensors.torch import load_file, save_file

    shard = max((world / "base").glob("*.safetensors"))
    weights = load_file(shard)
    name = next(name for name in weights if "down_proj" in name or "up_proj" in name)
    weights[name].view(-1)[5] = float("nan")
    save_file(weights, shard, metadata={"format": "pt"})
    with pytest.raises(MergeError, match=f"{name} must be finite"):
        merge(world)
    assert names(world) == {"base", "adapter"}


@pytest.mark.parametrize("small_disk", ["256k"], indirect=True)
def test_a_disk_that_fills_up_is_refused(world: Path, small_disk: Path) -> None:
    def fill(done: int, total: int) -> None:
        if done > total // 2:
            with (small_disk / "other").open("ab", buffering=0) as file:
                try:
                    while True:
                        file.write(bytes(4096))
                except OSError as error:
                    assert error.errno == errno.ENOSPC

    with pytest.raises(MergeError, match="filled up meanwhile"):
        merge_adapter(adapter=world / "adapter", base=world / "base", output=small_disk / "merged", progress=fill)
    assert names(small_disk) == {"other"}
    (small_disk / "other").unlink()
    merge_adapter(adapter=world / "adapter", base=world / "base", output=small_disk / "merged")
    assert names(small_disk) == {"merged"}
