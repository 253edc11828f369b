from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from rankloom.config import parse_config
from rankloom.errors import ModelError, OutputError, PromotionError, RankloomError
from rankloom.outputs import MANIFEST
from rankloom.promotion.gates import LOST_GAIN, TOLERANCE
from rankloom.promotion.promote import promote
from rankloom_registry import (
    ArtifactError,
    InvalidNameError,
    Registry,
    RegistryBusyError,
    RegistryError,
    SignatureError,
    undo_promotion,
)
from rankloom_registry.signing import Signer, Verifier, verify


@pytest.fixture
def registry(world: Any) -> Registry:
    return Registry.open(world.registry)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_merged_model_is_a_plain_model(world: Any, registry: Registry, tmp_path: Path) -> None:
    stages: list[tuple[str, int, int]] = []
    gates: list[tuple[str, dict[str, Any]]] = []
    made = promote(
        registry,
        world.adapters[0],
        tmp_path / "merged",
        alias="champion",
        reason="best",
        on_progress=lambda *at: stages.append(at),
        on_gate=lambda *gate: gates.append(gate),
    )
    adapter = registry.adapter("negation@champion")
    assert adapter.adapter_id == world.adapters[0] == made.adapter_id
    checks = made.checks
    assert checks["adapter_loss"] == adapter.eval_loss
    assert checks["delta"] == checks["merged_loss"] - checks["adapter_loss"] <= checks["tolerance"]
    assert checks["tolerance"] == max(TOLERANCE, LOST_GAIN * (checks["base_loss"] - checks["adapter_loss"]))
    assert (checks["modules_merged"], checks["dataset"]["rows"]) == (14, 12)
    assert (checks["dataset"]["max_length"], checks["dataset"]["cut_rows"], checks["dataset"]["dropped_rows"]) == (
        48,
        0,
        0,
    )
    splits = ("held-out", "general")
    assert list(dict.fromkeys(stage for stage, _, _ in stages)) == [
        "fingerprint base",
        "merge, full-precision",
        "replay, sampled",
        *(f"measure {what}, {split}" for what in ("adapter", "base", "rounding", "full-precision") for split in splits),
        "merge, as-trained",
        *(f"measure as-trained, {split}" for split in splits),
    ]
    assert list(checks)[:5] == ["base", "finite", "disk", "replay", "drift"]
    assert all(checks[gate]["passed"] for gate in list(checks)[:5])
    assert [name for name, _ in gates] == ["base", "disk", "finite", "replay", "drift"]
    for name, figures in gates:  # what is told is what is recorded
        assert json.loads(json.dumps(figures)).items() >= checks[name].items()
    assert json.loads(json.dumps(gates[-1][1]["measured"])) == checks["measured"]
    for split in splits:
        models = checks["measured"][split]
        assert set(models) == {"rows", "adapter", "base", "rounding", "full-precision", "as-trained"}
        # What was measured is what as-trained makes: nothing is as near to it but itself.
        assert models["as-trained"]["kl"] < models["full-precision"]["kl"] < models["base"]["kl"]
        assert models["as-trained"]["kl"] < models["full-precision"]["kl"] / 3
    assert checks["drift"]["recommended"] in ("full-precision", "as-trained")

    files = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"}
    assert names(tmp_path / "merged") >= files | {MANIFEST}
    for name in files - {"model.safetensors"}:
        assert (tmp_path / "merged" / name).read_bytes() == (world.base / name).read_bytes()
    manifest = json.loads((tmp_path / "merged" / MANIFEST).read_text())
    assert manifest["adapter_id"] == made.adapter_id and manifest["output_sha256"] == made.output_sha256
    assert manifest["base"]["content_root"] == adapter.base_content_root and manifest["checks"] == checks
    listing = "".join(
        f"{hashlib.sha256((tmp_path / 'merged' / name).read_bytes()).hexdigest()}  {name}\n"
        for name in sorted(names(tmp_path / "merged") - {MANIFEST, "README.md"})
    )
    assert hashlib.sha256(listing.encode()).hexdigest() == made.output_sha256

    (recorded,) = registry.promotions(made.adapter_id)
    assert (recorded.status, recorded.reason, recorded.forced) == ("done", "best", False)
    assert (recorded.output_path, recorded.output_sha256) == (str(tmp_path / "merged"), made.output_sha256)
    assert (recorded.recipe, recorded.alias, recorded.checks) == ("full-precision", "negation@champion", checks)
    card = (tmp_path / "merged" / "README.md").read_text()
    for part in (adapter.base_content_root, adapter.adapter_id, "learning", "from_pretrained", "merged as-trained"):
        assert part in card
    assert names(tmp_path) == {"world", "merged"}


GENERATE = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, prompt = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
inputs = tokenizer(prompt, return_tensors="pt")
output = model.generate(**inputs, do_sample=False, max_new_tokens=16)
chat = tokenizer.apply_chat_template([{"role": "user", "content": "the girl ?"}], tokenize=False)
ours = sorted(name for name in sys.modules if name.startswith(("rankloom", "peft", "bitsandbytes")))
text = tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True)
print(json.dumps({"text": text, "chat": chat, "ours": ours}))
"""


def test_a_merged_model_generates_where_rankloom_is_not(world: Any, registry: Registry, tmp_path: Path) -> None:
    promote(registry, world.adapters[0], tmp_path / "merged")
    row = json.loads(world.eval_rows.read_text().splitlines()[0])
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", GENERATE, str(tmp_path / "merged"), row["prompt"]],
        env={**environment, "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["ours"] == []
    assert "<|im_start|>user" in found["chat"]
    assert found["text"].strip() and set(found["text"].split()) & set(row["completion"].split())


def test_an_exported_adapter_loads_with_peft(world: Any, registry: Registry, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    made = promote(registry, world.adapters[0], tmp_path / "adapter", format="adapter", alias="champion")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(world.base)
    assert "manifest.json" not in names(tmp_path / "adapter")
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(world.base), tmp_path / "adapter")
    assert sum("lora_A" in name for name, _ in model.named_parameters()) == 14
    adapter = registry.adapter("negation@champion")
    assert (made.adapter_id, made.output_sha256) == (adapter.adapter_id, adapter.artifact_sha256)
    registry.verify(adapter)  # the registry's own files are as they were
    assert (tmp_path / "adapter" / "adapter_config.json").stat().st_mode & 0o200


def test_another_base_is_refused_before_anything_is_written(world: Any, registry: Registry, tmp_path: Path) -> None:
    wrong = shutil.copytree(world.base, tmp_path / "wrong")
    weights = load_file(wrong / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] += 1
    save_file(weights, wrong / "model.safetensors", metadata={"format": "pt"})
    gates: list[tuple[str, dict[str, Any]]] = []
    with pytest.raises(PromotionError, match="belongs to the base with content root") as caught:
        promote(
            registry,
            world.adapters[0],
            tmp_path / "merged",
            base=str(wrong),
            alias="champion",
            on_gate=lambda *gate: gates.append(gate),
        )
    assert gates == [("base", {"passed": False, "problem": str(caught.value)})]
    assert names(tmp_path) == {"world", "wrong"}
    assert registry.aliases() == registry.promotions() == []


def test_a_model_that_lost_too_much_is_refused_and_recorded(world: Any, registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(PromotionError, match=r"is beyond the tolerance -10, .* keep the adapter .* --force --reason"):
        promote(registry, world.adapters[0], tmp_path / "merged", alias="champion", tolerance=-10)
    assert names(tmp_path) == {"world"} and registry.aliases() == []
    (recorded,) = registry.promotions(world.adapters[0])
    assert (recorded.status, recorded.forced) == ("refused", False)
    assert "beyond the tolerance" in recorded.reason and recorded.checks["tolerance"] == -10

    made = promote(
        registry, world.adapters[0], tmp_path / "merged", alias="champion", tolerance=-10, force=True, reason="a trial"
    )
    assert registry.adapter("negation@champion").adapter_id == made.adapter_id
    latest = registry.promotions(world.adapters[0])[0]
    assert (latest.status, latest.forced, latest.reason) == ("done", True, "a trial")


def test_room_is_needed_for_two_models_at_most(
    world: Any, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed: list[int] = []

    def room(folder: Path, size: int) -> Any:
        needed.append(size)
        raise PromotionError("enough")

    monkeypatch.setattr("rankloom.promotion.building.assert_room", room)
    for format, compare in (("safetensors", False), ("safetensors", True), ("nf4", False), ("nf4", True)):
        with pytest.raises(PromotionError, match="enough"):
            promote(registry, world.adapters[0], tmp_path / "out", format=format, compare=compare)  # type: ignore[arg-type]
    weights = (world.base / "model.safetensors").stat().st_size
    assert [size - needed[0] for size in needed] == [0, weights, weights, weights]


def test_force_needs_a_reason(world: Any, registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(PromotionError, match="--force needs --reason"):
        promote(registry, world.adapters[0], tmp_path / "merged", force=True)
    assert names(tmp_path) == {"world"} and registry.promotions() == []


def test_force_where_nothing_was_wrong_is_not_recorded_as_forced(
    world: Any, registry: Registry, tmp_path: Path
) -> None:
    promote(registry, world.adapters[0], tmp_path / "merged", force=True, reason="to be sure", tolerance=10)
    assert registry.promotions()[0].forced is False


def test_refused_before_anything_is_read(world: Any, registry: Registry, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine.txt").write_text("kept")
    cases: list[tuple[type[Exception], dict[str, Any], Path]] = [
        (PromotionError, {}, taken),
        (PromotionError, {}, tmp_path / "none" / "merged"),
        (InvalidNameError, {"alias": "../up"}, tmp_path / "merged"),
        (RankloomError, {"base": str(tmp_path / "none")}, tmp_path / "merged"),
        (RankloomError, {"dataset": str(tmp_path / "none.jsonl")}, tmp_path / "merged"),
    ]
    for error, options, output in cases:
        with pytest.raises(error):
            promote(registry, world.adapters[0], output, **options)
    with pytest.raises(RegistryError):
        promote(registry, "no-such-adapter", tmp_path / "merged")
    assert (taken / "mine.txt").read_text() == "kept" and names(taken) == {"mine.txt"}
    assert names(tmp_path) == {"world", "taken"}
    assert registry.aliases() == registry.promotions() == []


def test_changed_files_are_not_promoted(world: Any, registry: Registry, tmp_path: Path) -> None:
    path = registry.adapter(world.adapters[0]).artifact_path
    assert path is not None
    config = path / "adapter_config.json"
    config.chmod(0o644)
    config.write_text(config.read_text().replace('"r": 4', '"r": 5'))
    for format in ("safetensors", "adapter"):
        with pytest.raises(ArtifactError):
            promote(registry, world.adapters[0], tmp_path / "merged", format=format)  # type: ignore[arg-type]
    assert names(tmp_path) == {"world"}


def test_an_interrupted_promotion_goes_on_where_it_was(world: Any, registry: Registry, tmp_path: Path) -> None:
    def interrupt(stage: str, done: int, total: int) -> None:
        if stage.startswith("measure full-precision"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        promote(registry, world.adapters[0], tmp_path / "merged", alias="champion", on_progress=interrupt)
    assert names(tmp_path) == {"world", ".merged.partial"}
    assert registry.aliases() == registry.promotions() == []

    stages: list[str] = []
    promote(registry, world.adapters[0], tmp_path / "merged", on_progress=lambda stage, *_: stages.append(stage))
    assert "merge, full-precision" not in stages and "measure full-precision, general" in stages
    assert names(tmp_path) == {"world", "merged"}


def test_a_wrong_option_does_not_cost_what_was_merged(world: Any, registry: Registry, tmp_path: Path) -> None:
    def interrupt(stage: str, done: int, total: int) -> None:
        if stage.startswith("replay"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        promote(registry, world.adapters[0], tmp_path / "merged", on_progress=interrupt)
    merged = tmp_path / ".merged.partial" / "full-precision" / "model.safetensors"
    inode = merged.stat().st_ino
    for options in ({"dataset": str(tmp_path / "none.jsonl")}, {"base": str(tmp_path / "none")}):
        with pytest.raises(RankloomError):
            promote(registry, world.adapters[0], tmp_path / "merged", **options)  # type: ignore[arg-type]
    promote(registry, world.adapters[0], tmp_path / "merged", compare=False)
    assert (tmp_path / "merged" / "model.safetensors").stat().st_ino == inode


def test_a_merge_without_its_note_is_made_again(world: Any, registry: Registry, tmp_path: Path) -> None:
    def interrupt(stage: str, done: int, total: int) -> None:
        if stage.startswith("replay"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        promote(registry, world.adapters[0], tmp_path / "merged", on_progress=interrupt)
    (tmp_path / ".merged.partial" / "full-precision.json").unlink()  # a kill may come between the two
    promote(registry, world.adapters[0], tmp_path / "merged", compare=False)
    assert names(tmp_path) == {"world", "merged"}


def test_half_a_model_is_not_measured(
    world: Any, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove = shutil.rmtree

    def stopped(path: Path, **options: Any) -> None:
        if path.name != "as-trained" or not path.is_dir():
            return remove(path, **options)
        (path / "model.safetensors").unlink()
        raise KeyboardInterrupt  # as a kill would: some of it is still there

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", stopped)
        promote(registry, world.adapters[0], tmp_path / "merged")
    assert (tmp_path / ".merged.partial" / "as-trained" / "config.json").is_file()
    assert promote(registry, world.adapters[0], tmp_path / "merged").checks["measured"]["general"]["as-trained"]
    assert names(tmp_path) == {"world", "merged"}


def test_what_was_made_and_not_recorded_is_recorded_by_the_same_call(
    world: Any, registry: Registry, tmp_path: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(registry: Registry, *events: Any) -> int:
        raise RegistryBusyError("busy")

    options: dict[str, Any] = {"compare": False, "alias": "champion"}
    output = tmp_path / "merged"
    with monkeypatch.context() as patch, pytest.raises(RegistryBusyError):
        patch.setattr(Registry, "record", busy)
        promote(registry, world.adapters[0], output, **options)
    assert names(tmp_path) == {"world", "merged"} and registry.promotions() == registry.aliases() == []

    (tmp_path / ".merged.partial").mkdir()  # as a kill would leave it
    for other in ({"tolerance": -10}, {"format": "adapter"}, {"verify": "full"}, {"signer": Signer(keys[0])}):
        with pytest.raises(OutputError, match="new or empty"):  # it was made of another call
            promote(registry, world.adapters[0], output, **options | other)
    with pytest.raises(OutputError, match="new or empty"):
        promote(registry, world.adapters[1], output, **options)
    stages: list[str] = []
    made = promote(
        registry, world.adapters[0], output, on_progress=lambda stage, *_: stages.append(stage), reason="now", **options
    )
    (recorded,) = registry.promotions()
    assert stages == [] and recorded.checks == made.checks and names(tmp_path) == {"world", "merged"}
    assert (recorded.promotion_id, recorded.status, recorded.reason) == (made.promotion_id, "done", "now")
    assert registry.adapter("negation@champion").adapter_id == world.adapters[0]
    with pytest.raises(OutputError, match="new or empty"):
        promote(registry, world.adapters[0], output, **options)


def test_a_signature_that_was_interrupted_is_not_kept(
    world: Any, registry: Registry, tmp_path: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*paths: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("rankloom.promotion.promote.publish", interrupt)
        promote(registry, world.adapters[0], tmp_path / "out", compare=False, signer=Signer(keys[0]))
    assert (tmp_path / ".out.partial" / "full-precision" / "model.sig").is_file()
    promote(registry, world.adapters[0], tmp_path / "out", compare=False)
    assert "model.sig" not in names(tmp_path / "out")


@pytest.mark.parametrize("format", ["safetensors", "adapter"])
def test_what_another_promotion_left_is_in_nobodys_way(
    world: Any, registry: Registry, tmp_path: Path, format: Any
) -> None:
    stale = tmp_path / ".merged.partial"
    (stale / "full-precision").mkdir(parents=True)
    (stale / "full-precision" / "model.safetensors").write_bytes(b"half")
    (stale / "full-precision.json").write_text("{}")
    promote(registry, world.adapters[0], tmp_path / "merged", format=format, compare=False)
    assert names(tmp_path) == {"world", "merged"}


KILLED = """
import os, signal, sys
from pathlib import Path
from rankloom.promotion.promote import promote
from rankloom_registry import Registry
def die(stage, done, total):
    if stage == sys.argv[4] and done:
        os.kill(os.getpid(), signal.SIGKILL)
promote(Registry.open(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), alias="champion", compare=False, on_progress=die)
"""


@pytest.mark.parametrize("stage", ["merge, full-precision", "replay, sampled"])
def test_a_killed_promotion_leaves_no_model_and_is_resumed(
    world: Any, registry: Registry, tmp_path: Path, stage: str
) -> None:
    output = tmp_path / "merged"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", KILLED, str(world.registry), world.adapters[0], str(output), stage]
    assert subprocess.run(command, env=environment, capture_output=True, check=False).returncode == -signal.SIGKILL
    assert names(tmp_path) == {"world", ".merged.partial"}
    assert registry.promotions() == registry.aliases() == []
    promote(registry, world.adapters[0], output, alias="champion", compare=False, verify="full")
    assert names(tmp_path) == {"world", "merged"} and "model.safetensors" in names(output)


def test_the_recipe_that_was_asked_for_is_what_comes_out(world: Any, registry: Registry, tmp_path: Path) -> None:
    options: dict[str, Any] = {"compare": False, "verify": "full"}
    made = promote(registry, world.adapters[0], tmp_path / "trained", recipe="as-trained", **options)
    assert (made.recipe, made.checks["drift"]["passed"]) == ("as-trained", True)
    assert set(made.checks["measured"]["held-out"]) == {"rows", "adapter", "base", "rounding", "as-trained"}
    assert registry.promotions()[0].recipe == "as-trained"
    promote(registry, world.adapters[0], tmp_path / "full", **options)
    trained, full, base = (
        load_file(folder / "model.safetensors") for folder in (tmp_path / "trained", tmp_path / "full", world.base)
    )
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not trained[name].equal(full[name]) and not full[name].equal(base[name])
    assert trained["model.embed_tokens.weight"].equal(full["model.embed_tokens.weight"])


def test_a_model_in_4_bits_is_measured_as_such(world: Any, registry: Registry, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    base = shutil.copytree(world.base, tmp_path / "base")
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates" / "tools.jinja").write_text("{{ tools }}")
    options: dict[str, Any] = {"base": str(base), "compare": False, "tolerance": 10}
    made = promote(registry, world.adapters[0], tmp_path / "nf4", format="nf4", **options)
    assert (tmp_path / "nf4" / "additional_chat_templates" / "tools.jinja").read_text() == "{{ tools }}"
    models = made.checks["measured"]["held-out"]
    assert made.checks["merged_loss"] == models["nf4"]["loss"] != models["full-precision"]["loss"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "nf4")
    assert any(type(module).__name__ == "Linear4bit" for module in model.modules())
    assert {"README.md", MANIFEST, "tokenizer.json", "chat_template.jinja"} <= names(tmp_path / "nf4")
    with pytest.raises(PromotionError, match="rounds most of the adapter's update away"):
        promote(registry, world.adapters[0], tmp_path / "worse", format="nf4", recipe="as-trained")


def test_quantizing_again_needs_a_search_on_nf4(
    world: Any, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unquantized(registry: Registry, adapter: Any) -> Any:
        return parse_config({"model_name_or_path": "m", "dataset": "d", "quantization": {"load_in_4bit": False}})

    monkeypatch.setattr("rankloom.promotion.promote.search_settings", unquantized)
    stages: list[str] = []
    for options in ({"format": "nf4"}, {"recipe": "as-trained"}):
        with pytest.raises(PromotionError, match="was not trained on"):
            promote(
                registry,
                world.adapters[0],
                tmp_path / "nf4",
                on_progress=lambda stage, *_: stages.append(stage),
                **options,  # type: ignore[arg-type]
            )
    assert stages == []


def test_an_undone_promotion_gives_the_alias_back(world: Any, registry: Registry, tmp_path: Path) -> None:
    first, second = world.adapters
    promote(registry, first, tmp_path / "first", format="adapter", alias="champion")
    promote(registry, second, tmp_path / "second", format="adapter", alias="champion")
    undone, move = undo_promotion(registry, second, why="slow")
    assert (undone.status, move and move.adapter_id) == ("undone", first)
    assert registry.adapter("negation@champion").adapter_id == first


def test_a_push_needs_a_token_before_the_work(
    world: Any, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(PromotionError, match="needs a token"):
        promote(registry, world.adapters[0], tmp_path / "merged", push_to_hub="me/mine")
    assert "merged" not in names(tmp_path) and registry.promotions() == []


@pytest.mark.parametrize("format", ["safetensors", "adapter"])
def test_what_is_promoted_is_signed(
    world: Any, registry: Registry, tmp_path: Path, keys: tuple[Path, Path], format: Any
) -> None:
    private, public = keys
    trusting = Registry.open(world.registry, verifier=Verifier(public))
    adapter = registry.adapter(world.adapters[0])
    with pytest.raises(SignatureError, match="is not signed"):
        trusting.checkout(adapter)
    made = promote(registry, adapter.adapter_id, tmp_path / "out", format=format, signer=Signer(private))

    verify(made.output, public_key=public)
    assert json.loads((made.output / MANIFEST).read_text())["checks"]["signed"] is True
    assert registry.promotions(adapter.adapter_id)[0].checks["signed"] is True
    assert names(tmp_path) == {"world", "out"}
    trusting.checkout(adapter)
    with pytest.raises(SignatureError, match="is not signed"):
        trusting.checkout(registry.adapter(world.adapters[1]))

    weights = "model.safetensors" if format == "safetensors" else "adapter_model.safetensors"
    for name in (weights, MANIFEST):
        content = bytearray((made.output / name).read_bytes())
        content[-2] ^= 1
        (made.output / name).chmod(0o644)
        (made.output / name).write_bytes(content)
        with pytest.raises(SignatureError, match=f"'{name}'"):
            verify(made.output, public_key=public)
        content[-2] ^= 1
        (made.output / name).write_bytes(content)
    verify(made.output, public_key=public)
    (made.output / "extra.py").write_text("")
    with pytest.raises(SignatureError, match=r"extra\.py"):
        verify(made.output, public_key=public)


def test_what_is_not_let_out_is_not_signed(
    world: Any, registry: Registry, tmp_path: Path, keys: tuple[Path, Path]
) -> None:
    with pytest.raises(PromotionError, match="beyond the tolerance"):
        promote(registry, world.adapters[0], tmp_path / "merged", tolerance=-10, signer=Signer(keys[0]))
    assert registry.signatures.files() == {} and "signed" not in registry.promotions()[0].checks


def test_what_cannot_be_signed_is_not_let_out(
    world: Any, registry: Registry, tmp_path: Path, keys: tuple[Path, Path]
) -> None:
    registry.signatures.folder.write_text("in the way")
    with pytest.raises(RegistryError, match="signatures"):
        promote(registry, world.adapters[0], tmp_path / "a", format="adapter", alias="prod", signer=Signer(keys[0]))
    assert names(tmp_path) == {"world"} and registry.aliases() == registry.promotions() == []


def test_an_adapter_becomes_a_gguf_file_too(world: Any, registry: Registry, tmp_path: Path) -> None:
    made = promote(registry, world.adapters[0], tmp_path / "out", format="adapter", gguf_type="f16")
    (file,) = (tmp_path / "out").glob("*.gguf")
    assert file.read_bytes()[:4] == b"GGUF" and made.checks["base"]["passed"]
    assert {verdict["engine"] for verdict in made.checks["serving"].values()} == {"vllm", "llama.cpp"}
    for format, kind in (("adapter", "q8_0"), ("safetensors", "f16"), ("gguf", "q9")):
        with pytest.raises(PromotionError, match="--gguf-type"):
            promote(registry, world.adapters[0], tmp_path / "no", format=format, gguf_type=kind)  # type: ignore[arg-type]


def test_a_missing_converter_is_told_before_the_work(
    world: Any, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gguf" else found(name))
    stages: list[str] = []
    with pytest.raises(ModelError, match=r"pip install 'rankloom\[gguf\]'"):
        promote(
            registry,
            world.adapters[0],
            tmp_path / "out",
            format="gguf",
            on_progress=lambda stage, done, total: stages.append(stage),
        )
    assert stages == []
