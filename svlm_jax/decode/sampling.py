"""From logits to the next token, inside jit: the logits processors of transformers' generation in its order, then one draw.

Every setting is an array over the batch, so streams with different settings share one compiled program.
Axes: B batch, T tokens, V vocabulary, k largest logits that are considered.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int, Int32, Key

from svlm_jax.config import check_types
from svlm_jax.decode.top_k import top_k, without_sort
from svlm_jax.errors import InputError


@dataclass(frozen=True)
class Sampling:
    """How the tokens of one stream are chosen. temperature 0 is greedy; top_k 0 and top_p 1 mean all; suppressed ids are never
    chosen. silence: a reply has words exactly where the probability of silence is at most this (`decide_silence`).
    silence_threshold, silence_threshold_step: LiveCC's silence rule (`forbid_silence`). None: off."""

    temperature: float = 0.0
    top_k: int = 50
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    suppressed: tuple[int, ...] = ()
    silence_threshold: float | None = None
    silence_threshold_step: float = 0.0
    silence: float | None = None

    def __post_init__(self) -> None:
        check_types(self, "sampling ")
        for name, valid, expected in (
            ("temperature", 0 <= self.temperature < math.inf, "0 (greedy) or more"),
            ("top_k", 0 <= self.top_k < 2**31, "0 (all) or more, below 2**31"),
            ("top_p", 0 < self.top_p <= 1, "more than 0, at most 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < math.inf, "more than 0"),
            ("silence_threshold", 0 <= (self.silence_threshold or 0) <= 1, "a probability, 0 to 1"),
            ("silence_threshold_step", abs(self.silence_threshold_step) <= 1, "-1 to 1"),
            ("silence", 0 <= (self.silence or 0) <= 1, "a probability, 0 to 1"),
        ):
            if not valid:
                raise InputError(f"sampling {name}", getattr(self, name), expected, "change it")
        if self.silence is not None and self.silence_threshold is not None:
            got = f"{self.silence:g} with silence_threshold {self.silence_threshold:g}"
            raise InputError("sampling silence", got, "one rule of silence", "leave one of them out")

    @property
    def silence_rule(self) -> bool:
        """Whether one of the rules of silence is on, for which the programs have to look at the probability of silence."""
        return self.silence is not None or self.silence_threshold is not None


COMMENTARY = Sampling(temperature=0.9, repetition_penalty=1.05)  # what StreamingVLM streams with


class SamplingParams(NamedTuple):
    """Settings of every reply of a batch, as arrays: numpy on the host, jax inside jit. Meanings as in `Sampling`; silence,
    silence_threshold: -inf where the rule is off. max_new_tokens: at which a reply ends. Suppressed ids are not here: they are
    one mask with others (`DecodeInputs`)."""

    temperature: Float32[Array | np.ndarray, " B"]
    top_k: Int32[Array | np.ndarray, " B"]
    top_p: Float32[Array | np.ndarray, " B"]
    repetition_penalty: Float32[Array | np.ndarray, " B"]
    silence_threshold: Float32[Array | np.ndarray, " B"]
    silence_threshold_step: Float32[Array | np.ndarray, " B"]
    silence: Float32[Array | np.ndarray, " B"]
    max_new_tokens: Int32[Array | np.ndarray, " B"]

    @classmethod
    def stack(cls, settings: Sequence[Sampling], max_new_tokens: Sequence[int]) -> "SamplingParams":
        """Row b has settings[b] and replies of at most max_new_tokens[b] tokens."""

        def column(name: str, dtype: type) -> np.ndarray:
            values = [getattr(row, name) for row in settings]
            return np.array([-np.inf if value is None else value for value in values], dtype)

        return cls(
            temperature=column("temperature", np.float32),
            top_k=column("top_k", np.int32),
            top_p=column("top_p", np.float32),
            repetition_penalty=column("repetition_penalty", np.float32),
            silence_threshold=column("silence_threshold", np.float32),
            silence_threshold_step=column("silence_threshold_step", np.float32),
            silence=column("silence", np.float32),
            max_new_tokens=np.array(max_new_tokens, np.int32),
        )


def mark_generated(generated: Bool[Array, "B V"], ids: Int[Array, "B T"], valid: Bool[Array, "B T"]) -> Bool[Array, "B V"]:
    """Add ids [B, T] where `valid` [B, T] to the set of ids that the repetition penalty counts."""
    batch_index = jnp.arange(ids.shape[0])[:, None]
    # Ids of padding become one beyond the vocabulary, which the scatter drops.
    return generated.at[batch_index, jnp.where(valid, ids, generated.shape[1])].set(True, mode="drop")


class SilenceTokens(NamedTuple):
    """Ids, static. pause: with which a reply says that it has no words (" ..." of LiveCC and StreamingVLM). newline: with which
    a reply begins in StreamingVLM's training, after the answer if there is one."""

    pause: int
    newline: int


class Silence(NamedTuple):
    """What the rules of silence need beside their thresholds. ids: static. reply [B, R], count [B]: tokens of each reply so far
    and their number. eos_ids [E]: that end a reply."""

    ids: SilenceTokens
    reply: Int32[Array, "B R"]
    count: Int32[Array, " B"]
    eos_ids: Int32[Array, " E"]


def forbid_silence(logits: Float32[Array, "B V"], silence: Silence, params: SamplingParams) -> Float32[Array, "B V"]:
    """LiveCC's rule against silence (arXiv 2504.16030; `ThresholdLogitsProcessor` of its code): the pause is at -inf where its
    probability is at most silence_threshold + silence_threshold_step * count.

    That is its share of a softmax over all logits after the repetition penalty and before temperature, top-k and top-p: the
    place of a caller's own processors in transformers' generation.
    """
    threshold = params.silence_threshold + params.silence_threshold_step * silence.count
    share = jnp.exp(logits[:, silence.ids.pause] - jax.nn.logsumexp(logits, axis=-1))
    is_pause = jnp.arange(logits.shape[-1]) == silence.ids.pause
    return jnp.where(is_pause & (share <= threshold)[:, None], -jnp.inf, logits)


def silence_probability(logits: Float32[Array, "B V"], silence: Silence) -> tuple[Float32[Array, " B"], Bool[Array, " B"]]:
    """(the probability [B] that a reply has no words, whether [B] the next token decides it), from logits after the repetition
    penalty.

    The first token decides, or the second one where the first is the newline, or is to be the newline because no other token
    is as likely. Without words are the pause and the end of the turn.
    """
    log_sum = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    silent_ids = jnp.concatenate([jnp.array([silence.ids.pause]), silence.eos_ids])
    probability = jnp.exp(logits[:, silent_ids] - log_sum).sum(axis=-1)
    after_newline = (silence.count == 1) & (silence.reply[:, 0] == silence.ids.newline)
    return probability, after_newline | ((silence.count == 0) & ~_newline_next(logits, silence))


def _newline_next(logits: Float32[Array, "B V"], silence: Silence) -> Bool[Array, " B"]:
    return (silence.count == 0) & (jnp.argmax(logits, axis=-1) == silence.ids.newline)


def decide_silence(
    logits: Float32[Array, "B V"], processed: Float32[Array, "B V"], silence: Silence, params: SamplingParams
) -> Float32[Array, "B V"]:
    """One threshold for silence and for speech: a reply has words exactly where `silence_probability` is at most
    `params.silence`; where it is more, the reply is the pause and the end of the turn.

    Args:
        logits: after the repetition penalty, of which the probability is.
        processed: the same as they are drawn from, which are returned with this rule.
    """
    ids, end = silence.ids, silence.eos_ids[0]
    probability, decides = silence_probability(logits, silence)
    silent = decides & (probability > params.silence)
    # A pause before any word was this rule's choice, and the end of the turn follows.
    newest = jnp.take_along_axis(silence.reply, jnp.maximum(silence.count - 1, 0)[:, None], axis=1)[:, 0]
    no_words = (silence.count == 1) | ((silence.count == 2) & (silence.reply[:, 0] == ids.newline))
    paused = no_words & (newest == ids.pause)
    # The newline, if it is the likeliest, is no decision: drawing something else in its place would be one.
    only = jnp.where(_newline_next(logits, silence), ids.newline, jnp.where(silent, ids.pause, jnp.where(paused, end, -1)))
    vocabulary = jnp.arange(logits.shape[-1])
    wordless = jnp.isin(vocabulary, jnp.concatenate([jnp.array([ids.pause, ids.newline]), silence.eos_ids]))
    ruled = jnp.where(wordless & (decides & ~silent)[:, None], -jnp.inf, processed)
    ruled = jnp.where((only >= 0)[:, None], jnp.where(vocabulary == only[:, None], 0.0, -jnp.inf), ruled)
    return jnp.where((params.silence >= 0)[:, None], ruled, processed)


def penalize(logits: Float32[Array, "B V"], generated: Bool[Array, "B V"], params: SamplingParams) -> Float32[Array, "B V"]:
    """The repetition penalty: each id of `generated` once, divided if positive, multiplied if not."""
    penalty = jnp.asarray(params.repetition_penalty)[:, None]
    return jnp.where(generated, jnp.where(logits < 0, logits * penalty, logits / penalty), logits)


def process_logits(
    logits: Float32[Array, "B V"],
    generated: Bool[Array, "B V"],
    suppressed: Bool[Array, "B V"],
    params: SamplingParams,
    silence: Silence | None = None,
) -> Float32[Array, "B V"]:
    """Logits [B, V] after the repetition penalty, with suppressed ids at -inf and the rules of silence if there are any. The
    greedy token is the argmax of these."""
    penalized = penalize(logits, generated, params)
    if silence is None:
        return jnp.where(suppressed, -jnp.inf, penalized)
    processed = jnp.where(suppressed, -jnp.inf, forbid_silence(penalized, silence, params))
    return decide_silence(penalized, processed, silence, params)


def top_k_top_p(
    logits: Float32[Array, "B V"], params: SamplingParams, max_top_k: int
) -> tuple[Float32[Array, "B k"], Int32[Array, "B k"]]:
    """Temperature, then top-k, then top-p, of processed logits [B, V].

    Args:
        max_top_k: of all rows, a static size; 0: the whole vocabulary.

    Returns:
        (logits [B, k] in descending order, with those that are not considered at -inf; their ids [B, k]). Of logits that tie
        at the k-th rank exactly k stay (transformers keeps all).
    """
    vocabulary = logits.shape[-1]
    temperature, row_top_k, top_p = (jnp.asarray(x)[:, None] for x in (params.temperature, params.top_k, params.top_p))
    # Greedy rows are divided by 1: their result is not used, but must not be NaN.
    scaled = logits / jnp.where(temperature > 0, temperature, 1.0)
    top, ids = top_k(scaled, min(max_top_k or vocabulary, vocabulary))
    rank = jnp.arange(top.shape[-1])
    top = jnp.where((row_top_k == 0) | (rank < row_top_k), top, -jnp.inf)
    share = jax.nn.softmax(top, axis=-1)
    before = jnp.cumsum(share, axis=-1) - share
    # `before` may reach 1 by rounding, so top_p = 1 is asked for by name: it drops nothing.
    return jnp.where((before < top_p) | (top_p >= 1), top, -jnp.inf), ids


def sample(
    logits: Float32[Array, "B V"],
    generated: Bool[Array, "B V"],
    suppressed: Bool[Array, "B V"],
    keys: Key[Array, " B"],
    params: SamplingParams,
    max_top_k: int,
    silence: Silence | None = None,
) -> Int32[Array, " B"]:
    """The next token [B] from logits [B, V], the ids that the repetition penalty counts, those that may not be chosen, and a
    random key for each row, so that a row's draw does not depend on its neighbours. max_top_k: as in `top_k_top_p`. silence: of
    the rules of silence; None: no row has one."""
    processed = process_logits(logits, generated, suppressed, params, silence)
    greedy = jnp.argmax(processed, axis=-1).astype(jnp.int32)
    drawn = jnp.asarray(params.temperature) > 0

    def draw() -> Int32[Array, " B"]:
        top, ids = top_k_top_p(processed, params, max_top_k)
        # The noise belongs to the id, not to its rank: two logits that nearly tie may change ranks with the order of sums
        # (another batch size, another device), and the draw stays the same.
        noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[-1:]))(keys)
        choice = jnp.argmax(top + jnp.take_along_axis(noise, ids, axis=1), axis=-1)
        token = jnp.take_along_axis(ids, choice[:, None], axis=1)[:, 0].astype(jnp.int32)
        return jnp.where(drawn, token, greedy)

    def draw_if_needed() -> Int32[Array, " B"]:
        # A batch of greedy rows pays neither for the sort nor for the noise.
        return jax.lax.cond(jnp.any(drawn), draw, lambda: greedy)

    if not without_sort(logits.shape[-1], max_top_k or logits.shape[-1]):
        return draw_if_needed()
    # Without a sort a draw is a few small kernels: less than a branch costs a GPU, and the host where it has to read which.
    return jax.lax.platform_dependent(cuda=draw, default=draw_if_needed)


def largest_top_k(settings: Sequence[Sampling]) -> int:
    """The `max_top_k` with which all these settings can be sampled."""
    return 0 if any(row.top_k == 0 for row in settings) else max(row.top_k for row in settings)
