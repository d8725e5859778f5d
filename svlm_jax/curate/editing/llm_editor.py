"""A language model behind HTTP as the editor of a commentary: its prompt, and what its answer may do.

The prompt is a package file, in our own words; another file takes its place. The words of a broadcast are data in it: whatever
they say, an answer can only keep, correct or delete a sentence, and a correction has about as many words as the sentence. It is
not prevented that words of a broadcast talk a model into deleting, or into a wrong correction: the changes of a run list both.
An answer that is not as asked is asked for once more; sentences on which there still is no decision are kept and flagged. Host
side, never jax.
"""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from svlm_jax.curate.cleaning.word_texts import is_no_text
from svlm_jax.curate.editing.edit import Context, Decision
from svlm_jax.curate.model_question import ModelQuestion, json_object, json_parameters
from svlm_jax.curate.sentences import Sentence, split_words
from svlm_jax.errors import InputError
from svlm_jax.families.chat import plain
from svlm_jax.remote.chat_client import CHARACTERS_PER_TOKEN, ChatClient
from svlm_jax.remote.estimate import Estimate, estimate
from svlm_jax.remote.json_answer import find_json
from svlm_jax.remote.prompt import Prompt, remind

PROMPT = Path(__file__).parents[1] / "prompts" / "edit.txt"
FIELDS = ("sentences",)  # that a prompt must have
VERSION = 1  # of how answers are read, on which outcomes depend
MIN_RATIO, MAX_RATIO = 0.5, 2.0  # words of a correction to words of the sentence
MAX_FAULTS = 5  # that are told when it is asked again
# Tokens of an answer, for the estimate: an item of it, and the share of sentences that are written again (the paper's).
ITEM_TOKENS, EDIT_SHARE = 15, 0.3789
_ACTIONS = ("keep", "edit", "delete")
_MARKUP = frozenset("<>{}[]|*_`~#\\")  # of HTML and Markdown: nobody says it, and models write it
_ITEM = json_object({"i": {"type": "integer"}, "do": {"type": "string", "enum": list(_ACTIONS)}, "text": {"type": "string"}})
PARAMETERS = json_parameters("decisions", {"decisions": {"type": "array", "items": _ITEM}})


class LlmEditor:
    """An `Editor` that asks a model behind `client`, from as many threads as you like. Temperature 0 where the model takes one,
    and a JSON schema where the server does."""

    def __init__(self, client: ChatClient, prompt: Prompt | None = None, concurrency: int = 8) -> None:
        """
        Args:
            prompt: with the fields title, language, start, end, previous, last and sentences, the last of which it must have.
            concurrency: requests at a time; further threads wait.
        """
        self.client, self.prompt = client, prompt or Prompt.read(PROMPT, FIELDS)
        self.settings: Mapping[str, Any] = {
            "editor": "llm",
            "version": VERSION,
            "model": client.model,
            "prompt_sha256": self.prompt.digest(),
            "temperature": 0.0,
        }
        self._question = ModelQuestion(client, PARAMETERS, concurrency)

    def edit(self, context: Context, sentences: Sequence[Sentence]) -> list[Decision]:
        """Raises:
        NotDone: the server does not answer this request.
        InputError: it will answer none: a refused key, an unknown model, no credit.
        """
        texts = [sentence.text for sentence in sentences]
        messages = self.messages(context, texts)
        decisions, faults = parse_answer(self._question.ask(messages), texts)
        if faults:
            again = self._question.ask(remind(messages, _reminder(faults, len(texts))))
            corrected, faults = parse_answer(again, texts)
            decisions |= corrected
        return [decisions.get(index) or Decision("keep", flag=faults.get(index, "no decision")) for index in range(len(texts))]

    def messages(self, context: Context, texts: Sequence[str]) -> list[dict[str, str]]:
        fields = {
            "title": " ".join(context.title.split()) or "unknown",
            "language": context.language or "unknown",
            "start": _clock(context.start),
            "end": _clock(context.end),
            "previous": "\n".join(context.previous) or "(nothing)",
            "last": str(len(texts) - 1),
            # One line each: words of a broadcast cannot begin a numbered line of their own.
            "sentences": "\n".join(f"[{index}] {text}" for index, text in enumerate(texts)),
        }
        return self.prompt.messages(fields)

    def estimate(self, questions: Iterable[tuple[Context, Sequence[Sentence]]]) -> Estimate:
        texts = ((context, [sentence.text for sentence in sentences]) for context, sentences in questions)
        requests = ((self.messages(context, each), _answer_tokens(each)) for context, each in texts)
        return estimate(self.client, requests, **PARAMETERS)


def parse_answer(answer: str, texts: Sequence[str]) -> tuple[dict[int, Decision], dict[int, str]]:
    """What a model decided on which sentences, and on which not, and why: each sentence is in one of the two.

    An answer that numbers a sentence which is not there counts for nothing: it may have counted from 1.
    """
    value = find_json(answer, lambda value: bool(_items(value)))
    everything = range(len(texts))
    if value is None:
        return {}, dict.fromkeys(everything, "no JSON in the answer")
    items = _items(value)
    numbered = [(_number(item), item) for item in items]
    if any(number not in everything for number, _ in numbered):
        return {}, dict.fromkeys(everything, "unknown sentences in the answer")
    decisions: dict[int, Decision] = {}
    faults: dict[int, str] = {}
    for index, text in enumerate(texts):
        matches = [item for number, item in numbered if number == index]
        decision = (
            _decision(matches[0], text) if len(matches) == 1 else "twice in the answer" if matches else "missing in the answer"
        )
        if isinstance(decision, Decision):
            decisions[index] = decision
        else:
            faults[index] = decision
    return decisions, faults


def _items(value: Any) -> list[Any]:
    """The items of an answer: a list of objects, an object that has one, or one item: of a single sentence, or the first of an
    answer that was cut off. None: []."""
    lists = [value] if isinstance(value, list) else [entry for entry in value.values() if isinstance(entry, list)]
    items = next((entry for entry in lists if any(isinstance(item, dict) for item in entry)), [])
    return items or ([value] if isinstance(value, dict) and "do" in value else [])


def _number(item: Any) -> int:
    """Which sentence an item is on; -1: none."""
    number = item.get("i") if isinstance(item, dict) else None
    if isinstance(number, str) and number.isascii() and number.isdigit() and len(number) < 7:
        return int(number)
    return number if isinstance(number, int) and not isinstance(number, bool) else -1


def _decision(item: Mapping[str, Any], text: str) -> Decision | str:
    """The decision that an item is on a sentence, or what is wrong with it."""
    action, correction = item.get("do"), item.get("text")
    action = action.strip().lower() if isinstance(action, str) else ""
    if action not in _ACTIONS:
        return "neither keep, edit nor delete"
    if action != "edit":
        return Decision("keep" if action == "keep" else "delete")
    corrected = " ".join(correction.split()) if isinstance(correction, str) else ""
    if not any(map(str.isalnum, corrected)):
        return "empty correction"
    if not MIN_RATIO <= len(split_words(corrected)) / max(len(split_words(text)), 1) <= MAX_RATIO:
        return "correction too short or too long"
    if any(is_no_text(char) or unicodedata.category(char) in ("Cn", "Co") for char in corrected):
        return "control characters in the correction"
    try:
        plain(corrected, "correction")
    except InputError:
        return "special tokens in the correction"
    if not _MARKUP.isdisjoint(corrected) and _MARKUP.intersection(corrected) - set(text):
        return "markup in the correction"
    return Decision("edit", corrected) if corrected != text else Decision("keep")


def _answer_tokens(texts: Sequence[str]) -> int:
    return ITEM_TOKENS * len(texts) + round(EDIT_SHARE * sum(map(len, texts)) / CHARACTERS_PER_TOKEN)


def _reminder(faults: Mapping[int, str], count: int) -> str:
    listed = "; ".join(f"sentence {index}: {fault}" for index, fault in list(faults.items())[:MAX_FAULTS])
    if len(faults) == count and len(set(faults.values())) == 1:
        listed = next(iter(faults.values()))
    return (
        f"An answer to this could not be used ({listed}). Answer with JSON alone: one item for each of the sentences 0 to "
        f"{count - 1}, each once; a corrected sentence has about as many words as before."
    )


def _clock(seconds: float) -> str:
    """3725 -> "1:02:05"."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
