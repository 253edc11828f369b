from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rankloom.errors import PromotionError
from rankloom.promotion.staging import let_out, output_folder, staged

PLAN = {"adapter": "a" * 64, "recipe": "full-precision"}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_what_is_built_appears_whole_and_leaves_nothing(tmp_path: Path) -> None:
    output = tmp_path / "merged"
    with staged(output, PLAN) as folder:
        assert not output.exists() and folder.parent == tmp_path
        (folder / "model" / "deep").mkdir(parents=True)
        (folder / "model" / "deep" / "weights").write_bytes(b"w")
        let_out(folder / "model", output)
    assert names(tmp_path) == {"merged"} and (output / "deep" / "weights").read_bytes() == b"w"


def test_an_empty_output_is_taken(tmp_path: Path) -> None:
    output = tmp_path / "merged"
    output.mkdir()
    with staged(output, PLAN) as folder:
        (folder / "model").mkdir()
        (folder / "model" / "w").write_text("w")
        let_out(folder / "model", output)
    assert names(output) == {"w"}


def test_what_was_interrupted_is_there_again_for_the_same_plan(tmp_path: Path) -> None:
    output = tmp_path / "merged"
    with pytest.raises(KeyboardInterrupt), staged(output, PLAN) as folder:
        (folder / "done").write_text("half")
        raise KeyboardInterrupt
    assert names(tmp_path) == {folder.name} and folder.name.startswith(".")
    with staged(output, PLAN) as again:
        assert (again / "done").read_text() == "half"
    with pytest.raises(KeyboardInterrupt), staged(output, PLAN) as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "done").write_text("half")
        raise KeyboardInterrupt
    with staged(output, PLAN | {"recipe": "as-trained"}) as other:
        assert names(other) == {"plan.json"}
    assert names(tmp_path) == set()


def test_what_went_wrong_is_gone(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="wrong"), staged(tmp_path / "merged", PLAN) as folder:
        (folder / "done").write_text("half")
        raise ValueError("wrong")
    assert names(tmp_path) == set()


KILLED = """
import os, signal, sys
from pathlib import Path
from rankloom.promotion.staging import staged
with staged(Path(sys.argv[1]), {"adapter": "a" * 64, "recipe": "full-precision"}) as folder:
    (folder / "done").write_text("half")
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_two_promotions_to_one_output_do_not_mix_and_a_killed_one_is_in_nobodys_way(tmp_path: Path) -> None:
    output = tmp_path / "merged"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", KILLED, str(output)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as other:
        assert other.stdout is not None and other.stdout.readline() == b"ready\n"
        with pytest.raises(PromotionError, match="another promotion is writing"), staged(output, PLAN):
            pass
        other.send_signal(signal.SIGKILL)
    with staged(output, PLAN) as folder:
        assert (folder / "done").read_text() == "half"


def test_an_output_is_a_new_folder_or_an_empty_one(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine").write_text("kept")
    (tmp_path / "file").write_text("kept")
    (tmp_path / "link").symlink_to(tmp_path / "none")
    for path in (taken, tmp_path / "file", tmp_path / "link"):
        with pytest.raises(PromotionError, match="exists and is not empty"):
            output_folder(path)
    with pytest.raises(PromotionError, match="does not exist"):
        output_folder(tmp_path / "none" / "merged")
    assert output_folder(tmp_path / "new") == tmp_path / "new"
