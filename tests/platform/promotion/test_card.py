from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, metadata_load
from markdown_it import MarkdownIt

from rankloom.promotion.card import BaseFacts, CardFacts, Drift, Metric, licence_of, model_card

FACTS = CardFacts(
    title="negation-7",
    format="safetensors",
    recipe="full-precision",
    base=BaseFacts("HuggingFaceTB/SmolLM2-135M@93efa2f0", "c" * 64, "s" * 64, "apache-2.0"),
    adapter_id="a1b2c3",
    search={"name": "negation", "id": "s1", "num_samples": 16, "metric": "eval_loss"},
    dataset={"source": "held-out split of negation", "sha256": "d" * 64, "rows": 12},
    params={"r": 16, "learning_rate": 2.5e-4, "target_modules": ["q_proj", "v_proj"], "seed": None},
    metrics=[Metric("merged loss", 0.61234, 0.6, 0.63), Metric("adapter loss", 0.62)],
    drift=[Drift("merged", -0.007, -0.031, 0.018, 0.171, 0.801), Drift("noise floor", -0.001)],
    files={"model.safetensors": "f" * 64},
    how_to_load='from transformers import AutoModelForCausalLM\n\nmodel = AutoModelForCausalLM.from_pretrained(".")',
    signature="model.sig, by key 1234",
    versions={"rankloom": "0.1.0", "torch": "2.13.0"},
)


def rendered(card: str) -> list[Any]:
    """The card's blocks as a reader of Markdown sees them, without the front matter."""
    return MarkdownIt("gfm-like", {"linkify": False}).parse(card.partition("\n---\n")[2])


def cells(card: str) -> list[list[str]]:
    """The rows of all tables, as text."""
    rows: list[list[str]] = []
    for token in rendered(card):
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline" and rows and token.level > 3:
            rows[-1].append("".join(child.content for child in token.children))
    return rows


def front_matter(tmp_path: Path, facts: CardFacts) -> dict[str, Any]:
    (tmp_path / "README.md").write_text(model_card(facts), encoding="utf-8")
    values: dict[str, Any] = metadata_load(tmp_path / "README.md")
    return values


def test_a_card_says_it_all() -> None:
    card = model_card(FACTS)
    rows = cells(card)
    for row in (
        ["Base", "HuggingFaceTB/SmolLM2-135M@93efa2f0"],
        ["Content of the base (fingerprint)", "c" * 64],
        ["Structure of the base (fingerprint)", "s" * 64],
        ["Licence of the base", "apache-2.0"],
        ["Adapter", "a1b2c3"],
        ["Recipe", "full-precision"],
        ["Search (num_samples)", "16"],
        ["Measured on (sha256)", "d" * 64],
        ["learning_rate", "0.00025"],
        ["target_modules", "q_proj, v_proj"],
        ["merged loss", "0.6123", "0.6000 to 0.6300"],
        ["adapter loss", "0.6200", "–"],
        ["merged", "-0.0070", "-0.0310 to +0.0180", "0.1710", "80.1%"],
        ["noise floor", "-0.0010", "–", "–", "–"],
        ["model.safetensors", "f" * 64],
        ["torch", "2.13.0"],
    ):
        assert row in rows
    assert not any(row[0] == "seed" for row in rows)
    (code,) = [token for token in rendered(card) if token.type == "fence"]
    assert code.info == "python" and code.content.strip() == FACTS.how_to_load
    assert "model.sig, by key 1234" in card


def test_the_front_matter_is_the_hubs(tmp_path: Path) -> None:
    values = front_matter(tmp_path, FACTS)
    assert values == {
        "base_model": "HuggingFaceTB/SmolLM2-135M",
        "base_model_relation": "finetune",
        "library_name": "transformers",
        "license": "apache-2.0",
        "pipeline_tag": "text-generation",
        "tags": ["rankloom", "lora", "qlora"],
    }
    assert ModelCard.load(tmp_path / "README.md").data.base_model == "HuggingFaceTB/SmolLM2-135M"


@pytest.mark.parametrize(
    ("format", "library", "relation"),
    [
        ("safetensors", "transformers", "finetune"),
        ("adapter", "peft", "adapter"),
        ("nf4", "transformers", "quantized"),
        ("gguf", "gguf", "quantized"),
    ],
)
def test_each_format_has_its_relation(tmp_path: Path, format: str, library: str, relation: str) -> None:
    values = front_matter(tmp_path, dataclasses.replace(FACTS, format=format))
    assert (values["library_name"], values["base_model_relation"]) == (library, relation)


def test_no_path_of_this_machine_is_published(tmp_path: Path) -> None:
    base = FACTS.base._replace(identity="/home/someone/secret/llama")
    facts = dataclasses.replace(FACTS, base=base, dataset={"source": "/home/someone/rows.jsonl"})
    card = model_card(facts)
    assert "someone" not in card and ["Base", "llama"] in cells(card)
    assert ["Measured on (source)", "rows.jsonl"] in cells(card)
    assert "base_model" not in front_matter(tmp_path, facts)


NASTY = [
    "a | b",
    "line\nbreak | x\n\n# heading",
    "`code`",
    "<script>alert(1)</script>",
    "[link](javascript:x)",
    "![image](http://host/x.png)",
    "back\\slash \\| pipe",
    "**bold** _it_ ~~gone~~ $x$",
    "---\nlicense: mit\n---",
    "&lt;b&gt;",
    "```\nfence",
    "* item",
    "https://host/x",
]


@pytest.mark.parametrize("text", NASTY)
def test_no_name_breaks_the_card(tmp_path: Path, text: str) -> None:
    facts = dataclasses.replace(
        FACTS,
        title=text,
        adapter_id=text,
        base=BaseFacts(text, text, text, text),
        search={text: text},
        dataset={text: text},
        params={text: [text, text]},
        metrics=[Metric(text, 1.0)],
        drift=[Drift(text, 1.0)],
        files={text: text},
        signature=text,
        versions={text: text},
    )
    card = model_card(facts)
    line = " ".join(text.split())
    widths = {2, 3, 5}
    rows = cells(card)
    assert {len(row) for row in rows} == widths
    plain = len(cells(model_card(FACTS)))
    assert len(rows) == plain - 3 - 2 - 2 - 1 - 1 - 1  # fewer rows of search, dataset, params, metrics, drift, versions
    assert rows.count([line, line]) == 2  # files and versions
    assert [line, f"{line}, {line}"] in rows and [f"Search ({line})", line] in rows
    assert ["Adapter", line] in rows
    tokens = rendered(card)
    kinds = [child.type for token in tokens for child in token.children or ()]
    assert {"link_open", "image", "html_inline", "strong_open", "em_open", "s_open"}.isdisjoint(kinds)
    assert "html_block" not in [token.type for token in tokens]
    assert sum(token.type == "heading_open" for token in tokens) == 1 + len(re.findall("^## ", card, re.MULTILINE)) == 9
    title = tokens[1]
    assert "".join(child.content for child in title.children) == line
    values = front_matter(tmp_path, facts)
    assert values["license"] == "other" and re.fullmatch(r"[a-z0-9.-]+", values["license_name"])
    assert values.keys() <= {
        "base_model",
        "base_model_relation",
        "library_name",
        "license",
        "license_name",
        "pipeline_tag",
        "tags",
    }


def test_code_with_fences_stays_one_block() -> None:
    code = 'text = """\n```python\ninner\n```\n````\n"""'
    (block,) = [
        token for token in rendered(model_card(dataclasses.replace(FACTS, how_to_load=code))) if token.type == "fence"
    ]
    assert block.content.strip() == code


def test_what_is_not_known_is_left_out(tmp_path: Path) -> None:
    facts = CardFacts(
        title="t", format="adapter", base=BaseFacts("owner/base", "c", "s"), adapter_id="a", how_to_load="pass"
    )
    card = model_card(facts)
    assert re.findall(r"^## (.+)$", card, re.MULTILINE) == ["How to load", "Where it comes from"]
    assert not any(row[0] == "Recipe" for row in cells(card))
    assert "not known" in card and "license" not in front_matter(tmp_path, facts)


APACHE = "                                 Apache License\n                           Version 2.0, January 2004\n"


@pytest.mark.parametrize(
    ("files", "licence"),
    [
        ({"README.md": "---\nlicense: mit\n---\n# x"}, "mit"),
        ({"README.md": "---\nlicense: mit\n---\n", "LICENSE": APACHE}, "mit"),
        ({"README.md": "---\nlicense: [mit, apache-2.0]\n---\n"}, "mit, apache-2.0"),
        ({"README.md": "---\nlicense: other\nlicense_name: gemma-terms\n---\n"}, "gemma-terms"),
        ({"README.md": "---\nlicense: other\n---\n"}, "other"),
        ({"README.md": "# license: mit", "LICENSE": APACHE}, "apache-2.0"),
        ({"README.md": "---\n: [broken\n---\n", "LICENSE.txt": APACHE}, "apache-2.0"),
        ({"README.md": "---\n- a list\n---\n"}, None),
        ({"LICENSE": "Copyright (c) 2024 X\n\nPermission is hereby granted, free of charge, to any"}, "mit"),
        ({"LICENSE": "LLAMA 3.1 COMMUNITY LICENSE AGREEMENT\nLlama 3.1"}, "llama3.1"),
        ({"LICENCE": "\n  The House Licence,  version 4\nmore"}, "The House Licence, version 4"),
        ({"LICENSE": "\n \n"}, None),
        ({"config.json": "{}"}, None),
    ],
)
def test_the_licence_of_a_folder(tmp_path: Path, files: dict[str, str], licence: str | None) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert licence_of(tmp_path) == licence


def test_an_unlisted_licence_is_other_by_name(tmp_path: Path) -> None:
    facts = dataclasses.replace(FACTS, base=FACTS.base._replace(licence="The House Licence, version 4"))
    values = front_matter(tmp_path, facts)
    assert (values["license"], values["license_name"]) == ("other", "the-house-licence-version-4")
    values = front_matter(tmp_path, dataclasses.replace(FACTS, base=FACTS.base._replace(licence="MIT")))
    assert values["license"] == "mit" and "license_name" not in values
