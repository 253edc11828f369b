from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from rankloom.errors import PromotionError
from rankloom.promotion.drift import Drift
from rankloom.promotion.gates import TOLERANCE, assert_room, judge_drift, prove_base
from rankloom_registry import BaseSeen, Registry, read_base


@pytest.fixture
def registry(world: Any) -> Registry:
    """The world, whose base is known tensor by tensor, as a search records it."""
    opened = Registry.open(world.registry)
    fingerprint, leaves = read_base(world.base, identity=str(world.base))
    opened.record(BaseSeen(base=fingerprint, leaves=leaves))
    return opened


def changed(base: Path, folder: Path, name: str) -> Path:
    shutil.copytree(base, folder)
    weights = load_file(folder / "model.safetensors")
    weights[name].view(-1)[0] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_the_right_base_is_proven_wherever_it_lies(world: Any, registry: Registry, tmp_path: Path) -> None:
    moved = shutil.copytree(world.base, tmp_path / "moved")
    adapter = registry.adapter(world.adapters[0])
    seen: list[tuple[int, int]] = []
    for given in (None, str(moved)):
        base, figures = prove_base(registry, adapter, given, lambda *at: seen.append(at))
        assert base.path == (world.base if given is None else moved)
        assert (figures["touched_tensors"], figures["touched_root_agrees"], figures["passed"]) == (14, True, True)
    assert seen[-1][0] == seen[-1][1] > 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.layers.0.mlp.up_proj.weight", r"tensors that the adapter modifies differ: model\.layers\.0\.mlp\.up"),
        ("model.norm.weight", r"that the adapter modifies are the same, but others differ: model\.norm\.weight"),
    ],
)
def test_another_base_is_named_by_its_tensors(
    world: Any, registry: Registry, tmp_path: Path, name: str, message: str
) -> None:
    wrong = changed(world.base, tmp_path / "wrong", name)
    with pytest.raises(PromotionError, match=message):
        prove_base(registry, registry.adapter(world.adapters[0]), str(wrong))


def test_a_disk_that_is_too_small_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert assert_room(tmp_path, 1)["passed"]
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 10**12 - 10**9, 10**9))
    with pytest.raises(PromotionError, match=r"needs 1,067,108,864 bytes .* has 1,000,000,000 free"):
        assert_room(tmp_path, 10**9)


def drift(delta: float, kl: float, *, width: float | None = 0.01) -> Drift:
    low, high = (None, None) if width is None else (delta - width, delta + width)
    return Drift(loss=2 + delta, interval=None, delta=delta, low=low, high=high, kl=kl, top1=0.8, positions=100)


def judged(found: Drift, **options: Any) -> tuple[dict[str, Any], str | None]:
    defaults: dict[str, Any] = {
        "what": "merged",
        "drift": found,
        "floor": drift(0, 0.001),
        "adapter_loss": 2.0,
        "base_loss": 2.5,
        "tolerance": None,
        "alternatives": {"--recipe as-trained": drift(0.001, 0.002)},
    }
    return judge_drift(**defaults | options)


def test_the_verdict_is_of_the_predictions_first_and_of_the_loss_then() -> None:
    assert judged(drift(0.2, 0.003))[0]["verdict"] == "faithful"
    assert judged(drift(0.04, 0.2))[0]["verdict"] == "no worse"
    figures, refusal = judged(drift(0.06, 0.2))
    assert (figures["verdict"], figures["passed"], figures["tolerance"]) == ("worse", False, TOLERANCE)
    assert refusal is not None
    for part in ("2.0600", "+0.0600 (95% interval +0.0500 to +0.0700)", "KL 0.200, 200 times", "--recipe as-trained"):
        assert part in refusal
    assert judged(drift(0.06, 0.2), base_loss=4.0)[0]["verdict"] == "no worse"  # a twentieth of a gain of 2


def test_a_tolerance_of_ones_own_is_kept_to() -> None:
    assert judged(drift(0.06, 0.002), tolerance=0.05)[0]["verdict"] == "worse"
    assert judged(drift(0.06, 0.2), tolerance=0.1)[0]["verdict"] == "no worse"


def test_alternatives_are_named_only_if_they_are_better() -> None:
    _, refusal = judged(drift(0.06, 0.2), alternatives={"--recipe as-trained": drift(0.07, 0.2)})
    assert refusal is not None and "--recipe" not in refusal and "--format adapter" in refusal


def test_no_number_is_no_pass() -> None:
    nan = float("nan")
    broken = Drift(loss=nan, interval=None, delta=nan, low=nan, high=nan, kl=nan, top1=0.0, positions=10)
    figures, refusal = judged(broken)
    assert figures["passed"] is False and refusal is not None


def test_a_verdict_says_whether_the_rows_are_enough() -> None:
    assert judged(drift(0.0, 0.2))[0]["certain"] is True
    assert judged(drift(0.045, 0.2))[0]["certain"] is False
    assert judged(drift(0.1, 0.2))[0]["certain"] is True
    assert judged(drift(0.0, 0.2, width=None))[0]["certain"] is False
