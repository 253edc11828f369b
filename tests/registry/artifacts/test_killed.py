"""A process that is killed while it adds, borrows and removes leaves only whole artifacts under their names."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rankloom_registry import ArtifactStore
from rankloom_registry.artifacts.place import ARTIFACTS

Make = Callable[..., Path]

WORK = """
import itertools, sys
from pathlib import Path
from rankloom_registry import ArtifactStore
store = ArtifactStore(Path(sys.argv[1]))
print("ready", flush=True)
for number in itertools.count():
    addresses = [store.add(folder) for folder in sys.argv[2:]]
    print(*addresses, flush=True)
    if number % 2:
        for address in reversed(addresses):
            store.remove(address)
"""


@pytest.mark.parametrize("seed", range(5))
def test_whatever_has_its_name_is_whole(
    tmp_path: Path, two_tensors: Make, child_environment: dict[str, str], seed: int
) -> None:
    store = ArtifactStore(tmp_path / "store")
    sources = [two_tensors("1", 1, 2), two_tensors("2", 1, 3), two_tensors("3", 3, 4)]
    wait = random.Random(seed)
    for _ in range(3):
        command = [sys.executable, "-c", WORK, str(store.root), *map(str, sources)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=child_environment, text=True) as process:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
            time.sleep(wait.uniform(0.0, 0.25))
            process.send_signal(signal.SIGKILL)
        for folder in (tmp_path / "store").glob(f"{ARTIFACTS}/*/*"):
            store.verify(folder.name)
        for entry in [*(tmp_path / "store").glob("tensors/*/[!.]*")]:
            assert json.loads(entry.read_bytes())["artifact"]
    for source in sources:
        copy = store.checkout(store.add(source))
        assert (copy / "adapter_model.safetensors").read_bytes() == (source / "adapter_model.safetensors").read_bytes()
