"""From logits to the next token, inside jit: the processors of transformers' generation in its order, then one draw.

Axes: B batch, V vocabulary.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int, Int32, Key

from svlm_jax.errors import InputError


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen. temperature 0 is greedy; top_k 0 and top_p 1 mean all; suppressed ids are never chosen."""

    temperature: float = 0.0
    top_k: int = 50
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    suppressed: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name, right, expected in (
            ("temperature", self.temperature >= 0, "0 (greedy) or more"),
            ("top_k", self.top_k >= 0, "0 (all) or more"),
            ("top_p", 0 < self.top_p <= 1, "more than 0, at most 1"),
            ("repetition_penalty", self.repetition_penalty > 0, "more than 0"),
        ):
            if not right:
                raise InputError(f"sampling {name}", getattr(self, name), expected, "change it")


COMMENTARY = Sampling(temperature=0.9, repetition_penalty=1.05)  # what StreamingVLM streams with


def see(seen: Bool[Array, "B V"], ids: Int[Array, "B T"], real: Bool[Array, "B T"]) -> Bool[Array, "B V"]:
    """Mark ids [B, T] where `real` [B, T] in the set of seen ids [B, V] bool."""
    rows = jnp.arange(ids.shape[0])[:, None]
    return seen.at[rows, jnp.where(real, ids, seen.shape[1])].set(True, mode="drop")


def scores(
    logits: Float32[Array, "B V"], seen: Bool[Array, "B V"], sampling: Sampling, banned: Bool[Array, " V"] | None = None
) -> Float32[Array, "B V"]:
    """Logits [B, V] float32 after repetition penalty (each seen id once: divided if positive, multiplied if not) and with
    suppressed and banned ids at -inf. The greedy token is the argmax of these."""
    if sampling.repetition_penalty != 1.0:
        penalty = sampling.repetition_penalty
        logits = jnp.where(seen, jnp.where(logits < 0, logits * penalty, logits / penalty), logits)
    if sampling.suppressed:
        logits = logits.at[:, jnp.array(sampling.suppressed)].set(-jnp.inf)
    return logits if banned is None else jnp.where(banned, -jnp.inf, logits)


def kept(logits: Float32[Array, "B V"], sampling: Sampling) -> tuple[Float32[Array, "B k"], Int32[Array, "B k"]]:
    """Temperature, then top-k, then top-p, of processed scores [B, V].

    Returns:
        (logits [B, k] in descending order with what top-p drops at -inf, their ids [B, k]). Of scores that tie at the k-th
        place exactly k stay (transformers keeps all).
    """
    vocabulary = logits.shape[-1]
    top, ids = jax.lax.top_k(logits / sampling.temperature, min(sampling.top_k or vocabulary, vocabulary))
    if sampling.top_p < 1.0:
        share = jax.nn.softmax(top, axis=-1)
        before = jnp.cumsum(share, axis=-1) - share
        top = jnp.where(before < sampling.top_p, top, -jnp.inf)
    return top, ids


def sample(
    logits: Float32[Array, "B V"],
    seen: Bool[Array, "B V"],
    keys: Key[Array, " B"],
    sampling: Sampling,
    banned: Bool[Array, " V"] | None = None,
) -> Int32[Array, " B"]:
    """The next token [B] int32 from logits [B, V] float32, the seen ids [B, V] bool, ids that may not be chosen [V] bool, and a
    random key for each row, so that a row's draw does not depend on its neighbours."""
    processed = scores(logits, seen, sampling, banned)
    if sampling.temperature == 0:
        return jnp.argmax(processed, axis=-1).astype(jnp.int32)
    top, ids = kept(processed, sampling)
    # The noise of an id is that of its place in the vocabulary, not of its rank: two that nearly tie may change ranks with the
    # order of sums (another batch, another device), and the draw stays.
    noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[-1:]))(keys)
    choice = jnp.argmax(top + jnp.take_along_axis(noise, ids, axis=1), axis=-1)
    return jnp.take_along_axis(ids, choice[:, None], axis=1)[:, 0].astype(jnp.int32)
