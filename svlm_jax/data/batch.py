"""From samples to a padded batch. Host side: numpy, never jax."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from svlm_jax.config import VisionConfig
from svlm_jax.errors import InputError
from svlm_jax.inputs import PATCH_BUCKETS, TOKEN_BUCKETS, Inputs, VisionInput, bucket, lay_out, stack
from svlm_jax.spans import Span, positions, total


class Clip(NamedTuple):
    """An image or a clip as the vision tower reads it: patches [P, C] in patchify order (float32, or uint8 levels), grid
    (t, h, w) in patches, `step` temporal positions from one t to the next. `video` says which pad token stands for it."""

    patches: np.ndarray
    grid: tuple[int, int, int]
    step: float = 1.0
    video: bool = False


class Sample(NamedTuple):
    """One sequence: ids [n] int32, its spans (which add up to n), and the clips of its VISION spans in order."""

    ids: np.ndarray
    spans: tuple[Span, ...]
    clips: tuple[Clip, ...]


def collate(
    samples: Sequence[Sample],
    vision: VisionConfig,
    *,
    side: Literal["left", "right"] = "right",
    token_buckets: Sequence[int] = TOKEN_BUCKETS,
    patch_buckets: Sequence[int] = PATCH_BUCKETS,
    pad_id: int = 0,
) -> Inputs:
    """Pad samples to the smallest bucket that holds them all.

    Args:
        side: where the padding tokens go; the model does not care.
        token_buckets, patch_buckets: static sizes, ascending. Samples without vision get none.

    Raises:
        InputError: no samples, or one that fits no bucket.
        ValueError: spans, ids and clips that do not fit together.
    """
    if not samples:
        raise InputError("samples", "none", "at least one", "pass a prompt")
    size = bucket(max(len(sample.ids) for sample in samples), token_buckets, "tokens in a prompt")
    batch = len(samples)
    ids = np.full((batch, size), pad_id, np.int32)
    index, rows = np.full((batch, size), -1, np.int32), np.full((batch, size), -1, np.int32)
    place = np.zeros((batch, 3, size), np.float32)
    counts = [sum(len(clip.patches) for clip in sample.clips) for sample in samples]
    patches = bucket(max(counts), patch_buckets, "patches in a prompt") if any(counts) else 0
    dtype = next((clip.patches.dtype for sample in samples for clip in sample.clips), np.float32)
    clips: list[VisionInput] = []
    for b, sample in enumerate(samples):
        length = len(sample.ids)
        if total(sample.spans) != length:
            raise ValueError(f"sample {b}: spans add up to {total(sample.spans)}, ids to {length}")
        here = slice(size - length, size) if side == "left" else slice(0, length)
        ids[b, here], index[b, here] = sample.ids, np.arange(length)
        place[b, :, here] = positions(sample.spans, vision.spatial_merge_size)
        laid, order = lay_out([(clip.patches, clip.grid) for clip in sample.clips], vision, patches, dtype)
        clips.append(laid)
        seen = np.concatenate([np.full(span.length, span.grid is not None) for span in sample.spans])
        if seen.sum() != len(order):
            raise ValueError(f"sample {b}: {seen.sum()} vision tokens for {len(order)} merged patches")
        asked, given = [span.grid for span in sample.spans if span.grid is not None], [clip.grid for clip in sample.clips]
        if asked != given:
            raise ValueError(f"sample {b}: spans of grids {asked}, clips of {given}")
        rows[b, here][seen] = order
    return Inputs(ids, index, place, rows, stack(clips) if patches else None)
