from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rankloom.errors import ConfigError
from rankloom.evaluation.base import BASE
from rankloom.evaluation.evaluate import evaluate
from rankloom.evaluation.report import load_report, report_file
from rankloom.evaluation.tasks import document_values, tasks_installed
from rankloom_registry import Registry

TASK = """
task: negation
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{prompt}}"
doc_to_target: 0
doc_to_choice: "{{[right, wrong]}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""

WRITTEN = """
task: written
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
output_type: generate_until
doc_to_text: "{{prompt}}"
doc_to_target: "{{right.strip()}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 12, do_sample: false}
filter_list:
  - {name: as-is, filter: [{function: take_first}]}
  - {name: word, filter: [{function: regex, regex_pattern: "(not)"}, {function: take_first}]}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


@pytest.fixture
def folder(tmp_path: Path, rows_file: Path) -> Path:
    """A folder with a task: which of two answers is the likelier."""
    rows = [json.loads(line) for line in rows_file.read_text().splitlines()[:20]]
    choices = [
        {"prompt": row["prompt"], "right": row["completion"], "wrong": row["completion"].replace(" not", " ever")}
        for row in rows
    ]
    (tmp_path / "tasks").mkdir()
    data = tmp_path / "choices.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in choices))
    (tmp_path / "tasks" / "negation.yaml").write_text(TASK % data)
    (tmp_path / "tasks" / "written.yaml").write_text(WRITTEN % data)
    return tmp_path / "tasks"


def test_a_document_counts_once_for_each_way_in_which_its_answer_is_filtered() -> None:
    """Such as in gsm8k, of which lm-eval logs each document twice: both at once would be rows of twice as many."""
    samples = [
        {"doc_id": number, "filter": name, "exact_match": value, "resps": []}
        for name, values in {"strict-match": (0, 1), "flexible-extract": (1, 1)}.items()
        for number, value in enumerate(values)
    ]
    assert document_values(samples, "exact_match") == {
        "exact_match.strict-match": [0.0, 1.0],
        "exact_match.flexible-extract": [1.0, 1.0],
    }
    assert document_values([{"filter": "none", "acc": True}, {"acc": 0.5}], "acc") == {"acc": [1.0, 0.5]}
    assert document_values([{"filter": "none", "word_perplexity": (-3.0, 2)}], "word_perplexity") == {}
    assert document_values(samples, "acc") == {}


@pytest.mark.skipif(not tasks_installed(), reason="lm-eval is not installed: no task is run")
def test_a_task_is_run_on_base_and_adapters(world: Any, folder: Path) -> None:
    registry = Registry.open(world.registry)
    report = evaluate(
        registry, world.adapters, metrics=(), tasks=["negation"], tasks_folder=str(folder), dataset=None, limit=16
    )
    good = report.metrics(world.adapters[0])
    assert good["negation.acc"] == 1.0 and 0 <= report.metrics(BASE)["negation.acc"] <= 1
    assert good["negation.acc_stderr"] == 0
    assert report.dataset == {"tasks": ["negation"], "limit": 16} and report.rows == ()
    one = next(found for found in report.comparisons if (found.before, found.after) == (BASE, world.adapters[0]))
    assert one.metric == "negation.acc" and one.rows == 16
    assert one.difference == pytest.approx(good["negation.acc"] - report.metrics(BASE)["negation.acc"])
    (recorded,) = registry.evaluations(world.adapters[0])
    assert recorded.metrics["negation.acc"] == 1.0
    assert recorded.metrics["base_negation.acc"] == report.metrics(BASE)["negation.acc"]
    assert load_report(report_file(registry.path, report.run)) == report


@pytest.mark.skipif(not tasks_installed(), reason="lm-eval is not installed: no task is run")
def test_answers_that_are_filtered_in_two_ways_are_two_figures_of_as_many_documents(world: Any, folder: Path) -> None:
    registry = Registry.open(world.registry)
    report = evaluate(
        registry, world.adapters[:1], metrics=(), tasks=["written"], tasks_folder=str(folder), dataset=None, limit=6
    )
    names = ["written.exact_match.as-is", "written.exact_match.word"]
    assert [(one.metric, one.rows) for one in report.comparisons] == [(name, 6) for name in names]
    assert {name for name in report.metrics(world.adapters[0]) if "stderr" not in name} == set(names)


@pytest.mark.skipif(not tasks_installed(), reason="lm-eval is not installed: no task is run")
def test_a_task_that_nobody_knows(world: Any, folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"knows no task 'nagetion'.*--tasks-folder"):
        evaluate(Registry.open(world.registry), world.adapters, tasks=["nagetion"], tasks_folder=str(folder))


@pytest.mark.skipif(tasks_installed(), reason="lm-eval is installed")
def test_without_lm_eval_a_task_says_what_to_install(world: Any) -> None:
    with pytest.raises(ConfigError, match=r"hellaswag need lm-eval: pip install 'rankloom\[eval\]'"):
        evaluate(Registry.open(world.registry), world.adapters, tasks=["hellaswag"])
