"""Plain generation in slices: some frames through the vision tower, some tokens of the prompt, some of the reply.

Between two slices the device is free, so that a long prompt can share it with live streams. The tokens are those of `generate`:
frames attend to no other frame, a prompt is prefilled into a KV cache in pieces, and the decode loop takes its limit as data.
The programs are those of a session (`stream.programs`), for one sequence, with sizes that few buckets share; `compile` may run
in another thread than the slices. Device memory: one KV cache and the vision features of a prompt, freed with its iterator.

Axes: B = 1, S slots, T tokens of a piece, R longest reply, P patches, M merged vision tokens, D width, V vocabulary.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from threading import Lock
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, Int32

from svlm_jax.config import ModelConfig
from svlm_jax.data.batch import collate
from svlm_jax.decode.generate import REPLY_BUCKETS, decode_inputs, reply_layout
from svlm_jax.decode.loop import DecodeInputs
from svlm_jax.decode.sampling import Sampling
from svlm_jax.errors import InputError
from svlm_jax.inputs import (
    EMPTY_RANGE,
    PATCH_BUCKETS,
    TOKEN_BUCKETS,
    VISION_TABLES,
    Inputs,
    Sample,
    VisionInput,
    bucket,
)
from svlm_jax.model.cache import KVCache, kv_cache_dtype
from svlm_jax.model.parameters import parameters, part_of
from svlm_jax.model.vision import Features
from svlm_jax.model.vlm import QwenVL
from svlm_jax.sharding import mesh_of, on_mesh
from svlm_jax.stream import programs
from svlm_jax.stream.batch import PrefillBatch

CAPACITIES = tuple(size for size in TOKEN_BUCKETS if size >= 512)  # slots of a prompt and its reply
COMPILE_THREADS = max(1, (os.cpu_count() or 1) // 4)  # the others are for what streams compute and decode
RANGES = ("window_range", "frame_range")


@dataclass(frozen=True)
class SliceSizes:
    """What one slice computes at most. patches: of whole frames, and of one frame however large. tokens: of a prompt. reply:
    tokens of a reply."""

    patches: int = 4096
    tokens: int = 256
    reply: int = 4

    def __post_init__(self) -> None:
        for name, size in vars(self).items():
            if size < 1:
                raise InputError(f"slice {name}", size, "1 or more", "raise it")


class VisionSlice(NamedTuple):
    """Patches of some whole frames, padded to a bucket; first_row: of their merged tokens among those of the prompt."""

    first_row: int
    frames: VisionInput


class SlicedPrompt(NamedTuple):
    """A prompt and the settings of its reply, on the host.

    num_tokens: of the prompt. capacity: slots of the KV cache. num_features: rows of vision features, padded. index [1, S],
    positions [1, 3, S]: of every slot, those of the reply included. inputs: of the reply.
    """

    num_tokens: int
    capacity: int
    num_features: int
    vision: tuple[VisionSlice, ...]
    prefill: tuple[PrefillBatch, ...]
    index: Int32[np.ndarray, "1 S"]
    positions: Float32[np.ndarray, "1 3 S"]
    inputs: DecodeInputs


class SlicedGeneration:
    """Replies of one model, each in slices. `prompt` and `compile` may be called from any thread, an iterator of `slices` is
    for one thread at a time; several may be advanced in turns."""

    def __init__(
        self,
        model: QwenVL,
        eos: tuple[int, ...],
        *,
        sizes: SliceSizes = SliceSizes(),
        max_reply_tokens: int = 1024,
        max_top_k: int = 50,
    ) -> None:
        """Args:
        eos: ids that end a reply.
        max_reply_tokens: longest reply, and size of the decode loop's buffers.
        max_top_k: largest top_k of a reply, 0: any; a static size.
        """
        self.config, self.eos, self.sizes, self.max_top_k = model.config, eos, sizes, max_top_k
        self.max_reply_tokens = bucket(max_reply_tokens, REPLY_BUCKETS, "max_reply_tokens", "ask for fewer")
        self._resume_options = {"config": self.config, "max_top_k": max_top_k}
        self._decode_options = {**self._resume_options, "record": False}
        values = parameters(model)
        self.vision_params, self.text_params = part_of(values, "vision"), part_of(values, "text")
        self.mesh, self.dtype = mesh_of(values), kv_cache_dtype(model.config, values)
        self._compiled: set[tuple[Any, ...]] = set()
        self._lock = Lock()

    def prompt(self, sample: Sample, *, max_new_tokens: int, sampling: Sampling = Sampling(), seed: int = 0) -> SlicedPrompt:
        """Lay out a prompt and its reply. Host side.

        Raises:
            InputError: too long a prompt or reply, or settings that plain replies do not have.
        """
        if not 1 <= max_new_tokens <= self.max_reply_tokens:
            raise InputError("max_new_tokens", max_new_tokens, f"1 to {self.max_reply_tokens}", "ask for fewer, or for one")
        if self.max_top_k and not 1 <= sampling.top_k <= self.max_top_k:
            raise InputError("top_k", sampling.top_k, f"1 to {self.max_top_k}", "leave it out")
        if sampling.silence_rule:
            raise InputError("silence", "a rule for a plain reply", "none: it is of streams", "leave it out")
        length, config = len(sample.ids), self.config
        capacity = bucket(length + max_new_tokens, CAPACITIES, "tokens of a prompt and its reply")
        num_patches = sum(len(clip.patches) for clip in sample.clips)
        inputs = collate([sample], config.vision, token_buckets=(length,), patch_buckets=(num_patches,))
        index, positions = _slot_metadata(inputs, capacity, max_new_tokens)
        layout = reply_layout(inputs, self.max_reply_tokens)
        reply = decode_inputs(inputs, layout, [sampling], [max_new_tokens], self.eos, [(seed, 0)], config.text.vocab_size)
        vision = tuple(_vision_slices(inputs.vision, self.sizes.patches, config)) if num_patches else ()
        prefill = tuple(_prefill_slices(inputs, self.sizes.tokens, capacity))
        return SlicedPrompt(
            length, capacity, capacity if vision else TOKEN_BUCKETS[0], vision, prefill, index, positions, reply
        )

    def compile(self, prompt: SlicedPrompt) -> None:
        """Compile what `slices` of this prompt runs and no other before it, without running anything. Over a mesh nothing: the
        first slices compile, because the sharding of what they pass on is known by then only."""
        if self.mesh is not None:
            return
        # of two prompts of one size the second waits, and compiles nothing
        with self._lock, ThreadPoolExecutor(COMPILE_THREADS, "compiler") as pool:
            missing = {call[0]: call[1:] for call in self._programs(prompt) if call[0] not in self._compiled}
            # XLA works without Python's lock, tracing and lowering do not.
            lowered = (program.lower(*args, **options) for program, args, options in missing.values())
            for future in [pool.submit(program.compile) for program in lowered]:
                future.result()
            self._compiled.update(missing)

    def _programs(self, prompt: SlicedPrompt) -> Iterator[tuple[tuple[Any, ...], Any, tuple[Any, ...], dict[str, Any]]]:
        """(what it depends on beside the model, program, arguments, options) of every program, in shapes where the arguments
        are what another returns."""
        config, cache_options = {"config": self.config}, self._cache_options(prompt)
        decode_options, limit = self._decode_options, self.sizes.reply
        sizes = (prompt.capacity, prompt.num_features)
        yield ("empty", *sizes), _empty, (prompt.index, prompt.positions), cache_options
        hidden, features, cache = jax.eval_shape(partial(_empty, **cache_options), prompt.index, prompt.positions)
        for first_row, frames in prompt.vision:
            num_patches, dtype = frames.patches.shape[1], str(frames.patches.dtype)
            encode = self.vision_params, frames
            yield ("encode", num_patches, dtype, frames.frame_span), programs.encode_vision, encode, config
            rows = jax.eval_shape(partial(programs.encode_vision, **config), *encode)
            yield ("store", num_patches, prompt.num_features), _store, (features, rows, np.int32(first_row)), {}
        yield ("prefill", *sizes), programs.prefill, (self.text_params, prompt.prefill[0], features, hidden, cache), config
        decode = self.text_params, prompt.inputs, hidden, cache, limit
        yield ("decode", prompt.capacity), programs.decode, decode, decode_options
        state = jax.eval_shape(lambda *args: programs.decode(*args, limit, **decode_options), *decode[:-1])
        resume = self.text_params, prompt.inputs, state, limit
        yield ("resume", prompt.capacity), programs.resume_decode, resume, self._resume_options

    def slices(self, prompt: SlicedPrompt) -> Iterator[list[int]]:
        """Run a prompt: each item is one slice, which the device has completed, with the ids of the reply that it chose, none
        before the prompt is prefilled. The id that ended the reply is the last. Close the iterator to end it early."""
        hidden, features, cache = self._run(_empty, prompt.index, prompt.positions, **self._cache_options(prompt))
        for first_row, frames in prompt.vision:
            rows = self._run(programs.encode_vision, self.vision_params, frames, config=self.config)
            features = jax.block_until_ready(self._run(_store, features, rows, np.int32(first_row)))
            del rows
            yield []
        for batch in prompt.prefill:
            arguments = self.text_params, batch, features, hidden, cache
            hidden, cache = jax.block_until_ready(self._run(programs.prefill, *arguments, config=self.config))
            del arguments
            yield []
        del features
        inputs = jax.device_put(prompt.inputs)
        count, limit = 0, self.sizes.reply
        state = self._run(programs.decode, self.text_params, inputs, hidden, cache, limit, **self._decode_options)
        del cache
        while True:
            total = int(np.asarray(state.count)[0])
            yield np.asarray(state.tokens)[0, count:total].tolist()
            if np.asarray(state.done)[0]:
                return
            count, limit = total, total + self.sizes.reply
            state = self._run(programs.resume_decode, self.text_params, inputs, state, limit, **self._resume_options)

    def _cache_options(self, prompt: SlicedPrompt) -> dict[str, Any]:
        return {"config": self.config, "num_features": prompt.num_features, "dtype": self.dtype}

    def _run(self, program: Any, *args: Any, **options: Any) -> Any:
        with on_mesh(self.mesh):  # for each program: a context must not stay open from one slice to the next
            return program(*args, **options)


@partial(jax.jit, static_argnames=("config", "num_features", "dtype"))
def _empty(
    index: Int[Array | np.ndarray, "1 S"],
    positions: Float32[Array | np.ndarray, "1 3 S"],
    *,
    config: ModelConfig,
    num_features: int,
    dtype: str,
) -> tuple[Float[Array, "1 D"], Features, KVCache]:
    """A hidden state and vision features of nothing yet, and a KV cache that describes the prompt and its reply."""
    cache = KVCache.empty(config.text, 1, index.shape[1], dtype).constrain().with_slots(index, positions)
    rows = jnp.zeros((1, num_features, config.text.hidden_size), config.dtype)
    features = Features(rows, tuple(jnp.zeros_like(rows) for _ in config.vision.deepstack_visual_indexes))
    return jnp.zeros((1, config.text.hidden_size), config.dtype), features, cache


@partial(jax.jit, donate_argnames="features")
def _store(features: Features, new: Features, first_row: Int[Array | np.ndarray, ""]) -> Features:
    """Features with those of some frames from a row on. Rows of padding come after them, where the next frames go."""

    def write(x: jax.Array, rows: jax.Array) -> jax.Array:
        return x.at[:, first_row + jnp.arange(rows.shape[1])].set(rows.astype(x.dtype), mode="drop")

    return jax.tree.map(write, features, new)


def _slot_metadata(inputs: Inputs, capacity: int, num_reply: int) -> tuple[np.ndarray, np.ndarray]:
    """Index and position of every slot: the prompt's tokens in their order, then those of its reply."""
    length = inputs.ids.shape[1]
    index, positions = np.full((1, capacity), -1, np.int32), np.zeros((1, 3, capacity), np.float32)
    index[0, : length + num_reply] = np.arange(length + num_reply)
    positions[:, :, :length] = inputs.positions
    positions[:, :, length : length + num_reply] = inputs.positions.max() + 1 + np.arange(num_reply)
    return index, positions


def _prefill_slices(inputs: Inputs, size: int, capacity: int) -> Iterator[PrefillBatch]:
    """The prompt's tokens, `size` at a time; the slots of padding do not exist."""
    length = inputs.ids.shape[1]
    for start in range(0, length, size):
        count = min(size, length - start)
        ids, index, vision_index = (
            np.pad(x[:, start : start + count], [(0, 0), (0, size - count)], constant_values=fill)
            for x, fill in ((inputs.ids, 0), (inputs.index, -1), (inputs.vision_index, -1))
        )
        positions = np.pad(inputs.positions[:, :, start : start + count], [(0, 0), (0, 0), (0, size - count)])
        slots = np.full((1, size), capacity, np.int32)
        slots[0, :count] = np.arange(start, start + count)
        newest = np.array([count - 1 if start + count == length else -1], np.int32)
        yield PrefillBatch(Inputs(ids, index, positions, vision_index), slots, newest)


def _vision_slices(vision: VisionInput | None, max_patches: int, config: ModelConfig) -> Iterator[VisionSlice]:
    """The frames of a prompt, as many at a time as have `max_patches`, or one. No frame attends to another."""
    if vision is None:
        return
    num_patches = vision.frame_range.shape[1]
    ends = np.unique(vision.frame_range[0, :, 1]) + 1  # of the frames
    start = 0
    while start < num_patches:
        following = ends[ends > start]
        end = int(max(following[0], following[following <= start + max_patches].max(initial=0)))
        yield VisionSlice(start // config.vision.merge_unit, _frames(vision, start, end))
        start = end


def _frames(vision: VisionInput, start: int, end: int) -> VisionInput:
    """Patches [start, end) of a VisionInput, padded to a bucket."""
    size = bucket(end - start, PATCH_BUCKETS, "patches of a frame")
    tables = {name: getattr(vision, name)[:, start:end] for name in ("patches", *VISION_TABLES)}
    tables |= {name: tables[name] - np.int32(start) for name in RANGES}
    padding = [(0, 0), (0, size - (end - start)), (0, 0)]
    padded = {name: np.pad(table, padding) for name, table in tables.items()}
    for name in RANGES:
        padded[name][:, end - start :] = EMPTY_RANGE
    return replace(vision, **padded)
