"""A language model as the judge of two commentaries: its prompt, and the parse of its answer.

Two styles: `infstreams` answers with a letter, `livesports` names the better commentary or a tie. Their prompts are package
files, in our own words; another file takes their place. After an answer without a verdict the judge is asked
once more, then the vote is "invalid": it counts for neither and is reported. Host side, never jax.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from svlm_jax.errors import shortened
from svlm_jax.eval.judging import Ballot, JudgeError, Pair, Question, Vote
from svlm_jax.remote.chat_client import ChatClient, approximate_tokens
from svlm_jax.remote.connection import RequestError
from svlm_jax.remote.prompt import Prompt, remind

PROMPTS = Path(__file__).with_name("prompts")
MAX_CHARACTERS = 8000  # of the reference and of each candidate, where the published judge of Inf-Streams-Eval cuts
FIELDS = ("a", "b")  # that a prompt must have; {reference} and {title} where they are needed


class Style(NamedTuple):
    """How a benchmark asks. parse: the vote of an answer, of what the judge read as A and B; None: not understood.
    max_characters: of each text; None: all of it."""

    prompt: str
    parse: Callable[[str], Vote | None]
    reminder: str
    parameters: dict[str, Any]
    max_characters: int | None = None


# A letter by itself, or the one of "candidate A". "A" before a small word is else an article ("A lively call"), but for words
# that cannot follow one.
_LETTER = re.compile(
    r"(?i:\b(?:candidate|commentary|option)[\s*_\"'(]+)(?P<named>[AB])\b"
    r"|(?<![\w'])(?:A(?!\s+(?!(?:is|was|has|wins|and|or|over|because|since|as)\b)[a-z])|B)(?![\w'])"
)
_FIRST_LINE = re.compile(r"[^\w\n]*([AB])[^\w\n]*(?:\n|$)")
_COMMENTARY = re.compile(r"\bcommentary\W+([ab])\b", re.IGNORECASE)
_TIE = re.compile(r"\b(?:tie|tied|equal|equally)\b", re.IGNORECASE)
_FLIPPED: dict[Vote, Vote] = {"A": "B", "B": "A", "tie": "tie", "invalid": "invalid"}


def parse_letter(answer: str) -> Vote | None:
    """The letter that an answer is, has as its first line, or alone names; None where it names none or both."""
    alone = re.sub(r"[\W_]+", "", answer).upper()
    if alone in ("A", "B"):
        return _vote(alone)
    if match := _FIRST_LINE.match(answer):
        return _vote(match[1])
    letters = {match["named"] or match[0] for match in _LETTER.finditer(answer)}
    return _vote(letters.pop()) if len(letters) == 1 else None


def parse_commentary(answer: str) -> Vote | None:
    """The one commentary that an answer names, or a letter by itself, or a tie; None where it says none or several of these."""
    named = {match[1].upper() for match in _COMMENTARY.finditer(answer)}
    if _TIE.search(answer):
        return None if named else "tie"
    if named:
        return _vote(named.pop()) if len(named) == 1 else None
    return parse_letter(answer)


def _vote(letter: str) -> Vote:
    return "A" if letter == "A" else "B"


STYLES = {
    "infstreams": Style(
        "infstreams.txt",
        parse_letter,
        "Write one letter, A or B, and nothing else.",
        {"temperature": 0.0},
        MAX_CHARACTERS,
    ),
    "livesports": Style(
        "livesports.txt",
        parse_commentary,
        'Write "Commentary A is better." or "Commentary B is better." or "Tie.", and nothing else.',
        {"temperature": 0.0, "seed": 42},
    ),
}


class Estimate(NamedTuple):
    """What judging will cost. tokens: of input, about; cut: texts longer than the judge's limit."""

    requests: int
    cached: int
    tokens: int
    cut: int

    def __str__(self) -> str:
        line = f"{self.requests} requests, about {self.tokens:,} tokens of input"
        line += f"; {self.cached} more are answered by the cache" if self.cached else ""
        return line + (f"; {self.cut} texts are cut to {MAX_CHARACTERS:,} characters" if self.cut else "")


class HttpJudge:
    """A `Judge` that asks a model behind `client`. Temperature 0 where the model takes one."""

    def __init__(self, client: ChatClient, style: str, prompt: Prompt | None = None) -> None:
        """
        Args:
            style: a name in `STYLES`.
            prompt: instead of that of the style; its answers are parsed as those of the style.
        """
        self.client, self.style_name, self.style = client, style, STYLES[style]
        self.prompt = prompt or Prompt.read(PROMPTS / self.style.prompt, FIELDS)

    def settings(self) -> dict[str, Any]:
        return {
            "judge": "http",
            "model": self.client.model,
            "style": self.style_name,
            "prompt_sha256": self.prompt.digest(),
            **self.style.parameters,
            "max_characters": self.style.max_characters,
        }

    def vote(self, pair: Pair, swapped: bool) -> Ballot:
        messages, cut = self._messages(pair, swapped)
        try:
            reply = first = self.client.complete(messages, **self.style.parameters)
            vote = self.style.parse(reply.text)
            if vote is None:
                reply = self.client.complete(remind(messages, self.style.reminder), **self.style.parameters)
                vote = self.style.parse(reply.text)
        except RequestError as error:
            raise JudgeError(str(error)) from None
        details = dict(reply.details)
        if cut:
            details["cut"] = cut
        if reply is not first:
            details["first_answer"] = shortened(first.text, 200)
        vote = vote or "invalid"
        return Ballot(_FLIPPED[vote] if swapped else vote, reply.text, details)

    def estimate(self, questions: Sequence[Question]) -> Estimate:
        """Of what `judge_pairs` announces; a second question after an answer that is not understood is not in it."""
        cached = tokens = num_cut = 0
        for pair, swapped in questions:
            messages, cut = self._messages(pair, swapped)
            num_cut += len(cut)
            if self.client.is_cached(messages, **self.style.parameters):
                cached += 1
            else:
                tokens += approximate_tokens(messages)
        return Estimate(len(questions) - cached, cached, tokens, num_cut)

    def _messages(self, pair: Pair, swapped: bool) -> tuple[list[dict[str, str]], list[str]]:
        """And which texts of the pair were cut."""
        full_texts = {"reference": pair.reference, "a": pair.a.text.strip(), "b": pair.b.text.strip(), "title": pair.title}
        texts = {name: text[: self.style.max_characters] for name, text in full_texts.items()}
        cut = [name for name, text in texts.items() if text != full_texts[name]]
        if swapped:
            texts["a"], texts["b"] = texts["b"], texts["a"]
        return self.prompt.messages(texts), cut
