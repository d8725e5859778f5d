"""What a session runs on the device, one compiled program for each batch size and each static size it was made with.

Parameters come first; caches and decode states are donated: they are updated in place.
Axes: B streams, M vision rows, D width.
"""

from functools import partial

import jax
import jax.numpy as jnp

from svlm_jax.config import ModelConfig
from svlm_jax.decode.loop import Loop, Plan, go_on, reply
from svlm_jax.decode.sampling import Sampling
from svlm_jax.inputs import VisionInput
from svlm_jax.model.cache import KVCache
from svlm_jax.model.parameters import Parameters, from_parameters
from svlm_jax.model.vision import Features
from svlm_jax.sharding import constrain
from svlm_jax.stream.batch import Piece


@partial(jax.jit, static_argnames="config")
def encode_vision(values: Parameters, frames: VisionInput, *, config: ModelConfig) -> Features:
    """What the vision tower makes of the frames of each stream."""
    return from_parameters(config, values).vision(frames)


@partial(jax.jit, static_argnames="config", donate_argnames="cache")
def prefill(values: Parameters, piece: Piece, features: Features, hidden, cache: KVCache, *, config: ModelConfig):
    """One piece of new tokens: (hidden state [B, D] of the newest token of each row so far, cache)."""
    model = from_parameters(config, values)
    states, cache = model.extend(piece.inputs, jnp.asarray(piece.slots), cache, features)
    newest = jnp.take_along_axis(states, jnp.maximum(piece.newest, 0)[:, None, None], axis=1)[:, 0]
    return constrain(jnp.where((piece.newest >= 0)[:, None], newest, hidden), "batch", None), cache


@partial(jax.jit, static_argnames=("config", "sampling", "record"), donate_argnames="cache")
def decode(values, plan: Plan, hidden, cache: KVCache, limit, *, config: ModelConfig, sampling: Sampling, record: bool) -> Loop:
    """Replies of at most `limit` tokens; with their rotated keys, to be gone on with."""
    return reply(from_parameters(config, values), hidden, cache, plan, limit, sampling, record)


@partial(jax.jit, static_argnames=("config", "sampling"), donate_argnames="loop")
def resume_decode(values, plan: Plan, loop: Loop, limit, *, config: ModelConfig, sampling: Sampling) -> Loop:
    """The same replies, up to another limit."""
    return go_on(from_parameters(config, values), loop, plan, limit, sampling)


@partial(jax.jit, static_argnames="capacity")
def grow(cache: KVCache, capacity: int) -> KVCache:
    """A cache with more slots a stream; the one that is given stays as it is."""
    more = capacity - cache.capacity
    wide = [(0, 0), (0, 0), (0, more), (0, 0)]
    keys, values = (tuple(jnp.pad(one, wide) for one in held) for held in (cache.keys, cache.values))
    index = jnp.pad(cache.index, wide[1:3], constant_values=-1)
    return KVCache(keys, values, index, jnp.pad(cache.positions, wide[:3]))
