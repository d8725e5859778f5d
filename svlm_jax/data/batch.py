"""From samples to a padded batch. Host side: numpy, never jax."""

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from svlm_jax.config import VisionConfig
from svlm_jax.errors import InputError
from svlm_jax.inputs import PATCH_BUCKETS, TOKEN_BUCKETS, Grid, Inputs, Sample, bucket, pack_vision
from svlm_jax.spans import grid_indices, merged_tokens, positions, total


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
        side: of the padding tokens; the model does not care.
        token_buckets, patch_buckets: static sizes, ascending. Samples without vision get none.

    Raises:
        InputError: no samples, or one that fits no bucket.
        ValueError: spans, ids and clips that do not fit together.
    """
    if not samples:
        raise InputError("samples", "none", "at least one", "pass a prompt")
    size = bucket(max(len(sample.ids) for sample in samples), token_buckets, "tokens in a prompt")
    batch = len(samples)
    # index -1 marks padding, vision_index -1 all that is no vision token
    ids = np.full((batch, size), pad_id, np.int32)
    index, vision_index = np.full((batch, size), -1, np.int32), np.full((batch, size), -1, np.int32)
    token_positions = np.zeros((batch, 3, size), np.float32)
    num_patches = max(sum(len(clip.patches) for clip in sample.clips) for sample in samples)
    patches = bucket(num_patches, patch_buckets, "patches in a prompt") if num_patches else 0
    clips = [[(clip.patches, clip.grid) for clip in sample.clips] for sample in samples]
    packed, tower_rows = pack_vision(clips, vision, patches)
    for b, (sample, merged) in enumerate(zip(samples, tower_rows, strict=True)):
        length = len(sample.ids)
        if total(sample.spans) != length:
            raise ValueError(f"sample {b}: spans add up to {total(sample.spans)}, ids to {length}")
        tokens = slice(size - length, size) if side == "left" else slice(0, length)
        ids[b, tokens], index[b, tokens] = sample.ids, np.arange(length)
        token_positions[b, :, tokens] = positions(sample.spans, vision.spatial_merge_size)
        # vision tokens are in the order of `merged`: both go by clip, then by patchify order
        is_vision = np.concatenate([np.full(span.length, span.grid is not None) for span in sample.spans])
        indices = grid_indices(sample.spans, vision.spatial_merge_size)
        num_merged = sum(merged_tokens(span.grid, vision.spatial_merge_size) for span in sample.spans if span.grid)
        if num_merged != len(merged) or is_vision.sum() != len(indices):
            raise ValueError(f"sample {b}: {is_vision.sum()} vision tokens for {len(merged)} merged patches")
        span_grids, clip_grids = [span.grid for span in sample.spans if span.grid], [clip.grid for clip in sample.clips]
        if _frames(span_grids) != _frames(clip_grids):
            raise ValueError(f"sample {b}: spans of grids {span_grids}, clips of {clip_grids}")
        vision_index[b, tokens][is_vision] = merged[indices]
    return Inputs(ids, index, token_positions, vision_index, packed if patches else None)


def _frames(grids: Iterable[Grid]) -> list[tuple[int, int]]:
    """(h, w) of each temporal patch: a clip of several may be one span, or one for each."""
    return [(h, w) for t, h, w in grids for _ in range(t)]
