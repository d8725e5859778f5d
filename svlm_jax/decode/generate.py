"""Plain generation: one prompt in, one reply out, all of it in one jitted call.

Prefill and the decode loop share a cache that lives inside the call: slots [0, T) hold the padded prompts, slot T + n the n-th
token of every reply. What a token sees is decided by indexes, so padding may stand on either side.

Axes: B batch, T prompt bucket, D width.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from svlm_jax.decode.loop import Plan, reply
from svlm_jax.decode.sampling import Sampling, see
from svlm_jax.errors import InputError
from svlm_jax.inputs import Inputs, bucket
from svlm_jax.model.cache import KVCache, kv_cache_dtype
from svlm_jax.model.parameters import parameters
from svlm_jax.model.vlm import QwenVL
from svlm_jax.sharding import mesh_of, on_mesh

REPLY_BUCKETS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


def generate(
    model: QwenVL, inputs: Inputs, *, max_new_tokens: int = 128, eos: tuple[int, ...] = (), sampling=Sampling(), seed: int = 0
) -> list[np.ndarray]:
    """Replies to a batch of prompts, on the devices that the parameters lie on.

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
    values = parameters(model)
    static = {"sampling": sampling, "capacity": capacity, "dtype": kv_cache_dtype(model.config, values)}
    ends = np.array(eos or (-1,), np.int32)
    with on_mesh(mesh_of(values)):
        tokens, count = _generate(graph, state, inputs, seed, ends, max_new_tokens, **static)
    replies = []
    for row in np.asarray(tokens)[:, : int(count)]:
        ended = np.flatnonzero(np.isin(row, eos))
        replies.append(row[: ended[0] + 1] if len(ended) else row)
    return replies


def prefill(
    model: QwenVL, inputs: Inputs, slots: Int[Array | np.ndarray, "B T"], cache: KVCache
) -> tuple[Float[Array, "B D"], KVCache]:
    """Run padded prompts into `slots` [B, T] of a cache that describes them; the hidden state [B, D] of the newest token of
    each."""
    hidden, cache = model.extend(inputs, jnp.asarray(slots), cache)
    newest = jnp.argmax(jnp.asarray(inputs.index), axis=1)
    return jnp.take_along_axis(hidden, newest[:, None, None], axis=1)[:, 0], cache


@partial(jax.jit, static_argnames=("graph", "sampling", "capacity", "dtype"))
def _generate(graph, state, inputs: Inputs, seed, eos, limit, *, sampling: Sampling, capacity: int, dtype: str):
    model = nnx.merge(graph, state)
    batch, length = inputs.ids.shape
    text, index = model.config.text, jnp.asarray(inputs.index)
    positions = jnp.asarray(inputs.positions)
    after = jnp.max(index, axis=1) + 1
    turn = jnp.max(jnp.where(index[:, None] >= 0, positions, 0), axis=(1, 2)) + 1
    slots = jnp.broadcast_to(jnp.arange(length + capacity), (batch, length + capacity))
    ahead = jnp.arange(capacity)
    cache = (
        KVCache.empty(text, batch, length + capacity, dtype)
        .constrain()
        .with_slots(
            jnp.concatenate([index, after[:, None] + ahead], axis=1),
            jnp.concatenate([positions, jnp.broadcast_to(turn[:, None, None] + ahead, (batch, 3, capacity))], axis=2),
        )
    )
    hidden, cache = prefill(model, inputs, slots[:, :length], cache)
    draws = jnp.stack([jnp.full(batch, seed), jnp.arange(batch)], axis=1)
    seen = see(jnp.zeros((batch, text.vocab_size), bool), jnp.asarray(inputs.ids), index >= 0)
    plan = Plan(after, turn, slots[:, length:], eos, draws, seen, jnp.zeros(batch, bool))
    loop = reply(model, hidden, cache, plan, limit, sampling)
    return loop.tokens, loop.count
