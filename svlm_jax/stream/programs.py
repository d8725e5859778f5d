"""The programs that a session runs on the device, compiled once for each batch size and each static size of the session.

First come the parameters of the part of the model that a program uses (`parameters.part_of`). Caches and decode states are
donated: they are updated in place, and the arrays that were passed are deleted. Axes: B streams, D width.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from svlm_jax.config import ModelConfig
from svlm_jax.decode import loop
from svlm_jax.decode.loop import DecodeInputs, DecodeState, Limit
from svlm_jax.decode.sampling import SilenceTokens
from svlm_jax.inputs import RawFrames, VisionInput
from svlm_jax.model.cache import KVCache
from svlm_jax.model.parameters import from_part
from svlm_jax.model.pixels import patches_of
from svlm_jax.model.vision import Features
from svlm_jax.sharding import constrain
from svlm_jax.stream.batch import PrefillBatch

Arrays = tuple[jax.Array, ...]


@partial(jax.jit, static_argnames="config")
def encode_vision(params: Arrays, frames: VisionInput, *, config: ModelConfig) -> Features:
    """Vision features of the frames of each stream."""
    if isinstance(frames.patches, RawFrames):
        frames = replace(frames, patches=patches_of(frames.patches, config.vision))
    return from_part(config, "vision", params).vision(frames)


@partial(jax.jit, static_argnames="config", donate_argnames="cache")
def prefill(
    params: Arrays,
    batch: PrefillBatch,
    features: Features,
    hidden: Float[Array, "B D"],
    cache: KVCache,
    *,
    config: ModelConfig,
) -> tuple[Float[Array, "B D"], KVCache]:
    """One batch of new tokens: (hidden state [B, D] of the newest token of each stream so far, cache)."""
    with jax.named_scope("prefill"):
        model = from_part(config, "text", params)
        states, cache = model.extend(batch.inputs, jnp.asarray(batch.slots), cache, features)
        newest = jnp.take_along_axis(states, jnp.maximum(batch.newest, 0)[:, None, None], axis=1)[:, 0]
        # A stream whose last token is in another batch keeps the hidden state that it came with.
        return constrain(jnp.where((batch.newest >= 0)[:, None], newest, hidden), "batch", None), cache


@partial(jax.jit, static_argnames=("config", "max_top_k", "silence", "record"), donate_argnames="cache")
def decode(
    params: Arrays,
    inputs: DecodeInputs,
    hidden: Float[Array, "B D"],
    cache: KVCache,
    limit: Limit,
    *,
    config: ModelConfig,
    max_top_k: int,
    silence: SilenceTokens | None = None,
    record: bool,
) -> DecodeState:
    """Replies of at most `limit` tokens; `resume_decode` continues them."""
    with jax.named_scope("decode"):
        model = from_part(config, "text", params)
        options = {"max_top_k": max_top_k, "silence": silence, "record": record}
        return loop.decode(model, hidden, cache, inputs, limit, **options)


@partial(jax.jit, static_argnames=("config", "max_top_k", "silence"), donate_argnames="state")
def resume_decode(
    params: Arrays,
    inputs: DecodeInputs,
    state: DecodeState,
    limit: Limit,
    *,
    config: ModelConfig,
    max_top_k: int,
    silence: SilenceTokens | None = None,
) -> DecodeState:
    """The same replies, up to another limit."""
    with jax.named_scope("decode"):
        model, options = from_part(config, "text", params), {"max_top_k": max_top_k, "silence": silence}
        return loop.decode_until(model, state, inputs, limit, **options)


def decode_token_by_token(
    params: Arrays,
    inputs: DecodeInputs,
    state: DecodeState,
    on_token: Callable[[int, int], bool],
    max_new_tokens: int,
    **static_args: Any,
) -> tuple[DecodeState, Bool[np.ndarray, " B"]]:
    """The rest of replies that have their first token. Calls `on_token` with (row, token id) as each token comes; where it
    returns True the reply ends with that token, and no more is computed for it. The other rows do not notice.

    Returns:
        The replies, and which rows were ended so.
    """
    inputs = jax.device_put(inputs)  # once, not for every token
    limits = np.full(len(state.done), max_new_tokens, np.int32)  # a row that is ended stays at the limit that it has reached
    for number in range(1, max_new_tokens + 1):
        tokens, done = np.asarray(state.tokens), np.asarray(state.done)
        for row in np.flatnonzero(np.asarray(state.count) >= number):
            if on_token(int(row), int(tokens[row, number - 1])) and not done[row]:
                limits[row] = number
        if (done | (limits <= number)).all():
            break
        state = resume_decode(params, inputs, state, np.minimum(limits, number + 1), **static_args)
    return state, limits < max_new_tokens


@partial(jax.jit, static_argnames="capacity")
def grow(cache: KVCache, capacity: int) -> KVCache:
    """A cache with more slots a stream. Not donated: the smaller one remains for a step that fails."""
    added = capacity - cache.capacity
    padding = [(0, 0), (0, 0), (0, added), (0, 0)]
    keys, values = (tuple(jnp.pad(layer, padding) for layer in layers) for layers in (cache.keys, cache.values))
    index = jnp.pad(cache.index, padding[1:3], constant_values=-1)
    return KVCache(keys, values, index, jnp.pad(cache.positions, padding[:3]))
