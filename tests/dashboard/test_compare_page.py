from __future__ import annotations

from dataclasses import replace

import pytest

from rankloom_registry import AdapterAdded, BaseFingerprint, BaseSeen, Evaluated, Registry, compare_weights

COMPARE = "views/compare.py"


def tables(app) -> list:
    assert not app.exception
    return [table.value for table in app.dataframe]


def table_with(app, column: str):
    (found,) = (table for table in tables(app) if column in table)
    return found


@pytest.fixture
def pair(made_once) -> str:
    return f"{made_once.best},{made_once.second}"


def test_differences_are_marked_and_the_rest_can_be_hidden(run_page, made_once, pair: str) -> None:
    app = run_page(made_once.path, COMPARE, ids=pair)
    assert not app.warning and not app.error
    everything = tables(app)[2]
    app.toggle[0].set_value(True).run()
    differences = tables(app)[2]
    assert list(differences.columns) == ["property:", "lora-tiny-5", "lora-tiny-2"]
    assert len(differences) == 4 < len(everything)
    assert all(name.startswith("≠ ") for name in differences["property:"])
    assert len(tables(run_page(made_once.path, COMPARE, ids=pair, differences="true"))[2]) == 4


def test_it_takes_at_most_six_and_names_the_unknown(run_page, made) -> None:
    with Registry.open(made.path) as registry:
        first = registry.adapter(made.best)
        registry.record(*(added(first, number) for number in range(4)))
        known = [made.best, made.second, made.prior, made.discarded, "more-0", "more-1"]
    app = run_page(made.path, COMPARE, ids=",".join((*known, "more-2", "nowhere", made.best)))
    assert not app.exception
    assert len(app.error) == 1
    assert app.multiselect[0].value == known
    assert app.query_params["ids"] == ",".join(known)
    app.multiselect[0].set_value(known[:2]).run()
    assert app.query_params["ids"] == ",".join(known[:2])
    app.multiselect[0].set_value([*known[:2], "lora-tiny-0"]).run()  # typed, as one that is not offered
    assert app.query_params["ids"] == ",".join(known[:3])


def added(adapter, number: int):
    return AdapterAdded(
        adapter_id=f"more-{number}",
        name="property" if number == 0 else "same",
        base_content_root=adapter.base_content_root,
        params=adapter.params,
        metrics={"eval_loss": 2.0 + number},
        artifact_sha256=adapter.artifact_sha256,
    )


def test_fewer_than_two_is_a_hint(run_page, made_once) -> None:
    for ids in ("", made_once.best):
        app = run_page(made_once.path, COMPARE, ids=ids)
        assert not app.exception
        assert len(app.info) == 1
        assert not app.dataframe


def test_it_warns_where_bases_differ(run_page, hostile) -> None:
    app = run_page(hostile.path, COMPARE, ids=f"{hostile.best},{hostile.imported}")
    assert len(app.warning) == 1
    assert set(table_with(app, "content root")["content root"]) == {"c0" * 32, "d1" * 32}


def test_weights_are_compared_by_the_measure_that_the_address_names(run_page, made_once, pair: str) -> None:
    app = run_page(made_once.path, COMPARE, ids=pair, measure="Row overlap")
    with Registry.open(made_once.path) as registry:
        folders = [registry.checkout(registry.adapter(one)) for one in pair.split(",")]
    alike = compare_weights(*folders)
    table = table_with(app, "row overlap")
    assert list(table["cosine"]) == [alike.cosine]
    assert list(table["row overlap"]) == [alike.row_overlap]
    assert app.segmented_control[0].value == "row_overlap"
    assert any("read from" in caption.value for caption in app.caption)


def test_adapters_without_files_are_left_out_of_the_weights(run_page, made_once, pair: str) -> None:
    three = run_page(made_once.path, COMPARE, ids=f"{pair},{made_once.discarded}")
    assert len(table_with(three, "cosine")) == 1
    assert any("left out" in caption.value for caption in three.caption)
    two = run_page(made_once.path, COMPARE, ids=f"{made_once.best},{made_once.discarded}")
    assert not any("cosine" in table for table in tables(two))


def test_a_megabyte_of_text_is_cut_wherever_it_stands(
    run_page, made, fingerprint: BaseFingerprint, hostile_text: str, read_as_markdown
) -> None:
    text = hostile_text + "\x1b[31m" + "y" * 1_000_000
    with Registry.open(made.path) as registry:
        first = registry.adapter(made.best)
        registry.record(
            BaseSeen(base=replace(fingerprint, identity=text, content_root="d2" * 32)),
            AdapterAdded(
                adapter_id="long-1",
                name="long",
                base_content_root="d2" * 32,
                params=first.params | {"target_modules": text, text: text},
                metrics={"eval_loss": 2.0},
                artifact_sha256=first.artifact_sha256,
            ),
            Evaluated(
                evaluation_id="long-2",
                adapter_id="long-1",
                base_content_root="d2" * 32,
                dataset={"source": text, "sha256": text},
                metrics={"eval_loss": 2.0},
            ),
        )
    for page, query in (
        (COMPARE, {"ids": f"long-1,{made.best}"}),
        ("views/adapters.py", {"ids": "long-1"}),
        ("views/adapter.py", {"adapter": "long-1"}),
        ("views/adapter.py", {"adapter": "long-1", "part": "Fingerprint"}),
        ("views/adapter.py", {"adapter": "long-1", "part": "Records"}),
    ):
        app = run_page(made.path, page, **query)
        assert not app.exception
        shown = [str(element.value) for kind in ("text", "code") for element in getattr(app, kind)]
        shown += [table.value.to_json() for table in app.dataframe]
        shown += [option for box in (*app.multiselect, *app.selectbox) for option in box.options]
        assert any("evil" in one for one in shown)
        assert max(map(len, shown)) < 100_000
        assert "evil" not in read_as_markdown(app)


def test_intervals_are_shown_where_they_were_recorded(run_page, made, pair: str) -> None:
    dataset = {"source": "fresh.jsonl", "sha256": "cd" * 32, "rows": 30}
    with Registry.open(made.path) as registry:
        registry.record(
            *(
                Evaluated(
                    evaluation_id=f"fresh-{adapter_id}",
                    adapter_id=adapter_id,
                    base_content_root="c0" * 32,
                    dataset=dataset,
                    metrics={"eval_loss": loss} | ends,
                )
                for adapter_id, loss, ends in (
                    (made.best, 2.05, {"eval_loss_low": 1.95, "eval_loss_high": 2.15}),
                    (made.second, 2.15, {}),
                )
            )
        )
    app = run_page(made.path, COMPARE, ids=pair)
    table = tables(app)[1]
    assert list(table["property:"]) == ["fresh.jsonl, 30 rows", "held-out.jsonl"]
    assert list(table["lora-tiny-5"]) == ["2.0500 [1.9500, 2.1500] ★", "2.0612"]
    assert list(table["lora-tiny-2"]) == ["2.1500", "–"]
    assert any(code.value.startswith("rankloom evaluate") for code in app.code)
