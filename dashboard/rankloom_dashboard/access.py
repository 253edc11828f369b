"""Who looks at the dashboard, and what they may change: decided on the server, again for every change."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any, Literal, get_args

import streamlit as st

from rankloom_dashboard.errors import ForbiddenError
from rankloom_dashboard.launch import CHANGES_VARIABLE

Role = Literal["viewer", "editor", "promoter"]
ROLES: tuple[Role, ...] = get_args(Role)  # each may do what those before it may


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
    return os.environ.get(CHANGES_VARIABLE) == "1"


def login_configured() -> bool:
    """Returns whether people have to log in: there is a section `auth` in Streamlit's secrets."""
    return "auth" in _secrets()


def visitor() -> Visitor | None:
    """Returns who looks at this page, or None if they have to log in, or are not among those who may look."""
    if not login_configured():
        return Visitor(who="", role="promoter" if changes_allowed() else "viewer")
    if not st.user.get("is_logged_in"):
        return None
    claims = st.user.to_dict()
    role = role_of(claims, _secrets().get("roles", {}))
    if role is None:
        return None
    return Visitor(who=str(claims["email"]), role=role if changes_allowed() else "viewer")


def role_of(claims: Mapping[str, Any], roles: Mapping[str, Sequence[str]]) -> Role | None:
    """Returns the highest role that the address in a login's claims has.

    Args:
        claims: What the identity provider says; an address that it calls not verified counts for nothing.
        roles: Addresses by role, with `*` for any part of one: `{"promoter": ["ada@example.org"], "viewer": ["*"]}`.
    """
    address = str(claims.get("email") or "").lower()
    if not address or claims.get("email_verified") is False:
        return None
    return next(
        (role for role in reversed(ROLES) if any(fnmatch(address, item.lower()) for item in roles.get(role, ()))), None
    )


def may(needed: Role) -> bool:
    """Returns whether who looks at this page may do what a role may."""
    found = visitor()
    return found is not None and ROLES.index(found.role) >= ROLES.index(needed)


def require(needed: Role) -> Visitor:
    """Returns who looks at this page, if they may do what a role may.

    Raises:
        ForbiddenError: They may not.
    """
    found = visitor()
    if found is not None and ROLES.index(found.role) >= ROLES.index(needed):
        return found
    if not changes_allowed():
        raise ForbiddenError("this dashboard only shows the registry; start it with --allow-changes to change anything")
    who, role = (found.who, found.role) if found else ("nobody who is logged in", "no role")
    raise ForbiddenError(f"this needs the role {needed}, but {who} has {role}; ask whoever runs the dashboard")


def _secrets() -> Mapping[str, Any]:
    try:
        return st.secrets.to_dict()
    except FileNotFoundError:  # Streamlit's error where there is no secrets file at all
        return {}
