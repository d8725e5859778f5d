"""The text of a reply to a chat request as its tokens come, up to what ends it. Knows no device and no client."""

from collections.abc import Collection, Sequence
from typing import Literal

from svlm_jax.decode.detokenize import whole_text
from svlm_jax.families.chat import Tokenizer

FinishReason = Literal["", "stop", "length"]


class ReplyText:
    """What `add` and `flush` return, joined, is the text that `Pretrained.replies` gives, cut before the first stop text.

    finish_reason: "" while more tokens are wanted. num_tokens: that were chosen, the one that ended the reply included.
    """

    def __init__(self, tokenizer: Tokenizer, eos: Collection[int], max_tokens: int, stop: Sequence[str] = ()) -> None:
        self.tokenizer, self.eos, self.max_tokens, self.stop = tokenizer, frozenset(eos), max_tokens, tuple(stop)
        self.ids: list[int] = []
        self.text = ""  # of all ids
        self.emitted = 0  # characters of the text without the blanks around it
        self.finish_reason: FinishReason = ""

    @property
    def num_tokens(self) -> int:
        return len(self.ids)

    def add(self, tokens: Sequence[int]) -> str:
        """The text that is certain since the last call: complete characters that no stop text may begin with, and blanks once
        words follow them. Tokens after the end are passed over."""
        for token in tokens:
            if not self.finish_reason:
                self._add(token)
        if self.finish_reason:
            return self._emit(self.text)
        overlap = max((_overlap(self.text, stop) for stop in self.stop), default=0)
        return self._emit(self.text[: len(self.text) - overlap])

    def _add(self, token: int) -> None:
        self.ids.append(token)
        self.text = whole_text(self.ids, self.tokenizer)
        starts = [start for stop in self.stop if (start := self.text.find(stop)) >= 0]
        if starts:
            self.text, self.finish_reason = self.text[: min(starts)], "stop"
        elif token in self.eos:
            self.finish_reason = "stop"
        elif len(self.ids) >= self.max_tokens:
            self.finish_reason = "length"

    def _emit(self, text: str) -> str:
        text = text.strip()
        new = text[self.emitted :]
        self.emitted += len(new)
        return new


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of a text that a stop text begins with."""
    return next((size for size in range(min(len(text), len(stop)), 0, -1) if text.endswith(stop[:size])), 0)
