"""Signs a folder of model files, and says whether a folder is still what was signed.

The signature is that of OpenSSF Model Signing, in the file where its own tool `model_signing` looks for it: a Sigstore
bundle that holds the SHA-256 of every file (https://github.com/sigstore/model-transparency).
"""

from __future__ import annotations

import ast
import os
import tempfile
from pathlib import Path
from typing import Any

from rankloom_registry.errors import SignatureError
from rankloom_registry.files import write_atomically
from rankloom_registry.query.frames import require

SIGNATURE = "model.sig"
_REQUIREMENT = "rankloom[signing]"
_KEY = "give an elliptic-curve key (P-256, P-384 or P-521) in a PEM file"
_ONLINE = "Sigstore needs a network; a key does not"


class Signer:
    """Signs folders; its key is read when it is made, so that a key of no use is known before there is work to sign.

    Args:
        private_key: An elliptic-curve key (P-256, P-384 or P-521) in a PEM file. Without one, Sigstore signs in the
            name of whoever runs this: it needs a network, and writes that name into a public log.
        password: Of the key, if it has one.
        identity_token: An OpenID Connect token for Sigstore; by default the one that the environment offers, as on
            GitHub Actions, or one that the browser is asked for.

    Raises:
        MissingPackageError: If the package model-signing is not installed.
        SignatureError: If the key cannot be used, or Sigstore cannot be reached.
    """

    def __init__(
        self,
        private_key: str | os.PathLike[str] | None = None,
        *,
        password: str | None = None,
        identity_token: str | None = None,
    ) -> None:
        self._config = require("model_signing.signing", _REQUIREMENT).Config()
        try:
            if private_key is not None:
                # Bytes, whatever its annotation says: model-signing 1.1 hands it to a function that takes nothing else.
                secret = None if password is None else password.encode()
                self._config.use_elliptic_key_signer(private_key=Path(private_key), password=secret)
            else:
                self._config.use_sigstore_signer(use_ambient_credentials=True, identity_token=identity_token)
        except _failures() as error:
            way = "through Sigstore" if private_key is None else f"with {private_key}"
            advice = _ONLINE if private_key is None else f"{_KEY}, and its password if it has one"
            raise SignatureError(f"cannot sign {way}: {_said(error)}; {advice}") from error

    def sign(self, folder: str | os.PathLike[str], *, signature: str | os.PathLike[str] | None = None) -> Path:
        """Sign every file of a folder.

        Args:
            folder: It holds regular files only.
            signature: Where the signature goes; by default `model.sig` in the folder. One that is there is replaced.

        Returns:
            Where the signature is.

        Raises:
            SignatureError: If the folder cannot be signed.
        """
        source, target = _places(folder, signature)
        try:
            self._config.set_hashing_config(_hashing(source))
            with tempfile.TemporaryDirectory() as elsewhere:
                unfinished = Path(elsewhere) / SIGNATURE
                self._config.sign(source, unfinished)
                write_atomically(target, unfinished.read_bytes())
        except _failures() as error:
            raise SignatureError(f"cannot sign {source}: {_said(error)}; check the folder") from error
        return target


class Verifier:
    """Says whether folders are what somebody signed.

    Args:
        public_key: That of the key that must have signed, in a PEM file.
        identity: For Sigstore: who must have signed, such as an e-mail address.
        oidc_issuer: For Sigstore: who vouches for that, such as `https://accounts.google.com`.

    Raises:
        MissingPackageError: If the package model-signing is not installed.
        SignatureError: If the key cannot be used, or it is not said who must have signed.
    """

    def __init__(
        self,
        public_key: str | os.PathLike[str] | None = None,
        *,
        identity: str | None = None,
        oidc_issuer: str | None = None,
    ) -> None:
        said = tuple(one is not None for one in (public_key, identity, oidc_issuer))
        if said not in ((True, False, False), (False, True, True)):
            raise SignatureError("a signature is checked against a public key, or an identity with its oidc_issuer")
        self._config = require("model_signing.verifying", _REQUIREMENT).Config()
        try:
            if public_key is not None:
                self._config.use_elliptic_key_verifier(public_key=Path(public_key))
            else:
                self._config.use_sigstore_verifier(identity=identity, oidc_issuer=oidc_issuer)
        except _failures() as error:
            who, advice = (identity, _ONLINE) if public_key is None else (public_key, _KEY)
            raise SignatureError(f"cannot check signatures against {who}: {_said(error)}; {advice}") from error

    def verify(self, folder: str | os.PathLike[str], *, signature: str | os.PathLike[str] | None = None) -> None:
        """Check that a folder holds the files that were signed, and no other.

        Args:
            folder: As it was signed, or a copy.
            signature: Where the signature is; by default `model.sig` in the folder.

        Raises:
            SignatureError: If there is no signature, it was made by another, or a file was changed, added or removed.
        """
        source, place = _places(folder, signature)
        if not place.is_file():
            raise SignatureError(f"{source} is not signed: there is no {place}; ask for a signed copy, or sign it")
        try:
            self._config.set_hashing_config(_hashing(source))
            self._config.verify(source, place)
        except _failures() as error:
            raise SignatureError(f"{source} is not what was signed: {_said(error)}; do not load it") from error


def sign(
    folder: str | os.PathLike[str],
    *,
    private_key: str | os.PathLike[str] | None = None,
    password: str | None = None,
    identity_token: str | None = None,
    signature: str | os.PathLike[str] | None = None,
) -> Path:
    """Sign every file of one folder: `Signer` says what its arguments mean, and `Signer.sign`."""
    return Signer(private_key, password=password, identity_token=identity_token).sign(folder, signature=signature)


def verify(
    folder: str | os.PathLike[str],
    *,
    public_key: str | os.PathLike[str] | None = None,
    identity: str | None = None,
    oidc_issuer: str | None = None,
    signature: str | os.PathLike[str] | None = None,
) -> None:
    """Check that one folder holds the files that were signed, and no other: see `Verifier`, and `Verifier.verify`."""
    Verifier(public_key, identity=identity, oidc_issuer=oidc_issuer).verify(folder, signature=signature)


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
    text = " ".join(str(error).split()) or type(error).__name__
    _, mismatch, listed = text.partition("Signature mismatch: ")
    if not mismatch:
        return text
    try:
        # A list as Python writes it, in which digests are bytes that say nothing to anybody.
        return "; ".join(one.partition(": Expected ")[0] for one in ast.literal_eval(listed))
    except (SyntaxError, ValueError):  # another version may say it in another way
        return text
