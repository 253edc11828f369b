"""Ollama's `Modelfile`: which GGUF files make the model, how a conversation is laid out, and where an answer ends.

A chat template is a Jinja program and Ollama's `TEMPLATE` a Go one; no translation holds for all. So the layout is read
off what the chat template makes of conversations, and written only if it then makes the same of others.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankloom.errors import ModelError
from rankloom.models import load_tokenizer
from rankloom_registry.files import write_atomically

MODELFILE = "Modelfile"

Message = dict[str, str]
_SYSTEM: Message = {"role": "system", "content": "Saturn"}
_USER: Message = {"role": "user", "content": "Uranus"}
_ASSISTANT: Message = {"role": "assistant", "content": "Ariel"}
_ROLES = {message["role"]: message["content"] for message in (_SYSTEM, _USER, _ASSISTANT)}
# What a layout must make the same text of as the chat template does; with a system message only where it takes one.
_PROBES = (
    [_USER],
    [_USER, _ASSISTANT, {"role": "user", "content": "Two\n\nlines, of {braces} and <marks>."}],
    [_USER, _ASSISTANT, _USER, {"role": "assistant", "content": "A longer answer."}, _USER],
)


@dataclass(frozen=True, slots=True)
class Layout:
    """The text around the messages of a conversation.

    Attributes:
        opening: What comes first where there is no system message.
        around: Text before and after a message of each role; no 'system' where the chat template takes none.
        asking: What comes last, for the model to go on from.
    """

    opening: str
    around: Mapping[str, tuple[str, str]]
    asking: str

    def lay_out(self, messages: list[Message]) -> str:
        """Return a conversation as the model reads it; `go` says the same to Ollama."""
        opening = "" if messages[0]["role"] == "system" else self.opening
        said = (message["content"].join(self.around[message["role"]]) for message in messages)
        return opening + "".join(said) + self.asking

    def go(self) -> str:
        """Return the layout as a Go template over Ollama's `.System` and `.Messages`."""
        around = {role: tuple(map(_go_text, texts)) for role, texts in self.around.items()}
        opening = _go_text(self.opening)
        if "system" in around:
            before, after = around["system"]
            opening = f"{{{{ if .System }}}}{before}{{{{ .System }}}}{after}{{{{ else }}}}{opening}{{{{ end }}}}"
        (ask, asked), (answer, answered) = around["user"], around["assistant"]
        return (
            f"{opening}{{{{ range .Messages }}}}"
            f'{{{{ if eq .Role "user" }}}}{ask}{{{{ .Content }}}}{asked}'
            f'{{{{ else if eq .Role "assistant" }}}}{answer}{{{{ .Content }}}}{answered}{{{{ end }}}}'
            f"{{{{ end }}}}{_go_text(self.asking)}"
        )


def _go_text(text: str) -> str:
    # A brace at the end would join those of what follows.
    return re.sub(r"\{\{|\{$", lambda found: f'{{{{ "{found[0]}" }}}}', text)


def write_modelfile(folder: Path, *, gguf: str, adapter: str | None = None, tokenizer_folder: Path) -> Path:
    """Write the `Modelfile` of a folder, for `ollama create NAME -f Modelfile`.

    Args:
        folder: Folder that holds the GGUF files.
        gguf: Name of the model's file in it.
        adapter: Name of a GGUF LoRA in it that is laid over the model.
        tokenizer_folder: Folder with the model's tokenizer, chat template and, if there is one, generation config.

    Returns:
        The file. Comments in it say what of the chat template it does not say.

    Raises:
        ModelError: A file is not there or its name cannot be written in a Modelfile, or the tokenizer cannot be read.
    """
    for name in (gguf, adapter):
        if name is not None and (not re.fullmatch(r"[\w.+-][\w.+ -]*", name) or not (folder / name).is_file()):
            raise ModelError(f"a Modelfile must name a plain file in {folder}, got {name!r}; write it there first")
    tokenizer = load_tokenizer(tokenizer_folder)
    layout, notes = read_layout(tokenizer)
    stops = _stops(tokenizer, tokenizer_folder)
    # Ollama knows no way to write these inside quotes: what follows them would be read as instructions.
    plain = [text for text in stops if not re.search(r'["\r\n]', text)]
    notes += [
        f"An answer also ends with {text!r}, which cannot be written here." for text in stops if text not in plain
    ]
    lines = [f"FROM ./{gguf}"]
    if adapter is not None:
        lines.append(f"ADAPTER ./{adapter}")
    lines += [f"# {note}" for note in notes]
    if layout is not None:
        lines.append(f'TEMPLATE """{layout.go()}"""')
    lines += [f'PARAMETER stop "{text}"' for text in plain]
    path = folder / MODELFILE
    write_atomically(path, "\n".join([*lines, ""]).encode())
    return path


def read_layout(tokenizer: Any) -> tuple[Layout | None, list[str]]:
    """Read the layout of conversations off a tokenizer's chat template.

    Returns:
        The layout, or None if no simple one makes the same text as the template; and what it does not say.
    """
    source = tokenizer.chat_template
    if not source:
        return None, ["The tokenizer has no chat template: a prompt reaches the model as it is."]
    layout = _find_layout(tokenizer)
    if layout is None or '"""' in layout.go() or layout.go().endswith('"'):
        return None, [
            "The chat template lays conversations out in a way that could not be said as an Ollama TEMPLATE.",
            "Its Jinja source is in the GGUF file; llama-server --jinja uses it.",
        ]
    text = source if isinstance(source, str) else json.dumps(source)
    notes = []
    if "system" in layout.around:
        notes.append("System messages are taken together and come first, wherever they stood.")
    else:
        notes.append("The chat template has no place of their own for system messages: they are left out.")
    spaced = [{"role": "user", "content": "  spaces around  "}]
    if _render(tokenizer, spaced) != layout.lay_out(spaced):
        notes.append("The chat template takes white space off the ends of messages; this template leaves it.")
    if "strftime_now" in text:
        notes.append("Where the chat template says the date, this template says the day on which it was made.")
    if "tool" in text:
        notes.append("What the chat template says of tools and their calls is left out.")
    if "think" in text or "reasoning" in text:
        notes.append("What the chat template says of reasoning, and takes out of earlier answers, is left out.")
    return layout, notes


def _find_layout(tokenizer: Any) -> Layout | None:
    plain = _pieces(_render(tokenizer, [_USER], asking=False))
    whole = _pieces(_render(tokenizer, [_USER, _ASSISTANT, _USER]))
    answered = _pieces(_render(tokenizer, [_USER, _ASSISTANT], asking=False))
    if (len(plain), len(whole), len(answered)) != (2, 4, 3):
        return None
    after_user, after_assistant = plain[1], answered[2]
    if not (
        whole[1].startswith(after_user) and whole[2].startswith(after_assistant) and whole[3].startswith(after_user)
    ):
        return None
    before_user = whole[2].removeprefix(after_assistant)
    if not whole[0].endswith(before_user):
        return None
    around = {
        "user": (before_user, after_user),
        "assistant": (whole[1].removeprefix(after_user), after_assistant),
    }
    bos = _added_bos(tokenizer)
    # llama.cpp sets this token before every text by itself.
    opening = whole[0].removesuffix(before_user).removeprefix(bos)
    layout = Layout(opening, around, whole[3].removeprefix(after_user))

    def holds(layout: Layout, system: list[Message]) -> bool:
        return all(
            (_render(tokenizer, system + probe) or "").removeprefix(bos) == layout.lay_out(system + probe)
            for probe in _PROBES
        )

    first = _pieces(_render(tokenizer, [_SYSTEM, _USER]))
    if len(first) == 3 and first[1].endswith(before_user):
        system = (first[0].removeprefix(bos), first[1].removesuffix(before_user) if before_user else first[1])
        with_system = Layout(layout.opening, {**around, "system": system}, layout.asking)
        if holds(with_system, []) and holds(with_system, [_SYSTEM]):
            return with_system
    return layout if holds(layout, []) else None


def _render(tokenizer: Any, messages: list[Message], *, asking: bool = True) -> str | None:
    """Return what the chat template makes of a conversation, or None if it takes none of this kind."""
    from jinja2 import TemplateError

    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=asking))
    except (TemplateError, TypeError, ValueError):  # by `raise_exception`, or in what the template does with its input
        return None


def _pieces(text: str | None) -> list[str]:
    return [] if text is None else re.split("|".join(_ROLES.values()), text)


def _added_bos(tokenizer: Any) -> str:
    bos: str | None = tokenizer.bos_token
    return bos if bos and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id] else ""


def _stops(tokenizer: Any, folder: Path) -> list[str]:
    """Return the texts of the tokens that end an answer."""
    file = folder / "generation_config.json"
    named = json.loads(file.read_bytes()).get("eos_token_id") if file.is_file() else None
    ids = [*(named if isinstance(named, list) else [named]), tokenizer.eos_token_id]
    texts = [tokenizer.convert_ids_to_tokens(id) for id in dict.fromkeys(ids) if id is not None]
    return [text for text in texts if text]  # an id beyond the vocabulary has none
