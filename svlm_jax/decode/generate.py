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
from jaxtyping import Array, Float, Float32, Int, Int32

from svlm_jax.config import ModelConfig
from svlm_jax.decode.loop import DecodeInputs, decode
from svlm_jax.decode.sampling import Sampling, SamplingParams, largest_top_k
from svlm_jax.errors import InputError
from svlm_jax.inputs import Inputs, bucket
from svlm_jax.model.cache import KVCache, kv_cache_dtype
from svlm_jax.model.parameters import Parameters, from_parameters, parameters
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
    seed: int | Sequence[int] = 0,
) -> list[np.ndarray]:
    """Replies to a batch of prompts, on the devices that the parameters lie on.

    Args:
        inputs: a padded batch; compiles once for each combination of buckets (and for each largest top_k).
        max_new_tokens, sampling: for all prompts, or one for each.
        eos: ids that end a reply; the id that ended it is the reply's last token.
        seed: of the random numbers; the same seed gives the same replies. One for each prompt: its draws do not depend on where
            in a batch it stands.

    Returns:
        One int32 array of at most `max_new_tokens` ids a prompt.

    Raises:
        InputError: too short or too long a reply; settings for another number of prompts; a rule of silence.
    """
    batch = len(inputs.ids)
    settings = [sampling] * batch if isinstance(sampling, Sampling) else list(sampling)
    lengths = list(max_new_tokens) if isinstance(max_new_tokens, Sequence) else [max_new_tokens] * batch
    # One seed for all: the row stands for the number of the reply, so that equal prompts get different ones.
    seeds = [(each, 0) for each in seed] if isinstance(seed, Sequence) else [(seed, b) for b in range(batch)]
    for name, rows in (("sampling", settings), ("max_new_tokens", lengths), ("seed", seeds)):
        if len(rows) != batch:
            raise InputError(name, f"{len(rows)} of them", f"{batch}, one for each prompt", "give one for all, or one for each")
    if any(row.silence_rule for row in settings):
        raise InputError("silence", "a rule for a plain reply", "none: it is of streams", "leave it out")
    if min(lengths) < 1:
        raise InputError("max_new_tokens", min(lengths), "at least 1", "ask for a token or more")
    reply_size = bucket(max(lengths), REPLY_BUCKETS, "max_new_tokens", "ask for fewer")
    layout = reply_layout(inputs, reply_size)
    reply = decode_inputs(inputs, layout, settings, lengths, eos, seeds, model.config.text.vocab_size)
    params = parameters(model)
    static = {"config": model.config, "max_top_k": largest_top_k(settings), "dtype": kv_cache_dtype(model.config, params)}
    with on_mesh(mesh_of(params)):
        tokens, count = _generate(params, inputs, reply, **static)
    return [row[:length] for row, length in zip(np.asarray(tokens), np.asarray(count), strict=True)]


def decode_inputs(
    inputs: Inputs,
    layout: "ReplyLayout",
    settings: Sequence[Sampling],
    lengths: Sequence[int],
    eos: tuple[int, ...],
    seeds: Sequence[tuple[int, int]],
    vocabulary: int,
) -> DecodeInputs:
    """Replies of at most lengths[b] tokens to every prompt, none of them forced."""
    batch, reply_size = layout.slots.shape
    generated, suppressed = np.zeros((batch, vocabulary), bool), np.zeros((batch, vocabulary), bool)
    for b in range(batch):
        generated[b, np.asarray(inputs.ids[b])[np.asarray(inputs.index[b]) >= 0]] = True
        suppressed[b, list(settings[b].suppressed)] = True
    return DecodeInputs(
        index=layout.index,
        position=layout.position,
        slots=layout.slots,
        eos_ids=np.array(eos or (-1,), np.int32),
        rng_seeds=np.array([(seed % 2**32, number) for seed, number in seeds], np.uint32),
        generated=generated,
        suppressed=suppressed,
        forced_ids=np.full((batch, reply_size), -1, np.int32),
        done=np.zeros(batch, bool),
        sampling=SamplingParams.stack(settings, lengths),
    )


class ReplyLayout(NamedTuple):
    """Where the tokens that follow padded prompts go: index and position of the first of each, slots of all of them."""

    index: Int32[Array | np.ndarray, " B"]
    position: Float32[Array | np.ndarray, " B"]
    slots: Int32[Array | np.ndarray, "B R"]


def reply_layout(inputs: Inputs, reply_size: int) -> ReplyLayout:
    """Replies of `reply_size` tokens, in the slots behind those of the prompts [B, T]."""
    batch, length = inputs.ids.shape
    index, positions = np.asarray(inputs.index), np.asarray(inputs.positions)
    # Positions of padding do not count; a reply continues on all three axes from the largest of its prompt.
    position = np.where(index[:, None] >= 0, positions, 0).max(axis=(1, 2)) + 1
    slots = np.tile(np.arange(length, length + reply_size, dtype=np.int32), (batch, 1))
    return ReplyLayout(index.max(axis=1) + 1, position.astype(np.float32), slots)


def prefill(
    model: QwenVL, inputs: Inputs, slots: Int[Array | np.ndarray, "B T"], cache: KVCache
) -> tuple[Float[Array, "B D"], KVCache]:
    """Run padded prompts into `slots` [B, T] of a cache that describes them; the hidden state [B, D] of the newest token of
    each."""
    hidden, cache = model.extend(inputs, jnp.asarray(slots), cache)
    newest = jnp.argmax(jnp.asarray(inputs.index), axis=1)
    return jnp.take_along_axis(hidden, newest[:, None, None], axis=1)[:, 0], cache


def prefill_prompts(model: QwenVL, inputs: Inputs, layout: ReplyLayout, dtype: str) -> tuple[Float[Array, "B D"], KVCache]:
    """Run padded prompts [B, T] into slots [0, T) of a new cache of T + R slots, which has the metadata of all of them; the
    hidden state [B, D] of the newest token of each."""
    batch, length = inputs.ids.shape
    reply_size = layout.slots.shape[1]
    offset = jnp.arange(reply_size)
    reply_index = jnp.asarray(layout.index)[:, None] + offset
    reply_positions = jnp.broadcast_to(jnp.asarray(layout.position)[:, None, None] + offset, (batch, 3, reply_size))
    cache = KVCache.empty(model.config.text, batch, length + reply_size, dtype).constrain()
    cache = cache.with_slots(
        jnp.concatenate([jnp.asarray(inputs.index), reply_index], axis=1),
        jnp.concatenate([jnp.asarray(inputs.positions), reply_positions], axis=2),
    )
    return prefill(model, inputs, jnp.broadcast_to(jnp.arange(length), (batch, length)), cache)


@partial(jax.jit, static_argnames=("config", "max_top_k", "dtype"))
def _generate(
    params: Parameters, inputs: Inputs, decode_inputs: DecodeInputs, *, config: ModelConfig, max_top_k: int, dtype: str
) -> tuple[Int32[Array, "B R"], Int32[Array, " B"]]:
    """(tokens [B, R], their number [B])."""
    model = from_parameters(config, params)
    layout = ReplyLayout(decode_inputs.index, decode_inputs.position, decode_inputs.slots)
    hidden, cache = prefill_prompts(model, inputs, layout, dtype)
    limit = jnp.max(decode_inputs.sampling.max_new_tokens)
    replies = decode(model, hidden, cache, decode_inputs, limit, max_top_k=max_top_k)
    return replies.tokens, replies.count
