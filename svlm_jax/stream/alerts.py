"""Alert mode: a condition is asked with every chunk, and only a change of the answer is told. Host side; knows no device.

Units: chunks.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from svlm_jax.errors import InputError
from svlm_jax.stream.json_schema import check_schema, mismatch

MAX_OPTIONS = 8  # answers of one rule


@dataclass(frozen=True)
class AlertRule:
    """What a stream in alert mode watches for. It makes no commentary: each reply is one of the answers.

    Attributes:
        question: asked with every chunk; `of_condition` makes one of a condition.
        yes, no: the answers that mean that the condition holds, and the others. Their first tokens must differ.
        threshold: the condition holds where the probability of the yes answers, among all answers, is at least this.
        confirm: chunks in a row with the same new answer before a change is told.
        name: of the rule, in its events; the question by default.
        schema: a JSON schema; on a change to yes the model is asked for JSON of it. None: it is not asked.
    """

    question: str
    yes: tuple[str, ...] = ("Yes",)
    no: tuple[str, ...] = ("No",)
    threshold: float | int = 0.5
    confirm: int = 1
    name: str = ""
    schema: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for name, valid, expected in (
            ("alert question", bool(self.question.strip()), "some text"),
            ("alert yes", bool(self.yes) and all(self.yes), "one answer or more"),
            ("alert no", bool(self.no) and all(self.no), "one answer or more"),
            ("alert threshold", 0 < self.threshold <= 1, "a probability, more than 0, at most 1"),
            ("alert confirm", self.confirm >= 1, "1 or more"),
        ):
            if not valid:
                raise InputError(name, getattr(self, name.removeprefix("alert ")), expected, "change it")
        if (count := len(self.yes) + len(self.no)) > MAX_OPTIONS:
            raise InputError("alert yes and no", f"{count} answers", f"at most {MAX_OPTIONS}", "leave some out")
        if self.schema is not None:
            check_schema(self.schema)

    @classmethod
    def of_condition(cls, condition: str, **settings: Any) -> "AlertRule":
        """The rule for a condition in words, "a person is on the track", answered Yes or No. It is named by the condition."""
        if not (condition := condition.strip()):
            raise InputError("alert condition", "nothing", "a condition in words", "say what to watch for")
        settings["name"] = settings.get("name") or condition
        return cls(f"Is this true now: {condition}? Answer Yes or No.", **settings)

    @property
    def title(self) -> str:
        """As its events call it."""
        return self.name or self.question

    @property
    def json_question(self) -> str:
        """What is asked after a change to yes, of a rule with a schema."""
        return f"Describe it as JSON of this schema: {json.dumps(self.schema, separators=(',', ':'))}"


class AlertState(NamedTuple):
    """on: whether the condition holds, as far as was told. against: newest chunks in a row that say otherwise. describes:
    whether the next chunk asks for JSON."""

    on: bool = False
    against: int = 0
    describes: bool = False

    def answered(self, rule: AlertRule, is_yes: bool) -> "AlertState":
        """After the answer to one more chunk; `on` has changed if this is to be told."""
        if is_yes == self.on:
            return AlertState(self.on)
        if self.against + 1 < rule.confirm:
            return AlertState(self.on, self.against + 1)
        return AlertState(is_yes, describes=is_yes and rule.schema is not None)


def parse_description(text: str, schema: Mapping[str, Any]) -> tuple[Any, str]:
    """(the JSON that a model wrote, "" or why it is none of the schema's; None goes with a reason)."""
    body = text.strip().removeprefix("```json").removeprefix("```").strip()
    try:
        data, _ = json.JSONDecoder().raw_decode(body)  # commentary may follow it
    except (ValueError, RecursionError):
        return None, "no JSON"
    fault = mismatch(data, schema)
    return (None, fault) if fault else (data, "")
