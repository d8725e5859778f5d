"""Plain generation: one prompt in, one reply out, all of it in one jitted call.

Prefill and the decode loop share a cache that lives inside the call: slots [0, T) hold the padded prompts, slot T + n the n-th
token of every reply. What a token sees is decided by indexes, so padding may stand on either side.

Axes: B batch, T prompt bucket, R reply bucket, V vocabulary.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float32, Int, Int32

from svlm_jax.errors import InputError
from svlm_jax.inputs import Inputs, bucket
from svlm_jax.model.cache import Cache
from svlm_jax.model.vlm import QwenVL
from svlm_jax.stream.sampling import Sampling, sample, see

REPLY_BUCKETS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


class _Loop(NamedTuple):
    """State of the decode loop: tokens so far [B, R], their number, which replies have ended [B], the cache, ids seen [B, V],
    the random key."""

    tokens: jax.Array
    count: jax.Array
    done: jax.Array
    cache: Cache
    seen: jax.Array
    key: jax.Array


def generate(
    model: QwenVL, inputs: Inputs, *, max_new_tokens: int = 128, eos: tuple[int, ...] = (), sampling=Sampling(), seed: int = 0
) -> list[np.ndarray]:
    """Replies to a batch of prompts.

    Args:
        inputs: a padded batch; compiles once for each combination of buckets.
        eos: ids that end a reply; the id that ended it is the reply's last token.
        seed: of the draws; the same seed gives the same replies.

    Returns:
        One int32 array of at most `max_new_tokens` ids a prompt.
    """
    if max_new_tokens < 1:
        raise InputError("max_new_tokens", max_new_tokens, "at least 1", "ask for a token or more")
    capacity = bucket(max_new_tokens, REPLY_BUCKETS, "max_new_tokens", "ask for fewer")
    graph, state = nnx.split(model)
    key, ends = jax.random.key(seed), jnp.array(eos or (-1,), jnp.int32)
    tokens, count = _generate(graph, state, inputs, key, ends, max_new_tokens, sampling=sampling, capacity=capacity)
    replies = []
    for row in np.asarray(tokens)[:, : int(count)]:
        ended = np.flatnonzero(np.isin(row, eos))
        replies.append(row[: ended[0] + 1] if len(ended) else row)
    return replies


def prefill(model: QwenVL, inputs: Inputs, cache: Cache) -> tuple[Float32[Array, "B V"], Cache]:
    """Run padded prompts into the slots [0, T) of a cache; float32 logits [B, V] after the newest token of each."""
    hidden, cache = model.extend(inputs, cache, jnp.int32(0))
    newest = jnp.argmax(jnp.asarray(inputs.index), axis=1)
    return model.text.logits(jnp.take_along_axis(hidden, newest[:, None, None], axis=1)[:, 0]), cache


def decode(
    model: QwenVL,
    token: Int32[Array, " B"],
    index: Int32[Array, " B"],
    position: Float32[Array, " B"],
    cache: Cache,
    slot: Int[Array, ""],
) -> tuple[Float32[Array, "B V"], Cache]:
    """One token [B] of every stream, at place `index` [B] of its sequence and `position` [B] on all three axes, into `slot`
    (one for all); float32 logits [B, V]."""
    positions = jnp.broadcast_to(position[:, None, None], (len(token), 3, 1))
    hidden, cache = model.text.extend(model.text.embed(token[:, None]), index[:, None], positions, cache, slot)
    return model.text.logits(hidden[:, 0]), cache


@partial(jax.jit, static_argnames=("graph", "sampling", "capacity"))
def _generate(graph, state, inputs: Inputs, key, eos, limit, *, sampling: Sampling, capacity: int):
    model = nnx.merge(graph, state)
    batch, length = inputs.ids.shape
    text = model.config.text
    index = jnp.asarray(inputs.index)
    cache = Cache.empty(text, batch, length + capacity, model.config.dtype)
    logits, cache = prefill(model, inputs, cache)
    after = jnp.max(index, axis=1) + 1
    turn = jnp.max(jnp.where(index[:, None] >= 0, jnp.asarray(inputs.positions), 0), axis=(1, 2)) + 1

    def choose(loop: _Loop, logits: jax.Array) -> _Loop:
        key, draw = jax.random.split(loop.key)
        token = jnp.where(loop.done, 0, sample(logits, loop.seen, draw, sampling))
        tokens = jax.lax.dynamic_update_slice(loop.tokens, token[:, None], (0, loop.count))
        done = loop.done | jnp.isin(token, eos)
        seen = see(loop.seen, token[:, None], ~loop.done[:, None])
        return _Loop(tokens, loop.count + 1, done, loop.cache, seen, key)

    def step(loop: _Loop) -> _Loop:
        count = loop.count - 1
        token = jax.lax.dynamic_slice(loop.tokens, (0, count), (batch, 1))[:, 0]
        logits, cache = decode(model, token, after + count, turn + count, loop.cache, length + count)
        return choose(loop._replace(cache=cache), logits)

    seen = see(jnp.zeros((batch, text.vocab_size), bool), jnp.asarray(inputs.ids), index >= 0)
    tokens, done = jnp.zeros((batch, capacity), jnp.int32), jnp.zeros((batch,), bool)
    loop = choose(_Loop(tokens, jnp.int32(0), done, cache, seen, key), logits)
    loop = jax.lax.while_loop(lambda loop: (loop.count < limit) & ~jnp.all(loop.done), step, loop)
    return loop.tokens, loop.count
