from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rankloom_registry import ArtifactError, compare_weights, read_weights
from rankloom_registry.weights.lora import LoraAdapter
from rankloom_registry.weights.measures import effective_rank
from rankloom_registry.weights.similarity import subspace_overlap

Factors = Mapping[str, tuple[np.ndarray, np.ndarray]]  # module -> (A, B)
Save = Callable[..., Path]


@pytest.fixture
def save(tmp_path: Path, write_safetensors: Callable[..., Path]) -> Save:
    """Writes factors as PEFT saves them; keyword arguments change the configuration."""

    def write(name: str, factors: Factors, **config: Any) -> Path:
        tensors = {}
        for module, (a, b) in factors.items():
            tensors[f"base_model.model.{module}.lora_A.weight"] = ("F32", a.astype(np.float32))
            tensors[f"base_model.model.{module}.lora_B.weight"] = ("F32", b.astype(np.float32))
        write_safetensors(tmp_path / name / "adapter_model.safetensors", tensors)
        defaults = {"peft_type": "LORA", "r": 2, "lora_alpha": 3}
        (tmp_path / name / "adapter_config.json").write_text(json.dumps(defaults | config))
        return tmp_path / name

    return write


def random_factors(seed: int, r: int, out: int = 7, in_: int = 5) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return (
        generator.normal(size=(r, in_)).astype(np.float32),
        generator.normal(size=(out, r)).astype(np.float32),
    )


def dense(factors: tuple[np.ndarray, np.ndarray], scale: float) -> np.ndarray:
    a, b = factors
    return scale * b.astype(np.float64) @ a.astype(np.float64)


@pytest.mark.parametrize("r", [1, 2, 5, 9])  # 9 is more than either side of the update has
def test_figures_are_those_of_the_whole_update(save: Save, r: int) -> None:
    factors = {"q_proj": random_factors(0, r), "v_proj": random_factors(1, r, out=4)}
    weights = read_weights(save("one", factors, r=r, lora_alpha=3))
    updates = {name: dense(pair, 3 / r) for name, pair in factors.items()}
    for found in weights.modules:
        update = updates[found.module]
        singular = np.linalg.svd(update, compute_uv=False)
        share = singular[singular > 1e-12] / singular.sum()
        assert (found.r, found.shape, found.dead) == (r, update.shape, False)
        assert found.frobenius_norm == pytest.approx(np.linalg.norm(update))
        assert found.spectral_norm == pytest.approx(np.linalg.norm(update, 2))
        assert found.effective_rank == pytest.approx(math.exp(-sum(share * np.log(share))))
        assert 1 <= found.effective_rank <= min(r, *update.shape) + 1e-9
    whole = np.concatenate([update.ravel() for update in updates.values()])
    assert weights.update_norm == pytest.approx(np.linalg.norm(whole))
    assert weights.effective_rank == pytest.approx(np.mean([found.effective_rank for found in weights.modules]))
    assert weights.summary() == {"effective_rank": weights.effective_rank, "update_norm": weights.update_norm}
    assert (weights.relative_norm, weights.dead_modules, weights.other_tensors) == (None, 0, [])


def test_the_effective_rank_of_known_spectra() -> None:
    assert effective_rank(np.array([2.0, 2.0, 2.0, 0.0])) == pytest.approx(3)
    assert effective_rank(np.array([5.0, 0.0])) == 1
    assert effective_rank(np.zeros(3)) == 0
    assert effective_rank(np.array([3.0, 1.0])) == pytest.approx(4 / 3**0.75)  # exp(H(3/4, 1/4))


def test_the_scale_follows_the_configuration(save: Save) -> None:
    factors = {"model.layers.0.q_proj": random_factors(0, 4), "model.layers.1.q_proj": random_factors(0, 4)}
    plain = np.linalg.norm(dense(factors["model.layers.0.q_proj"], 1.0))

    def scales(name: str, **config: Any) -> list[float]:
        return [one.frobenius_norm / plain for one in read_weights(save(name, factors, **config)).modules]

    assert scales("plain", lora_alpha=8) == pytest.approx([2, 2])
    assert scales("rslora", lora_alpha=8, use_rslora=True) == pytest.approx([4, 4])
    patterns = {"layers.1.q_proj": 2, "proj": 1}  # the second is no whole part of a name
    assert scales("patterns", lora_alpha=8, alpha_pattern=patterns) == pytest.approx([2, 0.5])


def test_a_module_without_an_update_is_dead(save: Save) -> None:
    a, b = random_factors(0, 2)
    weights = read_weights(save("one", {"live": (a, b), "tiny": (a, b * 1e-10), "zero": (a, b * 0), "too": (a, b * 2)}))
    assert {one.module: one.dead for one in weights.modules} == {
        "live": False, "tiny": True, "zero": True, "too": False
    }  # fmt: skip
    assert weights.dead_modules == 2
    live = next(one for one in weights.modules if one.module == "live")
    assert weights.effective_rank == pytest.approx(live.effective_rank)  # the dead do not count
    fresh = read_weights(save("fresh", {"zero": (a, b * 0)}))
    assert (fresh.dead_modules, fresh.effective_rank, fresh.update_norm) == (1, None, 0)


def test_norms_against_the_base(save: Save, tmp_path: Path, write_safetensors: Callable[..., Path]) -> None:
    generator = np.random.default_rng(5)
    q, v = (generator.normal(size=(7, 5)).astype(np.float32) for _ in range(2))
    folder = tmp_path / "base"
    # A checkpoint of the inner model leaves out the first part of the names; a block is smaller than this tensor.
    write_safetensors(folder / "model.safetensors", {"layers.0.q.weight": ("F32", q), "layers.0.v.weight": ("F32", v)})
    factors = {"model.layers.0.q": random_factors(0, 2), "model.layers.0.v": random_factors(1, 2)}
    adapter = save("one", factors)
    steps: list[tuple[int, int]] = []
    weights = read_weights(adapter, base=folder, progress=lambda done, total: steps.append((done, total)))
    expected = [
        np.linalg.norm(dense(pair, 1.5)) / np.linalg.norm(weight)
        for pair, weight in zip(factors.values(), (q, v), strict=True)
    ]
    assert [one.relative_norm for one in weights.modules] == pytest.approx(expected)
    assert weights.relative_norm == pytest.approx(weights.update_norm / np.linalg.norm([q, v]))
    assert steps == [(1, 2), (2, 2)]

    quantized = write_safetensors(
        tmp_path / "quantized" / "model.safetensors",
        {"layers.0.q.weight": ("U8", np.zeros((7, 5), np.uint8)), "layers.0.v.weight": ("F32", v)},
    )
    weights = read_weights(adapter, base=quantized)
    assert weights.modules[0].relative_norm is None and weights.modules[1].relative_norm is not None
    assert weights.relative_norm is None


@pytest.mark.parametrize(("r", "other_r"), [(2, 2), (1, 4), (3, 9)])
def test_similarity_is_that_of_the_whole_updates(save: Save, r: int, other_r: int) -> None:
    first = {"q": random_factors(0, r), "v": random_factors(1, r), "only": random_factors(2, r)}
    second = {"q": random_factors(3, other_r), "v": random_factors(4, other_r), "shape": random_factors(5, other_r)}
    first["shape"] = random_factors(6, r, out=3)
    steps: list[tuple[int, int]] = []
    folders = save("one", first, lora_alpha=5), save("two", second, lora_alpha=2)
    found = compare_weights(*folders, progress=lambda done, total: steps.append((done, total)))
    assert steps == [(1, 2), (2, 2)]
    assert (found.only_first, found.only_second) == (["only", "shape"], ["shape"])
    vectors: list[list[np.ndarray]] = []
    for one in found.modules:
        x, y = dense(first[one.module], 5 / r), dense(second[one.module], 2 / other_r)
        vectors.append([x.ravel(), y.ravel()])
        assert one.cosine == pytest.approx(np.sum(x * y) / np.linalg.norm(x) / np.linalg.norm(y))
        ux, _, vx = np.linalg.svd(x)
        uy, _, vy = np.linalg.svd(y)
        i, j = np.linalg.matrix_rank(x), np.linalg.matrix_rank(y)
        columns = np.linalg.norm(ux[:, :i].T @ uy[:, :j]) ** 2 / min(i, j)
        rows = np.linalg.norm(vx[:i] @ vy[:j].T) ** 2 / min(i, j)
        assert (one.column_overlap, one.row_overlap) == (pytest.approx(columns), pytest.approx(rows))
    x, y = (np.concatenate(side) for side in zip(*vectors, strict=True))
    assert found.cosine == pytest.approx(x @ y / np.linalg.norm(x) / np.linalg.norm(y))
    assert found.column_overlap == pytest.approx(np.mean([one.column_overlap for one in found.modules]))


def test_the_same_the_opposite_and_the_unrelated(save: Save) -> None:
    a, b = random_factors(0, 2)
    one = save("one", {"q": (a, b)})
    turned = np.array([[0, 1], [-1, 0]], np.float32)  # other factors of the same product
    for name, other, cosine in (("same", (turned @ a, b @ turned.T), 1), ("opposite", (a, -b), -1)):
        found = compare_weights(one, save(name, {"q": other}))
        assert found.cosine == pytest.approx(cosine) and -1 <= found.cosine <= 1
        assert (found.column_overlap, found.row_overlap) == (pytest.approx(1), pytest.approx(1))
    axes = np.eye(4, dtype=np.float32)
    found = compare_weights(
        save("two", {"q": (axes[:2], axes[:, :2])}), save("three", {"q": (axes[2:], axes[:, 1:3])}), directions=2
    )
    assert (found.cosine, found.row_overlap) == (0, pytest.approx(0))
    assert found.column_overlap == pytest.approx(0.5)  # they share one of two directions
    nothing = compare_weights(one, save("zero", {"q": (a, b * 0)}))
    assert (nothing.cosine, nothing.column_overlap, nothing.modules[0].row_overlap) == (None, None, None)
    assert compare_weights(one, save("apart", {"k": (a, b)})).cosine is None


def test_only_the_largest_directions(save: Save) -> None:
    axes = np.eye(4, dtype=np.float32)
    scales = np.diag([3.0, 1.0]).astype(np.float32)
    one = save("one", {"q": (axes[[0, 1]], axes[:, [0, 1]] @ scales)})
    two = save("two", {"q": (axes[[0, 2]], axes[:, [0, 2]] @ scales)})
    assert compare_weights(one, two).column_overlap == pytest.approx(0.5)
    assert compare_weights(one, two, directions=1).column_overlap == pytest.approx(1)
    assert subspace_overlap(axes[:, :0], axes) is None


def test_other_tensors_are_named_and_broken_adapters_refused(
    save: Save, tmp_path: Path, write_safetensors: Callable[..., Path]
) -> None:
    a, b = random_factors(0, 2)
    folder = save("one", {"q": (a, b)})
    names = ("base_model.model.q.lora_A.weight", "base_model.model.q.lora_B.weight")

    def tensors(**changes: Any) -> dict[str, Any]:
        made = dict(zip(names, (("F32", a), ("F32", b)), strict=True)) | changes
        return {name: tensor for name, tensor in made.items() if tensor is not None}

    file = folder / "adapter_model.safetensors"
    others = {
        "base_model.model.emb.lora_embedding_A": ("F32", a),
        "base_model.model.emb.lora_embedding_B": ("F32", b),
        "base_model.model.lm_head.weight": ("F32", a),
        "base_model.model.conv.lora_A.weight": ("F32", np.zeros((2, 2, 1, 1), np.float32)),
    }
    write_safetensors(file, tensors(**others))
    adapter = LoraAdapter(folder)
    assert adapter.modules == ["emb", "q"]
    assert adapter.other_tensors == ["base_model.model.lm_head.weight", "base_model.model.conv.lora_A.weight"]
    for changes, message in (
        ({names[1]: None}, "in pairs"),
        ({names[1]: ("F32", b[:, :1])}, "but q in"),
        ({names[1]: ("F32", b * np.float32("nan"))}, "NaN or Inf"),
        ({names[1]: ("U8", np.zeros((7, 2), np.uint8))}, "only BF16, F16 and F32"),
    ):
        write_safetensors(file, tensors(**changes))
        with pytest.raises(ArtifactError, match=message):
            read_weights(folder)
    write_safetensors(file, tensors())
    for config, message in (
        ("[]", "no JSON object"),
        ("{", "not JSON"),
        ('{"lora_alpha": "high"}', "lora_alpha is a number"),
        ('{"alpha_pattern": [1]}', "alpha_pattern"),
        ('{"alpha_pattern": {"(": 1}}', "no regular expression"),
    ):
        (folder / "adapter_config.json").write_text(config)
        with pytest.raises(ArtifactError, match=message):
            read_weights(folder)
    for gone in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / "adapter_config.json").write_text("{}")
        (folder / gone).unlink()
        with pytest.raises(ArtifactError, match=f"cannot read .*{gone}"):
            read_weights(folder)
        write_safetensors(file, tensors())
