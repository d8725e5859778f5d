"""Compile the programs of a session before the first second of video: by running steps, or without running any."""

from collections.abc import Sequence
from functools import partial

import jax
import numpy as np

from svlm_jax.inputs import Clip
from svlm_jax.stream import programs, sequence
from svlm_jax.stream.groups import gather, scatter
from svlm_jax.stream.sequence import Chunk
from svlm_jax.stream.session import Session, StreamState


def warm(
    session: Session, state: StreamState, clip: Clip, *, tokens: bool = False, sizes: Sequence[int] | None = None
) -> StreamState:
    """Compile all that `Session.step` runs, at a place of the batch that is then free again.

    Args:
        state: consumed, as by a step.
        clip: one like those to come.
        tokens: also what `on_token` needs.
        sizes: batch sizes; by default those of the session.
    """
    free, all_sizes = state.streams.index(None), session.batch_sizes
    chunks: list[Chunk | None] = [None] * session.num_streams
    try:
        for size in all_sizes if sizes is None else sizes:
            session.batch_sizes = (size,)
            # Twice: over a mesh the outputs of the first step are sharded otherwise than its inputs were.
            for on_token in (None, None, lambda stream_id, token: None)[: 3 if tokens else 2]:
                state = session.join(state, free)
                chunks[free] = Chunk(0.0, float(session.config.chunk_seconds), clip)
                state, _ = session.step(state, chunks, on_token=on_token)
    finally:
        session.batch_sizes = all_sizes
    return session.leave(state, free)


def compile_batch_size(session: Session, size: int, state: StreamState, clip: Clip) -> None:
    """Compile what `Session.step` runs for a batch size, without running it: during steps, from any thread. For parameters that
    lie on no mesh; `warm` is for those too.

    Args:
        state: of which shapes alone are used.
        clip: one like those to come.
    """
    params, config = session.params, session.model_config
    cache = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state.cache)
    part = jax.tree.map(lambda x: jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype), cache)
    max_new_tokens = session.config.max_new_tokens
    stream = sequence.new_stream(session.opening, "", 0, session.sampling, max_new_tokens)
    chunk = Chunk(0.0, float(session.config.chunk_seconds), clip)
    scheduled = session.prepare(StreamState(cache, (stream,)), 0, chunk).scheduled
    inputs = session.program_inputs([scheduled] + [None] * (size - 1), None, cache.capacity)
    features = jax.eval_shape(partial(programs.encode_vision, config=config), params, inputs.frames)
    hidden = jax.ShapeDtypeStruct((size, config.text.hidden_size), config.dtype)
    prefill = (params, next(inputs.prefill_batches), features, hidden, part._replace(**inputs.slots))
    decode = (params, inputs.decode, hidden, part, max_new_tokens)
    lowered = [
        programs.encode_vision.lower(params, inputs.frames, config=config),
        programs.prefill.lower(*prefill, config=config),
        programs.decode.lower(*decode, **session.static_args, record=False),
    ]
    if size < session.num_streams:
        group = np.arange(size, dtype=np.int32)
        lowered += [gather.lower(cache, group), scatter.lower(cache, part, group)]
    for program in lowered:
        program.compile()
