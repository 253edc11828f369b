"""Starts the dashboard's own web server on this machine, and ends it cleanly."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import FrameType

from rankloom_dashboard.errors import InvalidPortError, PortInUseError

ADDRESS = "127.0.0.1"
REGISTRY_VARIABLE = "RANKLOOM_REGISTRY"
CHANGES_VARIABLE = "RANKLOOM_DASHBOARD_CHANGES"  # set here for the server, whatever the user's own environment says
INTERRUPTED = 130
_APP = Path(__file__).with_name("app.py")


def launch(registry: Path, port: int = 8501, *, headless: bool = False, allow_changes: bool = False) -> int:
    """Serves the dashboard until it is interrupted.

    Args:
        registry: The registry file to browse; it need not exist yet, the pages then say how to make one.
        port: TCP port on 127.0.0.1, 1 to 65535.
        headless: Leave the web browser closed.
        allow_changes: Let whoever opens it change the registry; by default it only shows it.

    Returns:
        0 when the server ended by itself, 130 after Ctrl-C, else the server's own exit code.

    Raises:
        InvalidPortError: The port is out of range.
        PortInUseError: The port is taken.
    """
    _check_port(port)
    environment = {
        **os.environ,
        REGISTRY_VARIABLE: str(registry.absolute()),
        CHANGES_VARIABLE: "1" if allow_changes else "0",
    }
    with subprocess.Popen(_command(port, headless=headless), env=environment) as server:

        def stop(_signal: int, _frame: FrameType | None) -> None:
            server.terminate()

        # Ctrl-C reaches the server too, which shares the terminal; a plain `kill` of this process does not.
        before = signal.signal(signal.SIGTERM, stop)
        try:
            return server.wait()
        except KeyboardInterrupt:
            server.terminate()
            server.wait()
            return INTERRUPTED
        finally:
            signal.signal(signal.SIGTERM, before)


def _command(port: int, *, headless: bool) -> list[str]:
    """What a user's own Streamlit settings must not change stands here: flags outrank files and variables."""
    options = (
        ("server.address", ADDRESS),
        ("server.port", port),
        ("server.headless", str(headless).lower()),
        ("server.allowedHosts", ADDRESS),  # a foreign name that is made to resolve to this machine gets no data
        ("server.allowedHosts", "localhost"),
        ("server.fileWatcherType", "none"),
        ("server.showEmailPrompt", "false"),
        ("browser.serverAddress", ADDRESS),
        ("browser.gatherUsageStats", "false"),
        ("client.toolbarMode", "viewer"),
        ("client.showErrorDetails", "none"),
        ("client.showErrorLinks", "false"),
    )
    flags = [text for name, value in options for text in (f"--{name}", str(value))]
    return [sys.executable, "-m", "streamlit", "run", str(_APP), *flags]


def _check_port(port: int) -> None:
    if not 1 <= port <= 65535:
        raise InvalidPortError(f"port must be from 1 to 65535, got {port}; pass another --port")
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As the server will: without it, a port that has just been let go would look taken for a minute.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((ADDRESS, port))
        except OSError as error:
            raise PortInUseError(
                f"port {port} on {ADDRESS} cannot be used ({error.strerror}); "
                "stop the program that holds it, or pass another --port"
            ) from error
