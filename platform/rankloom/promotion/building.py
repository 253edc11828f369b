"""Makes a model of an adapter: merged, checked, measured beside the adapter as trained, and brought into its format."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rankloom.errors import PromotionError
from rankloom.evaluation.base import search_settings
from rankloom.evaluation.rows import held_out_rows
from rankloom.exports.gguf import export_gguf
from rankloom.exports.modelfile import write_modelfile
from rankloom.exports.nf4 import export_nf4, refuse_quantized_base
from rankloom.merging import Recipe, Verify
from rankloom.merging.merge import MergeReport, merge_adapter
from rankloom.merging.replay import replay
from rankloom.models import BaseModel, load_model_config
from rankloom.outputs import file_sha256, folder_sha256
from rankloom.promotion import Format
from rankloom.promotion.drift import MOST_BYTES
from rankloom.promotion.gates import OnGate, assert_room, gate, judge_drift, prove_base
from rankloom.promotion.labels import label
from rankloom.promotion.measuring import GENERAL_LENGTH, GENERAL_ROWS, HELD_OUT, Drifts, Measuring, Tell
from rankloom_registry import Adapter, Registry
from rankloom_registry.files import write_atomically
from rankloom_registry.formats.checkpoint import open_checkpoint

OTHER: dict[Recipe, Recipe] = {"full-precision": "as-trained", "as-trained": "full-precision"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is to be made of an adapter.

    Attributes:
        format: 'safetensors', 'nf4' or 'gguf'.
        recipe: How to merge.
        gguf_type: Of a GGUF file's tensors; None for no such file.
        verify: Whether the replay check looks at samples or at everything.
        compare: Whether to measure the other recipe as well.
        tolerance: As for `judge_drift`.
        base: Where the base is now, if it moved.
        dataset: Rows to measure on; None for the held-out split of the adapter's search.
    """

    format: Format
    recipe: Recipe
    gguf_type: str | None
    verify: Verify
    compare: bool
    tolerance: float | None
    base: str | None
    dataset: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A model in the folder in which it was built.

    Attributes:
        model: Its folder.
        base: The base that it was made of.
        sha256: Hash over the names and hashes of its files.
        checks: The figures of each gate, in their order, and of what was measured.
        refusal: Why it should not go out; None if it may.
    """

    model: Path
    base: BaseModel
    sha256: str
    checks: dict[str, Any]
    refusal: str | None


class Build:
    """One way from an adapter to a model; what an interrupted one left in its folder is used."""

    def __init__(
        self, registry: Registry, adapter: Adapter, files: Path, order: Order, tell: Tell, on_gate: OnGate
    ) -> None:
        """Prove the base and find the rows to measure on.

        Args:
            registry: Where the adapter is registered.
            adapter: The adapter.
            files: Its files, as `Registry.checkout` gave them.
            order: What to make.
            tell: Called with (stage, done, total).
            on_gate: As for `promote`.

        Raises:
            PromotionError: The base is another one.
            MergeError: It is quantized.
            DataError: There are no rows to measure on.
        """
        self._adapter, self._files, self._order, self._tell = adapter, files, order, tell
        self._on_gate = on_gate
        with gate("base", on_gate) as figures:
            self._base, self._proof = prove_base(registry, adapter, order.base, partial(tell, "fingerprint base"))
            refuse_quantized_base(self._base.path)
            figures |= self._proof
        self._config = search_settings(registry, adapter)
        self._held_out = held_out_rows(registry, adapter, order.dataset, self._base)
        # Without 4-bit quantization there is no round trip, and the recipes are one.
        self._recipes = [order.recipe]
        if order.compare and self._config.quantization.load_in_4bit:
            self._recipes.append(OTHER[order.recipe])

    def run(self, staging: Path) -> Built:
        """Merge, check, measure and export.

        Args:
            staging: Folder to build in.

        Raises:
            PromotionError: A gate before the last one is closed.
            MergeError: The adapter cannot be merged into the base.
        """
        order, self._staging = self._order, staging
        with gate("disk", self._on_gate) as figures:
            figures |= (room := assert_room(self._staging, self._bytes_needed()))
        with gate("finite", self._on_gate) as figures:
            merged, report = self._merge(order.recipe)
            figures |= {"modules_merged": report.modules_merged, "tensors_copied": report.tensors_copied}
        with gate("replay", self._on_gate) as figures:
            figures |= (replayed := self._replay(merged))
        measuring = Measuring(self._staging, self._files, self._base, self._config, self._held_out, self._tell)
        drifts: dict[str, Drifts] = {order.recipe: measuring.folder(order.recipe, merged)}
        for other in self._recipes[1:]:
            model, _ = self._merge(other)
            drifts[other] = measuring.folder(other, model)
            self._note(other).unlink()
            shutil.rmtree(model)
        model, made = self._export(merged)
        if made != order.recipe:
            drifts[made] = self._measure_export(measuring, model, made)
        drift, refusal = judge_drift(
            what=label(made),
            drift=drifts[made][HELD_OUT],
            floor=measuring.floor[HELD_OUT],
            adapter_loss=measuring.trained[HELD_OUT],
            base_loss=measuring.alone[HELD_OUT].loss,
            tolerance=order.tolerance,
            alternatives={f"--recipe {name}": drifts[name][HELD_OUT] for name in self._recipes if name != made},
        )
        drift["recommended"] = _recommended(drifts, drift["tolerance"])
        measured = _table(measuring, drifts)
        self._on_gate("drift", drift | {"made": made, "measured": measured})
        checks = {
            "base": self._proof,
            "finite": {"passed": True},
            "disk": room,
            "replay": replayed,
            "drift": drift,
            "made": made,
            "measured": measured,
            "dataset": self._held_out.to_dict(),
            "modules_merged": report.modules_merged,
            "tensors_copied": report.tensors_copied,
            "base_loss": measuring.alone[HELD_OUT].loss,
            "adapter_loss": measuring.trained[HELD_OUT],
            "merged_loss": drifts[made][HELD_OUT].loss,
            "delta": drifts[made][HELD_OUT].delta,
            "tolerance": drift["tolerance"],
        }
        sha256 = report.output_sha256
        if order.format != "safetensors":
            paths = [path for path in model.rglob("*") if path.is_file()]
            sha256 = folder_sha256({path.relative_to(model).as_posix(): file_sha256(path) for path in paths})
        plain = json.loads(json.dumps(checks))  # as the registry will give it back
        return Built(model=model, base=self._base, sha256=sha256, checks=plain, refusal=refusal)

    def _bytes_needed(self) -> int:
        weights = sum(path.stat().st_size for path in open_checkpoint(self._base.path).files)
        # The other recipe's model is gone before the format's is made.
        folders = 2 if len(self._recipes) > 1 or self._order.format != "safetensors" else 1
        there = sum(path.stat().st_size for path in self._staging.rglob("*") if path.is_file())
        vocabulary = int(load_model_config(self._base.path).get_text_config().vocab_size)
        tokens = [sum(len(row["labels"]) for row in self._held_out.tokens), GENERAL_ROWS * GENERAL_LENGTH]
        predictions = sum(min(MOST_BYTES, 4 * vocabulary * count) for count in tokens)
        return max(0, folders * weights + predictions - there)

    def _merge(self, recipe: Recipe) -> tuple[Path, MergeReport]:
        folder, note = self._staging / recipe, self._note(recipe)
        if note.is_file():  # the last run got further than this
            return folder, MergeReport(**json.loads(note.read_bytes()))
        shutil.rmtree(folder, ignore_errors=True)  # it may have been killed just before its note
        report = merge_adapter(
            adapter=self._files,
            base=self._base.path,
            output=folder,
            recipe=recipe,
            quantization=self._config.quantization,
            progress=partial(self._tell, f"merge, {recipe}"),
        )
        write_atomically(note, json.dumps(asdict(report)).encode())
        return folder, report

    def _note(self, recipe: Recipe) -> Path:
        """The file without which a merged folder is not known to be whole."""
        return self._staging / f"{recipe}.json"

    def _replay(self, merged: Path) -> dict[str, Any]:
        report = replay(
            adapter=self._files,
            base=self._base.path,
            merged=merged,
            recipe=self._order.recipe,
            quantization=self._config.quantization,
            how=self._order.verify,
            progress=partial(self._tell, f"replay, {self._order.verify}"),
        )
        if not report.passed:
            raise PromotionError(
                f"what was written is not the base plus the adapter's update, first in {report.differing[0]} "
                f"({len(report.differing)} tensors in all): check the disk and the memory, and promote again"
            )
        return asdict(report) | {"passed": True, "how": self._order.verify}

    def _export(self, merged: Path) -> tuple[Path, str]:
        """Bring the merged model into its format; returns the folder and what it is."""
        order, model = self._order, self._staging / "model"
        shutil.rmtree(model, ignore_errors=True)
        match order.format:
            case "nf4":
                export_nf4(merged, model, self._config.quantization)
                return model, "nf4"
            case "gguf":
                model.mkdir()
                file = model / f"{self._adapter.name}-{order.gguf_type}.gguf"
                export_gguf(merged, file, type=str(order.gguf_type))
                write_modelfile(model, gguf=file.name, adapter=None, tokenizer_folder=merged)
                return model, f"gguf {order.gguf_type}"
        return merged, order.recipe

    def _measure_export(self, measuring: Measuring, model: Path, made: str) -> Drifts:
        if self._order.format == "nf4":
            return measuring.folder(made, model)
        import torch
        from transformers import GgufConfig

        (file,) = model.glob("*.gguf")
        return measuring.folder(
            made,
            model,
            gguf_file=file.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
        )


def _recommended(drifts: dict[str, Drifts], tolerance: float) -> str | None:
    """The recipe to take, if both were measured."""
    if not drifts.keys() >= OTHER.keys():
        return None
    full, trained = (drifts[recipe][HELD_OUT] for recipe in ("full-precision", "as-trained"))
    lost = full.delta > tolerance or (full.low is not None and full.low > max(trained.delta, 0))
    return "as-trained" if lost else "full-precision"


def _table(measuring: Measuring, drifts: dict[str, Drifts]) -> dict[str, Any]:
    """What was measured: by split, each model beside the adapter as trained."""
    return {
        split: {
            "rows": rows,
            "adapter": {"loss": measuring.trained[split], "interval": measuring.trained_interval[split]},
            "base": measuring.alone[split].to_dict(),
            "rounding": measuring.floor[split].to_dict(),
        }
        | {name: by_split[split].to_dict() for name, by_split in drifts.items()}
        for split, rows in measuring.rows.items()
    }
