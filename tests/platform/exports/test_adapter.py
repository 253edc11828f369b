from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from rankloom.errors import PromotionError
from rankloom.exports.adapter import NORMALISED, export_adapter

Save = Callable[..., Path]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def kept(tmp_path: Path, base: Path, save_adapter: Save) -> Path:
    """An rsLoRA adapter as the registry keeps it: read-only, with a manifest of its own."""
    folder = save_adapter(tmp_path / "kept", base, r=4, lora_alpha=8, use_rslora=True)
    (folder / "manifest.json").write_text("{}")
    (folder / "README.md").write_text("the adapter's own")
    for path in folder.iterdir():
        path.chmod(0o444)
    return folder


def test_an_exported_adapter_is_pefts_folder(tmp_path: Path, base: Path, kept: Path) -> None:
    export_adapter(kept, tmp_path / "out", base_name=str(base), card="---\n---\n# Mine\n")
    out = tmp_path / "out"
    assert names(out) == {"adapter_config.json", "adapter_model.safetensors", "README.md", NORMALISED}
    assert names(out / NORMALISED) == {"adapter_config.json", "adapter_model.safetensors"}
    assert (out / "README.md").read_text() == "---\n---\n# Mine\n"
    assert (out / "adapter_model.safetensors").read_bytes() == (kept / "adapter_model.safetensors").read_bytes()
    before, after = (json.loads((f / "adapter_config.json").read_text()) for f in (kept, out))
    assert after == before | {"base_model_name_or_path": str(base)}
    assert all(path.stat().st_mode & 0o200 for path in out.rglob("*"))
    assert names(tmp_path) == {"kept", "out"}


def test_both_forms_load_by_their_folder_alone(tmp_path: Path, base: Path, kept: Path) -> None:
    export_adapter(kept, tmp_path / "out", base_name=str(base))
    ids = torch.arange(20)[None]
    logits = []
    for folder in (tmp_path / "out", tmp_path / "out" / NORMALISED):
        config = peft.PeftConfig.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(config.base_model_name_or_path)
        with torch.no_grad():
            logits.append(peft.PeftModel.from_pretrained(model, folder).eval()(ids).logits)
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-5, atol=1e-6)
    assert (tmp_path / "out" / "README.md").read_text() == "the adapter's own"


def test_no_second_form_where_none_is_needed(tmp_path: Path, base: Path, save_adapter: Save) -> None:
    adapter = save_adapter(tmp_path / "adapter", base, r=4, lora_alpha=8)
    export_adapter(adapter, tmp_path / "out", base_name="owner/base")
    assert NORMALISED not in names(tmp_path / "out")


def test_no_second_form_where_none_can_be_made(tmp_path: Path, base: Path, save_adapter: Save) -> None:
    adapter = save_adapter(tmp_path / "adapter", base, use_rslora=True, use_dora=True)
    export_adapter(adapter, tmp_path / "out", base_name="owner/base")
    assert NORMALISED not in names(tmp_path / "out")
    assert any("magnitude" in name for name in load_file(tmp_path / "out" / "adapter_model.safetensors"))


def test_a_refused_export_leaves_nothing(tmp_path: Path, base: Path) -> None:
    with pytest.raises(PromotionError, match="must have adapter_config"):
        export_adapter(base, tmp_path / "out", base_name="owner/base")
    assert names(tmp_path) == set()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("half", ["lora_A", "lora_B"])
def test_what_is_not_finite_is_refused(tmp_path: Path, base: Path, save_adapter: Save, half: str, value: float) -> None:
    adapter = save_adapter(tmp_path / "adapter", base)
    weights = load_file(adapter / "adapter_model.safetensors")
    name = next(name for name in weights if half in name)
    weights[name][-1, -1] = value
    save_file(weights, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(PromotionError, match=f"weights must be finite, but {re.escape(name)}"):
        export_adapter(adapter, tmp_path / "out", base_name="owner/base")
    assert names(tmp_path) == {"adapter"}


def test_nothing_is_overwritten(tmp_path: Path, kept: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(PromotionError, match="new or empty"):
        export_adapter(kept, tmp_path / "out", base_name="owner/base")
    assert names(tmp_path) == {"kept", "out"}
