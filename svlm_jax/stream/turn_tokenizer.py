"""The turns of a stream as tokens: what the tokenizer and the family of a model say of them, looked up once a session.

Knows no device. Units: seconds on the video's clock, lengths in tokens.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int32

from svlm_jax.config import ModelConfig, StreamConfig
from svlm_jax.decode.detokenize import ELLIPSIS
from svlm_jax.errors import InputError
from svlm_jax.families import family_of
from svlm_jax.families.chat import Tokenizer, Tokens, opening, plain, user_turn
from svlm_jax.spans import Kind, Span, total
from svlm_jax.stream import policy

MAX_SECONDS = 9_999_999.0  # the longest time text that capacities allow for (115 days)


class TurnTokenizer(NamedTuple):
    """Turns as tokens: a tokenizer and a model, the ids of "\n", of the mark that ends a turn and of the token with which a
    reply says that it pauses (the last of " ..."), and the tokens of text in the longest user turn without a question."""

    tokenizer: Tokenizer
    config: ModelConfig
    newline: Int32[np.ndarray, " k"]
    end_of_turn: int
    silence: int
    max_plain_text: int

    @classmethod
    def of(cls, tokenizer: Tokenizer, config: ModelConfig) -> "TurnTokenizer":
        turn_end = family_of(config).chat.turn_end
        newline, (end,), (*_, silence) = (
            tokenizer.encode(text, add_special_tokens=False) for text in ("\n", turn_end, ELLIPSIS)
        )
        turn = longest_turn((1, 2, 2), tokenizer, config)
        text = total(span for span in turn if span.kind == Kind.USER_TEXT)
        return cls(tokenizer, config, np.array(newline, np.int32), end, silence, text)

    def suppressed_ids(self) -> tuple[int, ...]:
        """Ids that no reply may hold: chat and vision markup other than the mark that ends a turn, and rows of the vocabulary
        without text."""
        markup = set(self.tokenizer.get_added_vocab().values()) - {self.end_of_turn}
        return tuple(sorted(markup | set(range(len(self.tokenizer), self.config.text.vocab_size))))


def cut_opening(opening: Tokens, config: StreamConfig) -> Tokens:
    """The turns with which a stream begins, their previous text cut to sink and window: however long it was, the first chunk
    costs no more than the others. Without the cut all of it is prefilled, and cut before the second chunk."""
    cut = policy.cut_previous(opening.spans, config)
    return Tokens(opening.ids[cut.survivors], cut.spans)


def opening_of(previous: str | Tokens, config: StreamConfig, turns: TurnTokenizer) -> Tokens:
    """The turns with which a stream begins: of previous text, or made before (`cut_opening`).

    Raises:
        InputError: special tokens in the previous text; a previous text for a stream that has no turn for it.
    """
    if not isinstance(previous, str):
        return previous
    if config.previous_text_turn:
        return opening(plain(previous, "previous text"), turns.tokenizer, turns.config)
    if previous:
        expected = "none: this stream has no turn for it"
        raise InputError("previous text", f"{previous:.40}", expected, "leave it out, or set previous_text_turn to true")
    return opening(None, turns.tokenizer, turns.config)


def longest_turn(grid: tuple[int, int, int], tokenizer: Tokenizer, config: ModelConfig) -> tuple[Span, ...]:
    """Spans of the longest user turn without a question, for frames of that grid."""
    return user_turn(MAX_SECONDS, MAX_SECONDS, grid, 1.0, tokenizer, config).spans
