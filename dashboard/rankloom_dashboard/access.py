"""Who looks at the dashboard, and what they may change: decided on the server, again for every change.

Whatever is wrong with the configuration of the login closes the dashboard; it never opens it.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

import streamlit as st

from rankloom_dashboard.errors import ForbiddenError, LoginError
from rankloom_dashboard.launch import CHANGES_VARIABLE

Role = Literal["viewer", "editor", "promoter"]
ROLES: tuple[Role, ...] = get_args(Role)  # each may do what those before it may
UNVERIFIED = "trust_unverified_addresses"
_MISSING = "no-secrets-found"  # Streamlit's id for: there is no secrets file at all
_AT_START = dict(os.environ)  # before any secrets are read


@dataclass(frozen=True, slots=True)
class Visitor:
    """Somebody who looks at the dashboard.

    Attributes:
        who: Their address as the login gave it; empty for whoever sits at this machine.
        role: What they may do.
    """

    who: str
    role: Role


def changes_allowed() -> bool:
    """Returns whether this server was started with --allow-changes."""
    # Streamlit makes variables of what secrets files hold: theirs is not the one that was set at the start.
    return os.environ.get(CHANGES_VARIABLE) == "1" and CHANGES_VARIABLE not in _secrets()


def login_configured() -> bool:
    """Returns whether people have to log in: there is a section `auth` in Streamlit's secrets.

    Raises:
        LoginError: A secrets file cannot be read, so that nobody can tell.
    """
    return "auth" in _secrets()


def check() -> None:
    """Raises if people have to log in, and cannot.

    Raises:
        LoginError: The secrets cannot be read, a section of them is not what it should be, or a package is missing.
    """
    if not login_configured():
        return
    secrets = _secrets()
    if not isinstance(secrets["auth"], Mapping):
        raise LoginError("in the secrets, `auth` must be a section; write [auth]")
    public_host(secrets["auth"])
    patterns(secrets.get("roles", {}))
    if importlib.util.find_spec("authlib") is None:
        raise LoginError(
            "the secrets have a section [auth], and logging in needs the package authlib; install rankloom[login]"
        )


def visitor() -> Visitor | None:
    """Returns who looks at this page, or None if they have to log in, or are not among those who may look."""
    if not login_configured():
        return Visitor(who="", role="promoter" if changes_allowed() else "viewer")
    claims = st.user.to_dict()
    if claims.get("is_logged_in") is not True:
        return None
    role = role_of(claims, _secrets().get("roles", {}))
    if role is None:
        return None
    return Visitor(who=str(claims["email"]), role=role if changes_allowed() else "viewer")


def address() -> str | None:
    """Returns the address that somebody logged in with, whatever they may do; None if they did not log in."""
    claims = st.user.to_dict() if login_configured() else {}
    return str(claims.get("email") or "an account without an address") if claims.get("is_logged_in") is True else None


def role_of(claims: Mapping[str, Any], roles: object) -> Role | None:
    """Returns the highest role that the address in a login's claims has.

    Args:
        claims: What the identity provider says; an address that it does not call verified counts for nothing, as
            anybody may have claimed it, unless `roles` has `trust_unverified_addresses = true`.
        roles: Addresses by role, with `*` for any part of one: `{"promoter": ["ada@example.org"], "viewer": ["*"]}`.

    Raises:
        LoginError: `roles` is something else.
    """
    allowed = patterns(roles)
    address = claims.get("email")
    if not isinstance(address, str) or not address:
        return None
    verified = claims.get("email_verified", isinstance(roles, Mapping) and roles.get(UNVERIFIED) is True)
    if str(verified).lower() != "true":  # some providers spell it as text
        return None
    lowered = address.lower()
    return next((role for role in reversed(ROLES) if any(_fits(lowered, item) for item in allowed.get(role, ()))), None)


def patterns(roles: object) -> dict[str, list[str]]:
    """Returns the addresses by role, in lower case, as a section `roles` of the secrets gives them.

    Raises:
        LoginError: It is no section, names a role that there is not, or gives something else than addresses.
    """
    if not isinstance(roles, Mapping):
        raise LoginError(f"in the secrets, `roles` must be a section, got {type(roles).__name__}; write [roles]")
    found = {}
    for role, given in roles.items():
        if role == UNVERIFIED and isinstance(given, bool):
            continue
        if role not in ROLES:
            raise LoginError(f"a role is one of {', '.join(ROLES)}, got {role!r} in [roles]; correct the secrets")
        if not isinstance(given, list) or not all(isinstance(item, str) for item in given):
            raise LoginError(f'{role} in [roles] must be a list of addresses; write {role} = ["ada@example.org"]')
        found[role] = [item.lower() for item in given]
    return found


def _fits(address: str, pattern: str) -> bool:
    return re.fullmatch(re.escape(pattern).replace(r"\*", ".*"), address) is not None


def public_hosts() -> list[str]:
    """Returns the name under which people reach the server from elsewhere, where logging in leads back to one."""
    try:
        section = _secrets().get("auth", {})
        found = public_host(section) if isinstance(section, Mapping) else None
    except LoginError:
        return []  # every page says what is wrong
    return [found] if found else []


def public_host(section: Mapping[str, Any]) -> str | None:
    """Returns the name in the address to which logging in leads back, if a section `auth` of the secrets gives one.

    Raises:
        LoginError: It is no address.
    """
    address = str(section.get("redirect_uri", ""))
    try:
        return urlsplit(address).hostname
    except ValueError as error:
        raise LoginError(f"redirect_uri in [auth] must be an address, got {address!r}; correct the secrets") from error


def may(needed: Role) -> bool:
    """Returns whether who looks at this page may do what a role may."""
    found = visitor()
    return found is not None and ROLES.index(found.role) >= ROLES.index(needed)


def require(needed: Role) -> Visitor:
    """Returns who looks at this page, if they may do what a role may.

    Raises:
        ForbiddenError: They may not.
    """
    check()
    found = visitor()
    if found is not None and ROLES.index(found.role) >= ROLES.index(needed):
        return found
    if not changes_allowed():
        raise ForbiddenError("this dashboard only shows the registry; start it with --allow-changes to change anything")
    who, role = (found.who, found.role) if found else ("nobody who is logged in", "no role")
    raise ForbiddenError(f"this needs the role {needed}, but {who} has {role}; ask whoever runs the dashboard")


def _secrets() -> Mapping[str, Any]:
    try:
        found = st.secrets.to_dict()
    except (OSError, UnicodeDecodeError) as error:
        # Streamlit calls a file that it cannot parse "not found", too.
        if getattr(error, "error_id", None) == _MISSING:
            return {}
        raise LoginError(
            f"the secrets, which may ask for a login, cannot be read: {error}; correct the file"
        ) from error
    # Streamlit makes variables of what stands in no section, anew when the file changes: a file in the folder of the
    # start would choose which registry is shown, and what the programs that work for the dashboard import.
    for name, value in found.items():
        if os.environ.get(name) != str(value):
            continue
        if name in _AT_START:
            os.environ[name] = _AT_START[name]
        else:
            os.environ.pop(name)
    if "roles" in found and "auth" not in found:
        raise LoginError("the secrets have a section [roles] but none [auth], by which people log in; add it")
    return found
