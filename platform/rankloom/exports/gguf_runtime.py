"""Runs a GGUF file with llama.cpp, to see that it says what the model says that it was made of.

The binding is xllamacpp, which comes compiled with the `gguf` extra. It runs llama.cpp's server inside this process;
what it lacks as a Python call is asked of it on the loopback interface, with a key that is made for the occasion.
"""

from __future__ import annotations

import importlib.util
import json
import secrets
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankloom.errors import ModelError


class GgufModel:
    """A GGUF file that is loaded and can be asked; it stays in memory as long as the object lives.

    Args:
        path: The file.
        adapter: A GGUF LoRA to lay over it.
        n_ctx: Tokens that prompt and answer may take together.
        threads: Threads to compute with.

    Raises:
        ModelError: The `gguf` extra is not installed, or llama.cpp cannot load the file.
    """

    def __init__(self, path: Path, *, adapter: Path | None = None, n_ctx: int = 1024, threads: int = 2) -> None:
        if importlib.util.find_spec("xllamacpp") is None:
            raise ModelError("running a .gguf file needs xllamacpp: pip install 'rankloom[gguf]'")
        import xllamacpp

        for file in (path, adapter):
            if file is not None and not file.is_file():
                raise ModelError(f"no GGUF file at {str(file)!r}: check the path")
        self._key = secrets.token_hex(16)
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx, params.n_parallel, params.n_gpu_layers = n_ctx, 1, 0
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        # In half precision, attention alone would be what a file in f32 differs by.
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.verbosity, params.warmup, params.api_keys = -1, False, [self._key]
        if adapter is not None:
            params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(adapter), 1.0)]
        try:
            self._server = xllamacpp.Server(params)
        except RuntimeError as error:
            laid = f" with {adapter}" if adapter else ""
            raise ModelError(f"llama.cpp cannot load {path}{laid}: is it whole, and of a model it knows?") from error
        self.vocab_size: int = self._ask("/v1/models")["data"][0]["meta"]["n_vocab"]

    def generate(self, prompt: str, max_tokens: int = 32) -> str:
        """Return what the model says after a prompt, greedily."""
        return str(self._complete({"prompt": prompt, "n_predict": max_tokens})["text"])

    def tokenize(self, text: str) -> list[int]:
        """Return the token ids of a text, as llama.cpp cuts it, special tokens included."""
        asked = {"content": text, "add_special": True, "parse_special": True}
        return [int(token) for token in self._ask("/tokenize", asked)["tokens"]]

    def logprobs(self, tokens: Sequence[int], *, top: int | None = None) -> NDArray[np.float32]:
        """Return the log probability of each next token, teacher-forced.

        Args:
            tokens: Token ids.
            top: Only so many of the most probable tokens are asked for at each position, which is much faster with a
                large vocabulary; the others are NaN. By default all are.

        Returns:
            Natural logarithms, of shape (len(tokens), vocabulary): row i is what follows tokens[: i + 1].
        """
        rows = [self.logprobs_after(tokens[:end], top=top) for end in range(1, len(tokens) + 1)]
        return np.stack(rows) if rows else np.empty((0, self.vocab_size), dtype=np.float32)

    def logprobs_after(self, tokens: Sequence[int], *, top: int | None = None) -> NDArray[np.float32]:
        """Return the last row of `logprobs` alone: what follows these tokens."""
        row = np.full(self.vocab_size, np.nan, dtype=np.float32)
        # What is reported is what the model says; what is then sampled must be a letter, as the server keeps back the
        # probabilities of a token that ends the text or is half of a character.
        letter = self._ask("/tokenize", {"content": "a"})["tokens"][0]
        asked = {
            "prompt": list(tokens),
            "n_predict": 1,
            "n_probs": top or self.vocab_size,
            "logit_bias": [[letter, 1e9]],
        }
        for entry in self._complete(asked)["logprobs"]["content"][0]["top_logprobs"]:
            row[entry["id"]] = entry["logprob"]
        return row

    def _complete(self, asked: dict[str, Any]) -> Any:
        answer = self._server.handle_completions({**asked, "temperature": 0.0, "cache_prompt": True})
        if "choices" not in answer:
            raise ModelError(f"llama.cpp could not answer: {answer.get('error', {}).get('message', answer)}")
        return answer["choices"][0]

    def _ask(self, path: str, asked: dict[str, Any] | None = None) -> Any:
        request = urllib.request.Request(
            self._server.listening_address + path,
            data=None if asked is None else json.dumps(asked).encode(),
            headers={"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"},
        )
        # A proxy of the environment has no business between this process and itself.
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as answer:
            return json.load(answer)
