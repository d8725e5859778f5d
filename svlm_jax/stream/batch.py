"""One chunk of a batch of streams, as numpy arrays of static shapes: what the programs of the device are given.

A stream that waits, and a free place of the batch, has an attention mask that sees nothing and writes nothing. Owns padding;
decides nothing.
Axes: B streams, T tokens of a prefill batch, S slots, R longest reply, P patches, C numbers a patch, M merged vision tokens,
V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float32, Int32, Integer

from svlm_jax.config import ModelConfig
from svlm_jax.decode.choice import Choice, Choices
from svlm_jax.decode.loop import DecodeInputs
from svlm_jax.decode.sampling import Sampling, SamplingParams
from svlm_jax.inputs import PATCH_BUCKETS, Clip, Inputs, VisionInput, bucket, pack_vision
from svlm_jax.media.resize_weights import FrameBox
from svlm_jax.spans import Kind, Part, grid_index, merged_tokens
from svlm_jax.stream.frames import raw_vision_input
from svlm_jax.stream.sequence import StreamSequence


class ScheduledSequence(NamedTuple):
    """One stream of a step: its sequence of n tokens as the reply begins, and the slots of the KV cache that are allocated for
    these tokens and for the reply. has_question: whether the chunk came with a question; choice: the answers to it, if they are
    few. max_new_tokens: of the reply."""

    seq: StreamSequence
    slots: Int32[np.ndarray, " n"]
    reply_slots: Int32[np.ndarray, " R"]
    has_question: bool = False
    choice: Choice | None = None
    max_new_tokens: int | None = None


Batch = Sequence[ScheduledSequence | None]  # None: a free place, or a stream that waits


def vision_input(
    clips: Sequence[Sequence[Clip]],
    config: ModelConfig,
    max_patches: int,
    max_frame_patches: int,
    box: FrameBox | None = None,
    *,
    on_mesh: bool = False,
) -> tuple[VisionInput, list[Integer[np.ndarray, " M"]]]:
    """The clips of each stream for the vision tower, padded to [B, max_patches, C], and for each merged token of a stream's
    frames its row in the tower's output. max_frame_patches is static, so that frames of every shape run the same program.

    Args:
        box: of frames whose patches the device makes (`frames.raw_vision_input`); None: the clips have patches.
        on_mesh: whether devices share the streams.
    """
    frame_span = bucket(max_frame_patches, PATCH_BUCKETS, "patches in a frame")
    if box is not None:
        newest = [stream[-1] if stream else None for stream in clips]
        return raw_vision_input(newest, box, config.vision, max_patches, frame_span, on_mesh=on_mesh)
    samples = [[(clip.patches, clip.grid) for clip in stream] for stream in clips]
    packed, tower_rows = pack_vision(samples, config.vision, max_patches)
    return replace(packed, frame_span=frame_span), tower_rows


def slot_metadata(scheduled: Batch, capacity: int) -> tuple[Int32[np.ndarray, "B S"], Float32[np.ndarray, "B 3 S"]]:
    """Index and position of every slot of the KV cache, those of the reply to come included: all that the attention mask and
    RoPE need to know. An evicted token is a slot with index -1, which no query sees."""
    batch = len(scheduled)
    index, positions = np.full((batch, capacity), -1, np.int32), np.zeros((batch, 3, capacity), np.float32)
    for b, item in enumerate(scheduled):
        if item is not None:
            # One scatter an axis, by indices of numpy's own type: half the time of all axes at once, by any other.
            length, slots = len(item.slots), np.concatenate([item.slots, item.reply_slots]).astype(np.intp)
            index[b][slots] = np.arange(len(slots), dtype=np.int32)
            for axis, values in zip(positions[b], item.seq.positions, strict=True):
                axis[slots[:length]] = values
            positions[b][:, slots[length:]] = item.seq.positions[0, -1] + 1 + np.arange(len(item.reply_slots))
    return index, positions


class PrefillBatch(NamedTuple):
    """New tokens of every stream, at most T of each. slots: where their keys and values go, `capacity` on padding. newest: the
    column of a stream's last token, -1 when it is in another batch."""

    inputs: Inputs
    slots: Int32[Array | np.ndarray, "B T"]
    newest: Int32[Array | np.ndarray, " B"]


def prefill_batches(
    scheduled: Batch, tower_rows: Sequence[np.ndarray], size: int, capacity: int, merge: int
) -> Iterator[PrefillBatch]:
    """The tokens that are not in the KV cache, `size` of each stream at a time; `tower_rows` as `vision_input` returns them."""
    batch = len(scheduled)
    vision = [_vision_index(item.seq, rows, merge) if item else None for item, rows in zip(scheduled, tower_rows, strict=True)]
    new = [np.flatnonzero(item.seq.slots < 0) if item else np.array([], int) for item in scheduled]
    for start in range(0, max(map(len, new), default=0), size):
        ids, index, vision_index, slots = (np.full((batch, size), fill, np.int32) for fill in (0, -1, -1, capacity))
        positions, newest = np.zeros((batch, 3, size), np.float32), np.full(batch, -1, np.int32)
        for b, (item, stream_vision) in enumerate(zip(scheduled, vision, strict=True)):
            if item is None or stream_vision is None:
                continue
            tokens = new[b][start : start + size]
            count = len(tokens)
            ids[b, :count], index[b, :count], vision_index[b, :count] = item.seq.ids[tokens], tokens, stream_vision[tokens]
            positions[b, :, :count], slots[b, :count] = item.seq.positions[:, tokens], item.slots[tokens]
            if count and tokens[-1] == len(item.slots) - 1:
                newest[b] = count - 1
        yield PrefillBatch(Inputs(ids, index, positions, vision_index), slots, newest)


def _vision_index(seq: StreamSequence, tower_rows: np.ndarray, merge: int) -> Int32[np.ndarray, " n"]:
    """For each token of the sequence its row in the vision tower's output, -1 where it has none: text, and vision tokens of
    frames that the tower does not encode again. The blocks of a clip, each with its mark, are in the order of its rows."""
    index = np.full(len(seq.ids), -1, np.int32)
    ends = np.cumsum([merged_tokens(clip.grid, merge) for _, clip in seq.clips])
    rows_of = dict(zip([turn for turn, _ in seq.clips], np.split(tower_rows, ends[:-1]), strict=True))
    start, block, turn = 0, 0, -1
    for span in seq.spans:
        if span.kind == Kind.VISION and span.part == Part.HEAD:
            block, turn = block + 1 if span.turn == turn else 0, span.turn
        if span.grid is not None and span.turn in rows_of:
            first = block * merged_tokens(span.grid, merge)
            index[start : start + span.length] = rows_of[span.turn][first + grid_index(span)]
        start += span.length
    return index


def decode_inputs(
    scheduled: Batch,
    forced: Sequence[np.ndarray | None] | None,
    max_new_tokens: int,
    suppressed: Bool[np.ndarray, " V"],
    end: int,
    *,
    choices: bool = False,
) -> DecodeInputs:
    """The replies to come.

    Args:
        forced: ids that each reply has to hold, or None; None: no reply has any.
        max_new_tokens: R, the longest reply of the session; a stream may have a shorter limit of its own.
        suppressed: ids that no reply may hold, besides those that its stream suppresses.
        end: the id that ends a reply.
        choices: whether the programs look for answers to choose from.
    """
    batch, vocabulary = len(scheduled), len(suppressed)
    index, position = np.zeros(batch, np.int32), np.zeros(batch, np.float32)
    slots, rng_seeds = np.zeros((batch, max_new_tokens), np.int32), np.zeros((batch, 2), np.uint32)
    generated, suppressed = np.zeros((batch, vocabulary), bool), np.tile(suppressed, (batch, 1))
    forced_ids = np.full((batch, max_new_tokens), -1, np.int32)
    # A stream without a reply has settings that cost nothing: with one temperature above 0 the whole batch is sorted.
    sampling, limits = [Sampling()] * batch, [max_new_tokens] * batch
    for b, item in enumerate(scheduled):
        if item is None:
            continue
        seq = item.seq
        index[b], position[b] = len(item.slots), seq.positions[0, -1] + 1
        slots[b, : len(item.reply_slots)] = item.reply_slots  # a shorter reply writes to no slot after these
        rng_seeds[b], generated[b, seq.ids] = (seq.settings.seed, seq.chunk), True
        # Who is asked answers, however much silence the stream has asked for.
        sampling[b] = (
            replace(seq.sampling, silence=None) if item.has_question and seq.sampling.silence is not None else seq.sampling
        )
        limits[b] = item.max_new_tokens or seq.config.max_new_tokens
        suppressed[b, list(seq.sampling.suppressed)] = True
        ids = None if forced is None else forced[b]
        if ids is not None:
            forced_ids[b, : len(ids)] = ids
    return DecodeInputs(
        index=index,
        position=position,
        slots=slots,
        eos_ids=np.array([end], np.int32),
        rng_seeds=rng_seeds,
        generated=generated,
        suppressed=suppressed,
        forced_ids=forced_ids,
        done=np.array([item is None for item in scheduled]),
        sampling=SamplingParams.stack(sampling, limits),
        choices=Choices.stack([item and item.choice for item in scheduled], max_new_tokens) if choices else None,
    )
