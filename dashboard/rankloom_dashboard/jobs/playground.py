"""A visitor's playground: the program that holds the model, and the conversation with it, in this server's memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rankloom_dashboard.jobs.job import Job


@dataclass(slots=True, kw_only=True)
class Answer:
    """What one model said.

    Attributes:
        text: So far.
        tokens: How many.
        seconds: From when all models began to its last token; they take turns on one device.
        ended: 'end' if the model ended it, 'length' at the most tokens, 'stopped'; empty while it goes on.
    """

    text: str = ""
    tokens: int = 0
    seconds: float = 0.0
    ended: str = ""


@dataclass(slots=True, kw_only=True)
class Turn:
    """What was asked, and each model's answer.

    Attributes:
        number: Tells it from every other turn of this program.
        prompt: What was asked.
        answers: By adapter id, and `base`.
    """

    number: int
    prompt: str
    answers: dict[str, Answer] = field(default_factory=dict)


class Playground(Job):
    """The program and the conversation.

    Attributes:
        adapters: Ids of the adapters in memory, in the order asked for; empty until the base is there.
        chat: Whether the model has a chat template.
        turns: The conversation.
        problem: Why the last thing asked for was not done.
    """

    def __init__(self, job_id: str, kind: str, order: Mapping[str, Any], who: str) -> None:
        """Start it."""
        self.adapters: tuple[str, ...] = ()
        self.chat = True
        self.turns: list[Turn] = []
        self.problem = ""
        self._loads, self._loaded = 1, 0  # asked for, the first by the start, and told; a thread each counts them
        self._asked = 0
        super().__init__(job_id, kind, order, who)

    @property
    def ready(self) -> bool:
        """Whether it can be asked."""
        return self.state == "running" and not self._loading and not self.answering

    @property
    def answering(self) -> bool:
        """Whether a model still speaks."""
        return bool(self.turns) and self.state == "running" and not _over(self.turns[-1])

    @property
    def busy(self) -> bool:
        """Whether something is about to change without being asked for: a model speaks, or adapters are swapped."""
        return self.answering or (self.state == "running" and self._loading)

    @property
    def _loading(self) -> bool:
        return self._loaded < self._loads

    def ask(self, prompt: str, *, system: str, settings: Mapping[str, Any], chat: bool = True) -> None:
        """Ask every model at once; each goes on from its own earlier answers.

        Args:
            prompt: What to say.
            system: The system prompt; empty for none.
            chat: Whether the model's chat template formats the conversation; it is plain text otherwise.
            settings: Fields of `rankloom.evaluation.generation.Sampling`.
        """
        if not self.ready:
            return
        self.problem = ""
        subjects = ("base", *self.adapters)
        chat = chat and self.chat
        system = system if chat else ""
        conversations = {subject: self._messages(subject, prompt, system) for subject in subjects}
        self._asked += 1
        answers = {subject: Answer() for subject in subjects}
        self.turns.append(Turn(number=self._asked, prompt=prompt, answers=answers))
        wanted = {"turn": self._asked, "conversations": conversations, "settings": dict(settings), "chat": chat}
        self.say({"generate": wanted})

    def load(self, refs: Sequence[str]) -> None:
        """Take other adapters; the base stays, and the conversation begins anew."""
        self.clear()
        self._loads += 1
        self.say({"load": list(refs)})

    def stop(self) -> None:
        """Let the models say no more to this prompt."""
        self.say({"stop": True})

    def clear(self) -> None:
        """Forget the conversation."""
        self.stop()
        self.turns, self.problem = [], ""

    def take(self, message: Mapping[str, Any]) -> None:
        """Keep what it said."""
        match message:
            case {"told": {"ready": {"subjects": [*subjects], "chat": bool(chat)}}}:
                self.adapters, self.chat = tuple(subjects), chat
                self._loaded += 1
            case {"told": {"problem": str(problem)}}:
                self.problem = problem
                self.turns = [turn for turn in self.turns if _over(turn)]
            case {"told": {"turn": int(number), "answers": dict(answers)}}:
                found = {subject: Answer(**answer) for subject, answer in answers.items()}
                for turn in self.turns:  # one that was forgotten meanwhile is not there
                    if turn.number == number:
                        turn.answers = found
            case _:
                super().take(message)

    def _messages(self, subject: str, prompt: str, system: str) -> list[dict[str, str]]:
        said = [{"role": "system", "content": system}] if system else []
        for turn in self.turns:
            said.append({"role": "user", "content": turn.prompt})
            said.append({"role": "assistant", "content": turn.answers[subject].text})
        return [*said, {"role": "user", "content": prompt}]


def _over(turn: Turn) -> bool:
    return all(answer.ended for answer in turn.answers.values())
