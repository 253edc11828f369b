"""Uploads a finished folder to the Hugging Face hub, in one commit."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rankloom.errors import PromotionError

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

_TOKEN = re.compile(r"[\x21-\x7e]+")
_WEIGHTS = (".safetensors", ".safetensors.index.json")


def push_folder(
    folder: Path,
    repo_id: str,
    *,
    private: bool = True,
    token: str | None = None,
    endpoint: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> str:
    """Upload a folder to a model repository on the hub, which is made if need be.

    The large files go first; then one commit names them all, so that the repository never holds half a model. What the
    hub has already is not uploaded again.

    Args:
        folder: A finished folder: hidden files stay behind.
        repo_id: 'owner/name'.
        private: Whether the repository must be private: one that is there and public is then refused.
        token: A token that may write; by default that of the environment (`HF_TOKEN`) or of `hf auth login`.
        endpoint: Address of the hub; by default `HF_ENDPOINT` or https://huggingface.co.
        progress: Called with (bytes of the files uploaded, bytes of all) before the first file and after each.

    Returns:
        The URL of the commit; of the latest one, if the repository holds just these files already.

    Raises:
        PromotionError: There is no token, the id, token or folder cannot be used, or the hub refuses or cannot be
            reached. The message never holds the token.
    """
    from httpx2 import HTTPError, InvalidURL
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HFValidationError

    files = _files(folder)
    token = token_for(repo_id, token)
    total, done = sum(path.stat().st_size for path in files.values()), 0
    tell = progress or (lambda done, total: None)
    # Trailing slashes would make addresses with two in a row.
    api = HfApi(endpoint=endpoint.rstrip("/") if endpoint else None, token=token, library_name="rankloom")
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        _check_repository(api.model_info(repo_id), files, private)
        additions = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in files.items()]
        tell(done, total)
        for addition in additions:
            api.preupload_lfs_files(repo_id, [addition], free_memory=False)
            done += addition.upload_info.size
            tell(done, total)
        commit = api.create_commit(repo_id, additions, commit_message=f"Upload {folder.absolute().name}")
    except PromotionError:
        raise
    except HFValidationError as error:
        raise PromotionError(f"a repository is named 'owner/name', got {repo_id!r}: {error}") from None
    # Uploads of several files at once wrap what went wrong in a RuntimeError, bad answers are ValueErrors.
    except (HTTPError, InvalidURL, OSError, ValueError, RuntimeError) as error:
        # Without the cause: its text may hold what the hub was sent.
        raise PromotionError(_explain(error, repo_id, api.endpoint, token)) from None
    return commit.commit_url


def token_for(repo_id: str, token: str | None = None) -> str:
    """Return the token with which a repository would be written to: what can be known before anything is uploaded.

    Args:
        repo_id: 'owner/name'.
        token: One of the caller's own; by default that of the environment (`HF_TOKEN`) or of `hf auth login`.

    Raises:
        PromotionError: There is no token, or it or the repository's name cannot be one.
    """
    from huggingface_hub import get_token

    if repo_id.count("/") != 1:
        raise PromotionError(f"a repository is named 'owner/name', got {repo_id!r}: name both")
    token = token or get_token()
    if not token:
        raise PromotionError("pushing to the hub needs a token: set HF_TOKEN, or log in with `hf auth login`")
    if not _TOKEN.fullmatch(token):
        raise PromotionError("the hub's token must be one word of ASCII letters, digits and signs; copy it again")
    return token


def _files(folder: Path) -> dict[str, Path]:
    """The files of a folder by their names in the repository."""
    if not folder.is_dir():
        raise PromotionError(f"only a finished folder can be pushed, but there is none at {folder}; check the path")
    paths = [path for path in sorted(folder.rglob("*")) if path.is_symlink() or not path.is_dir()]
    found = {path.relative_to(folder).as_posix(): path for path in paths}
    files = {name: path for name, path in found.items() if not any(part.startswith(".") for part in name.split("/"))}
    if not files:
        raise PromotionError(f"only a finished folder can be pushed, but {folder} holds no file; check the path")
    if links := sorted(name for name, path in files.items() if path.is_symlink()):
        raise PromotionError(f"{folder / links[0]} is a link, and links are not followed; copy the folder first")
    return files


def _check_repository(info: ModelInfo, files: dict[str, Path], private: bool) -> None:
    if private and not info.private:
        raise PromotionError(
            f"{info.id} is to be private, but it exists and is public; "
            "make it private on the hub, name another, or ask for a public one"
        )
    # A loader takes every weight file that it finds by its name: a model of old shards and new ones is neither.
    there = {sibling.rfilename for sibling in info.siblings or ()}
    if stale := sorted(name for name in there - files.keys() if name.endswith(_WEIGHTS)):
        raise PromotionError(
            f"{info.id} holds {stale[0]}, which is not of this folder and would be loaded with it; "
            "delete it on the hub, or name another repository"
        )


def _explain(error: BaseException, repo_id: str, endpoint: str, token: str) -> str:
    """One message for whatever went wrong between here and the hub."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, HfHubHTTPError):
        cause = cause.__cause__
    texts = [" ".join(str(part).split()) for part in dict.fromkeys((error, cause)) if part is not None]
    # An address's query may be the permission to upload to it.
    said = re.sub(r"(://[^\s?]*)\?[^\s'\"]*", r"\1", ": ".join(texts).replace(token, "***"))[:300]
    if isinstance(error, OfflineModeIsEnabled):
        return f"{repo_id} cannot be pushed while HF_HUB_OFFLINE is set; unset it"
    if not isinstance(cause, HfHubHTTPError):
        return (
            f"{repo_id} could not be pushed to {endpoint} ({type(error).__name__}: {said}); "
            "check the network and push again"
        )
    match cause.response.status_code:
        case 401:
            return (
                f"the hub at {endpoint} does not accept the token (401); renew HF_TOKEN, or log in with `hf auth login`"
            )
        case 403:
            return f"the token may not write to {repo_id} (403); give it write access, or name another repository"
        case 404:
            return f"the hub at {endpoint} knows no {repo_id} (404), or the token may not see it; check owner and name"
        case status:
            return f"the hub at {endpoint} refused {repo_id} ({status}: {said}); push again once that is mended"
