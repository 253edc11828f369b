"""A Streamlit dashboard over a rankloom registry; it changes nothing unless it is told to allow that.

Importing this package loads neither Streamlit nor Plotly: the server it launches does.
"""

from __future__ import annotations

from rankloom_dashboard.errors import DashboardError, ForbiddenError, InvalidPortError, LoginError, PortInUseError
from rankloom_dashboard.launch import launch

__all__ = ["DashboardError", "ForbiddenError", "InvalidPortError", "LoginError", "PortInUseError", "launch"]
