"""A language model behind HTTP as the judge of how much of a clip is live commentary.

The prompt is a package file, in our own words; another file takes its place. The words of a broadcast are data in it: whatever
they say, an answer is a number and a reason, and all that they can talk a model into is a wrong number. An answer that is not
as asked is asked for once more; then the clip has no share, and is not kept. Host side, never jax.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from svlm_jax.curate.annealing.live_share import LiveShare
from svlm_jax.curate.model_question import ModelQuestion, json_parameters
from svlm_jax.errors import shortened
from svlm_jax.remote.chat_client import ChatClient
from svlm_jax.remote.estimate import Estimate, estimate
from svlm_jax.remote.json_answer import find_json
from svlm_jax.remote.prompt import Prompt, remind

PROMPT = Path(__file__).parents[1] / "prompts" / "live_share.txt"
FIELDS = ("sentences",)  # that a prompt must have
ANSWER_TOKENS = 40  # of an answer, for an estimate
MAX_REASON = 200  # letters that are kept
PARAMETERS = json_parameters("live_share", {"share": {"type": "number"}, "reason": {"type": "string"}})
_REMINDER = (
    'An answer to this could not be used. Answer with JSON alone: {"share": a number from 0 to 1, '
    '"reason": "one short sentence"}.'
)


class LlmJudge:
    """A `LiveShareJudge` that asks a model behind `client`, from as many threads as you like. Temperature 0 where the model
    takes one, and a JSON schema where the server does."""

    def __init__(self, client: ChatClient, prompt: Prompt | None = None, concurrency: int = 8) -> None:
        """
        Args:
            prompt: with the fields title and sentences, the last of which it must have.
            concurrency: requests at a time; further threads wait.
        """
        self.client, self.prompt = client, prompt or Prompt.read(PROMPT, FIELDS)
        self.settings: Mapping[str, Any] = {
            "judge": "llm",
            "model": client.model,
            "prompt_sha256": self.prompt.digest(),
            "temperature": 0.0,
        }
        self._question = ModelQuestion(client, PARAMETERS, concurrency)

    def judge(self, title: str, sentences: Sequence[str]) -> LiveShare:
        """Raises:
        NotDone: the server does not answer this request.
        InputError: it will answer none: a refused key, an unknown model, no credit.
        """
        messages = self.messages(title, sentences)
        live_share = parse_answer(self._question.ask(messages))
        if live_share.share is None:
            live_share = parse_answer(self._question.ask(remind(messages, _REMINDER)))
        return live_share

    def messages(self, title: str, sentences: Sequence[str]) -> list[dict[str, str]]:
        return self.prompt.messages({"title": " ".join(title.split()) or "unknown", "sentences": "\n".join(sentences)})

    def estimate(self, questions: Iterable[tuple[str, Sequence[str]]]) -> Estimate:
        """questions: (title, sentences) of each clip."""
        return estimate(self.client, ((self.messages(*question), ANSWER_TOKENS) for question in questions), **PARAMETERS)


def parse_answer(answer: str) -> LiveShare:
    """The share in an answer; None and what is wrong with it where there is none from 0 to 1."""
    value = find_json(answer, lambda value: isinstance(value, dict) and "share" in value)
    if value is None:
        return LiveShare(None, "no JSON with a share in the answer")
    share = _number(value["share"])
    if share is None or not 0 <= share <= 1:
        return LiveShare(None, "a share that is not from 0 to 1")
    reason = value.get("reason")
    return LiveShare(share, shortened(" ".join(reason.split()), MAX_REASON) if isinstance(reason, str) else "")


def _number(value: Any) -> float | None:
    """A number, also as a text: "0.85", "85 %"."""
    scale = 1.0
    if isinstance(value, str):
        text = value.strip()
        scale = 0.01 if text.endswith("%") else 1.0
        try:
            value = float(text.removesuffix("%"))
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    number = float(value) if abs(value) < 1e9 else math.inf
    return number * scale
