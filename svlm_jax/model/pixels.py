"""Raw frames to patches on the device, bit for bit as the host makes them with PIL (`media/pixels`).

A resize is two passes, columns and then rows. Each resized pixel is a weighted sum of source pixels in fixed point, rounded to
uint8 (`media/resize_weights` makes the weights). Then the frames are cut into patches in window order. Integers only: no device
rounds otherwise.

Three formulations of a pass, equal to the last bit. A GPU gathers with flat indices: one kernel that reads and writes rows as
they lie. A TPU has slow gathers and multiplies matrices instead. A CPU takes along an axis, frame by frame.

Axes: B streams · F frames · H, W source rows and columns · O, Q resized rows and columns · n resized pixels of a pass ·
K weights of each · P patches · C numbers a patch.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32, UInt8

from svlm_jax.config import VisionConfig
from svlm_jax.inputs import FRACTION_BITS, RawFrames, ResizeWeights
from svlm_jax.sharding import constrain

HALF = 1 << (FRACTION_BITS - 1)  # rounds to the nearest pixel
DIGIT_BITS = 8  # a weight as three signed digits, each exact in bfloat16 as a pixel is
Formulation = Literal["gather", "matmul", "take"]

# A pass takes pixels [F, A, N, R] and resizes the axis N: columns are [F, H, W, 3], rows [F, 1, H, Q * 3].
Pixels = UInt8[Array, "F A N R"]
Resized = UInt8[Array, "F A n R"]


@jax.named_scope("pixels")
def patches_of(raw: RawFrames, config: VisionConfig, formulation: Formulation | None = None) -> UInt8[Array, "B P C"]:
    """Patches in window order, uint8, zeros on padding, as `inputs.pack_vision` lays out those of `media.pixels.preprocess`.

    Args:
        formulation: of a pass; by default the one for the device that the program is compiled for.
    """
    frames = jnp.stack(raw.frames) if isinstance(raw.frames, tuple) else jnp.asarray(raw.frames)
    frames = constrain(frames, "batch", None, None, None)
    tables = jax.tree.map(jnp.asarray, raw[1:])
    by_name = {
        name: jax.vmap(partial(_patches_of_stream, config=config, one_pass=one_pass)) for name, one_pass in PASSES.items()
    }
    if formulation is not None:
        return by_name[formulation](frames, *tables)
    default = {"cpu": by_name["take"], "tpu": by_name["matmul"], "default": by_name["gather"]}
    return jax.lax.platform_dependent(frames, *tables, **default)


def _patches_of_stream(
    frames: UInt8[Array, "F H X"],
    columns: ResizeWeights,
    rows: ResizeWeights,
    patch_index: Int32[Array, " P"],
    *,
    config: VisionConfig,
    one_pass: Callable[[Pixels, ResizeWeights], Resized],
) -> UInt8[Array, "P C"]:
    num_frames, height, _ = frames.shape
    narrowed = one_pass(frames.reshape(num_frames, height, -1, 3), columns)  # [F, H, Q, 3]
    resized = one_pass(narrowed.reshape(num_frames, 1, height, -1), rows)  # [F, 1, O, Q * 3]
    return _cut(resized.reshape(num_frames, rows.start.shape[0], -1, 3), patch_index, config)


def _cut(frames: UInt8[Array, "F O Q 3"], patch_index: Int32[Array, " P"], config: VisionConfig) -> UInt8[Array, "P C"]:
    """Resized frames -> patches in window order: a transpose of static sizes, and one gather of whole patches."""
    pair, side = config.temporal_patch_size, config.patch_size
    num_frames, rows, columns, _ = frames.shape
    split = frames.reshape(num_frames // pair, pair, rows // side, side, columns // side, side, 3)
    patches = split.transpose(0, 2, 4, 6, 1, 3, 5).reshape(-1, config.patch_dim)  # (t h w) (c a p q)
    chosen = jnp.take(patches, jnp.maximum(patch_index, 0), axis=0, mode="clip")
    return jnp.where(patch_index[:, None] >= 0, chosen, 0)


def _rounded(total: Int32[Array, "..."]) -> UInt8[Array, "..."]:
    """Fixed point to pixels. Bicubic weights overshoot at edges, so that sums leave 0..255."""
    return jnp.clip(total >> FRACTION_BITS, 0, 255).astype(jnp.uint8)


def gather_pass(pixels: Pixels, weights: ResizeWeights) -> Resized:
    """With indices into the flat array. (For a gather along an axis, XLA puts that axis outermost in memory: the threads of a
    warp would read as many rows of the frame.)"""
    *outer, size, inner = pixels.shape
    shape = (*outer, weights.start.shape[0], inner)
    first_of_outer = jnp.arange(outer[0] * outer[1], dtype=jnp.int32).reshape(*outer, 1, 1) * (size * inner)
    base = first_of_outer + jnp.arange(inner, dtype=jnp.int32)
    flat, total = pixels.reshape(-1), jnp.int32(HALF)
    for k in range(weights.weight.shape[1]):
        source = jnp.minimum(weights.start + k, size - 1)[:, None]  # beyond the edge the weight is 0
        index = jnp.broadcast_to(base + source * inner, shape)
        total = total + flat.at[index].get(mode="promise_in_bounds").astype(jnp.int32) * weights.weight[:, k, None]
    # The next pass reads each pixel K times: without the barrier, XLA may compute it anew each time.
    return jax.lax.optimization_barrier(_rounded(total))


def matmul_pass(pixels: Pixels, weights: ResizeWeights) -> Resized:
    """As a product with a banded matrix, whose weights are three digits: pixels and digits are exact in bfloat16, and sums of
    their products exact in float32 (below 2^24). int32 puts them together."""
    size = pixels.shape[2]
    source = jnp.arange(size, dtype=jnp.int32)[:, None]
    rest = jnp.zeros((size, weights.start.shape[0]), jnp.int32)
    for k in range(weights.weight.shape[1]):
        rest = rest + jnp.where(source == weights.start + k, weights.weight[:, k], 0)
    # A CPU has no product of bfloat16 that sums in float32.
    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    total = jnp.int32(HALF)
    for number in range(3):
        digit = rest if number == 2 else ((rest + 128) & 255) - 128
        rest = (rest - digit) >> DIGIT_BITS
        operands = pixels.astype(dtype), digit.astype(dtype)
        product = jnp.einsum("fanr,nm->famr", *operands, preferred_element_type=jnp.float32)
        total = total + (product.astype(jnp.int32) << (DIGIT_BITS * number))
    return _rounded(total)


def take_pass(pixels: Pixels, weights: ResizeWeights) -> Resized:
    """Along the axis, in a loop over frames: on a CPU nothing but a loop keeps XLA from fusing the two passes, which computes
    each pixel of the first K times."""

    def one_frame(frame: UInt8[Array, "A N R"]) -> UInt8[Array, "A n R"]:
        total = jnp.int32(HALF)
        for k in range(weights.weight.shape[1]):
            picked = jnp.take(frame, weights.start + k, axis=1, mode="clip")  # beyond the edge the weight is 0
            total = total + picked.astype(jnp.int32) * weights.weight[:, k, None]
        return _rounded(total)

    return jax.lax.map(one_frame, pixels)


PASSES: dict[Formulation, Callable[[Pixels, ResizeWeights], Resized]] = {
    "gather": gather_pass,
    "matmul": matmul_pass,
    "take": take_pass,
}
