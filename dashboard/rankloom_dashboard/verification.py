"""Whether files are still what was recorded and, if the server was started with a key, what that key signed.

No page takes the path of a key or of a folder: whoever may look could learn by it what files this machine has.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import streamlit as st

from rankloom_dashboard import data, elements
from rankloom_dashboard.launch import KEY_VARIABLE
from rankloom_registry import Adapter, ArtifactError, PromotionRecord, Registry, SignatureError
from rankloom_registry.signatures import Signatures
from rankloom_registry.signing import Verifier


def signature(adapter: Adapter) -> Path | None:
    """Returns the file of an adapter's signature, whosoever it is; None if nobody has signed it."""
    file = Signatures(data.registry_path()).path(adapter.artifact_sha256)
    return file if file.is_file() else None


def verify(adapter: Adapter) -> None:
    """Hashes an adapter's files again; never remembered, since it asks about the files and not about the database.

    Raises:
        ArtifactError: They are gone or changed.
        SignatureError: The key of the start did not sign them.
    """
    verifier = Verifier(_key()) if _key() else None
    with Registry.open(data.registry_path(), wait_s=data.WAIT_SECONDS, verifier=verifier) as registry:
        registry.verify(adapter)


def offer_adapter(adapter: Adapter) -> None:
    """Offers to hash an adapter's files again."""
    asked = ", and asks that the key of the start signed them" if _key() else " and compares"
    signed = ", and what the key signed" if _key() else ""
    _offer(
        "Verify files",
        lambda: verify(adapter),
        key="verify",
        help=f"Hashes the files again{asked}; nothing is changed.",
        done=f"The files are what the registry recorded{signed}.",
    )
    if not _key() and signature(adapter):
        _advise()


def offer_promotion(record: PromotionRecord) -> None:
    """Offers to check the folder that a promotion made and signed; shows nothing of one that signed none."""
    if record.checks.get("signed") is not True:
        return
    if not _key():
        _advise()
        return
    _offer(
        "Verify signature",
        lambda: Verifier(_key()).verify(record.output_path),
        key=f"verify-{record.promotion_id}",
        help="Hashes every file of the folder, and asks that the key of the start signed them; nothing is changed.",
        done="The folder holds what the key signed, and nothing else.",
    )


def _offer(label: str, check: Callable[[], None], *, key: str, help: str, done: str) -> None:
    if not st.button(label, key=key, help=help):
        return
    try:
        with st.spinner("Hashing the files"):
            check()
    except ArtifactError as error:
        elements.problem("The files are not what the registry recorded.", str(error))
    except SignatureError as error:
        elements.problem("It is not shown that the key signed these files.", str(error))
    else:
        st.success(done)


def _advise() -> None:
    st.caption("It is signed. Whether by the right key, a dashboard can tell that was started with that:")
    st.code("rankloom dashboard --public-key KEY.pub", language="bash")


def _key() -> str:
    """The path of the key of the start; empty if there was none."""
    return os.environ.get(KEY_VARIABLE, "")
