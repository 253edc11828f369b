from __future__ import annotations

import dataclasses
import math
import os
import pickle
import shutil
import subprocess
import sys
import tracemalloc
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pytest

from rankloom_registry import (
    AdapterAdded,
    AdapterDiscarded,
    AdapterNotFoundError,
    AliasMoved,
    BaseFingerprint,
    BaseNotFoundError,
    BaseSeen,
    Evaluated,
    EventError,
    Promoted,
    Registry,
    RegistryBusyError,
    RegistryError,
    RegistryFormatError,
    RegistryNotFoundError,
    RegistryWriteError,
    SearchEnded,
    SearchExtended,
    SearchNotFoundError,
    SearchResumed,
    TrialEnded,
    TrialReported,
    TrialStarted,
)
from rankloom_registry.store.access import attached


def test_a_missing_registry_is_named_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(RegistryNotFoundError, match="run a search") as caught:
        Registry.open(tmp_path / "none.duckdb")
    assert isinstance(caught.value, FileNotFoundError)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_registry_is_made_once_and_opened_again(tmp_path: Path, base: BaseFingerprint) -> None:
    path = tmp_path / "it's here.duckdb"
    Registry.open(path, create=True).record(BaseSeen(base=base))
    with Registry.open(path, create=True) as registry:
        assert [found.identity for found in registry.bases()] == ["org/tiny@0123"]
    assert registry.artifacts.root == tmp_path / "it's here.artifacts"
    names = {"it's here.duckdb", "it's here.duckdb.lock", "it's here.events.jsonl"}
    assert {file.name for file in tmp_path.iterdir()} == names


def test_a_leftover_of_an_interrupted_creation_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "registry.duckdb.new").write_bytes(b"torn")
    assert Registry.open(tmp_path / "registry.duckdb", create=True).searches() == []


def test_nothing_is_made_in_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(RegistryWriteError, match="does not exist"):
        Registry.open(tmp_path / "nowhere" / "registry.duckdb", create=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere, so no folder is unwritable")
def test_nothing_is_made_in_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(RegistryWriteError, match="cannot be written"):
            Registry.open(tmp_path / "registry.duckdb", create=True)
        assert list(tmp_path.iterdir()) == []
    finally:
        tmp_path.chmod(0o755)


@pytest.mark.parametrize("create", [False, True])
def test_a_file_that_is_no_registry_is_refused_and_left_alone(tmp_path: Path, create: bool) -> None:
    text = tmp_path / "text.duckdb"
    text.write_text("not a database\n" * 1000)
    foreign = tmp_path / "foreign.duckdb"
    duckdb.connect(str(foreign)).execute("CREATE TABLE mine (a INTEGER)").close()
    before = {path: path.read_bytes() for path in (text, foreign)}
    with pytest.raises(RegistryFormatError, match="not a DuckDB database"):
        Registry.open(text, create=create)
    with pytest.raises(RegistryFormatError, match=r"not a registry.*main\.mine"):
        Registry.open(foreign, create=create)
    with pytest.raises(RegistryFormatError, match="is a file"):
        Registry.open(tmp_path, create=create)
    assert {path: path.read_bytes() for path in before} == before


def test_a_registry_of_a_newer_version_is_refused(registry: Registry) -> None:
    with duckdb.connect(str(registry.path)) as connection:
        connection.execute("INSERT INTO store.migrations VALUES ('9999-later', now())")
    with pytest.raises(RegistryFormatError, match=r"9999-later.*upgrade rankloom"):
        Registry.open(registry.path, create=True)


def test_an_empty_database_becomes_a_registry_only_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "empty.duckdb"
    duckdb.connect(str(path)).close()
    with pytest.raises(RegistryFormatError, match="create=True"):
        Registry.open(path)
    assert Registry.open(path, create=True).adapters() == []
    assert Registry.open(path).artifacts.root == tmp_path / "empty.artifacts"


def test_a_check_makes_and_changes_nothing(searched: Registry, tmp_path: Path) -> None:
    for path in (searched.path, tmp_path / "new.duckdb"):
        Registry.check(path)
    empty, text, later = (tmp_path / f"{name}.duckdb" for name in ("empty", "text", "later"))
    duckdb.connect(str(empty)).close()
    Registry.check(empty)  # would be brought up to date
    text.write_text("not a database\n" * 1000)
    with duckdb.connect(str(shutil.copy(searched.path, later))) as connection:
        connection.execute("INSERT INTO store.migrations VALUES ('9999-later', now())")
    before = {path: path.read_bytes() for path in (searched.path, empty, text, later)}
    for path, reason in ((text, "not a DuckDB"), (later, "upgrade rankloom"), (tmp_path, "is a file")):
        with pytest.raises(RegistryFormatError, match=reason):
            Registry.check(path)
    for folder in (tmp_path / "nowhere", text):
        with pytest.raises(RegistryWriteError, match="does not exist"):
            Registry.check(folder / "registry.duckdb")
    assert {path: path.read_bytes() for path in before} == before
    assert {path for path in tmp_path.iterdir() if path.suffix != ".lock"} == before.keys()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_check_sees_what_cannot_be_written(searched: Registry, tmp_path: Path) -> None:
    for unwritable, mode in ((searched.path, 0o444), (tmp_path, 0o555)):
        unwritable.chmod(mode)
        try:
            with pytest.raises(RegistryWriteError, match="cannot be written"):
                Registry.check(searched.path)
        finally:
            unwritable.chmod(0o755)


def test_artifacts_are_found_after_the_file_is_renamed(searched: Registry, tmp_path: Path) -> None:
    searched.path.rename(tmp_path / "renamed.duckdb")
    renamed = Registry.open(tmp_path / "renamed.duckdb")
    adapter = renamed.adapter("first-0")
    assert adapter.artifact_path == renamed.artifacts.path(adapter.artifact_sha256)
    assert adapter.artifact_path is not None and adapter.artifact_path.parts[-5:-3] == (
        tmp_path.name,
        "registry.artifacts",
    )


def test_a_registry_that_is_gone_is_not_made_again_by_accident(searched: Registry, base: BaseFingerprint) -> None:
    searched.path.unlink()
    for use in (searched.searches, lambda: searched.record(BaseSeen(base=base)), lambda: searched.sql("from adapters")):
        with pytest.raises(RegistryNotFoundError, match="any more"):
            use()
    assert not searched.path.exists()


def test_a_damaged_file_is_a_message(searched: Registry) -> None:
    content = bytearray(searched.path.read_bytes())
    content[12288:] = os.urandom(len(content) - 12288)
    searched.path.write_bytes(content)
    for use in (searched.adapters, lambda: Registry.open(searched.path)):
        with pytest.raises(RegistryError, match=r"registry\.duckdb"):
            use()


def test_a_full_disk_is_a_message_and_nothing_is_recorded(
    searched: Registry, child_environment: dict[str, str]
) -> None:
    script = """
import resource, sys
from rankloom_registry import AdapterDiscarded, Registry, RegistryWriteError
registry = Registry.open(sys.argv[1])
size = registry.path.stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size // 4, size // 4))
try:
    registry.record(AdapterDiscarded(adapter_id="0bcd-adapter", reason="x" * size))
except RegistryWriteError as error:
    print(error)
"""
    command = [sys.executable, "-c", script, str(searched.path)]
    done = subprocess.run(command, capture_output=True, text=True, env=child_environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "cannot write" in done.stdout
    assert searched.adapter("0bcd").status == "available"
    searched.record(AdapterDiscarded(adapter_id="0bcd-adapter", reason=""))
    assert searched.adapter("0bcd").status == "discarded"


def test_a_repeated_event_changes_nothing(registry: Registry, base: BaseFingerprint) -> None:
    first = BaseSeen(base=base)
    assert registry.record(first, first) == 1
    assert registry.record(first) == 0
    assert registry.record() == 0
    assert len(registry.events()) == 1


def test_a_search_from_start_to_end(searched: Registry) -> None:
    searched.record(
        TrialReported(trial_id="trial-0", step=20, metrics={"eval_loss": 1.9, "train_tokens": 64}),
        TrialReported(trial_id="trial-0", step=10, metrics={"eval_loss": 2.5, "epoch": 0.5}),
        TrialReported(trial_id="trial-0", step=20, metrics={"eval_loss": 0.0}),  # the same step again
        TrialEnded(trial_id="trial-0", status="completed", metrics={"eval_loss": 1.8, "wall_s": 3.5}),
        TrialEnded(trial_id="trial-1", status="stopped", metrics={"eval_loss": math.nan}),
    )
    (search,) = searched.searches()
    assert (search.status, search.trials, search.finished_trials, search.best_value) == ("running", 4, 2, 1.8)
    assert (search.dataset, search.base_identity) == ({"path": "train.jsonl"}, "org/tiny@0123")
    assert [metrics.step for metrics in searched.step_metrics("trial-0")] == [10, 20]
    assert [metrics.eval_loss for metrics in searched.step_metrics("trial-0")] == [2.5, 1.9]

    more = SearchExtended(search_id="search-1", num_samples=6, who="ann")
    assert [searched.record(more), searched.record(more)] == [1, 0]
    assert searched.search("first").num_samples == 6
    assert [(event.kind, event.who) for event in searched.events("search-1", 1)] == [("search_extended", "ann")]

    searched.record(SearchEnded(search_id="search-1", status="interrupted", message="stopped by hand"))
    trials = searched.trials("first")
    assert [trial.status for trial in trials] == ["completed", "stopped", "interrupted", "interrupted"]
    assert (trials[0].eval_loss, trials[0].train_tokens, trials[0].wall_s) == (1.8, 64, 3.5)
    assert trials[1].eval_loss is not None and math.isnan(trials[1].eval_loss)
    assert trials[0].adapter_id == "0bcd-adapter"
    assert trials[0].ended_at is not None and trials[0].ended_at.tzinfo is UTC

    searched.record(
        SearchResumed(search_id="search-1"),
        TrialStarted(trial_id="trial-2", search_id="search-1", number=2, params={"r": 32}, lane="gpu-1", attempt=2),
    )
    assert searched.search("search-1").ended_at is None
    trial = searched.trials("search-1")[2]
    assert (trial.status, trial.attempts, trial.lane, trial.ended_at) == ("running", 2, "gpu-1", None)
    searched.record(TrialEnded(trial_id="trial-2", status="completed", metrics={}, attempt=2))
    assert searched.trials("search-1")[2].status == "completed"


def test_the_best_of_a_search_that_maximises(searched: Registry) -> None:
    with duckdb.connect(str(searched.path)) as connection:
        connection.execute("UPDATE store.searches SET mode = 'max'")
    searched.record(
        TrialReported(trial_id="trial-0", step=1, metrics={"eval_loss": 3.0}),
        TrialReported(trial_id="trial-1", step=1, metrics={"eval_loss": math.inf}),
    )
    assert searched.search("first").best_value == 3.0


def test_an_event_about_nothing_known_is_refused_with_all_that_came_with_it(searched: Registry) -> None:
    before = searched.events()
    with pytest.raises(EventError, match="'ghost'"):
        searched.record(
            TrialReported(trial_id="trial-0", step=1, metrics={"eval_loss": 1.0}),
            TrialReported(trial_id="ghost", step=1, metrics={}),
        )
    with pytest.raises(EventError, match="Could not convert"):
        searched.record(TrialReported(trial_id="trial-0", step=2, metrics={"eval_loss": "low"}))  # type: ignore[dict-item]
    assert searched.events() == before
    assert searched.step_metrics("trial-0") == []


def test_adapters_are_filtered_ordered_and_limited(searched: Registry) -> None:
    def numbers(*args: object, **kwargs: object) -> list[int | None]:
        return [adapter.trial_number for adapter in searched.adapters(*args, **kwargs)]  # type: ignore[arg-type]

    assert numbers() == [3, 2, 1, 0]
    assert numbers(order_by="eval_loss") == [2, 1, 0, 3]  # the one without a loss is last
    assert numbers(order_by="eval_loss desc") == [0, 1, 2, 3]
    assert numbers("eval_loss < 2 and r <= 16") == [1]
    assert numbers(where="eval_loss is null or name in ('first-0')", order_by="r") == [0, 3]
    assert numbers(where="not (r between 16 and 64)") == [0]
    assert numbers(where="name not like '%-1' and R <> 8", limit=1, order_by="r desc") == [3]
    assert numbers(where="created_at > '2020-01-01'", limit=2) == [3, 2]
    assert numbers(where="eval_loss > -1.5e-3", order_by="r", limit=1) == [0]


def test_an_adapter_has_its_columns_as_fields(searched: Registry) -> None:
    adapter = searched.adapter("first-1")
    assert (adapter.r, adapter.lora_alpha, adapter.target_modules, adapter.seed) == (16, 16.0, "all-linear", 1)
    assert adapter.params["learning_rate"] == adapter.learning_rate == 1e-4
    assert adapter.created_at.tzinfo is UTC and abs((datetime.now(UTC) - adapter.created_at).total_seconds()) < 3600
    columns = searched.sql("describe adapters")
    types = {row["column_name"]: row["column_type"] for row in columns}
    assert list(types) == [*type(adapter).__dataclass_fields__, "sequence"]
    assert (types["r"], types["eval_loss"], types["created_at"]) == ("INTEGER", "DOUBLE", "TIMESTAMP WITH TIME ZONE")


def test_references_to_adapters(searched: Registry) -> None:
    searched.record(AliasMoved(name="first-2", alias="best", adapter_id="2bcd-adapter"))
    for reference in ("2bcd-adapter", "2bcd", "first-2", "first-2@best"):
        assert searched.adapter(reference).adapter_id == "2bcd-adapter"
    assert searched.adapter("2bcd").aliases == ("best",)
    for unknown in ("2bc", "first-2@worst", "", "'; drop table x"):
        with pytest.raises(AdapterNotFoundError):
            searched.adapter(unknown)
    for mistyped, meant in (("fist-2", "first-2"), ("2bcd-adaptor", "2bcd-adapter"), ("first2@bset", "first-2@best")):
        with pytest.raises(AdapterNotFoundError, match=f"did you mean {meant}( or |[?])"):
            searched.adapter(mistyped)
    with pytest.raises(AdapterNotFoundError, match="list the adapters"):
        searched.adapter("x" * 100_000)


def test_a_mistyped_reference_does_not_load_every_adapter(searched: Registry) -> None:
    with attached(searched.path, write=True, timeout_s=60) as connection:
        connection.execute(
            "INSERT INTO store.adapters SELECT adapters.* REPLACE "
            "(md5(i::VARCHAR)[:12] AS adapter_id, 'sweep-' || i // 16 AS name) "
            "FROM store.adapters, range(20000) t(i) WHERE adapter_id = '0bcd-adapter'"
        )
    (meant,) = searched.sql("select adapter_id from adapters where name = 'sweep-777' limit 1")
    mistyped = meant["adapter_id"][:5] + "_" + meant["adapter_id"][6:]
    tracemalloc.start()
    try:
        with pytest.raises(AdapterNotFoundError, match="did you mean sweep-1234 or "):
            searched.adapter("swep-1234")
        with pytest.raises(AdapterNotFoundError, match=f"did you mean {meant['adapter_id']}"):
            searched.adapter(mistyped)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 2_000_000  # bytes; every one of these adapters is more than 100


def test_a_name_that_two_adapters_have_is_ambiguous(searched: Registry) -> None:
    twin = searched.adapter("first-1")
    searched.record(
        AdapterAdded(
            adapter_id="twin",
            name=twin.name,
            base_content_root=twin.base_content_root,
            params={"target_modules": ["q_proj", "v_proj"]},
            metrics={},
            artifact_sha256="",
            status="discarded",
        )
    )
    with pytest.raises(AdapterNotFoundError, match="2 adapters"):
        searched.adapter("first-1")
    found = searched.adapter("twin")
    assert (found.target_modules, found.artifact_path, found.search_id) == ("q_proj+v_proj", None, None)
    with pytest.raises(ValueError, match="discarded"):
        searched.verify(found)


def test_references_to_searches_and_bases(searched: Registry) -> None:
    assert searched.search("sea").search_id == searched.search("first").search_id == "search-1"
    with pytest.raises(SearchNotFoundError, match="did you mean first"):
        searched.trials("frist")
    assert searched.base("c" * 64).adapters == 4
    assert searched.base("c" * 64).config == {"model_type": "llama"}
    with pytest.raises(BaseNotFoundError):
        searched.base("c" * 8)


def test_an_alias_moves_and_goes(searched: Registry) -> None:
    def move(adapter_id: str | None) -> AliasMoved:
        return AliasMoved(name="first", alias="live", adapter_id=adapter_id)

    searched.record(move("0bcd-adapter"), move("1bcd-adapter"))
    assert [alias.adapter_id for alias in searched.aliases("first")] == ["1bcd-adapter"]
    searched.record(move(None))
    assert searched.aliases() == []
    searched.record(move(None), move("2bcd-adapter"))
    assert searched.adapter("first@live").trial_number == 2
    assert searched.aliases("other") == []


def test_evaluations_promotions_and_history(searched: Registry) -> None:
    adapter = searched.adapter("first-0")
    base = adapter.base_content_root
    searched.record(
        Evaluated(
            evaluation_id="e1",
            adapter_id=adapter.adapter_id,
            base_content_root=base,
            dataset={"path": "held.jsonl"},
            metrics={"loss": 1.25},
        ),
        Evaluated(evaluation_id="e2", adapter_id=None, base_content_root=base, dataset={}, metrics={}),
        Promoted(
            promotion_id="p1",
            adapter_id=adapter.adapter_id,
            status="done",
            recipe="full-precision",
            format="safetensors",
            output_path="out",
            output_sha256="0" * 64,
            checks={"finite": True},
        ),
        AdapterDiscarded(adapter_id=adapter.adapter_id, reason="space"),
    )
    (evaluation,) = searched.evaluations(adapter.adapter_id)
    assert (evaluation.metrics, evaluation.dataset) == ({"loss": 1.25}, {"path": "held.jsonl"})
    assert searched.promotions() == searched.promotions(adapter.adapter_id)
    assert searched.promotions("1bcd-adapter") == []
    assert searched.promotions()[0].checks == {"finite": True}
    discarded = searched.adapter(adapter.adapter_id)
    assert (discarded.status, discarded.artifact_path) == ("discarded", None)
    history = searched.events(adapter.adapter_id)
    assert [event.kind for event in history] == ["adapter_discarded", "promoted", "evaluated", "adapter_added"]
    assert history[0].payload == {"adapter_id": adapter.adapter_id, "reason": "space"}
    assert len(searched.events(limit=2)) == 2


def test_the_first_label_of_a_base_stays(registry: Registry, base: BaseFingerprint) -> None:
    registry.record(BaseSeen(base=base), BaseSeen(base=dataclasses.replace(base, identity="/a/copy")))
    assert [found.identity for found in registry.bases()] == ["org/tiny@0123"]
    assert len(registry.events()) == 2


def test_a_held_registry_answers_from_one_state(searched: Registry) -> None:
    best, before = searched.adapters(order_by="eval_loss", limit=1), searched.aliases()
    move = AliasMoved(name="first", alias="next", adapter_id=best[0].adapter_id)
    other = Registry.open(searched.path, wait_s=0.1)
    with searched.held() as held:
        assert held.adapters(order_by="eval_loss", limit=1) == best
        with pytest.raises(RegistryBusyError, match="another thread"):
            other.record(move)
        assert held.aliases() == before
    assert other.record(move) == 1 and len(searched.aliases()) == len(before) + 1
