"""Compile the programs of a session before the first second of video, side by side.

Programs are traced and lowered one after the other, in one thread, and compiled by a pool of threads as they come. jax keeps
what is compiled, by the shapes of the arguments, for the jitted functions that `Session.step` calls.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import jax
import numpy as np

from svlm_jax.inputs import Clip
from svlm_jax.stream import programs
from svlm_jax.stream.frames import with_length
from svlm_jax.stream.groups import gather, scatter
from svlm_jax.stream.sequence import Chunk
from svlm_jax.stream.session import Session, StreamState
from svlm_jax.stream.stream_settings import DEFAULT_SETTINGS

OnProgress = Callable[[int, int], object]  # (programs compiled so far, all of them)


def warm(
    session: Session,
    state: StreamState,
    clip: Clip,
    *,
    tokens: bool = False,
    sizes: Sequence[int] | None = None,
    progress: OnProgress | None = None,
) -> StreamState:
    """Compile all that `Session.step` runs, and run it once, at a place of the batch that is then free again.

    Args:
        state: consumed, as by a step.
        clip: one like those to come; of a first chunk or of another, where they differ.
        tokens: also what `on_token` needs.
        sizes: batch sizes; by default those of the session.
        progress: called before the first program, with 0, and after each.
    """
    free, all_sizes = state.streams.index(None), session.batch_sizes
    sizes = all_sizes if sizes is None else tuple(sizes)
    if session.mesh is None:
        compile_programs(session, sizes, state, clip, tokens=tokens, progress=progress)
    # Over a mesh twice: the outputs of the first step are sharded otherwise than its inputs were.
    steps = [None] * (1 if session.mesh is None else 2) + [lambda stream_id, token: None] * tokens
    chunks: list[Chunk | None] = [None] * session.num_streams
    try:
        for size in sizes:
            session.batch_sizes = (size,)
            for on_token in steps:
                state = session.join(state, free)
                for chunk_clip in reversed(_clips(session, clip)):
                    chunks[free] = Chunk(0.0, float(session.config.chunk_seconds), chunk_clip)
                    state, _ = session.step(state, chunks, on_token=on_token)
    finally:
        session.batch_sizes = all_sizes
    return session.leave(state, free)


def compile_programs(
    session: Session,
    sizes: Sequence[int],
    state: StreamState,
    clip: Clip,
    *,
    tokens: bool = False,
    progress: OnProgress | None = None,
) -> None:
    """Compile what `Session.step` runs for some batch sizes, without running it: during steps, from any thread. For parameters
    that lie on no mesh; `warm` is for those too.

    Args:
        state: of which shapes alone are used.
        clip, tokens, progress: as of `warm`.
    """
    report = progress or (lambda done, total: None)
    num_clips = len(_clips(session, clip))
    report(0, sum(1 + 2 * num_clips + tokens + 2 * _in_part(session, size, tokens) for size in sizes))
    with ThreadPoolExecutor(max(2, os.cpu_count() or 1), "compiler") as pool:
        lowered = (program for size in sizes for program in _lower(session, size, state, clip, tokens))
        # XLA works without Python's lock, tracing and lowering do not.
        futures = [pool.submit(program.compile) for program in lowered]
        for done, future in enumerate(as_completed(futures), 1):
            future.result()
            report(done, len(futures))


def _lower(session: Session, size: int, state: StreamState, clip: Clip, tokens: bool) -> Iterator[jax.stages.Lowered]:
    """The programs of a batch size."""
    config, limit = session.model_config, session.config.max_new_tokens
    cache = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state.cache)
    part = jax.tree.map(lambda x: jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype), cache)
    stream = session.admission.new_stream(DEFAULT_SETTINGS)
    hidden = jax.ShapeDtypeStruct((size, config.text.hidden_size), config.dtype)
    for chunk_clip in _clips(session, clip):
        chunk = Chunk(0.0, float(session.config.chunk_seconds), chunk_clip)
        scheduled = session.prepare(StreamState(cache, (stream,)), 0, chunk).scheduled
        frames, tower_rows = session.vision_input([[chunk_clip]] + [[]] * (size - 1))
        inputs = session.program_inputs([scheduled] + [None] * (size - 1), None, cache.capacity, tower_rows)
        yield (encode_vision := programs.encode_vision.lower(session.vision_params, frames, config=config))
        prefill = next(inputs.prefill_batches), _outputs(encode_vision), hidden, part._replace(**inputs.slots)
        yield programs.prefill.lower(session.text_params, *prefill, config=config)
    decode = programs.decode.lower(session.text_params, inputs.decode, hidden, part, limit, **session.static_args, record=False)
    yield decode
    if tokens:
        limits = np.full(size, limit, np.int32)
        yield programs.resume_decode.lower(session.text_params, inputs.decode, _outputs(decode), limits, **session.static_args)
    if _in_part(session, size, tokens):
        group = np.arange(size, dtype=np.int32)
        yield from (gather.lower(cache, group), scatter.lower(cache, part, group))


def _clips(session: Session, clip: Clip) -> list[Clip]:
    """Clips like this one of each of the session's sizes."""
    if len(session.sizes) == 1:
        return [clip]
    return [with_length(clip, size.grid[0], session.model_config.vision) for size in session.sizes]


def _in_part(session: Session, size: int, tokens: bool) -> bool:
    """Whether a step of that many streams runs on a part of the cache, or on a copy of it."""
    return size < session.num_streams or tokens


def _outputs(lowered: jax.stages.Lowered) -> Any:
    """Shapes of what a program returns."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), lowered.out_info)
