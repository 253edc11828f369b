from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rankloom.cli.main import app as program
from rankloom_registry import AdapterAdded, AdapterAnnotated, BaseFingerprint, BaseSeen, Registry

ADAPTERS = "views/adapters.py"
PAGE_ROWS = 50  # as the page has it; importing the page would run it


@pytest.fixture
def tagged(made):
    with Registry.open(made.path) as registry:
        registry.record(AdapterAnnotated(adapter_id=made.second, tags_added=("keep", "v2")))
    return made


@pytest.fixture
def many(fingerprint: BaseFingerprint, tmp_path: Path) -> Path:
    """A registry of 120 adapters, whose files were not kept."""
    with Registry.open(tmp_path / "many.duckdb", create=True) as registry:
        added = [
            AdapterAdded(
                adapter_id=f"n-{number:03}",
                name=f"n-{number:03}",
                base_content_root=fingerprint.content_root,
                params={"r": number % 2},
                metrics={},
                artifact_sha256="",
                status="discarded",
            )
            for number in range(120)
        ]
        registry.record(BaseSeen(base=fingerprint), *added)
    return registry.path


def listed(app) -> list[str]:
    assert not app.exception
    return list(app.dataframe[0].value["adapter"]) if app.dataframe else []


def links(app) -> dict[str, bool]:
    return {link.proto.label: not link.proto.disabled for link in app.get("page_link")}


def test_all_adapters_are_listed_the_best_first(run_page, made_once) -> None:
    app = run_page(made_once.path, ADAPTERS)
    assert listed(app) == [made_once.best, made_once.second, made_once.discarded, made_once.prior]
    assert any(text.value == "1–4 of 4 adapters" for text in app.text)
    assert not app.error


def test_the_address_says_filter_order_tag_and_selection(run_page, tagged) -> None:
    query = {"where": "r >= 16 and eval_loss < 2.2", "order": "eval_loss desc", "ids": f"{tagged.best},{tagged.prior}"}
    app = run_page(tagged.path, ADAPTERS, **query)
    assert listed(app) == [tagged.discarded, tagged.second, tagged.best]
    assert app.query_params["ids"] == query["ids"]
    assert any(text.value == "2 selected, 1 of them not on this page" for text in app.text)
    assert app.text_input(key="where").value == query["where"]
    assert app.number_input(key="least_r").value == 16
    assert run_page(tagged.path, ADAPTERS, tag="keep").dataframe[0].value["adapter"].to_list() == [tagged.second]
    assert listed(run_page(tagged.path, ADAPTERS, tag="gone")) == []


def test_widgets_write_the_text_and_leave_the_rest_of_it_alone(run_page, made_once) -> None:
    app = run_page(made_once.path, ADAPTERS, where="eval_loss < 2.5 and r <= 64")
    app.multiselect(key="among_status").set_value(["available"]).run()
    assert app.text_input(key="where").value == "status = 'available' and r <= 64 and eval_loss < 2.5"
    app.number_input(key="most_r").set_value(16.0).run()
    assert app.text_input(key="where").value == "status = 'available' and r <= 16 and eval_loss < 2.5"
    assert listed(app) == [made_once.prior]
    app.number_input(key="most_r").set_value(None).run()
    assert app.text_input(key="where").value == "status = 'available' and eval_loss < 2.5"
    app.button[0].click().run()
    assert app.text_input(key="where").value == ""
    assert len(listed(app)) == 4


def test_the_text_sets_the_widgets(run_page, made_once) -> None:
    app = run_page(made_once.path, ADAPTERS)
    app.text_input(key="where").set_value("target_modules in ('mlp', 'attention') and learning_rate >= 1e-4").run()
    assert app.multiselect(key="among_target_modules").value == ["mlp", "attention"]
    assert app.number_input(key="least_learning_rate").value == 1e-4
    assert listed(app) == [made_once.discarded]


def test_the_command_line_lists_the_same(run_page, made_once) -> None:
    app = run_page(made_once.path, ADAPTERS, where="status = 'available' and r >= 32", order="r desc, eval_loss desc")
    (command,) = (code.value for code in app.code if code.value.startswith("rankloom adapters list"))
    done = CliRunner().invoke(program, [*shlex.split(command)[1:], "--json"])
    assert (
        [adapter["adapter_id"] for adapter in json.loads(done.stdout)]
        == listed(app)
        == [
            made_once.second,
            made_once.best,
        ]
    )


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"where": "rank <= 8"}, "there is no column 'rank'"),
        ({"where": "r <="}, "cannot read the filter"),
        ({"where": "r = 'x'"}, "fails"),
        ({"order": "eval_loss; drop table adapters"}, "an ordering is columns"),
    ],
)
def test_a_wrong_filter_is_the_registrys_own_message(run_page, made_once, query: dict[str, str], said: str) -> None:
    app = run_page(made_once.path, ADAPTERS, **query)
    assert not app.exception
    assert len(app.error) == 1
    assert any(said in code.value for code in app.code)
    app.text_input(key="where").set_value("r = 64").run()
    app.selectbox(key="order").set_value("eval_loss").run()
    assert not app.error
    assert listed(app) == [made_once.discarded]


def test_only_the_links_that_take_the_selection_are_there_to_follow(run_page, made_once) -> None:
    assert not any(links(run_page(made_once.path, ADAPTERS)).values())
    one = links(run_page(made_once.path, ADAPTERS, ids=made_once.best))
    assert one["Open"] and not one["Compare"]
    two = links(run_page(made_once.path, ADAPTERS, ids=f"{made_once.best},{made_once.discarded}"))
    assert two["Compare"] and not two["Open"]


def test_pages_follow_one_another(run_page, many) -> None:
    app = run_page(many, ADAPTERS, order="name", ids="n-000")
    assert listed(app) == [f"n-{number:03}" for number in range(PAGE_ROWS)]
    app.pagination[0].set_value(3).run()
    assert listed(app) == [f"n-{number:03}" for number in range(2 * PAGE_ROWS, 120)]
    assert any(text.value == "101–120 of 120 adapters" for text in app.text)
    assert app.query_params["ids"] == "n-000"
    app.text_input(key="where").set_value("r = 1").run()
    assert listed(app) == [f"n-{number:03}" for number in range(1, 120, 2)][:PAGE_ROWS]


@pytest.mark.parametrize(("asked", "first"), [("2", PAGE_ROWS), ("3", 2 * PAGE_ROWS), ("9", 0), ("x", 0)])
def test_the_address_says_which_page(run_page, many, asked: str, first: int) -> None:
    app = run_page(many, ADAPTERS, order="name", page=asked)
    assert listed(app)[0] == f"n-{first:03}"
    assert app.query_params.get("page") == (asked if first else None)


def test_unknown_ids_are_named_and_the_rest_stays_selected(run_page, made_once) -> None:
    app = run_page(made_once.path, ADAPTERS, ids=f"nowhere,{made_once.best}")
    assert len(app.error) == 1
    assert any("nowhere" in code.value for code in app.code)
    assert app.query_params["ids"] == made_once.best


def test_a_viewer_may_change_nothing(run_page, made_once) -> None:
    app = run_page(made_once.path, ADAPTERS, ids=made_once.best)
    assert {button.label: button.disabled for button in app.button} == {
        "Reset filter": True,
        "Tag": True,
        "Discard": True,
        "Clear selection": False,
    }


def test_tags_are_added_and_removed(run_page, tagged, changing) -> None:
    app = run_page(tagged.path, ADAPTERS, ids=f"{tagged.best},{tagged.second}")
    app.button(key="open_tag").click().run()
    app.multiselect(key="tags_added").set_value(["prod-candidate"])
    app.multiselect(key="tags_removed").set_value(["v2"])
    app.button(key="tag_now").click().run()
    assert not app.exception and not app.error
    with Registry.open(tagged.path) as registry:
        assert registry.adapter(tagged.best).tags == ("prod-candidate",)
        assert registry.adapter(tagged.second).tags == ("keep", "prod-candidate")


def test_a_tag_that_breaks_the_rule_is_a_message(run_page, made, changing) -> None:
    app = run_page(made.path, ADAPTERS, ids=made.best)
    app.button(key="open_tag").click().run()
    app.multiselect(key="tags_added").set_value(["<script>"])
    app.button(key="tag_now").click().run()
    assert not app.exception
    assert len(app.error) == 1
    assert any("<script>" in code.value for code in app.code)


def test_adapters_are_discarded_for_a_reason(run_page, made, changing) -> None:
    app = run_page(made.path, ADAPTERS, ids=f"{made.second},{made.prior}")
    app.button(key="open_discard").click().run()
    app.button(key="discard_now").click().run()
    assert len(app.error) == 1
    app.text_input(key="discard_reason").set_value("too large")
    app.button(key="discard_now").click().run()
    assert not app.exception and not app.error
    with Registry.open(made.path) as registry:
        assert [registry.adapter(one).status for one in (made.second, made.prior)] == ["discarded", "discarded"]
        assert registry.events(made.second)[0].payload["reason"] == "too large"


def test_what_an_alias_means_is_not_discarded(run_page, made, changing) -> None:
    app = run_page(made.path, ADAPTERS, ids=made.best)
    app.button(key="open_discard").click().run()
    app.text_input(key="discard_reason").set_value("why not")
    app.button(key="discard_now").click().run()
    assert any("champion" in code.value for code in app.code)
    with Registry.open(made.path) as registry:
        assert registry.adapter(made.best).status == "available"
