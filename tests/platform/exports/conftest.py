"""Real adapters of every kind on a Llama of two layers, and a hub on this machine."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

LORAS: dict[str, dict[str, Any]] = {
    "lora": {"r": 4, "lora_alpha": 8},
    "odd-factor": {"r": 6, "lora_alpha": 7},
    "rslora": {"r": 8, "lora_alpha": 7, "use_rslora": True},
    "ranks": {"r": 4, "lora_alpha": 8, "rank_pattern": {"q_proj": 2, r"layers\.1\..*v_proj": 7}},
    "alphas": {"r": 4, "lora_alpha": 8, "alpha_pattern": {"down_proj": 5, r".*\.0\..*": 13}},
    "ranks-and-alphas": {
        "r": 4,
        "lora_alpha": 8,
        "rank_pattern": {"down_proj": 3, "k_proj": 9},
        "alpha_pattern": {"down_proj": 5, "q_proj": 1},
    },
    "rslora-ranks-and-alphas": {
        "r": 4,
        "lora_alpha": 8,
        "use_rslora": True,
        "rank_pattern": {"down_proj": 3, "k_proj": 9},
        "alpha_pattern": {"down_proj": 5, "q_proj": 1},
    },
}


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers in float32 with an untied head."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    folder = tmp_path_factory.mktemp("llama")
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def save_adapter() -> Callable[..., Path]:
    """Saves an adapter with random weights, as PEFT does: (folder, base, dtype, **LoraConfig's options)."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    def save(folder: Path, base: Path, dtype: torch.dtype = torch.float32, **lora: Any) -> Path:
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_pretrained(base)
        options = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **lora}
        adapted = peft.get_peft_model(model, peft.LoraConfig(**options))
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.1)
                parameter.data = parameter.data.to(dtype)
        adapted.save_pretrained(folder, save_embedding_layers=False)
        return folder

    return save


@pytest.fixture(params=LORAS)
def lora(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Options of a kind of LoRA."""
    options: dict[str, Any] = LORAS[request.param]
    return options


@dataclass
class Hub:
    """A hub on this machine, which answers what `huggingface_hub` asks when it commits files to a repository.

    Attributes:
        tokens: Tokens that may write.
        visibility: Of each repository, by its id.
        files: Of each repository: names to contents, as the commits so far left them.
        blobs: Uploaded large files, by SHA-256.
        commits: How many there were.
        requests: (method, path, Authorization) in order.
        answers: (method, part of the path) to a status and a body to give instead; each once, first match.
        lfs_from: Size from which a file is a large one, in bytes.
    """

    tokens: set[str] = field(default_factory=lambda: {"hf_right"})
    visibility: dict[str, str] = field(default_factory=dict)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    commits: int = 0
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    answers: dict[tuple[str, str], tuple[int, dict[str, Any]]] = field(default_factory=dict)
    lfs_from: int = 1000
    url: str = ""

    def serve(self) -> ThreadingHTTPServer:
        """Start it on a free port of 127.0.0.1."""

        class Handler(_Handler):
            hub = self

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._handle("GET")

    def do_POST(self) -> None:
        self._handle("POST")

    def do_PUT(self) -> None:
        self._handle("PUT")

    def _handle(self, method: str) -> None:
        path = self.path.partition("?")[0]
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        authorization = self.headers.get("Authorization")
        self.hub.requests.append((method, path, authorization))
        for (wanted, part), (status, answer) in list(self.hub.answers.items()):
            if wanted == method and part in path:
                self._answer(status, answer)
                return
        if path.startswith("/lfs/"):  # the address of an upload is itself the permission
            self.hub.blobs[path.rpartition("/")[2]] = body
            self._answer(200, {})
        elif authorization not in {f"Bearer {token}" for token in self.hub.tokens}:
            self._answer(401, {"error": "Invalid credentials"})
        else:
            self._answer(*self._api(method, path, body))

    def _api(self, method: str, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        hub, parts = self.hub, path.strip("/").split("/")
        match method, parts:
            case "POST", ["api", "repos", "create"]:
                asked = json.loads(body)
                repo = f"{asked['organization']}/{asked['name']}"
                if repo in hub.files:
                    return 409, {"error": "You already created this model repo", "url": f"{hub.url}/{repo}"}
                hub.files[repo], hub.visibility[repo] = {}, asked.get("visibility", "public")
                return 200, {"url": f"{hub.url}/{repo}"}
            case "POST", ["api", "validate-yaml"]:
                return 200, {"warnings": [], "errors": []}
            case "GET", ["api", "models", owner, name, *_]:
                repo = f"{owner}/{name}"
                siblings = [{"rfilename": file} for file in hub.files[repo]]
                private = hub.visibility[repo] == "private"
                return 200, {"id": repo, "private": private, "sha": self._sha(), "siblings": siblings}
            case "POST", ["api", "models", owner, name, "preupload", "main"]:
                files = [self._mode(f"{owner}/{name}", file) for file in json.loads(body)["files"]]
                return 200, {"files": files}
            case "POST", [owner, git, "info", "lfs", "objects", "batch"]:
                assert git.endswith(".git")
                return 200, {
                    "transfer": "basic",
                    "objects": [self._place(file) for file in json.loads(body)["objects"]],
                }
            case "POST", ["api", "models", owner, name, "commit", "main"]:
                return self._commit(f"{owner}/{name}", [json.loads(line) for line in body.splitlines()])
        return 404, {"error": f"{method} {path} is not spoken here"}

    def _mode(self, repo: str, file: dict[str, Any]) -> dict[str, Any]:
        large = file["size"] >= self.hub.lfs_from
        found: dict[str, Any] = {
            "path": file["path"],
            "uploadMode": "lfs" if large else "regular",
            "shouldIgnore": False,
        }
        if (content := self.hub.files[repo].get(file["path"])) is not None:
            blob = b"blob %d\0" % len(content) + content
            found["oid"] = hashlib.sha256(content).hexdigest() if large else hashlib.sha1(blob).hexdigest()
        return found

    def _place(self, file: dict[str, Any]) -> dict[str, Any]:
        if file["oid"] in self.hub.blobs:
            return file
        href = f"{self.hub.url}/lfs/{file['oid']}?X-Amz-Signature=s3cret"  # whoever has this address may upload
        return {**file, "actions": {"upload": {"href": href, "header": {}}}}

    def _commit(self, repo: str, lines: list[dict[str, Any]]) -> tuple[int, dict[str, Any]]:
        after = dict(self.hub.files[repo])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                after[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                content = self.hub.blobs.get(value["oid"])
                if content is None or hashlib.sha256(content).hexdigest() != value["oid"]:
                    return 400, {"error": f"{value['path']} was not uploaded"}
                after[value["path"]] = content
        self.hub.files[repo] = after
        self.hub.commits += 1
        return 200, {
            "success": True,
            "commitOid": self._sha(),
            "commitUrl": f"{self.hub.url}/{repo}/commit/{self._sha()}",
            "hookOutput": "",
        }

    def _sha(self) -> str:
        return f"{self.hub.commits:040x}"

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        if "error" in body:
            self.send_header("X-Error-Message", str(body["error"]))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A hub of its own on this machine, and no token but those that a test gives."""
    import huggingface_hub.constants as constants

    # Read from the environment when the library is imported.
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path_factory.mktemp("login") / "token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
        monkeypatch.delenv(name, raising=False)
    hub = Hub()
    server = hub.serve()
    yield hub
    server.shutdown()
    server.server_close()
