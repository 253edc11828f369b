"""How long the dashboard takes over a large registry, and how much memory its server needs.

Usage: python benchmarks/dashboard.py [--adapters 10000] [--searches 200] [--repeats 5] [--output run.json]
Fills a registry in a temporary folder, files of its adapters included, starts the server as `rankloom dashboard` does,
and visits it as a browser does, over its websocket. Every figure is the time from asking for a page until the server
has run it to its end, in milliseconds; `first` is the first visit of a server that has just started, and `first_cpu`
the processor time that the server took meanwhile; `warm` is the median of later visits, each a session of its own.
Filters are new each time. Prints a table and one JSON document.
"""

from __future__ import annotations

import argparse
import json
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import psutil
from registry_query import fill
from safetensors.numpy import save_file
from streamlit.proto.Alert_pb2 import Alert
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from websockets.sync.client import connect

from rankloom_registry import AdapterAdded, Registry

LAUNCH = "import sys; from pathlib import Path; from rankloom_dashboard import launch; "
LAUNCH += "sys.exit(launch(Path(sys.argv[1]), int(sys.argv[2]), headless=True))"
FILTERS = (
    "r <= 16 and eval_loss < {}",
    "learning_rate > 0.0005 and eval_loss < {}",
    "name like 'sweep-1%' and seed < {}",
)
PAGES = ("overview", "searches", "adapters", "adapter", "compare", "promote")
PATIENCE_S = 60


def make(folder: Path, adapters: int, searches: int) -> Registry:
    """Make a registry with so many adapters of so many searches, and small files for those that are kept."""
    registry = fill(folder / "registry.duckdb", adapters, max(1, adapters // searches))
    assert isinstance(registry.artifacts.root, Path)
    for row in registry.sql("SELECT artifact_path FROM adapters WHERE status = 'available'"):
        place = registry.artifacts.root / row["artifact_path"]
        place.mkdir(parents=True)
        for name in ("adapter_config.json", "adapter_model.safetensors", "manifest.json"):
            (place / name).write_text("{}")
    return registry


def add_real(registry: Registry, folder: Path, count: int) -> list[str]:
    """Add adapters whose files are what they should be, for the pages that read them; returns their ids."""
    ids = [f"real-{number}" for number in range(count)]
    base = registry.bases()[0].content_root
    module = "base_model.model.model.layers.{}.self_attn.{}_proj.lora_{}.weight"
    for number, adapter_id in enumerate(ids):
        made, random = folder / adapter_id, np.random.default_rng(number)
        made.mkdir()
        weights = {
            module.format(layer, name, side): random.normal(size=shape).astype(np.float32)
            for layer in range(16)
            for name in "qv"
            for side, shape in (("A", (8, 64)), ("B", (64, 8)))
        }
        save_file(weights, made / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}
        (made / "adapter_config.json").write_text(json.dumps(config))
        registry.record(
            AdapterAdded(
                adapter_id=adapter_id,
                name=adapter_id,
                base_content_root=base,
                params={"r": 8, "lora_alpha": 16, "target_modules": "attention-qv", "learning_rate": 1e-4},
                metrics={"eval_loss": 1.5},
                artifact_sha256=registry.artifacts.add(made),
            )
        )
    return ids


@contextmanager
def serving(registry: Path) -> Iterator[tuple[int, psutil.Process]]:
    """Run the dashboard; gives its port and the process of its server."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with subprocess.Popen(
        [sys.executable, "-c", LAUNCH, str(registry), str(port)], stdout=subprocess.DEVNULL
    ) as launched:
        try:
            deadline = time.monotonic() + PATIENCE_S
            while True:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=5).close()
                    break
                except OSError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.1)
            (server,) = psutil.Process(launched.pid).children()
            yield port, server
        finally:
            launched.terminate()


def visit(port: int, page: str, **query: str) -> float:
    """Visit a page in a session of its own; returns the milliseconds until the server has run it to its end."""
    address = f"ws://127.0.0.1:{port}/_stcore/stream"
    asked = BackMsg()
    asked.rerun_script.page_name, asked.rerun_script.query_string = page, urlencode(query)
    with connect(address, subprotocols=["streamlit"], origin=f"http://127.0.0.1:{port}", max_size=None) as session:
        began = time.perf_counter()
        session.send(asked.SerializeToString())
        while True:
            message = ForwardMsg.FromString(session.recv(timeout=PATIENCE_S))
            element = message.delta.new_element
            if element.WhichOneof("type") == "exception" or element.alert.format == Alert.ERROR:
                raise RuntimeError(f"the page {page!r} shows an error: {element}")
            if message.WhichOneof("type") == "page_not_found":
                raise RuntimeError(f"there is no page {page!r}")
            if message.script_finished == ForwardMsg.FINISHED_SUCCESSFULLY and message.HasField("script_finished"):
                return 1000 * (time.perf_counter() - began)


def measure(registry: Registry, real: list[str], repeats: int, chosen: Sequence[str]) -> dict[str, Any]:
    """Visit the chosen pages, and filter the adapters."""
    search = registry.searches()[0].search_id
    pages: dict[str, tuple[str, dict[str, str]]] = {
        "overview": ("", {}),
        "searches": ("search", {"search": search}),
        "adapters": ("adapters", {}),
        "adapter": ("adapter", {"adapter": real[0]}),
        "compare": ("compare", {"ids": ",".join(real)}),
        "promote": ("promote", {"adapter": real[0]}),
    }
    found: dict[str, Any] = {"pages": {}}
    for name, (page, query) in pages.items():
        if name not in chosen:
            continue
        with serving(registry.path) as (port, server):
            before = sum(server.cpu_times()[:2])
            first = visit(port, page, **query)
            spent = sum(server.cpu_times()[:2]) - before
            warm = [visit(port, page, **query) for _ in range(repeats)]
        found["pages"][name] = {"first": round(first), "first_cpu": round(1000 * spent)}
        found["pages"][name]["warm"] = round(statistics.median(warm))
    with serving(registry.path) as (port, server):
        for page, query in pages.values():
            visit(port, page, **query)
        before = sum(server.cpu_times()[:2])
        taken = [
            visit(port, "adapters", where=form.format(1 + number / 97)) for number in range(repeats) for form in FILTERS
        ]
        spent = 1000 * (sum(server.cpu_times()[:2]) - before) / len(taken)
        found["filter"] = {"median": round(statistics.median(taken)), "max": round(max(taken)), "cpu": round(spent)}
        found["server_rss_mb"] = round(server.memory_info().rss / 1e6)
    return found


def show(found: dict[str, Any]) -> None:
    """Print the figures as a table."""
    print(f"{'page':<12}{'first, ms':>12}{'its CPU, ms':>14}{'warm, ms':>12}")
    for name, figures in found["pages"].items():
        print(f"{name:<12}{figures['first']:>12}{figures['first_cpu']:>14}{figures['warm']:>12}")
    print("a filter: {median} ms, at most {max} ms, {cpu} ms of processor time".format(**found["filter"]))
    print(f"memory of the server: {found['server_rss_mb']} MB")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", type=int, default=10_000)
    parser.add_argument("--searches", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--pages", nargs="+", default=PAGES, choices=PAGES)
    parser.add_argument("--output", type=Path)
    chosen = parser.parse_args(arguments)
    document: dict[str, Any] = {
        "python": platform.python_version(),
        "adapters": chosen.adapters,
        "searches": chosen.searches,
        "unit": "ms",
    }
    with tempfile.TemporaryDirectory() as folder:
        registry = make(Path(folder), chosen.adapters, chosen.searches)
        document |= measure(registry, add_real(registry, Path(folder), 4), chosen.repeats, chosen.pages)
    show(document)
    text = json.dumps(document, indent=2)
    if chosen.output:
        chosen.output.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
