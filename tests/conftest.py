"""Tiny real things that many tests share: a Llama of two layers with a tokenizer of its own, rows to learn, and a
search of two adapters of it, made once and copied where it changes.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:  # what tests the registry does without the platform
    from rankloom.mailbox import Request
    from rankloom.runs import Run

# Set before anything imports the libraries: tests reach no hub, and leave no tracks in the user's caches.
os.environ["HF_HUB_OFFLINE"] = "1"
_datasets_cache = tempfile.TemporaryDirectory(prefix="rankloom-tests-")
os.environ["HF_DATASETS_CACHE"] = _datasets_cache.name
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.pop("RANKLOOM_REGISTRY", None)
# Two programs of tests share the cores: threads that wait for each other, busily, would take most of them.
os.environ.setdefault("OMP_NUM_THREADS", "1")

WHO = ["girl", "boy", "doctor", "chemist", "teachers"]
WHAT = ["farm", "flowers", "piano", "theory", "plays"]
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def make_keys(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, Path]]:
    """Makes a private and a public key of their own, to sign with."""
    pytest.importorskip("model_signing", reason="the extra 'signing' is not installed")
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    def make(kind: str = "P-256", password: str | None = None) -> tuple[Path, Path]:
        folder = tmp_path_factory.mktemp("keys")
        curves = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(), "P-521": ec.SECP521R1()}
        private = rsa.generate_private_key(65537, 2048) if kind == "RSA" else ec.generate_private_key(curves[kind])
        locked = serialization.BestAvailableEncryption(password.encode()) if password else serialization.NoEncryption()
        pem = serialization.Encoding.PEM
        form = serialization.PrivateFormat.PKCS8
        (folder / "key.pem").write_bytes(private.private_bytes(pem, form, locked))
        public = private.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
        (folder / "key.pub").write_bytes(public)
        return folder / "key.pem", folder / "key.pub"

    return make


@pytest.fixture(scope="session")
def keys(make_keys: Callable[..., tuple[Path, Path]]) -> tuple[Path, Path]:
    """A private and a public key."""
    return make_keys()


def sentences(count: int) -> list[dict[str, str]]:
    """Rows of a task that can be learned: a sentence, and the same sentence negated."""
    rows = []
    for number in range(count):
        loved = WHO[number % len(WHO)], WHAT[number // len(WHO) % len(WHAT)]
        rows.append(
            {
                "prompt": "negate : the {} has loved {} =".format(*loved),
                "completion": " the {} has not loved {}".format(*loved),
            }
        )
    return rows


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a Llama of two layers, hidden size 64, in bfloat16 safetensors, and its tokenizer."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-llama")
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    raw = Tokenizer(models.BPE(unk_token=None))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.train_from_iterator(
        [row["prompt"] + row["completion"] for row in sentences(50)] + WHO + WHAT,
        trainers.BpeTrainer(
            vocab_size=400, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        ),
    )
    from tokenizers import decoders

    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def rows_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JSON-lines file of 60 rows with `prompt` and `completion`."""
    file = tmp_path_factory.mktemp("rows") / "negation.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in sentences(60)), encoding="utf-8")
    return file


PARAMS: dict[str, Any] = {
    "r": 4,
    "lora_alpha": 8,
    "use_rslora": False,
    "lora_dropout": 0.0,
    "learning_rate": 1e-2,
    "target_modules": "all-linear",
    "seed": 0,
}


@dataclass(frozen=True)
class World:
    """A search as it lies on the disk after its end, made without Ray.

    Attributes:
        registry: The registry file; the run folder and the artifacts lie beside it.
        base: Folder of the base.
        adapters: Ids of its two adapters, the better one first.
    """

    registry: Path
    base: Path
    adapters: tuple[str, str]

    @property
    def eval_rows(self) -> Path:
        return self.registry.with_suffix(".runs") / "negation" / "data" / "eval.jsonl"


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, rows_file: Path) -> World:
    """Two adapters of one search on the tiny model, trained on NF4, recorded with everything a search records."""
    from datasets import load_from_disk

    from rankloom.config import parse_config
    from rankloom.data import prepare_data
    from rankloom.hush import hush
    from rankloom.models import load_tokenizer
    from rankloom.recorder import Recorder
    from rankloom.runs import plain_config
    from rankloom.training.exchange import LocalExchange, TrialSpec
    from rankloom.training.resident import load_resident_base
    from rankloom.training.trl import TrlEngine
    from rankloom_registry import (
        BaseSeen,
        Registry,
        SearchEnded,
        SearchStarted,
        TrialEnded,
        TrialReported,
        TrialStarted,
        fingerprint_base,
    )

    hush()
    folder = tmp_path_factory.mktemp("trained")
    # A relative path, as in most search files: what is read later must not depend on the folder it was written in.
    config = parse_config(
        {
            "model_name_or_path": str(tiny_model),
            "dataset": str(rows_file),
            "registry": "registry.duckdb",
            "name": "negation",
            "num_samples": 2,
            "training": {"max_steps": 12, "eval_steps": 4, "max_length": 48},
        }
    )
    run = folder / "registry.runs" / "negation"
    (run / "data").mkdir(parents=True)
    data = prepare_data(
        dataset=rows_file,
        eval_dataset=None,
        eval_fraction=0.2,
        max_eval_samples=None,
        seed=0,
        tokenizer=load_tokenizer(tiny_model),
        max_length=48,
        completion_only_loss=None,
        folder=run / "data",
    )
    engine = TrlEngine(
        base=load_resident_base(tiny_model, config.quantization, config.training),
        train_dataset=load_from_disk(str(run / "data" / "train")),
        eval_dataset=load_from_disk(str(run / "data" / "eval")),
        training=config.training,
        adapters=run / "adapters",
    )
    specs = [
        TrialSpec(trial_id="trial-good", number=0, params={**PARAMS, "learning_rate": 2e-2}),
        TrialSpec(trial_id="trial-slow", number=1, params={**PARAMS, "learning_rate": 1e-4, "r": 2, "seed": 1}),
    ]
    exchange = LocalExchange(specs)
    engine.run(exchange)

    fingerprint = fingerprint_base(tiny_model, identity=str(tiny_model))
    registry = Registry.open(folder / "registry.duckdb", create=True)
    registry.record(
        BaseSeen(base=fingerprint),
        SearchStarted(
            search_id="search-1",
            name="negation",
            base_content_root=fingerprint.content_root,
            dataset=data.to_dict(),
            config=plain_config(config),
            metric="eval_loss",
            mode="min",
            num_samples=2,
            seed=0,
        ),
    )
    recorder = Recorder(
        registry,
        search_id="search-1",
        name="negation",
        base_content_root=fingerprint.content_root,
        adapters=run / "adapters",
        keep_top=3,
    )
    for spec in specs:
        outcome = exchange.outcomes[spec.trial_id]
        assert outcome.status == "completed", outcome.message
        started = TrialStarted(
            trial_id=spec.trial_id, search_id="search-1", number=spec.number, params=spec.params, lane="lane-0"
        )
        # A lane reports the last evaluation as well.
        reports = [
            TrialReported(trial_id=spec.trial_id, step=metrics["steps"], metrics=metrics)
            for metrics in (*exchange.reports[spec.trial_id], outcome.metrics)
        ]
        ended = TrialEnded(trial_id=spec.trial_id, status="completed", metrics=outcome.metrics)
        recorder.record([started, *reports, ended])
    registry.record(SearchEnded(search_id="search-1", status="completed"))
    good, slow = (adapter.adapter_id for adapter in registry.adapters(order_by="eval_loss"))
    return World(registry=registry.path, base=tiny_model, adapters=(good, slow))


@pytest.fixture
def world(trained: World, tmp_path: Path) -> World:
    """A copy of the trained search that a test may change."""
    folder = shutil.copytree(trained.registry.parent, tmp_path / "world")
    return World(registry=folder / "registry.duckdb", base=trained.base, adapters=trained.adapters)


@pytest.fixture
def make_run() -> Callable[..., Run]:
    """Makes the run folder of a search of that name, as one leaves it that has begun."""
    from rankloom.config import parse_config
    from rankloom.runs import Run, plain_config

    def make(
        folder: Path,
        *,
        search_id: str = "0123456789ab",
        base_path: str = "/base",
        base_content_root: str = "c" * 64,
        **settings: Any,
    ) -> Run:
        config = parse_config({"model_name_or_path": "base", "dataset": "rows.jsonl", **settings})
        run = Run(
            folder=folder,
            search_id=search_id,
            name=folder.name,
            config=plain_config(config),
            base_path=base_path,
            base_content_root=base_content_root,
        )
        folder.mkdir(parents=True, exist_ok=True)
        run.save(config)
        return run

    return make


@pytest.fixture
def driven() -> Callable[..., AbstractContextManager[list[Request]]]:
    """Stands for the process of a search: has its run for a while, and answers; gives the list of what it was asked.

    It answers with what it is given to say to a request, to which None is no answer; otherwise it says yes.
    """
    from rankloom.mailbox import Mailbox

    @contextmanager
    def drive(
        run: Run, answer: Callable[[Request], Mapping[str, Any] | None] = lambda request: {"num_samples": 10}
    ) -> Iterator[list[Request]]:
        asked: list[Request] = []
        ready, over = threading.Event(), threading.Event()

        def listen() -> None:
            with run.alone():
                ready.set()
                mailbox = Mailbox(run.requests)
                while not over.wait(0.01):
                    for request in mailbox.take():
                        asked.append(request)
                        if (said := answer(request)) is not None:
                            mailbox.answer(request, **said)

        with ThreadPoolExecutor(1) as pool:
            driver = pool.submit(listen)
            driver.add_done_callback(lambda _: ready.set())  # one that fails at once is not waited for
            try:
                assert ready.wait(10) and not driver.done()
                yield asked
            finally:
                over.set()
                driver.result()  # raises what ended it

    return drive
