"""Each file here is really made, and really malicious or broken; none of them may be opened by what it is a file of."""

from __future__ import annotations

import json
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rankloom_registry import ArtifactError, ArtifactStore
from rankloom_registry.artifacts import FLAGS, check_folder
from rankloom_registry.artifacts.checks import MAX_TENSOR_BYTES, MAX_WEIGHTS_BYTES

Make = Callable[..., Path]
Q = "base_model.model.model.layers.0.self_attn.q_proj"
MATRIX = np.ones((2, 4), np.float32)
PAIR = {f"{Q}.lora_A.weight": ("F32", MATRIX), f"{Q}.lora_B.weight": ("F32", MATRIX.T.copy())}


class Payload:
    """Unpickled, it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def make_archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../outside.py", "print('out')")


def make_tar(path: Path) -> None:
    inside = path.with_name("README.md")
    inside.write_text("x")
    with tarfile.open(path, "w:gz") as archive:
        archive.add(inside, arcname="../../outside")


def test_a_plain_adapter_passes(adapter_folder: Make) -> None:
    folder = adapter_folder()
    (folder / "README.md").write_text("# made by rankloom — ünïcode\n")
    check_folder(folder)
    check_folder(str(folder), allow=FLAGS)


@pytest.mark.parametrize("name", ["adapter_model.bin", "training_args.bin", "optimizer.PT", "x.pkl"])
def test_a_pickle_is_refused_unread(adapter_folder: Make, tmp_path: Path, name: str) -> None:
    folder = adapter_folder()
    (folder / name).write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    with pytest.raises(ArtifactError, match=rf"{name} is a pickle, which can run code"):
        check_folder(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "README.md", "adapter_config.json"])
def test_a_pickle_or_archive_under_another_name_is_refused(adapter_folder: Make, tmp_path: Path, name: str) -> None:
    folder = adapter_folder()
    (folder / name).write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    with pytest.raises(ArtifactError, match=name):
        check_folder(folder)
    make_archive(folder / name)
    with pytest.raises(ArtifactError, match=name):
        check_folder(folder)
    assert not (tmp_path / "ran").exists()


def test_archives_and_code_are_refused(adapter_folder: Make) -> None:
    for number, (name, make, reason) in enumerate(
        [
            ("weights.zip", make_archive, "an archive"),
            ("weights.tar.gz", make_tar, "an archive"),
            ("modeling_evil.py", lambda path: path.write_text("import os\nos.mkdir('ran')\n"), "code"),
            ("kernel.so", lambda path: path.write_bytes(b"\x7fELF"), "code"),
            ("config.yaml", lambda path: path.write_text("a: !!python/object/apply:os.getcwd []"), "nothing else"),
            ("manifest.json", lambda path: path.write_text("{}"), "nothing else"),
            (".hidden", lambda path: path.write_text(""), "nothing else"),
        ]
    ):
        folder = adapter_folder(f"folder-{number}")
        make(folder / name)
        with pytest.raises(ArtifactError, match=rf"(?s){name}.*{reason}|{reason}.*{name}"):
            check_folder(folder)


@pytest.mark.parametrize("name", ["a..b", "with space.md", "x" * 129, "new\nline", "semi;colon", "ümlaut.md", "$(id)"])
def test_a_name_that_could_lead_elsewhere_is_refused(adapter_folder: Make, name: str) -> None:
    folder = adapter_folder()
    (folder / name).write_text("")
    with pytest.raises(ArtifactError, match="name is refused"):
        check_folder(folder)


def test_links_are_refused(adapter_folder: Make, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("{}")
    for number, name in enumerate(("adapter_config.json", "adapter_model.safetensors", "README.md", "other")):
        folder = adapter_folder(f"folder-{number}")
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(secret)
        with pytest.raises(ArtifactError, match=rf"{name} is a link"):
            check_folder(folder)
    dangling = adapter_folder("dangling")
    (dangling / "README.md").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ArtifactError, match="is a link"):
        check_folder(dangling)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"auto_mapping": {"base_model_class": "Evil", "parent_library": "evil"}}, "'auto_mapping'.*code"),
        ({"auto_map": {"AutoModel": "evil--modeling.Evil"}}, "'auto_map'.*code"),
        ({"trust_remote_code": True}, "'trust_remote_code'.*code"),
        ({"eva_config": {"nested": [{"trust_remote_code": "yes"}]}}, "'trust_remote_code'.*code"),
        ({"_custom_modules": {"Linear": "evil"}}, "'_custom_modules'.*code"),
        ({"megatron_core": "evil.core"}, "'megatron_core'.*code"),
        ({"megatron_config": {"a": 1}}, "'megatron_config'.*code"),
        ({"weights_only": False}, "'weights_only'.*loader"),
        ({"use_safetensors": False}, "'use_safetensors'.*loader"),
        ({"subfolder": "../other"}, "'subfolder'.*loader"),
        ({"token": "hf_x"}, "'token'.*loader"),
        ({"corda_config": {"cache_file": "/tmp/evil.pt"}}, "'cache_file'.*loader"),
        ({"r": 10_000}, "rank"),
        ({"rank_pattern": {"q_proj": 10_000}}, "rank"),
        ({"r": None}, "rank"),
        ({"lora_alpha": float("nan")}, "lora_alpha"),
        ({"alpha_pattern": {"q_proj": float("inf")}}, "lora_alpha"),
        ({"lora_alpha": "16"}, "lora_alpha"),
        ({"modules_to_save": ["classifier"]}, "allow 'modules-to-save'"),
        ({"bias": "all"}, "allow 'modules-to-save'"),
        ({"trainable_token_indices": [1, 2]}, "allow 'embeddings'"),
    ],
)
def test_a_configuration_is_refused_for_what_it_names(
    adapter_folder: Make, config: dict[str, object], reason: str
) -> None:
    with pytest.raises(ArtifactError, match=reason):
        check_folder(adapter_folder(**config))


def test_what_is_only_empty_or_peft_writes_it_always_is_no_reason(adapter_folder: Make) -> None:
    idle = {"auto_mapping": None, "megatron_core": "megatron.core", "trust_remote_code": False, "modules_to_save": None}
    idle |= {"corda_config": {"cache_file": None}, "bias": "none", "rank_pattern": {}, "alpha_pattern": {}}
    check_folder(adapter_folder(**idle))


def test_a_configuration_nested_too_deep_is_refused(adapter_folder: Make) -> None:
    folder = adapter_folder()
    text = '{"peft_type": "LORA", "r": 2, "eva_config": ' + "[" * 400 + "]" * 400 + "}"
    (folder / "adapter_config.json").write_text(text)
    check_folder(folder)
    (folder / "adapter_config.json").write_text(
        text.replace("[" * 400, "[" * 200_000).replace("]" * 400, "]" * 200_000)
    )
    with pytest.raises(ArtifactError, match="not JSON"):
        check_folder(folder)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda header: header[f"{Q}.lora_B.weight"].update(data_offsets=[36, 68]), "hole"),
        (lambda header: header[f"{Q}.lora_B.weight"].update(data_offsets=[16, 48]), "overlap"),
        (lambda header: header.pop(f"{Q}.lora_B.weight"), "end at byte"),
        (lambda header: header[f"{Q}.lora_B.weight"].update(shape=[1 << 40, 2]), "malformed"),
    ],
)
def test_a_weights_file_that_hides_something_is_refused(
    adapter_folder: Make, write_safetensors: Make, spoil: Callable[[dict[str, Any]], object], reason: str
) -> None:
    folder = adapter_folder()
    write_safetensors(folder / "adapter_model.safetensors", PAIR, spoil=spoil)
    with pytest.raises(ArtifactError, match=reason):
        check_folder(folder)


def test_what_is_too_large_is_refused_unread(adapter_folder: Make, tmp_path: Path) -> None:
    folder = adapter_folder()
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes((100_000_001).to_bytes(8, "little"))
    os.truncate(weights, 200_000_000)  # a hole in the disk, not 200 MB
    with pytest.raises(ArtifactError, match="header claims"):
        check_folder(folder)

    size = MAX_TENSOR_BYTES + 8
    entry = {"dtype": "F32", "shape": [2, size // 8], "data_offsets": [0, size]}
    text = json.dumps({f"{Q}.lora_A.weight": entry}).encode()
    weights.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(weights, 8 + len(text) + size)
    with pytest.raises(ArtifactError, match="is larger than"):
        check_folder(folder)

    os.truncate(weights, MAX_WEIGHTS_BYTES + 1)
    store = ArtifactStore(tmp_path / "store")
    with pytest.raises(ArtifactError, match=r"adapter_model\.safetensors has .* is smaller than"):
        store.add(folder)
    assert not store.root.exists()


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({f"{Q}.lora_A.weight": ("F32", MATRIX)}, "come in pairs"),
        (PAIR | {f"{Q}.lora_B.weight": ("F32", MATRIX)}, r"lora_B \(out, r\)"),
        (PAIR | {f"{Q}.lora_A.weight": ("F32", np.ones((3, 4), np.float32))}, r"with r of \[2\]"),
        (PAIR | {f"{Q}.lora_A.weight": ("F32", np.ones(8, np.float32))}, r"with r of \[2\]"),
        (PAIR | {f"{Q}.lora_C.weight": ("F32", MATRIX)}, "matches nothing"),
        (PAIR | {f"{Q}.weight": ("F32", MATRIX)}, "matches nothing"),
        (PAIR | {"payload": ("F32", MATRIX)}, "matches nothing"),
        (PAIR | {"base_model.model.model.embed_tokens.weight": ("F32", MATRIX)}, "allow 'embeddings'"),
        (PAIR | {"base_model.model.lm_head.weight": ("F32", MATRIX)}, "allow 'embeddings'"),
        (PAIR | {f"{Q}.lora_A.weight": ("F32", MATRIX * np.nan)}, "NaN or Inf"),
        (PAIR | {f"{Q}.lora_B.weight": ("F32", MATRIX.T * np.inf)}, "NaN or Inf"),
    ],
)
def test_tensors_are_what_an_adapter_is_made_of(
    adapter_folder: Make, write_safetensors: Make, tensors: dict[str, Any], reason: str
) -> None:
    folder = adapter_folder()
    write_safetensors(folder / "adapter_model.safetensors", tensors)
    with pytest.raises(ArtifactError, match=reason):
        check_folder(folder)


def test_whole_modules_pass_behind_their_flag(adapter_folder: Make, write_safetensors: Make, tmp_path: Path) -> None:
    folder = adapter_folder(modules_to_save=["score", "lm_head"])
    whole = {f"base_model.model.{name}.weight": ("F32", MATRIX) for name in ("score", "score.dense", "lm_head")}
    write_safetensors(folder / "adapter_model.safetensors", PAIR | whole)
    with pytest.raises(ArtifactError, match="allow 'modules-to-save'"):
        check_folder(folder, allow={"embeddings"})
    check_folder(folder, allow={"modules-to-save"})
    store = ArtifactStore(tmp_path / "store")
    store.verify(store.add(folder, allow={"modules-to-save"}))
    with pytest.raises(ArtifactError, match="allow 'modules-to-save'"):
        store.add(folder)

    other = {"base_model.model.classifier.weight": ("F32", MATRIX)}
    write_safetensors(folder / "adapter_model.safetensors", PAIR | other)
    with pytest.raises(ArtifactError, match=r"classifier.*matches nothing"):
        check_folder(folder, allow=FLAGS)

    embeddings = adapter_folder("embeddings")
    head = {"base_model.model.lm_head.weight": ("F32", MATRIX)}
    write_safetensors(embeddings / "adapter_model.safetensors", PAIR | head)
    check_folder(embeddings, allow={"embeddings"})
    biased = adapter_folder("biased", bias="lora_only")
    write_safetensors(biased / "adapter_model.safetensors", PAIR | {f"{Q}.bias": ("F32", MATRIX[0])})
    check_folder(biased, allow={"modules-to-save"})


def test_a_tokenizer_passes_behind_its_flag(adapter_folder: Make) -> None:
    folder = adapter_folder()
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"auto_map": 1, "token": 2}}}))
    (folder / "chat_template.jinja").write_text("{% for message in messages %}{{ message.content }}{% endfor %}")
    with pytest.raises(ArtifactError, match="allow 'tokenizer'"):
        check_folder(folder)
    check_folder(folder, allow={"tokenizer"})
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}}))
    with pytest.raises(ArtifactError, match=r"'auto_map' in .*tokenizer_config\.json.*code"):
        check_folder(folder, allow={"tokenizer"})
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"tokenizer_config\.json is not JSON"):
        check_folder(folder, allow={"tokenizer"})
    (folder / "tokenizer_config.json").unlink()
    (folder / "chat_template.jinja").write_bytes(b"\xff\xfe\0")
    with pytest.raises(ArtifactError, match=r"chat_template\.jinja is not text"):
        check_folder(folder, allow={"tokenizer"})


def test_only_what_there_is_can_be_allowed(adapter_folder: Make) -> None:
    with pytest.raises(ArtifactError, match="'pickles'"):
        check_folder(adapter_folder(), allow={"pickles"})
