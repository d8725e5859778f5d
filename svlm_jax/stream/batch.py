"""What the device is told about one chunk of a batch of streams, as numpy arrays of static shapes.

A row without a stream, or whose stream waits, sees nothing and writes nothing. Owns padding; decides nothing.
Axes: B streams, T tokens of a piece, S slots, R longest reply, P patches, V vocabulary.
"""

from collections.abc import Iterator
from collections.abc import Sequence as List
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from svlm_jax.config import ModelConfig
from svlm_jax.decode.loop import DecodeInputs
from svlm_jax.decode.sampling import Sampling, SamplingParams
from svlm_jax.inputs import PATCH_BUCKETS, Inputs, VisionInput, bucket, pack_vision, stack_vision
from svlm_jax.spans import grid_index, merged_tokens
from svlm_jax.stream.sequence import Sequence


class Row(NamedTuple):
    """One stream of the batch: its retained sequence of n tokens as the reply begins, the slots [n] of its tokens and those
    [R] kept for the reply."""

    turn: Sequence
    slots: np.ndarray
    ahead: np.ndarray


Rows = List[Row | None]


def vision(rows: Rows, config: ModelConfig, size: int, frame: int) -> tuple[VisionInput, list[np.ndarray]]:
    """Frames to look at, [B, P = size, C], and the row of the vision tower's output for each of a stream's vision tokens;
    `frame`: most patches in a frame, so that other shapes are the same program."""
    clips = [[(clip.patches, clip.grid) for _, clip in row.turn.clips] if row else [] for row in rows]
    dtype = next((patches.dtype for some in clips for patches, _ in some), np.float32)
    laid = [pack_vision(some, config.vision, size, dtype) for some in clips]
    frames = replace(stack_vision([one for one, _ in laid]), frame_span=bucket(frame, PATCH_BUCKETS, "patches in a frame"))
    return frames, [where for _, where in laid]


def describe(rows: Rows, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """index [B, S] and positions [B, 3, S] of every slot, those of the reply to come included."""
    index, positions = np.full((len(rows), capacity), -1, np.int32), np.zeros((len(rows), 3, capacity), np.float32)
    for b, row in enumerate(rows):
        if row is not None:
            length, reply = len(row.slots), np.arange(len(row.ahead))
            index[b, row.slots], index[b, row.ahead] = np.arange(length), length + reply
            positions[b][:, row.slots] = row.turn.positions
            positions[b][:, row.ahead] = row.turn.positions[0, -1] + 1 + reply
    return index, positions


class Piece(NamedTuple):
    """Tokens to compute. inputs [B, T]; slots [B, T], `capacity` on padding; newest [B]: the column of a row's last token,
    -1 when it is in another piece."""

    inputs: Inputs
    slots: np.ndarray
    newest: np.ndarray


def pieces(rows: Rows, where: List[np.ndarray], size: int, capacity: int, merge: int) -> Iterator[Piece]:
    """The tokens that are not computed yet, `size` of each stream at a time; `where` as `vision` gave it."""
    batch = len(rows)
    marks = [_vision_index(row.turn, some, merge) if row else None for row, some in zip(rows, where, strict=True)]
    new = [np.flatnonzero(row.turn.slots < 0) if row else np.array([], int) for row in rows]
    for start in range(0, max(map(len, new), default=0), size):
        ids, index, at, slots = (np.full((batch, size), fill, np.int32) for fill in (0, -1, -1, capacity))
        positions, newest = np.zeros((batch, 3, size), np.float32), np.full(batch, -1, np.int32)
        for b, (row, mark) in enumerate(zip(rows, marks, strict=True)):
            if row is None or mark is None:
                continue
            here = new[b][start : start + size]
            count = len(here)
            ids[b, :count], index[b, :count], at[b, :count] = row.turn.ids[here], here, mark[here]
            positions[b, :, :count], slots[b, :count] = row.turn.positions[:, here], row.slots[here]
            if count and here[-1] == len(row.slots) - 1:
                newest[b] = count - 1
        yield Piece(Inputs(ids, index, positions, at), slots, newest)


def _vision_index(turn: Sequence, where: np.ndarray, merge: int) -> np.ndarray:
    """For each token of the sequence, its row in the vision tower's output, -1 where it has none: text, and vision tokens of
    frames that the tower does not encode again."""
    index = np.full(len(turn.ids), -1, np.int32)
    ends = np.cumsum([merged_tokens(clip.grid, merge) for _, clip in turn.clips])
    by_turn = dict(zip([number for number, _ in turn.clips], np.split(where, ends[:-1]), strict=True))
    start = 0
    for span in turn.spans:
        if span.grid is not None and span.turn in by_turn:
            index[start : start + span.length] = by_turn[span.turn][grid_index(span)]
        start += span.length
    return index


def decode_inputs(rows: Rows, forced: List[np.ndarray | None], longest: int, suppressed: np.ndarray, end: int) -> DecodeInputs:
    """The replies to come, of at most `longest` tokens, which the id `end` ends; `forced`: ids that each reply has to hold, or
    None; `suppressed` [V] bool: ids that none may hold, besides those that its stream suppresses."""
    batch, vocabulary = len(rows), len(suppressed)
    index, position = np.zeros(batch, np.int32), np.zeros(batch, np.float32)
    slots, rng_seeds = np.zeros((batch, longest), np.int32), np.zeros((batch, 2), np.uint32)
    generated, suppressed = np.zeros((batch, vocabulary), bool), np.tile(suppressed, (batch, 1))
    forced_ids = np.full((batch, longest), -1, np.int32)
    # A row without a reply has settings that cost nothing: with one temperature above 0 the whole batch is sorted.
    sampling, max_new_tokens = [Sampling()] * batch, [longest] * batch
    for b, row in enumerate(rows):
        if row is None:
            continue
        stream = row.turn
        index[b], position[b], slots[b] = len(row.slots), stream.positions[0, -1] + 1, row.ahead
        rng_seeds[b], generated[b, stream.ids] = (stream.seed, stream.chunk), True
        sampling[b], max_new_tokens[b] = stream.sampling, stream.max_new_tokens
        suppressed[b, list(stream.sampling.suppressed)] = True
        ids = forced[b]
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
        done=np.array([row is None for row in rows]),
        sampling=SamplingParams.stack(sampling, max_new_tokens),
    )
