from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import rankloom_dashboard
from rankloom_dashboard import InvalidPortError, PortInUseError, launch

HERE = Path(rankloom_dashboard.__file__).parent


def test_importing_the_package_loads_no_server() -> None:
    check = "import sys, rankloom_dashboard; print([m for m in ('streamlit', 'plotly', 'duckdb') if m in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "[]"


def test_no_module_shadows_the_standard_library() -> None:
    assert not {path.stem for path in HERE.iterdir()} & sys.stdlib_module_names


@pytest.mark.parametrize("port", [0, 65_536])
def test_a_port_out_of_range_is_refused(tmp_path: Path, port: int) -> None:
    with pytest.raises(InvalidPortError, match="1 to 65535"):
        launch(tmp_path / "registry.duckdb", port, headless=True)


def test_a_port_in_use_is_one_message(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(PortInUseError, match=f"port {port} .* --port") as caught:
            launch(tmp_path / "registry.duckdb", port, headless=True)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize("proxy", [None, "http://127.0.0.1:9"])
def test_the_browser_opens_once_there_is_a_page(tmp_path: Path, proxy: str | None) -> None:
    seen, browser = tmp_path / "seen", tmp_path / "browser"
    browser.write_text(f"#!/bin/sh\necho $1 > {seen}.partial && mv {seen}.partial {seen}\n")
    browser.chmod(0o755)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = (
        "import sys; from pathlib import Path; import rankloom_dashboard as r; r.launch(Path(sys.argv[1]), {port})"
    )
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "PYTHONPATH": paths, "BROWSER": str(browser), "DISPLAY": ":0"}
    if proxy:
        environment |= {"http_proxy": proxy, "no_proxy": ""}
    arguments = [sys.executable, "-c", command.format(port=port), str(tmp_path / "registry.duckdb")]
    with subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, text=True) as server:
        deadline = time.monotonic() + 60
        while not seen.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        server.terminate()
        said, _ = server.communicate(timeout=30)
    assert seen.read_text().strip() == f"http://127.0.0.1:{port}"
    assert f"http://127.0.0.1:{port} (read-only" in said


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_the_server_ends_with_the_program_that_launched_it(
    serve, tmp_path: Path, sent: signal.Signals, code: int
) -> None:
    server, port = serve(tmp_path / "registry.duckdb")
    server.send_signal(sent)
    output, _ = server.communicate(timeout=30)
    assert server.returncode == code
    assert "Traceback" not in output
    with socket.socket() as probe, pytest.raises(ConnectionRefusedError):
        probe.connect(("127.0.0.1", port))
