from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from transformers import PreTrainedTokenizerBase

from rankloom.data import DataSummary, canonical_rows, load_rows, prepare_data, rows_hash, tokenise
from rankloom.errors import DataError
from rankloom.models import load_tokenizer

USER, ASSISTANT = {"role": "user", "content": "the girl ?"}, {"role": "assistant", "content": "the boy"}
SYSTEM = {"role": "system", "content": "plays theory"}
PLAIN = [{"prompt": f"the girl has {n} =", "completion": f" the boy {n}"} for n in range(6)]

SHAPES: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "text": ({"text": "the girl", "id": 1}, "text", {"text": "the girl"}),
    "messages": ({"messages": [USER, ASSISTANT], "id": 1}, "messages", {"messages": [USER, ASSISTANT]}),
    "strings": (
        {"prompt": "the girl", "completion": " has", "id": 1},
        "prompt-completion",
        {"prompt": "the girl", "completion": " has"},
    ),
    "prompt and completion as messages": (
        {"prompt": [USER], "completion": [ASSISTANT]},
        "prompt-completion",
        {"prompt": [USER], "completion": [ASSISTANT]},
    ),
    "Alpaca": (
        {"instruction": "Negate.", "input": "the girl has", "output": "the girl has not"},
        "prompt-completion",
        {
            "prompt": [{"role": "user", "content": "Negate.\n\nthe girl has"}],
            "completion": [{"role": "assistant", "content": "the girl has not"}],
        },
    ),
    "Alpaca without input": (
        {"instruction": "Speak.", "input": "", "output": "the"},
        "prompt-completion",
        {"prompt": [{"role": "user", "content": "Speak."}], "completion": [{"role": "assistant", "content": "the"}]},
    ),
    "ShareGPT": (
        {
            "conversations": [
                {"from": "system", "value": "plays theory"},
                {"from": "human", "value": "the girl ?"},
                {"from": "gpt", "value": "the boy"},
            ]
        },
        "messages",
        {"messages": [SYSTEM, USER, ASSISTANT]},
    ),
}


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(tiny_model)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "data"
    path.mkdir()
    return path


def prepare(dataset: Any, folder: Path, tokenizer: PreTrainedTokenizerBase, **changes: Any) -> DataSummary:
    options: dict[str, Any] = {
        "eval_dataset": None,
        "eval_fraction": 0.25,
        "max_eval_samples": None,
        "seed": 0,
        "max_length": 64,
        "completion_only_loss": None,
    }
    return prepare_data(dataset=dataset, tokenizer=tokenizer, folder=folder, **{**options, **changes})


@pytest.mark.parametrize(("row", "kind", "expected"), SHAPES.values(), ids=SHAPES)
def test_shapes(row: dict[str, Any], kind: str, expected: dict[str, Any]) -> None:
    rows, found = canonical_rows(datasets.Dataset.from_list([row, row]), "rows")
    assert found == kind
    assert list(rows) == [expected, expected]


WRONG_COLUMNS = {
    "prompt alone": ({"prompt": "a", "answer": "b"}, ("'completion' (beside 'prompt')", "found: answer, prompt")),
    "output alone": ({"output": "a"}, ("'instruction' (beside 'output')", "found: output")),
    "nothing known": ({"question": "a"}, ("none of the columns", "found: question", "'prompt' and 'completion'")),
    "preference": (
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        ("preference rows", "rename 'chosen' to 'completion'"),
    ),
}


@pytest.mark.parametrize(("row", "fragments"), WRONG_COLUMNS.values(), ids=WRONG_COLUMNS)
def test_wrong_columns_are_named_with_those_found(row: dict[str, Any], fragments: tuple[str, ...]) -> None:
    with pytest.raises(DataError) as caught:
        canonical_rows(datasets.Dataset.from_list([row]), "train.jsonl")
    assert [fragment for fragment in ("train.jsonl", *fragments) if fragment not in str(caught.value)] == []


WRONG_ROWS: dict[str, tuple[list[dict[str, Any]], str]] = {
    "empty": ([{"text": "the"}, {"text": ""}], "row 1: 'text'"),
    "missing": ([{"prompt": "a", "completion": None}], "row 0: 'completion'"),
    "a number": ([{"text": 5}], "row 0: 'text'"),
    "no turns": ([{"messages": []}], "row 0: 'messages'"),
    "a turn without a role": ([{"messages": [{"content": "a"}]}], "row 0: 'messages'"),
    "a turn without content": ([{"messages": [{"role": "user", "content": None}]}], "row 0: 'messages'"),
    "turns that are text": ([{"messages": ["the girl"]}], "row 0: 'messages'"),
    "text before messages": ([{"prompt": "the", "completion": [ASSISTANT]}], "row 0: 'completion'"),
    "Alpaca without output": ([{"instruction": "Negate.", "output": None}], "row 0: 'output'"),
    "Alpaca without instruction": ([{"instruction": "", "output": "the"}], "row 0: 'instruction'"),
    "ShareGPT without a value": ([{"conversations": [{"from": "human", "value": None}]}], "row 0"),
    "ShareGPT with another role": ([{"conversations": [{"from": "tool", "value": "a"}]}], "row 0"),
}


@pytest.mark.parametrize(("rows", "place"), WRONG_ROWS.values(), ids=WRONG_ROWS)
def test_a_wrong_row_is_named(rows: list[dict[str, Any]], place: str) -> None:
    with pytest.raises(DataError) as caught:
        canonical_rows(datasets.Dataset.from_list(rows), "train.jsonl")
    assert f"train.jsonl, {place}" in str(caught.value)


def save_csv(path: Path) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["prompt", "completion"])
        writer.writeheader()
        writer.writerows(PLAIN)
    return path


def save_jsonl(path: Path) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in PLAIN), encoding="utf-8")
    return path


def save_json(path: Path) -> Path:
    path.write_text(json.dumps(PLAIN), encoding="utf-8")
    return path


def save_parquet(path: Path) -> Path:
    datasets.Dataset.from_list(PLAIN).to_parquet(str(path))
    return path


def save_folder(path: Path) -> Path:
    path.mkdir()
    save_jsonl(path / "train.jsonl")
    return path


def save_arrow(path: Path) -> Path:
    datasets.Dataset.from_list(PLAIN).save_to_disk(str(path))
    return path


SOURCES = {
    "rows.csv": save_csv,
    "rows.jsonl": save_jsonl,
    "rows[1] of *.jsonl": save_jsonl,
    "rows.json": save_json,
    "rows.parquet": save_parquet,
    "folder": save_folder,
    "arrow": save_arrow,
}


@pytest.mark.parametrize("name", SOURCES)
def test_sources_give_the_same_rows(tmp_path: Path, name: str) -> None:
    path = SOURCES[name](tmp_path / name)
    for source in (path, str(path)):
        assert list(load_rows(source)) == PLAIN


def test_dataset_objects() -> None:
    rows = datasets.Dataset.from_list(PLAIN)
    assert list(load_rows(rows)) == PLAIN
    assert list(load_rows(datasets.DatasetDict(train=rows, test=rows.select([0])))) == PLAIN
    with pytest.raises(DataError, match=r"no 'train' split, it has \['test'\]"):
        load_rows(datasets.DatasetDict(test=rows))
    with pytest.raises(DataError, match="got list"):
        load_rows(PLAIN)


def test_unreadable_sources(tmp_path: Path) -> None:
    def content(name: str, text: str) -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name

    (tmp_path / "nothing").mkdir()
    wrong: dict[Any, str] = {
        tmp_path / "none.jsonl": "no dataset at",
        "none.jsonl": "no dataset at",
        "./none": "no dataset at",
        content("empty.jsonl", ""): "is empty: give a dataset",
        content("blank.json", "[]"): "holds no rows",
        content("blank.jsonl", "\n\n"): "holds no rows",
        content("header.csv", "prompt,completion\n"): "holds no rows",
        content("rows.txt", "the girl\n"): "must end in .jsonl, .json, .csv, .parquet, got 'rows.txt'",
        content("torn.jsonl", '{"text": "the girl"}\n{"text": "the'): "or is not jsonl: ",
        content("torn.parquet", "PAR1"): "or is not parquet: ",
        tmp_path / "nothing": "cannot load dataset",
        "no-such-owner/no-such-rows": "or a hub id that can be reached",
    }
    for source, fragment in wrong.items():
        with pytest.raises(DataError) as caught:
            load_rows(source)
        assert fragment in str(caught.value) and "\n" not in str(caught.value), source


def test_split_is_seeded(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = datasets.Dataset.from_list(PLAIN * 4)

    def split(name: str, seed: int) -> tuple[DataSummary, str]:
        (tmp_path / name).mkdir()
        summary = prepare(rows, tmp_path / name, tokenizer, seed=seed)
        return summary, (tmp_path / name / "eval.jsonl").read_text()

    first, again, other = split("first", 0), split("again", 0), split("other", 1)
    assert first == again
    assert first[0].sha256 != other[0].sha256 and first[1] != other[1]
    assert (first[0].train_rows, first[0].eval_rows) == (18, 6)


def test_the_split_takes_every_row_once(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    summary = prepare(datasets.Dataset.from_list(PLAIN), folder, tokenizer)
    parts = [datasets.load_from_disk(str(folder / name)) for name in ("train", "eval")]
    everything = tokenise(
        datasets.Dataset.from_list(PLAIN), tokenizer, max_length=64, completion_only_loss=None
    ).remove_columns(["cut", "row"])
    assert sorted(map(str, [*parts[0], *parts[1]])) == sorted(map(str, everything))
    assert summary.to_dict() == json.loads((folder / "summary.json").read_text())
    assert summary.kind == "prompt-completion" and summary.dropped_rows == summary.cut_rows == 0
    assert summary.train_tokens == sum(map(len, parts[0]["input_ids"]))
    assert len((folder / "eval.jsonl").read_text().splitlines()) == len(parts[1]) == summary.eval_rows


def test_held_out_rows_of_their_own(folder: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    file = save_jsonl(tmp_path / "eval.jsonl")
    summary = prepare(datasets.Dataset.from_list(PLAIN), folder, tokenizer, eval_dataset=file, max_eval_samples=2)
    assert (summary.train_rows, summary.eval_rows) == (6, 2)
    assert [json.loads(line) for line in (folder / "eval.jsonl").read_text().splitlines()] == PLAIN[:2]


def test_refused_datasets(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    rows, texts = datasets.Dataset.from_list(PLAIN), datasets.Dataset.from_list([{"text": "the girl"}])
    with pytest.raises(DataError, match="at least 2 rows, <Dataset> has 1"):
        prepare(texts, folder, tokenizer)
    with pytest.raises(DataError, match="'prompt-completion' but eval_dataset of type 'text'"):
        prepare(rows, folder, tokenizer, eval_dataset=texts)
    with pytest.raises(DataError, match=r"no train row is left: max_length=8 .* raise max_length"):
        long = datasets.Dataset.from_list([{"prompt": "girl " * 20, "completion": "boy"}] * 4)
        prepare(long, folder, tokenizer, max_length=8)


def test_messages_need_a_chat_template(folder: Path, tiny_model: Path) -> None:
    bare = load_tokenizer(tiny_model)
    bare.chat_template = None
    with pytest.raises(DataError, match="no chat template"):
        prepare(datasets.Dataset.from_list([{"messages": [USER, ASSISTANT]}] * 2), folder, bare)


def test_rows_without_loss_are_dropped_and_cut_rows_counted(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    lost = {"prompt": "the girl " * 20, "completion": "boy"}
    cut = {"prompt": "the girl", "completion": " the boy" * 20}
    whole = {"prompt": "the girl", "completion": " boy"}
    rows = datasets.Dataset.from_list([lost, cut, whole])
    summary = prepare(rows, folder, tokenizer, eval_dataset=datasets.Dataset.from_list([whole]), max_length=16)
    train = datasets.load_from_disk(str(folder / "train"))
    assert (summary.train_rows, summary.dropped_rows, summary.cut_rows) == (2, 1, 1)
    assert len(train[0]["input_ids"]) == 16
    assert all(any(label != -100 for label in row["labels"][1:]) for row in train)
    assert all(len(row["input_ids"]) == len(row["labels"]) for row in train)


def test_rows_hash_is_stable() -> None:
    rows = datasets.Dataset.from_list([{"prompt": "é", "completion": " the"}, {"prompt": "b", "completion": "c"}])
    # Registered searches carry such hashes: a change of this value would disown them.
    assert rows_hash(rows) == "023c4040a427633170a55557308b3bc37c65b23654b469298b854fd68d2e9a0a"
    turned = datasets.Dataset.from_dict({"completion": rows["completion"], "prompt": rows["prompt"]})
    assert rows_hash(turned) == rows_hash(rows)
    assert rows_hash(rows.select([1, 0])) != rows_hash(rows)
    assert rows_hash(rows.select([0]), rows.select([1])) != rows_hash(rows)


TRL_ROWS: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "strings": (PLAIN, {}),
    "strings, loss on all": (PLAIN, {"completion_only_loss": False}),
    "strings that merge": ([{"prompt": "the gi", "completion": "rl has"}, {"prompt": "the", "completion": "ory"}], {}),
    "strings, cut": ([{"prompt": "the girl", "completion": " the boy" * 20}], {"max_length": 16}),
    "strings, without loss": ([*PLAIN, {"prompt": "the girl " * 20, "completion": "boy"}], {"max_length": 16}),
    "strings with their end": ([{"prompt": "the", "completion": " boy<|im_end|>"}], {}),
    "chat": ([{"prompt": [SYSTEM, USER], "completion": [ASSISTANT]}] * 2, {}),
    "chat, loss on all": ([{"prompt": [USER], "completion": [ASSISTANT]}], {"completion_only_loss": False}),
    "chat of two answers": ([{"prompt": [USER], "completion": [ASSISTANT, USER, ASSISTANT]}], {}),
    "messages": ([{"messages": [SYSTEM, USER, ASSISTANT, USER, ASSISTANT]}] * 2, {}),
    "text": ([{"text": "the girl has"}, {"text": "the boy <|im_end|>"}, {"text": "flowers\n"}], {}),
    "text, cut": ([{"text": "the girl has" * 20}], {"max_length": 16}),
}


@pytest.mark.parametrize(("rows", "options"), TRL_ROWS.values(), ids=TRL_ROWS)
def test_labels_are_those_of_trl(
    tmp_path: Path, tiny_model: Path, rows: list[dict[str, Any]], options: dict[str, Any]
) -> None:
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    settings = {"max_length": 64, "completion_only_loss": None, **options}
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(tiny_model),
        args=SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", **settings),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=load_tokenizer(tiny_model),
    )
    canonical, _ = canonical_rows(datasets.Dataset.from_list(rows), "rows")
    ours = tokenise(canonical, load_tokenizer(tiny_model), **settings)
    assert list(ours["input_ids"]) == list(trainer.train_dataset["input_ids"])
    assert list(ours["labels"]) == list(trainer.train_dataset["labels"])
