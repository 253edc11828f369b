"""Starts the dashboard's own web server on this machine, and ends it cleanly."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import webbrowser
from pathlib import Path
from types import FrameType

from rankloom_dashboard.errors import InvalidPortError, PortInUseError

ADDRESS = "127.0.0.1"
REGISTRY_VARIABLE = "RANKLOOM_REGISTRY"
# Set here for the server, whatever the user's own environment says.
CHANGES_VARIABLE = "RANKLOOM_DASHBOARD_CHANGES"
KEY_VARIABLE = "RANKLOOM_DASHBOARD_PUBLIC_KEY"
INTERRUPTED = 130
_SERVER = Path(__file__).with_name("server.py")
_PATIENCE_S = 60.0


def launch(
    registry: Path,
    port: int = 8501,
    *,
    headless: bool = False,
    allow_changes: bool = False,
    public_key: Path | None = None,
) -> int:
    """Serves the dashboard until it is interrupted.

    Args:
        registry: The registry file to browse; it need not exist yet, the pages then say how to make one.
        port: TCP port on 127.0.0.1, 1 to 65535.
        headless: Leave the web browser closed.
        allow_changes: Let whoever opens it change the registry; by default it only shows it.
        public_key: The key that must have signed what its pages verify; by default nobody must.

    Returns:
        0 when the server ended by itself or was told to, 130 after Ctrl-C, else the server's own exit code.

    Raises:
        InvalidPortError: The port is out of range.
        PortInUseError: The port is taken.
        RegistryError: The key cannot be used, or the package that checks signatures is not installed.
    """
    _check_port(port)
    if public_key is not None:
        from rankloom_registry.signing import Verifier  # of use with a key only, and this package is quick to import

        Verifier(public_key)
    environment = {
        **os.environ,
        REGISTRY_VARIABLE: str(registry.absolute()),
        CHANGES_VARIABLE: "1" if allow_changes else "0",
        KEY_VARIABLE: str(public_key.absolute()) if public_key else "",
    }
    told_to_stop = threading.Event()
    leave = "changes are allowed" if allow_changes else "read-only; --allow-changes lets it change the registry"
    print(f"dashboard of {registry}: http://{ADDRESS}:{port} ({leave})", flush=True)
    with subprocess.Popen([sys.executable, str(_SERVER), str(port)], env=environment) as server:

        def stop(_signal: int, _frame: FrameType | None) -> None:
            told_to_stop.set()
            server.terminate()

        # Ctrl-C reaches the server too, which shares the terminal; a plain `kill` of this process does not.
        before = signal.signal(signal.SIGTERM, stop)
        if not headless:
            threading.Thread(target=_open_browser, args=(port, server), daemon=True).start()
        try:
            code = server.wait()
            return 0 if told_to_stop.is_set() else code
        except KeyboardInterrupt:
            server.terminate()
            server.wait()
            return INTERRUPTED
        finally:
            signal.signal(signal.SIGTERM, before)


def _open_browser(port: int, server: subprocess.Popen[bytes]) -> None:
    """Opens the first page as soon as there is one; where there is no screen, a browser would be one of text."""
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return
    address, deadline = f"http://{ADDRESS}:{port}", time.monotonic() + _PATIENCE_S
    directly = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy of the user's knows this server
    while server.poll() is None and time.monotonic() < deadline:
        try:
            directly.open(f"{address}/_stcore/health", timeout=5).close()
        except OSError:
            time.sleep(0.1)
        else:
            webbrowser.open(address)
            return


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
