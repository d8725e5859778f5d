"""Plain generation: a batch of prompts in, a reply to each out, all of it in one jitted call.

Prefill and the decode loop share a cache that lives inside the call: slots [0, T) have the padded prompts, slot T + n the n-th
token of every reply. Indexes decide which tokens are visible, so padding may stand on either side.

Axes: B batch, T prompt bucket, R reply bucket, D width, V vocabulary.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32, Int, Int32

from svlm_jax.decode.loop import DecodeInputs, decode
from svlm_jax.decode.sampling import Sampling, SamplingParams, largest_top_k, mark_generated
from svlm_jax.errors import InputError
from svlm_jax.inputs import Inputs, bucket
from svlm_jax.model.cache import KVCache, kv_cache_dtype
from svlm_jax.model.parameters import parameters
from svlm_jax.model.vlm import QwenVL
from svlm_jax.sharding import mesh_of, on_mesh

REPLY_BUCKETS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


def generate(
    model: QwenVL,
    inputs: Inputs,
    *,
    max_new_tokens: int | Sequence[int] = 128,
    eos: tuple[int, ...] = (),
    sampling: Sampling | Sequence[Sampling] = Sampling(),
    seed: int = 0,
) -> list[np.ndarray]:
    """Replies to a batch of prompts, on the devices that the parameters lie on.

    Args:
        inputs: a padded batch; compiles once for each combination of buckets (and for each largest top_k).
        max_new_tokens, sampling: for all prompts, or one for each.
        eos: ids that end a reply; the id that ended it is the reply's last token.
        seed: of the random numbers; the same seed gives the same replies.

    Returns:
        One int32 array of at most `max_new_tokens` ids a prompt.

    Raises:
        InputError: too short or too long a reply; settings for another number of prompts.
    """
    batch = len(inputs.ids)
    settings = [sampling] * batch if isinstance(sampling, Sampling) else list(sampling)
    lengths = list(max_new_tokens) if isinstance(max_new_tokens, Sequence) else [max_new_tokens] * batch
    for name, rows in (("sampling", settings), ("max_new_tokens", lengths)):
        if len(rows) != batch:
            raise InputError(name, f"{len(rows)} of them", f"{batch}, one for each prompt", "give one for all, or one for each")
    if min(lengths) < 1:
        raise InputError("max_new_tokens", min(lengths), "at least 1", "ask for a token or more")
    reply_size = bucket(max(lengths), REPLY_BUCKETS, "max_new_tokens", "ask for fewer")
    suppressed = np.zeros((batch, model.config.text.vocab_size), bool)
    for row, prompt_settings in zip(suppressed, settings, strict=True):
        row[list(prompt_settings.suppressed)] = True
    graph, state = nnx.split(model)
    values = parameters(model)
    static = {"reply_size": reply_size, "max_top_k": largest_top_k(settings), "dtype": kv_cache_dtype(model.config, values)}
    params, eos_ids = SamplingParams.stack(settings, lengths), np.array(eos or (-1,), np.int32)
    with on_mesh(mesh_of(values)):
        tokens, count = _generate(graph, state, inputs, seed, eos_ids, params, suppressed, **static)
    return [row[:length] for row, length in zip(np.asarray(tokens), np.asarray(count), strict=True)]


def prefill(
    model: QwenVL, inputs: Inputs, slots: Int[Array | np.ndarray, "B T"], cache: KVCache
) -> tuple[Float[Array, "B D"], KVCache]:
    """Run padded prompts into `slots` [B, T] of a cache that describes them; the hidden state [B, D] of the newest token of
    each."""
    hidden, cache = model.extend(inputs, jnp.asarray(slots), cache)
    newest = jnp.argmax(jnp.asarray(inputs.index), axis=1)
    return jnp.take_along_axis(hidden, newest[:, None, None], axis=1)[:, 0], cache


class PrefilledPrompts(NamedTuple):
    """Prompts in a cache with room for what follows them: the hidden state of the newest token of each; index and position of
    the next token; its slot and those after it."""

    hidden: Float[Array, "B D"]
    cache: KVCache
    index: Int32[Array, " B"]
    position: Float32[Array, " B"]
    slots: Int32[Array, "B R"]


def prefill_prompts(model: QwenVL, inputs: Inputs, reply_size: int, dtype: str) -> PrefilledPrompts:
    """Run padded prompts [B, T] into a new cache of T + reply_size slots, all of which have their metadata."""
    batch, length = inputs.ids.shape
    index, positions = jnp.asarray(inputs.index), jnp.asarray(inputs.positions)
    next_index = jnp.max(index, axis=1) + 1
    # Positions of padding do not count; a reply continues on all three axes from the largest of its prompt.
    next_position = jnp.max(jnp.where(index[:, None] >= 0, positions, 0), axis=(1, 2)) + 1
    slots = jnp.broadcast_to(jnp.arange(length + reply_size), (batch, length + reply_size))
    offset = jnp.arange(reply_size)
    reply_positions = jnp.broadcast_to(next_position[:, None, None] + offset, (batch, 3, reply_size))
    cache = KVCache.empty(model.config.text, batch, length + reply_size, dtype).constrain()
    cache = cache.with_slots(
        jnp.concatenate([index, next_index[:, None] + offset], axis=1),
        jnp.concatenate([positions, reply_positions], axis=2),
    )
    hidden, cache = prefill(model, inputs, slots[:, :length], cache)
    return PrefilledPrompts(hidden, cache, next_index, next_position, slots[:, length:])


@partial(jax.jit, static_argnames=("graph", "reply_size", "max_top_k", "dtype"))
def _generate(
    graph,
    state,
    inputs: Inputs,
    seed: Int[Array, ""],
    eos_ids: Int[Array, " E"],
    params: SamplingParams,
    suppressed: Bool[Array, "B V"],
    *,
    reply_size: int,
    max_top_k: int,
    dtype: str,
) -> tuple[Int[Array, "B R"], Int[Array, " B"]]:
    """(tokens [B, R], their number [B])."""
    model = nnx.merge(graph, state)
    prompts = prefill_prompts(model, inputs, reply_size, dtype)
    batch = len(inputs.ids)
    decode_inputs = DecodeInputs(
        index=prompts.index,
        position=prompts.position,
        slots=prompts.slots,
        eos_ids=eos_ids,
        rng_seeds=jnp.stack([jnp.full(batch, seed), jnp.arange(batch)], axis=1),
        generated=mark_generated(jnp.zeros_like(suppressed), jnp.asarray(inputs.ids), jnp.asarray(inputs.index) >= 0),
        suppressed=suppressed,
        forced_ids=jnp.full((batch, reply_size), -1),
        done=jnp.zeros(batch, bool),
        sampling=params,
    )
    replies = decode(model, prompts.hidden, prompts.cache, decode_inputs, jnp.max(params.max_new_tokens), max_top_k=max_top_k)
    return replies.tokens, replies.count
