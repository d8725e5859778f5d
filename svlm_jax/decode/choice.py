"""Replies that have to be one of a few answers, decided by their first tokens: multiple choice, yes or no.

`Choice` is that of one reply, on the host; `Choices` are those of a batch, as arrays. Axes: B batch, O answers, R longest
reply, V vocabulary.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int32

MAX_ANSWERS = 8  # O: of a reply


class Choice(NamedTuple):
    """answers: ids of each, the end of the turn included; no two begin with the same id. num_yes: the first so many mean yes.
    threshold: the reply is one of these where their probability, among all answers, is at least this."""

    answers: tuple[tuple[int, ...], ...]
    num_yes: int
    threshold: float | int


class Choices(NamedTuple):
    """Of a batch (numpy on the host, jax inside jit). answers: -1 after their ids, and in rows where the model is free."""

    answers: Int32[Array | np.ndarray, "B O R"]
    num_yes: Int32[Array | np.ndarray, " B"]
    threshold: Float32[Array | np.ndarray, " B"]

    @classmethod
    def stack(cls, rows: Sequence[Choice | None], longest: int) -> "Choices":
        """Row b has rows[b], whose answers are of at most `longest` ids (R)."""
        answers = np.full((len(rows), MAX_ANSWERS, longest), -1, np.int32)
        num_yes, threshold = np.zeros(len(rows), np.int32), np.zeros(len(rows), np.float32)
        for b, row in enumerate(rows):
            if row is not None:
                num_yes[b], threshold[b] = row.num_yes, row.threshold
                for number, ids in enumerate(row.answers):
                    answers[b, number, : len(ids)] = ids
        return cls(answers, num_yes, threshold)


def choose(
    logits: Float32[Array, "B V"], reply: Int32[Array, "B R"], count: Int32[Array, " B"], choices: Choices
) -> tuple[Int32[Array, " B"], Float32[Array, " B"]]:
    """The next token [B] of replies that have an answer to give, -1 for the others; and the probability [B] of yes, from raw
    logits [B, V] before the first token.

    The probability is the share of the yes answers in a softmax over the first tokens of all answers. On its side of the
    threshold the likeliest answer is given.

    Args:
        reply, count: tokens so far, and their number.
    """
    answers = jnp.asarray(choices.answers)
    first = answers[:, :, 0]
    scores = jnp.where(first >= 0, jnp.take_along_axis(logits, jnp.maximum(first, 0), axis=1), -jnp.inf)
    is_yes = jnp.arange(first.shape[1]) < jnp.asarray(choices.num_yes)[:, None]
    any_answer = first[:, 0] >= 0
    # A row without answers has no score: its softmax must not be one of nothing.
    shares = jax.nn.softmax(jnp.where(any_answer[:, None], scores, 0.0), axis=-1)
    probability = jnp.sum(jnp.where(is_yes, shares, 0.0), axis=-1)
    is_candidate = is_yes == (probability >= jnp.asarray(choices.threshold))[:, None]
    best = jnp.argmax(jnp.where(is_candidate, scores, -jnp.inf), axis=-1)
    first_match = jnp.argmax(first == reply[:, :1], axis=-1)
    answer = jnp.take_along_axis(answers, jnp.where(count == 0, best, first_match)[:, None, None], axis=1)[:, 0]
    token = jnp.take_along_axis(answer, count[:, None], axis=1, mode="clip")[:, 0]
    return jnp.where(any_answer, token, -1), probability
