"""A read-only Streamlit dashboard over a rankloom registry.

Importing this package loads neither Streamlit nor Plotly: the server it launches does.
"""

from __future__ import annotations

from rankloom_dashboard.errors import DashboardError, InvalidPortError, PortInUseError
from rankloom_dashboard.launch import launch

__all__ = ["DashboardError", "InvalidPortError", "PortInUseError", "launch"]
