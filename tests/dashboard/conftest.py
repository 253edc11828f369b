from __future__ import annotations

import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import streamlit as st
from safetensors.numpy import save_file
from streamlit.testing.v1 import AppTest

import rankloom_dashboard
from rankloom_dashboard.jobs.job import board
from rankloom_dashboard.launch import CHANGES_VARIABLE, REGISTRY_VARIABLE
from rankloom_registry import (
    AdapterAdded,
    AdapterDiscarded,
    AliasMoved,
    BaseFingerprint,
    BaseSeen,
    Evaluated,
    Event,
    Promoted,
    Registry,
    SearchEnded,
    SearchResumed,
    SearchStarted,
    TrialEnded,
    TrialReported,
    TrialStarted,
)

APP = Path(rankloom_dashboard.__file__).with_name("app.py")
START = datetime(2026, 3, 2, 9, 30, tzinfo=UTC)
# number: (status, steps, where the curve levels off, r, alpha, learning rate, target modules, dropout)
TRIALS: dict[int, tuple[str, int, float, int, int, float, str, float]] = {
    0: ("completed", 60, 2.21, 16, 32, 2.0e-4, "all-linear", 0.05),
    1: ("stopped", 15, 2.46, 8, 16, 3.4e-5, "attention-qv", 0.0),
    2: ("completed", 60, 2.13, 32, 32, 4.1e-4, "all-linear", 0.0),
    3: ("stopped", 30, 2.31, 8, 32, 6.2e-5, "attention", 0.05),
    4: ("completed", 60, 2.18, 64, 16, 1.6e-4, "mlp", 0.0),
    5: ("completed", 60, 2.04, 32, 32, 7.8e-4, "all-linear", 0.05),
    6: ("failed", 0, math.nan, 64, 32, 9.9e-4, "all-linear", 0.0),
    7: ("stopped", 15, 2.52, 16, 16, 4.4e-5, "attention-qv", 0.05),
}
KEPT = (0, 2, 5)
# Markup of each kind that a page might take for its own.
HOSTILE = (
    "![x](http://evil.example/a.png) <img src='http://evil.example/b.png'> <script>alert(1)</script> **b** $x^2$ "
    ":material/home:"
)
READ_AS_MARKDOWN = (
    "title",
    "header",
    "subheader",
    "caption",
    "markdown",
    "info",
    "warning",
    "error",
    "success",
    "metric",
)
CHROMIUM_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


@dataclass(frozen=True)
class Made:
    """A registry on disk and what the tests ask of it by name."""

    path: Path
    search_id: str
    best: str
    second: str
    prior: str
    discarded: str


def base(root: str = "c0") -> BaseFingerprint:
    return BaseFingerprint(
        identity="tiny/llama@5f3a",
        structure="ab" * 32,
        content_root=root * 32,
        tensors=272,
        parameters=134_515_008,
        bytes=269_030_016,
        dtype="bfloat16",
        tokenizer_sha256="12" * 32,
        chat_template_sha256=None,
        config={"model_type": "llama"},
    )


def params(number: int) -> dict[str, Any]:
    _, _, _, r, alpha, rate, modules, dropout = TRIALS[number]
    return {
        "r": r,
        "lora_alpha": float(alpha),
        "use_rslora": False,
        "lora_dropout": dropout,
        "learning_rate": rate,
        "target_modules": modules,
        "seed": 100 + number,
        "lr_scheduler_type": "cosine" if number % 2 else "linear",
    }


def loss_at(level: float, step: int) -> float:
    return level + 0.9 * math.exp(-step / 14) + 0.01 * math.sin(step)


def adapter_folder(folder: Path, number: int) -> Path:
    """Writes a PEFT adapter of one module, 8 by 4."""
    folder.mkdir(parents=True)
    r = params(number)["r"]
    random = np.random.default_rng(number)
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    save_file(
        {
            f"{name}.lora_A.weight": random.normal(size=(r, 4)).astype(np.float32),
            f"{name}.lora_B.weight": random.normal(size=(8, r)).astype(np.float32),
        },
        folder / "adapter_model.safetensors",
    )
    config = {"peft_type": "LORA", "r": r, "lora_alpha": params(number)["lora_alpha"], "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def trial_events(search_id: str, number: int) -> list[Event]:
    status, steps, level, *_ = TRIALS[number]
    trial_id, at = f"{search_id}-t{number}", START + timedelta(minutes=4 * number)
    events: list[Event] = [
        TrialStarted(trial_id=trial_id, search_id=search_id, number=number, params=params(number), lane="lane-0", at=at)
    ]
    for step in range(5, steps + 1, 5):
        metrics = {"train_loss": loss_at(level, step) - 0.08, "learning_rate": params(number)["learning_rate"]}
        if step % 15 == 0:
            metrics["eval_loss"] = loss_at(level, step)
        moment = at + timedelta(seconds=3 * step)
        events.append(TrialReported(trial_id=trial_id, step=step, metrics=metrics, at=moment))
    metrics = {"steps": steps, "train_tokens": 376 * steps, "peak_memory_bytes": 1_610_612_736, "wall_s": 3.1 * steps}
    if steps:
        metrics |= {"eval_loss": loss_at(level, steps), "train_loss": loss_at(level, steps) - 0.08}
    message = "RuntimeError: loss is not finite at step 3" if status == "failed" else ""
    end = at + timedelta(minutes=3)
    events.append(TrialEnded(trial_id=trial_id, status=status, metrics=metrics, message=message, at=end))
    return events


def build(folder: Path) -> Made:
    """Makes a registry of one finished search: 8 trials, 3 of which kept an adapter, 1 of which was dropped since."""
    search_id = "s-4f2a9c1e"
    with Registry.open(folder / "registry.duckdb", create=True) as registry:
        events: list[Event] = [
            BaseSeen(base=base(), at=START),
            SearchStarted(
                search_id=search_id,
                name="lora-tiny",
                base_content_root=base().content_root,
                dataset={"name": "train.jsonl", "rows": 512},
                config={"model_name_or_path": "tiny/llama", "dataset": "train.jsonl", "space": "lora"},
                metric="eval_loss",
                mode="min",
                num_samples=8,
                seed=7,
                at=START,
            ),
        ]
        for number in TRIALS:
            events += trial_events(search_id, number)
        ids = {number: f"a{number}d41c7b90e{number}" for number in (*KEPT, 4)}
        for number, adapter_id in ids.items():
            _, steps, level, *_ = TRIALS[number]
            events.append(
                AdapterAdded(
                    adapter_id=adapter_id,
                    name=f"lora-tiny-{number}",
                    trial_id=f"{search_id}-t{number}",
                    base_content_root=base().content_root,
                    params=params(number),
                    metrics={
                        "eval_loss": loss_at(level, steps),
                        "train_loss": loss_at(level, steps) - 0.08,
                        "steps": steps,
                        "train_tokens": 376 * steps,
                        "peak_memory_bytes": 1_610_612_736 + number * 50_000_000,
                        "wall_s": 3.1 * steps + number,
                    },
                    artifact_sha256=registry.artifacts.add(adapter_folder(folder / "made" / str(number), number)),
                    at=START + timedelta(minutes=4 * number + 3),
                )
            )
        events += [
            AdapterDiscarded(adapter_id=ids[4], reason="not among the best 3", at=START + timedelta(minutes=33)),
            AliasMoved(name="lora-tiny-5", alias="champion", adapter_id=ids[5], at=START + timedelta(minutes=34)),
            Evaluated(
                evaluation_id="e-1",
                adapter_id=ids[5],
                base_content_root=base().content_root,
                dataset={"name": "held-out.jsonl"},
                metrics={"eval_loss": 2.0612, "perplexity": 7.8555},
                at=START + timedelta(minutes=40),
            ),
            Promoted(
                promotion_id="p-1",
                adapter_id=ids[5],
                status="done",
                recipe="full-precision",
                format="safetensors",
                output_path="models/champion",
                output_sha256="ef" * 32,
                checks={"reload": True},
                at=START + timedelta(minutes=45),
            ),
            SearchEnded(search_id=search_id, status="completed", at=START + timedelta(minutes=32)),
        ]
        registry.record(*events)
    return Made(
        path=folder / "registry.duckdb",
        search_id=search_id,
        best=ids[5],
        second=ids[2],
        prior=ids[0],
        discarded=ids[4],
    )


@pytest.fixture(scope="session")
def fingerprint() -> BaseFingerprint:
    """That of the base of the registry's adapters."""
    return base()


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return build(tmp_path_factory.mktemp("registry"))


@pytest.fixture
def made(made_once: Made, tmp_path: Path) -> Made:
    """A copy of the registry for the test alone, to change at will."""
    shutil.copytree(made_once.path.parent, tmp_path, dirs_exist_ok=True)
    return replace(made_once, path=tmp_path / made_once.path.name)


@pytest.fixture
def changing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever starts the dashboard allows changes."""
    monkeypatch.setenv(CHANGES_VARIABLE, "1")


@pytest.fixture
def resumed(made: Made, make_run: Callable[..., Any]) -> Any:
    """The run of the registry's search, which was resumed."""
    with Registry.open(made.path) as registry:
        registry.record(SearchResumed(search_id=made.search_id))
        search = registry.search(made.search_id)
    return make_run(
        made.path.with_suffix(".runs") / search.name,
        search_id=search.search_id,
        base_content_root=search.base_content_root,
    )


@dataclass(frozen=True)
class Hostile(Made):
    """A registry that also holds an imported adapter on another base, and a text that must stay a text."""

    imported: str
    text: str


@pytest.fixture(scope="session")
def hostile(made_once: Made, tmp_path_factory: pytest.TempPathFactory) -> Hostile:
    folder = shutil.copytree(made_once.path.parent, tmp_path_factory.mktemp("hostile") / "registry")
    with Registry.open(folder / made_once.path.name) as registry:
        known = registry.adapter(made_once.best)
        registry.record(
            BaseSeen(base=replace(base("d1"), identity=HOSTILE, dtype=HOSTILE)),
            AdapterAdded(
                adapter_id="imported-1",
                name="imported",
                base_content_root="d1" * 32,
                params=known.params | {"target_modules": HOSTILE, HOSTILE: HOSTILE},
                metrics={"eval_loss": 1.9},
                artifact_sha256=known.artifact_sha256,
            ),
            Evaluated(
                evaluation_id="e-2",
                adapter_id="imported-1",
                base_content_root="d1" * 32,
                dataset={"name": HOSTILE},
                metrics={HOSTILE: 1.0},
            ),
            SearchEnded(search_id=made_once.search_id, status="failed", message=HOSTILE),
        )
    same = {field.name: getattr(made_once, field.name) for field in fields(Made)}
    return Hostile(**same | {"path": folder / made_once.path.name, "imported": "imported-1", "text": HOSTILE})


@pytest.fixture(scope="session")
def hostile_text() -> str:
    """A text that must stay a text."""
    return HOSTILE


@pytest.fixture(scope="session")
def read_as_markdown() -> Callable[[AppTest], str]:
    """Everything on a page that Streamlit reads as Markdown, which nothing that others wrote may be."""

    def read(app: AppTest) -> str:
        elements = [element for kind in READ_AS_MARKDOWN for element in getattr(app, kind)]
        found = [f"{element.value} {getattr(element, 'label', '')}" for element in elements]
        return "\n".join((*found, *(expander.label for expander in app.expander)))

    return read


@pytest.fixture(scope="session")
def press() -> Callable[[AppTest, str], AppTest]:
    """Presses the one button of a page that has that label."""

    def press(app: AppTest, label: str) -> AppTest:
        (button,) = (button for button in app.button if button.label == label)
        return button.click().run()

    return press


@pytest.fixture
def own_jobs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No work of the dashboard but the test's own, which ends with it."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    board.clear()
    yield
    for job in board().all():
        job.cancel()
        job.wait(60)


@pytest.fixture
def run_page(monkeypatch: pytest.MonkeyPatch) -> Callable[..., AppTest]:
    """Runs a page of the dashboard on a registry, at an address."""

    def run(registry: Path, page: str = "views/overview.py", /, **query: str) -> AppTest:
        st.cache_data.clear()
        app = AppTest.from_file(APP, default_timeout=30)
        if page != "views/overview.py":
            # A page other than the first is known only after a run; one without a registry is the quickest.
            monkeypatch.setenv(REGISTRY_VARIABLE, str(registry.with_name("nowhere.duckdb")))
            app.run().switch_page(page)
        monkeypatch.setenv(REGISTRY_VARIABLE, str(registry))
        app.query_params.clear()
        app.query_params.update(query)
        return app.run()

    return run


@pytest.fixture(scope="session")
def serve() -> Iterator[Callable[..., tuple[subprocess.Popen[str], int]]]:
    """Launches the dashboard as the command line does, in a program of its own; returns it and its port."""
    started: list[subprocess.Popen[str]] = []

    def start(
        registry: Path, *, allow_changes: bool = False, folder: Path | None = None
    ) -> tuple[subprocess.Popen[str], int]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        program = (
            "import sys; from pathlib import Path; from rankloom_dashboard import launch; "
            f"sys.exit(launch(Path(sys.argv[1]), int(sys.argv[2]), headless=True, allow_changes={allow_changes}))"
        )
        server = subprocess.Popen(
            [sys.executable, "-c", program, str(registry), str(port)],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(server)
        wait_until_healthy(port)
        return server, port

    yield start
    for server in started:
        server.terminate()
        server.communicate(timeout=30)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A real browser, where there is one; for one module, as Playwright keeps an event loop running."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="Playwright is not installed: no page is seen in a real browser"
    )
    with playwright.sync_playwright() as driver:
        found = shutil.which("chromium") or driver.chromium.executable_path
        if not Path(found).exists():
            pytest.skip("no Chromium here: no page is seen in a real browser, and no request is watched")
        browser = driver.chromium.launch(executable_path=found, args=list(CHROMIUM_FLAGS))
        yield browser
        browser.close()


@pytest.fixture(params=[("light", 1280), ("dark", 390)], ids=lambda shape: f"{shape[0]}-{shape[1]}")
def page(request: pytest.FixtureRequest, chromium: Any) -> Iterator[Any]:
    """A page that has asked nobody but this machine, and has nothing to complain of, when the test ends."""
    scheme, width = request.param
    context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    asked: set[str] = set()
    complaints: list[str] = []
    page.on("request", lambda sent: asked.add(urlsplit(sent.url).hostname or ""))
    page.on("websocket", lambda socket: asked.add(urlsplit(socket.url).hostname or ""))
    page.on("console", lambda said: complaints.append(said.text) if said.type == "error" and not probe(said) else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
    yield page
    context.close()
    assert asked - {""} == {"127.0.0.1"}
    assert complaints == []


def probe(said: Any) -> bool:
    """Streamlit's own search for its root: below a page it asks there first, and is told that it is not there."""
    return bool(re.search(r"/[a-z]+/_stcore/(health|host-config)$", said.location.get("url", "")))


def wait_until_healthy(port: int, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=5) as answer:
                assert answer.read() == b"ok"
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
