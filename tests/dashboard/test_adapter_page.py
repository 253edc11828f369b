from __future__ import annotations

import re

import yaml

from rankloom.config import parse_config
from rankloom_registry import AdapterAnnotated, Registry, read_weights

ADAPTER = "views/adapter.py"


def texts(app, *kinds: str) -> list[str]:
    return [str(element.value) for kind in kinds for element in getattr(app, kind)]


def metrics(app) -> dict[str, str]:
    return {metric.label: metric.value for metric in app.metric}


def tables(app) -> list:
    return [table.value for table in app.dataframe]


def test_the_page_shows_what_was_recorded(run_page, made_once) -> None:
    app = run_page(made_once.path, ADAPTER, adapter=made_once.best)
    assert not app.exception and not app.error
    assert metrics(app)["Eval loss"].startswith("2.0")
    assert {"32", "7.80e-4", "all-linear", "0.05", "105", "lora-tiny-5@champion"} <= set(texts(app, "text"))
    (lineage,) = (table for table in tables(app) if "step" in table)
    assert list(lineage["step"]) == [
        "base",
        "search",
        "trial",
        "adapter",
        "alias",
        "evaluation",
        "promotion",
        "export",
    ]


def test_evaluations_promotions_and_events_are_listed(run_page, made_once) -> None:
    app = run_page(made_once.path, ADAPTER, adapter=made_once.best, part="Records")
    evaluations, promotions, history = tables(app)
    assert list(evaluations["eval loss"]) == ["2.0612"]
    assert "perplexity 7.856" in evaluations["metrics"][0]
    assert list(promotions["output"]) == ["models/champion"]
    assert {"adapter_added", "evaluated", "promoted", "alias_moved"} <= set(history["event"])
    bare = run_page(made_once.path, ADAPTER, adapter=made_once.second, part="Records")
    codes = texts(bare, "code")
    assert any(code.startswith(f"rankloom promote {made_once.second} --output DIR") for code in codes)
    assert any(code.startswith(f"rankloom evaluate {made_once.second}") for code in codes)


def test_weights_are_measured_module_by_module(run_page, made_once) -> None:
    app = run_page(made_once.path, ADAPTER, adapter=made_once.best, part="Weights")
    assert not app.exception and not app.error
    with Registry.open(made_once.path) as registry:
        measured = read_weights(registry.checkout(registry.adapter(made_once.best)))
    (table,) = tables(app)
    assert list(table["module"]) == ["model.layers.0.self_attn.q_proj"]
    assert list(table["effective rank"]) == [measured.modules[0].effective_rank]
    assert metrics(app)["Update norm"] == f"{measured.update_norm:.4g}"
    assert len(app.get("plotly_chart")) == 2


def test_the_fingerprint_can_be_copied(run_page, made_once) -> None:
    app = run_page(made_once.path, ADAPTER, adapter=made_once.best, part="Fingerprint")
    assert {"c0" * 32, "ab" * 32, "12" * 32, "tiny/llama@5f3a"} <= set(texts(app, "code"))
    assert {"bfloat16", "134,515,008"} <= set(texts(app, "text"))


def test_verify_tells_whole_files_from_changed_ones(run_page, made) -> None:
    app = run_page(made.path, ADAPTER, adapter=made.best, part="Fingerprint")
    app.button(key="verify").click().run()
    assert len(app.success) == 1
    with Registry.open(made.path) as registry:
        weights = registry.adapter(made.best).artifact_path / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.chmod(0o644)
    weights.write_bytes(content)
    app.button(key="verify").click().run()
    assert len(app.error) == 1
    assert not app.success
    broken = run_page(made.path, ADAPTER, adapter=made.best, part="Weights")
    assert not broken.exception
    assert len(broken.error) == 1


def test_an_adapter_is_found_by_alias(run_page, made_once) -> None:
    app = run_page(made_once.path, ADAPTER, adapter="lora-tiny-5@champion")
    assert not app.exception
    assert app.query_params["adapter"] == made_once.best
    assert app.selectbox[0].value == made_once.best


def test_an_unknown_adapter_is_a_message_and_another_can_be_chosen(run_page, made_once) -> None:
    app = run_page(made_once.path, ADAPTER, adapter="nowhere")
    assert not app.exception
    assert len(app.error) == 1
    assert any("nowhere" in code for code in texts(app, "code"))
    app.selectbox[0].set_value(made_once.second).run()
    assert app.query_params["adapter"] == made_once.second
    assert not app.error


def test_a_discarded_adapter_offers_nothing_that_needs_its_files(run_page, made_once) -> None:
    for part in ("Overview", "Weights", "Fingerprint", "Records"):
        app = run_page(made_once.path, ADAPTER, adapter=made_once.discarded, part=part)
        assert not app.exception and not app.error
        assert all(button.disabled for button in app.button)
        assert not any(code.startswith("rankloom") for code in texts(app, "code"))


def test_the_configuration_is_copied_as_a_search_file(run_page, made_once) -> None:
    app = run_page(made_once.path, ADAPTER, adapter=made_once.best)
    (text,) = (code.value for code in app.code if code.language == "yaml")
    config = parse_config(yaml.safe_load(text), source="copied")
    assert config.num_samples == 1
    assert config.space["parameters"]["r"] == {"choice": [32]}


def test_the_configuration_is_copied_as_python(run_page, made_once) -> None:
    app = run_page(made_once.path, ADAPTER, adapter=made_once.best, copy="Python")
    config, load = (code.value for code in app.code if code.language == "python")
    known: dict[str, object] = {}
    exec(config, known)
    assert known["config"].r == 32
    assert known["config"].target_modules == {"q_proj"}
    compile(load, "load.py", "exec")
    assert f"registry.adapter({made_once.best!r})" in load
    assert "from_pretrained('tiny/llama', revision='5f3a')" in load
    discarded = run_page(made_once.path, ADAPTER, adapter=made_once.discarded, copy="Python")
    assert len(discarded.error) == 1  # only the model says which modules 'mlp' means
    assert any("--format yaml" in code for code in texts(discarded, "code"))


def test_name_note_and_tags_are_changed(run_page, made, changing) -> None:
    with Registry.open(made.path) as registry:
        registry.record(AdapterAnnotated(adapter_id=made.second, tags_added=("old", "kept")))
    app = run_page(made.path, ADAPTER, adapter=made.second)
    app.button(key="open_edit").click().run()
    app.text_input(key="edit_name").set_value("second-best")
    app.text_area(key="edit_note").set_value("**good** on <script>")
    app.multiselect(key="edit_tags").set_value(["kept", "new"])
    app.button(key="edit_now").click().run()
    assert not app.exception and not app.error
    with Registry.open(made.path) as registry:
        adapter = registry.adapter(made.second)
    assert (adapter.name, adapter.note, adapter.tags) == ("second-best", "**good** on <script>", ("kept", "new"))
    assert "**good** on <script>" in texts(app, "text")
    assert not any("script" in text for text in texts(app, "markdown", "caption"))


def test_an_alias_is_moved_and_removed_for_a_reason(run_page, made, changing) -> None:
    app = run_page(made.path, ADAPTER, adapter=made.second)
    app.button(key="open_alias").click().run()
    app.text_input(key="alias_name").set_value("prod")
    app.button(key="alias_move").click().run()
    assert len(app.error) == 1
    app.text_input(key="alias_why").set_value("it is smaller")
    app.button(key="alias_move").click().run()
    assert not app.exception and not app.error
    with Registry.open(made.path) as registry:
        (move,) = registry.alias_history("lora-tiny-2", "prod")
        assert (move.adapter_id, move.why) == (made.second, "it is smaller")
    assert not app.text_input
    app.button(key="open_alias").click().run()
    app.text_input(key="alias_name").set_value("prod")
    app.text_input(key="alias_why").set_value("it is not")
    app.button(key="alias_drop").click().run()
    with Registry.open(made.path) as registry:
        assert registry.alias_history("lora-tiny-2", "prod")[0].adapter_id is None


def test_a_refused_change_is_a_message(run_page, made, changing) -> None:
    app = run_page(made.path, ADAPTER, adapter=made.second)
    app.button(key="open_edit").click().run()
    app.text_input(key="edit_name").set_value("two words")
    app.button(key="edit_now").click().run()
    assert not app.exception
    assert len(app.error) == 1
    assert any("two words" in code for code in texts(app, "code"))


def test_a_viewer_is_offered_no_change(run_page, made_once) -> None:
    app = run_page(made_once.path, ADAPTER, adapter=made_once.best)
    assert {button.label: button.disabled for button in app.button} == {"Edit": True, "Alias": True, "Discard": True}
    assert not app.text_input and not app.text_area


def test_a_megabyte_of_text_is_cut(run_page, made, hostile_text: str, read_as_markdown) -> None:
    text = hostile_text + "\x00\x1b[31m" + "y" * 1_000_000
    with Registry.open(made.path) as registry:
        registry.record(AdapterAnnotated(adapter_id=made.second, note=text.replace("\x00", ""), why=text))
    for part in ("Overview", "Records"):
        app = run_page(made.path, ADAPTER, adapter=made.second, part=part)
        assert not app.exception
        shown = [*texts(app, "text", "code"), *(table.to_json() for table in tables(app))]
        assert max(map(len, shown)) < 100_000
        assert any(re.search(r"cut: 1,000,\d{3} characters in all", one) for one in shown)
        assert "evil" not in read_as_markdown(app)
