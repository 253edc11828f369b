"""Signs a folder of model files, and says whether a folder is still what was signed.

The signature is that of OpenSSF Model Signing, in the file where its own tool `model_signing` looks for it: a Sigstore
bundle that holds the SHA-256 of every file (https://github.com/sigstore/model-transparency).
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from rankloom_registry.errors import SignatureError
from rankloom_registry.files import write_atomically
from rankloom_registry.query.frames import require

SIGNATURE = "model.sig"
_REQUIREMENT = "rankloom[signing]"


def sign(
    folder: str | os.PathLike[str],
    *,
    private_key: str | os.PathLike[str] | None = None,
    password: str | None = None,
    identity_token: str | None = None,
    signature: str | os.PathLike[str] | None = None,
) -> Path:
    """Sign every file of a folder.

    Args:
        folder: It holds regular files only.
        private_key: An elliptic-curve key (P-256, P-384 or P-521) in a PEM file. Without one, Sigstore signs in the
            name of whoever runs this: it needs a network, and writes that name into a public log.
        password: Of the key, if it has one.
        identity_token: An OpenID Connect token for Sigstore; by default the one that the environment offers, as on
            GitHub Actions, or one that the browser is asked for.
        signature: Where the signature goes; by default `model.sig` in the folder. One that is there is replaced.

    Returns:
        Where the signature is.

    Raises:
        MissingPackageError: If the package model-signing is not installed.
        SignatureError: If the key cannot be used, or the folder cannot be signed.
    """
    signing = require("model_signing.signing", _REQUIREMENT)
    source, target = _places(folder, signature)
    config = signing.Config()
    try:
        if private_key is not None:
            # Bytes, whatever its annotation says: model-signing 1.1 hands it to a function that takes nothing else.
            secret = None if password is None else password.encode()
            config.use_elliptic_key_signer(private_key=Path(private_key), password=secret)
        else:
            config.use_sigstore_signer(use_ambient_credentials=True, identity_token=identity_token)
        config.set_hashing_config(_hashing(source))
        with tempfile.TemporaryDirectory() as elsewhere:
            unfinished = Path(elsewhere) / SIGNATURE
            config.sign(source, unfinished)
            write_atomically(target, unfinished.read_bytes())
    except _failures() as error:
        raise SignatureError(f"cannot sign {source}: {_said(error)}; check the key and the folder") from error
    return target


def verify(
    folder: str | os.PathLike[str],
    *,
    public_key: str | os.PathLike[str] | None = None,
    identity: str | None = None,
    oidc_issuer: str | None = None,
    signature: str | os.PathLike[str] | None = None,
) -> None:
    """Check that a folder holds the files that were signed, and no other.

    Args:
        folder: As given to `sign`, or a copy.
        public_key: That of the key that must have signed, in a PEM file.
        identity: For Sigstore: who must have signed, such as an e-mail address.
        oidc_issuer: For Sigstore: who vouches for that, such as `https://accounts.google.com`.
        signature: Where the signature is; by default `model.sig` in the folder.

    Raises:
        MissingPackageError: If the package model-signing is not installed.
        SignatureError: If there is no signature, it was made by another, or a file was changed, added or removed.
    """
    if (public_key is None) == (identity is None or oidc_issuer is None):
        raise SignatureError("a signature is checked against a public key, or an identity with its oidc_issuer")
    verifying = require("model_signing.verifying", _REQUIREMENT)
    source, place = _places(folder, signature)
    if not place.is_file():
        raise SignatureError(f"{source} is not signed: there is no {place}; ask for a signed copy, or sign it")
    config = verifying.Config()
    try:
        if public_key is not None:
            config.use_elliptic_key_verifier(public_key=Path(public_key))
        else:
            config.use_sigstore_verifier(identity=identity, oidc_issuer=oidc_issuer)
        config.set_hashing_config(_hashing(source))
        config.verify(source, place)
    except _failures() as error:
        raise SignatureError(f"{source} is not what was signed: {_said(error)}; do not load it") from error


def _places(folder: str | os.PathLike[str], signature: str | os.PathLike[str] | None) -> tuple[Path, Path]:
    source = Path(folder).absolute()
    if not source.is_dir():
        raise SignatureError(f"{source} is not a folder; give the folder of a model or an adapter")
    return source, source / SIGNATURE if signature is None else Path(signature).absolute()


def _hashing(folder: Path) -> Any:
    """Every file but the signature itself: by default the library skips what Git keeps, which could then be added."""
    hashing = require("model_signing.hashing", _REQUIREMENT)
    return hashing.Config().set_ignored_paths(paths=[folder / SIGNATURE], ignore_git_paths=False)


def _failures() -> tuple[type[Exception], ...]:
    from cryptography.exceptions import InvalidSignature
    from sigstore.errors import Error

    # A damaged bundle is read field by field.
    return (InvalidSignature, Error, ValueError, TypeError, KeyError, AttributeError, IndexError, OSError)


def _said(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
