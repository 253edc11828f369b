from __future__ import annotations

import os
import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rankloom.errors import MergeError, OutputError, PromotionError
from rankloom.outputs import folder_sha256, free_output, publish, unfinished, whole_folder

PLAN = "a" * 64


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def interrupted(output: Path, plan: str | None = PLAN) -> Path:
    with pytest.raises(KeyboardInterrupt), unfinished(output, plan) as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "done").write_text("half")
        raise KeyboardInterrupt
    return folder


@pytest.mark.parametrize("existed", [False, True])
def test_what_is_built_appears_whole_and_leaves_nothing(tmp_path: Path, existed: bool) -> None:
    output = tmp_path / "merged"
    if existed:
        output.mkdir()
    with unfinished(output, PLAN) as folder:
        assert output.exists() == existed and folder.parent == tmp_path
        (folder / "model" / "deep").mkdir(parents=True)
        (folder / "model" / "deep" / "weights").write_bytes(b"w")
        publish(folder / "model", output)
    assert names(tmp_path) == {"merged"} and names(output) == {"deep"}
    assert (output / "deep" / "weights").read_bytes() == b"w"


def test_what_was_interrupted_is_there_again_for_the_same_plan(tmp_path: Path) -> None:
    output = tmp_path / "merged"
    folder = interrupted(output)
    assert names(tmp_path) == {folder.name} and folder.name.startswith(".")
    with unfinished(output, PLAN) as again:
        assert (again / "deep" / "done").read_text() == "half"
    assert names(tmp_path) == set()
    for plan in ("b" * 64, None):
        interrupted(output)
        with unfinished(output, plan) as other:
            assert names(other) <= {"plan"}
    interrupted(output, plan=None)
    assert names(tmp_path) == set()


def test_what_went_wrong_is_gone(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="wrong"), unfinished(tmp_path / "merged", PLAN) as folder:
        (folder / "done").write_text("half")
        raise ValueError("wrong")
    assert names(tmp_path) == set()


@pytest.mark.parametrize("plan", [PLAN, "b" * 64])
def test_what_is_left_of_a_removal_is_not_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan: str) -> None:
    output = tmp_path / "merged"
    interrupted(output)
    remove = shutil.rmtree

    def stopped(path: Path, **options: bool) -> None:
        raise KeyboardInterrupt  # as a kill would: some of it is still there

    monkeypatch.setattr(shutil, "rmtree", stopped)
    with pytest.raises(KeyboardInterrupt), unfinished(output, plan):
        raise ValueError("wrong")
    monkeypatch.setattr(shutil, "rmtree", remove)
    assert (tmp_path / ".merged.partial" / "deep" / "done").exists()
    with unfinished(output, PLAN) as folder:
        assert names(folder) == {"plan"}


KILLED = """
import sys
from pathlib import Path
from rankloom.outputs import unfinished
with unfinished(Path(sys.argv[1]), "a" * 64) as folder:
    (folder / "done").write_text("half")
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_two_processes_do_not_mix_and_a_killed_one_is_in_nobodys_way(tmp_path: Path) -> None:
    output = tmp_path / "merged"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", KILLED, str(output)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as other:
        assert other.stdout is not None and other.stdout.readline() == b"ready\n"
        with pytest.raises(OutputError, match="another process is writing"), unfinished(output, PLAN):
            pass
        other.send_signal(signal.SIGKILL)
    with unfinished(output, PLAN) as folder:
        assert (folder / "done").read_text() == "half"


def test_a_folder_that_its_last_holder_removed_is_not_built_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "merged"
    flock = "rankloom.outputs.fcntl.flock"
    for again in (False, True):

        def removed(descriptor: int, how: int, again: bool = again) -> None:
            shutil.rmtree(tmp_path / ".merged.partial")  # between our opening and our locking
            if again:
                (tmp_path / ".merged.partial").mkdir()

        with monkeypatch.context() as patch:
            patch.setattr(flock, removed)
            with pytest.raises(OutputError, match="another process"), unfinished(output, PLAN):
                pytest.fail("it was built in")


def test_what_another_process_made_meanwhile_is_kept(tmp_path: Path) -> None:
    output = tmp_path / "merged"
    with whole_folder(output) as folder:
        (folder / "w").write_text("theirs")
    with pytest.raises(OutputError, match="new or empty"), unfinished(output, PLAN):
        pytest.fail("it was built again")
    (tmp_path / "other").mkdir()
    with pytest.raises(OutputError, match="new or empty"):
        publish(tmp_path / "other", output)
    assert (output / "w").read_text() == "theirs"


def test_a_link_in_the_place_of_the_hidden_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("kept")
    (tmp_path / ".merged.partial").symlink_to("mine")
    with pytest.raises(OutputError, match="cannot build in"), unfinished(tmp_path / "merged", PLAN):
        pytest.fail("it was followed")
    assert (tmp_path / "mine" / "file").read_text() == "kept"


def test_a_whole_folder_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), whole_folder(tmp_path / "out") as folder:
            (folder / "half").write_text("half")
            raise error
        assert names(tmp_path) == set()
    with whole_folder(tmp_path / "out") as folder, whole_folder(folder / "inner") as inner:
        (inner / "w").write_text("w")
    assert names(tmp_path) == {"out"} and names(tmp_path / "out") == {"inner"}


def test_an_output_is_a_new_folder_or_an_empty_one(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine").write_text("kept")
    (tmp_path / "file").write_text("kept")
    (tmp_path / "link").symlink_to(tmp_path / "none")
    for path in (taken, tmp_path / "file", tmp_path / "link"):
        with pytest.raises(OutputError, match="a new or empty folder") as caught:
            free_output(path)
        assert isinstance(caught.value, MergeError) and isinstance(caught.value, PromotionError)
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    with pytest.raises(OutputError, match="does not exist; make it first"):
        free_output(tmp_path / "none" / "merged")
    with pytest.raises(OutputError, match="begins with no user of this machine; write ./~no-such-user/merged"):
        free_output(Path("~no-such-user/merged"))
    assert free_output(tmp_path / "new") == tmp_path / "new"
    (tmp_path / "empty").mkdir()
    assert free_output(tmp_path / "empty") == tmp_path / "empty"


def test_a_folders_digest_is_that_of_the_usual_tools(tmp_path: Path) -> None:
    for name in ("b", "a", "Z"):
        (tmp_path / name).write_text(name)
    shell = "sha256sum * | sha256sum"
    printed = subprocess.check_output(shell, shell=True, cwd=tmp_path, env=os.environ | {"LC_ALL": "C"}, text=True)
    sums = subprocess.check_output(["sha256sum", "a", "b", "Z"], cwd=tmp_path, text=True).splitlines()
    assert folder_sha256({line.split()[1]: line.split()[0] for line in sums}) == printed.split()[0]
