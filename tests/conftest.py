"""Tiny real things that many tests share: a Llama of two layers with a tokenizer of its own, and rows to learn."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

# Set before anything imports the libraries: tests reach no hub, and leave no tracks in the user's caches.
os.environ["HF_HUB_OFFLINE"] = "1"
_datasets_cache = tempfile.TemporaryDirectory(prefix="rankloom-tests-")
os.environ["HF_DATASETS_CACHE"] = _datasets_cache.name
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.pop("RANKLOOM_REGISTRY", None)

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
