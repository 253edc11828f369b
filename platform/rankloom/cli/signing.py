"""The options that say who signs, and who must have signed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from rankloom_registry.signing import Signer, Verifier

PASSWORD = "RANKLOOM_SIGN_PASSWORD"

SignKeyOption = Annotated[
    Path | None,
    typer.Option(
        "--sign-key", metavar="KEY.pem", help=f"Sign with this key; {PASSWORD} holds the password of one that has one."
    ),
]
SigstoreOption = Annotated[
    bool, typer.Option("--sign-sigstore", help="Sign in your name through Sigstore, which writes it into a public log.")
]
PublicKeyOption = Annotated[
    Path | None, typer.Option("--public-key", metavar="KEY.pub", help="Refuse what this key did not sign.")
]
IdentityOption = Annotated[
    str | None, typer.Option("--identity", help="Refuse what this one did not sign through Sigstore.")
]
IssuerOption = Annotated[
    str | None, typer.Option("--oidc-issuer", help="Who vouches for --identity, such as https://accounts.google.com.")
]


def signer_of(key: Path | None, sigstore: bool) -> Signer | None:
    """Return who signs, if anybody; a key that cannot be used is refused here, before any work."""
    if key is not None and sigstore:
        raise typer.BadParameter("a key signs, or Sigstore; give one of both", param_hint="--sign-sigstore")
    if key is not None:
        return Signer(key.expanduser(), password=os.environ.get(PASSWORD))
    return Signer() if sigstore else None


def verifier_of(public_key: Path | None, identity: str | None, oidc_issuer: str | None) -> Verifier | None:
    """Return who must have signed, if anybody."""
    # Not a test of truth: an empty --identity must not mean that anybody may have signed.
    if all(one is None for one in (public_key, identity, oidc_issuer)):
        return None
    return Verifier(public_key and public_key.expanduser(), identity=identity, oidc_issuer=oidc_issuer)
