from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import huggingface_hub.constants as constants
import pytest

from rankloom.errors import PromotionError
from rankloom.exports.hub import push_folder

TOKEN = "hf_right"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with small files, large ones, an empty one, and one in a folder within."""
    made = tmp_path / "merged"
    (made / "normalised").mkdir(parents=True)
    (made / "config.json").write_text("{}")
    (made / "README.md").write_text("---\nlicense: mit\n---\n# Title\n")
    (made / "empty.txt").touch()
    (made / "model-00001-of-00002.safetensors").write_bytes(bytes(range(256)) * 40)
    (made / "model-00002-of-00002.safetensors").write_bytes(bytes(range(255, -1, -1)) * 50)
    (made / "normalised" / "adapter_model.safetensors").write_bytes(b"n" * 3000)
    return made


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_bytes_that_arrive_are_the_folders(hub: Any, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    steps: list[tuple[int, int]] = []
    url = push_folder(
        folder, "owner/name", token=TOKEN, endpoint=hub.url, progress=lambda done, total: steps.append((done, total))
    )
    assert url == f"{hub.url}/owner/name/commit/{1:040x}"
    assert hub.files == {"owner/name": contents(folder)}
    assert len(hub.blobs) == 3  # the large ones were not sent within the commit
    assert hub.commits == 1 and hub.visibility == {"owner/name": "private"}
    # Every question carries the token; the addresses of uploads do not need it, and do not get it.
    assert {authorization for _, path, authorization in hub.requests if path[:5] != "/lfs/"} == {f"Bearer {TOKEN}"}
    assert {authorization for _, path, authorization in hub.requests if path[:5] == "/lfs/"} == {None}
    assert "/api/repos/create" in caplog.text and TOKEN not in caplog.text
    total = sum(map(len, contents(folder).values()))
    assert steps[0] == (0, total) and steps[-1] == (total, total) and steps == sorted(steps)


def test_a_second_push_changes_nothing_and_uploads_nothing(hub: Any, folder: Path) -> None:
    first = push_folder(folder, "owner/name", token=TOKEN, endpoint=hub.url)
    before = len([path for method, path, _ in hub.requests if method == "PUT"])
    assert push_folder(folder, "owner/name", token=TOKEN, endpoint=f"{hub.url}/") == first
    assert len([path for method, path, _ in hub.requests if method == "PUT"]) == before
    assert hub.commits == 1 and hub.files["owner/name"] == contents(folder)
    (folder / "config.json").write_text('{"changed": true}')
    assert push_folder(folder, "owner/name", token=TOKEN, endpoint=hub.url) != first
    assert hub.commits == 2 and hub.files["owner/name"] == contents(folder)


def test_it_is_public_only_when_asked(hub: Any, folder: Path) -> None:
    push_folder(folder, "owner/name", private=False, token=TOKEN, endpoint=hub.url)
    assert hub.visibility == {"owner/name": "public"}
    (folder / "config.json").write_text('{"secret": true}')
    with pytest.raises(PromotionError, match="is to be private, but it exists and is public"):
        push_folder(folder, "owner/name", token=TOKEN, endpoint=hub.url)
    assert hub.commits == 1 and hub.files["owner/name"]["config.json"] == b"{}"


def test_weights_of_another_model_are_not_mixed_in(hub: Any, folder: Path) -> None:
    push_folder(folder, "owner/name", token=TOKEN, endpoint=hub.url)
    (folder / "model-00001-of-00002.safetensors").rename(folder / "model.safetensors")
    with pytest.raises(PromotionError, match="holds model-00001-of-00002.safetensors, which is not of this folder"):
        push_folder(folder, "owner/name", token=TOKEN, endpoint=hub.url)
    assert hub.commits == 1


def test_the_environments_token_and_the_logins_are_found(
    hub: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    push_folder(folder, "owner/one", endpoint=hub.url)
    monkeypatch.delenv("HF_TOKEN")
    Path(constants.HF_TOKEN_PATH).write_text(TOKEN)
    push_folder(folder, "owner/two", endpoint=hub.url)
    assert hub.files.keys() == {"owner/one", "owner/two"}


def test_without_a_token_nothing_is_asked(hub: Any, folder: Path) -> None:
    with pytest.raises(PromotionError, match="needs a token: set HF_TOKEN, or log in with `hf auth login`"):
        push_folder(folder, "owner/name", endpoint=hub.url)
    assert hub.requests == []


@pytest.mark.parametrize("repo_id", ["name", "a/b/c", "owner/na me", "owner/..", "owner/-name", "owner/n--m", "/x"])
def test_ids_are_checked_before_anything_is_asked(hub: Any, folder: Path, repo_id: str) -> None:
    with pytest.raises(PromotionError, match="a repository is named 'owner/name', got "):
        push_folder(folder, repo_id, token=TOKEN, endpoint=hub.url)
    assert hub.requests == []


def test_a_torn_token_is_refused_and_not_printed(hub: Any, folder: Path) -> None:
    for token in ("hf_secret\nX-Other: 1", "hf_secrét", "hf secret"):
        with pytest.raises(PromotionError, match="must be one word") as caught:
            push_folder(folder, "owner/name", token=token, endpoint=hub.url)
        assert "secr" not in str(caught.value)
    assert hub.requests == []


def test_only_a_finished_folder_is_pushed(hub: Any, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for missing in (tmp_path / "absent", tmp_path / "empty", folder / "config.json"):
        with pytest.raises(PromotionError, match="only a finished folder"):
            push_folder(missing, "owner/name", token=TOKEN, endpoint=hub.url)
    for place in (tmp_path / "empty", folder / "config.json"):
        (folder / "link").symlink_to(place)
        with pytest.raises(PromotionError, match="is a link"):
            push_folder(folder, "owner/name", token=TOKEN, endpoint=hub.url)
        (folder / "link").unlink()
    assert hub.requests == []


def test_hidden_files_stay_behind(hub: Any, folder: Path) -> None:
    (folder / ".env").write_text("secret")
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("secret")
    push_folder(folder, "owner/name", token=TOKEN, endpoint=hub.url)
    assert {".env", ".git/config"}.isdisjoint(hub.files["owner/name"])


def test_a_wrong_token(hub: Any, folder: Path) -> None:
    with pytest.raises(PromotionError, match=r"does not accept the token \(401\)") as caught:
        push_folder(folder, "owner/name", token="hf_wrong", endpoint=hub.url)
    assert "hf_wrong" not in str(caught.value)
    assert hub.files == {}


@pytest.mark.parametrize(
    ("where", "status", "message"),
    [
        (("POST", "/repos/create"), 403, r"may not write to owner/name \(403\)"),
        (("POST", "/preupload/"), 403, r"may not write to owner/name \(403\)"),
        (("POST", "/preupload/"), 404, r"knows no owner/name \(404\)"),
        (("POST", "/info/lfs/"), 403, r"may not write to owner/name \(403\)"),
        (("PUT", "/lfs/"), 403, r"may not write to owner/name \(403\)"),
        (("PUT", "/lfs/"), 400, r"refused owner/name \(400: Error while uploading '"),
        (("PUT", "/lfs/"), 409, r"refused owner/name \(409: .*409 Conflict' for url 'http://\S+/lfs/\w+'"),
        (("POST", "/commit/"), 413, r"refused owner/name \(413: .*too much"),
        (("POST", "/validate-yaml"), 400, r"refused owner/name \(400: Invalid metadata in README.md. - bad metadata"),
    ],
)
def test_what_the_hub_refuses_is_one_message_and_no_commit(
    hub: Any, folder: Path, where: tuple[str, str], status: int, message: str
) -> None:
    hub.answers[where] = status, {"error": f"too much for {TOKEN}", "errors": [{"message": "bad metadata"}]}
    if where[1] == "/repos/create":
        hub.answers["GET", "/api/models/"] = status, {"error": "no"}
    with pytest.raises(PromotionError, match=message) as caught:
        push_folder(folder, "owner/name", token=TOKEN, endpoint=hub.url)
    assert "\n" not in str(caught.value)
    assert TOKEN not in str(caught.value) and "s3cret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert hub.commits == 0 and not hub.files.get("owner/name")


def test_a_hub_that_is_not_there(hub: Any, folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(
            PromotionError, match=rf"could not be pushed to {endpoint} \(ConnectError.*check the network"
        ):
            push_folder(folder, "owner/name", token=TOKEN, endpoint=endpoint)


@pytest.mark.parametrize("endpoint", ["nonsense", "http://[", "ftp://127.0.0.1"])
def test_an_address_that_is_none(hub: Any, folder: Path, endpoint: str) -> None:
    with pytest.raises(PromotionError, match="could not be pushed to"):
        push_folder(folder, "owner/name", token=TOKEN, endpoint=endpoint)


def test_answers_that_are_not_the_hubs(hub: Any, folder: Path) -> None:
    hub.answers["POST", "/preupload/"] = 200, {"files": "none"}
    with pytest.raises(PromotionError, match="could not be pushed to"):
        push_folder(folder, "owner/name", token=TOKEN, endpoint=hub.url)


def test_offline_is_said(hub: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(PromotionError, match="HF_HUB_OFFLINE is set"):
        push_folder(folder, "owner/name", token=TOKEN, endpoint=hub.url)
    assert hub.requests == []


def test_the_hubs_other_storage_fails_as_plainly(hub: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    hub.answers["GET", "/xet-write-token/"] = 403, {"error": "no"}
    with pytest.raises(PromotionError, match=r"owner/name could not be pushed to .*403 Forbidden") as caught:
        push_folder(folder, "owner/name", token=TOKEN, endpoint=hub.url)
    assert "\n" not in str(caught.value) and TOKEN not in str(caught.value)
    assert hub.commits == 0


def test_a_promotion_is_pushed_once_it_is_recorded(
    hub: Any, world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rankloom.promotion.promote import promote
    from rankloom_registry import Registry

    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    registry = Registry.open(world.registry)
    made = promote(registry, world.adapters[0], tmp_path / "out", format="adapter", push_to_hub="owner/name")
    assert made.url == f"{hub.url}/owner/name/commit/{1:040x}"
    assert hub.files == {"owner/name": contents(tmp_path / "out")}

    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(PromotionError, match=r"is promoted and recorded, but not on the hub: .*hf upload owner/name"):
        promote(registry, world.adapters[0], tmp_path / "more", format="adapter", push_to_hub="owner/name")
    assert (tmp_path / "more" / "README.md").is_file()
    assert [one.status for one in registry.promotions()] == ["done", "done"]
