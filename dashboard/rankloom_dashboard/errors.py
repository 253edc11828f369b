"""What can keep the dashboard from starting; each is also a standard-library error and survives pickling."""

from __future__ import annotations


class DashboardError(Exception):
    """Base of every error that `rankloom_dashboard` raises on purpose."""


class InvalidPortError(DashboardError, ValueError):
    """A port lies outside what TCP knows."""


class PortInUseError(DashboardError, OSError):
    """Another program already listens on the port."""


class ForbiddenError(DashboardError, PermissionError):
    """Who looks at a page may not change what they wanted to change."""


class LoginError(DashboardError, RuntimeError):
    """People have to log in, and the configuration of that cannot be used: nobody is let in."""


class BusyError(DashboardError, RuntimeError):
    """What is asked for is done for somebody else at the moment."""


class ReasonMissingError(DashboardError, ValueError):
    """A change that is recorded with its reason was asked for without one."""
