"""One contract for every implementation: the float32 reference, on all shapes that matter, in values and gradients.

Tolerances are derived: in bfloat16 an implementation may be as far from the reference as twice what plain XLA in bfloat16 is;
in float32 the difference is rounding. On a CPU the kernels run interpreted, the GPU kernel with the race detector in one claim,
and are lowered for their device. With a Hopper GPU, `JAX_PLATFORMS=cuda pytest -m gpu tests/kernels` runs these claims on the
compiled kernel.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks
from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

from pallas_kernels import (
    IMPLEMENTATIONS,
    api,
    cudnn,
    decode_attention,
    dispatch,
    mosaic_gpu,
    prefill_attention,
    reference,
    vision_attention,
    xla,
)
from pallas_kernels import tpu as tpu_kernel
from pallas_kernels.rotary import Rotary
from pallas_kernels.workloads import OPERATIONS, WORKLOADS
from svlm_jax.config import Attention

pytestmark = pytest.mark.usefixtures("interpreted")
GPU = ("mosaic_gpu", "mosaic_gpu_pingpong")
ON_GPU = [pytest.param(name, marks=pytest.mark.gpu) for name in GPU]
KERNELS = ("interpret", "interpret_tpu", ON_GPU[0])  # of a decode step
# Of a prefill chunk and of patches. Without the slow ones, `test_pingpong.py` holds that kernel to the reference.
CHUNK_KERNELS = ("interpret", pytest.param("interpret_pingpong", marks=pytest.mark.slow), "interpret_tpu", *ON_GPU)
# Query heads, kv heads, head dim, so groups of 7 (7B), 2 (the tests; Qwen3-VL-2B), 8 (32B and 72B), 6 (Qwen2-VL-2B) and 4
# (Qwen3-VL-4B and 8B).
HEADS = [
    (7, 1, 128),
    (4, 2, 16),
    *(pytest.param(*heads, marks=pytest.mark.slow) for heads in ((8, 1, 64), (12, 2, 128), (8, 2, 128))),
]


SLOW = ("prefill qwen2-vl-2b", "prefill qwen3-vl-2b", "frame qwen3-vl-2b")  # workloads as others are, with other numbers

REFERENCE, XLA = jax.jit(reference.attention), jax.jit(xla.attention)  # a shape compiles once for all implementations


def random_qkv(batch, length, slots, heads, kv_heads, width, dtype=jnp.bfloat16, seed=0):
    rng = np.random.default_rng(seed)
    shapes = ((batch, length, heads, width), (batch, kv_heads, slots, width), (batch, kv_heads, slots, width))
    return tuple(jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)


def float_dtype(implementation):
    """float32, in which differences are rounding, except on a GPU, whose tensor cores take bfloat16 only."""
    return jnp.bfloat16 if implementation.startswith("mosaic_gpu") else jnp.float32


def ring(slots, counts, length, seed=0):
    """A ring buffer with `counts[b]` tokens in any slots, of which the newest `length` (or all) are queries."""
    rng = np.random.default_rng(seed)
    index = np.full((len(counts), slots), -1, np.int32)
    last = np.full((len(counts), length), -1, np.int32)
    for b, count in enumerate(counts):
        index[b, rng.permutation(slots)[:count]] = np.arange(count)
        queries = min(length, count)
        last[b, :queries] = np.arange(count - queries, count)
    return {"last": last, "index": index}


def angles(batch, slots, width):
    radians = np.random.default_rng(5).uniform(0, 100, (batch, slots, width // 2)).astype(np.float32)
    return Rotary(jnp.cos(radians), jnp.sin(radians))


def check(operation, implementation, arrays, visibility, **options):
    """The implementation is no further from the reference than twice plain XLA in the same dtype."""
    rotary = {"rotary": options["rotary"]} if "rotary" in options else {}
    want, in_xla = (attention(*arrays, **({"first": None} | visibility), **rotary) for attention in (REFERENCE, XLA))
    plain = np.abs(in_xla.astype(jnp.float32) - want).max()
    out = jax.jit(lambda *a: operation(*a, **visibility, implementation=implementation, **options))(*arrays)
    assert out.shape == want.shape and out.dtype == arrays[0].dtype
    off = np.abs(out.astype(jnp.float32) - want).max()
    assert off <= 2 * max(plain, 2e-6), (off, plain)
    return np.asarray(out, np.float32)


@pytest.mark.parametrize("implementation", KERNELS)
@pytest.mark.parametrize(("heads", "kv_heads", "width"), HEADS)
@pytest.mark.parametrize("rotated", [False, True], ids=["rotated before", "rotated on read"])
def test_a_decode_step_over_a_ring(implementation, heads, kv_heads, width, rotated):
    arrays = random_qkv(2, 2, 256, heads, kv_heads, width)
    options = {"rotary": angles(2, 256, width)} if rotated else {}
    if rotated and implementation == "mosaic_gpu" and width == 16:
        with pytest.raises(NotImplementedError, match="rotates keys on read only in decode, with head dims of 64 and 128"):
            check(decode_attention, implementation, arrays, ring(256, (256, 90), 2), **options)
        return
    check(decode_attention, implementation, arrays, ring(256, (256, 90), 2), **options)


@pytest.mark.parametrize("implementation", KERNELS)
@pytest.mark.parametrize("counts", [(1, 0), pytest.param((100, 3), marks=pytest.mark.slow), (1100, 257)])
def test_short_streams_and_splits_without_a_token(implementation, counts):
    # 2 splits by default; the slots of (1, 0) are nearly all empty
    arrays = random_qkv(2, 1, 1152, 4, 2, 16, float_dtype(implementation))
    out = check(decode_attention, implementation, arrays, ring(1152, counts, 1))
    assert (out[1] == 0).all() == (counts[1] == 0)


@pytest.mark.parametrize("implementation", KERNELS)
def test_a_decode_step_takes_at_most_eight_tokens(implementation):
    check(decode_attention, implementation, random_qkv(1, 8, 128, 8, 1, 16, float_dtype(implementation)), ring(128, (77,), 8))
    with pytest.raises(ValueError, match=r"9 tokens.*use prefill_attention"):
        decode_attention(*random_qkv(1, 9, 128, 7, 1, 16), **ring(128, (77,), 9))


@pytest.mark.parametrize("implementation", CHUNK_KERNELS)
@pytest.mark.parametrize(("heads", "kv_heads", "width"), HEADS)
@pytest.mark.parametrize(("length", "slots"), [(19, 256), (37, 200)], ids=["a tile", "odd"])
def test_a_chunk_over_a_ring(implementation, heads, kv_heads, width, length, slots):
    arrays = random_qkv(1, length, slots, heads, kv_heads, width)
    check(prefill_attention, implementation, arrays, ring(slots, (slots - 9,), length))


@pytest.mark.parametrize("implementation", CHUNK_KERNELS)
def test_a_chunk_whose_cached_keys_are_unrotated(implementation):
    arrays = random_qkv(2, 20, 128, 4, 2, 16, float_dtype(implementation))
    check(prefill_attention, implementation, arrays, ring(128, (128, 11), 20), rotary=angles(2, 128, 16))


@pytest.mark.parametrize("implementation", CHUNK_KERNELS)
def test_a_complete_causal_sequence_with_padding(implementation):
    index = np.where(np.arange(150) < 140, np.arange(150), -1)[None].astype(np.int32)
    arrays = random_qkv(1, 150, 150, 2, 1, 16, float_dtype(implementation))
    out = check(prefill_attention, implementation, arrays, {"last": index, "index": index})
    assert (out[:, 140:] == 0).all()


def segments(lengths, total):
    first, last = np.ones((1, total), np.int32), np.zeros((1, total), np.int32)
    start = 0
    for length in lengths:
        first[:, start : start + length], last[:, start : start + length] = start, start + length - 1
        start += length
    index = np.where(np.arange(total) < start, np.arange(total), -1)[None].astype(np.int32)
    return {"first": first, "last": last, "index": index}


@pytest.mark.parametrize("implementation", CHUNK_KERNELS)
@pytest.mark.parametrize(
    ("lengths", "span", "width"),
    [
        ((64, 48, 16, 64, 4), 64, 80),
        ((130, 60), 130, 72),  # which the kernels for Hopper pad to 80, with the scale of 72
        ((3, 9, 9), 9, 16),
        pytest.param((140, 150), 150, 64, marks=pytest.mark.slow),
    ],
)
def test_windows_and_frames_of_patches(implementation, lengths, span, width):
    total = sum(lengths) + 12
    out = check(vision_attention, implementation, random_qkv(1, total, total, 2, 2, width), segments(lengths, total), span=span)
    assert (out[:, -12:] == 0).all()


@pytest.mark.parametrize("implementation", CHUNK_KERNELS)
def test_gradients_are_those_of_the_reference(implementation):
    dtype = float_dtype(implementation)
    visibility, patches = ring(128, (128,), 12), segments((20, 12), 40)
    for operation, arrays, options in (
        (prefill_attention, random_qkv(1, 12, 128, 4, 2, 16, dtype), visibility),
        (vision_attention, random_qkv(1, 40, 40, 2, 2, 16, dtype), patches | {"span": 20}),
    ):
        ints = {"first": None} | {name: options[name] for name in options if name != "span"}
        upstream = jnp.asarray(np.random.default_rng(2).normal(size=arrays[0].shape), jnp.float32)

        def gradients(attention, upstream=upstream, arrays=arrays, **options):
            gradient = jax.jit(jax.grad(lambda *qkv: (attention(*qkv, **options) * upstream).sum(), (0, 1, 2)))(*arrays)
            return [np.asarray(x, np.float32) for x in gradient]

        want, plain = gradients(reference.attention, **ints), gradients(xla.attention, **ints)
        got = gradients(operation, **options, implementation=implementation)
        for x, expected, in_xla in zip(got, want, plain, strict=True):
            tolerance = 2e-5 if dtype == jnp.float32 else 2 * np.abs(in_xla - expected).max()
            np.testing.assert_allclose(x, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("warpgroups", [1, 2])
def test_no_thread_block_races_with_another(warpgroups):
    arrays, visibility = random_qkv(1, 20, 256, 4, 2, 16, jnp.float32), ring(256, (200,), 20)
    rotary = angles(1, 256, 16) if warpgroups == 1 else None
    tiling = mosaic_gpu.Tiling(slots=64, stages=2, warpgroups=warpgroups, splits=2)
    params = InterpretGPUParams(detect_races=True)
    ints = {name: jnp.asarray(value) for name, value in visibility.items()}
    flash = partial(mosaic_gpu.flash, first=None, **ints, rotary=rotary, tiling=tiling, interpret=params)
    out = jax.jit(flash)(*arrays)
    np.testing.assert_allclose(out, REFERENCE(*arrays, first=None, **visibility, rotary=rotary), rtol=0, atol=2e-6)
    if jax.__version_info__ < (0, 11):  # 0.11 flags the library's own pipeline as well
        assert not gpu_callbacks.get_races().races_found


@pytest.mark.parametrize(("implementation", "platform"), [(name, "cuda") for name in GPU] + [("tpu", "tpu")])
@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in WORKLOADS])
def test_real_shapes_are_lowered_for_the_device(name, implementation, platform):
    work = WORKLOADS[name]
    run = jax.jit(lambda arguments: work.run(arguments, implementation))
    lowered = run.trace(work.shapes()).lower(lowering_platforms=(platform,))
    assert {"cuda": "mosaic_gpu", "tpu": "tpu_custom_call"}[platform] in lowered.as_text()


@pytest.mark.parametrize("implementation", ON_GPU)
@pytest.mark.parametrize("name", WORKLOADS)
def test_real_shapes_on_the_device(name, implementation):
    work = WORKLOADS[name]
    arguments = work.arguments()
    arrays = tuple(arguments.pop(x) for x in "qkv")
    options = {} if work.span is None else {"span": work.span}
    if work.rotated:
        options["rotary"] = arguments.pop("rotary")
    check(OPERATIONS[work.operation], implementation, arrays, arguments, **options)


@pytest.mark.gpu
def test_a_complete_causal_sequence_by_cudnn():
    index = np.where(np.arange(192) < 150, np.arange(192), -1)[None].astype(np.int32)
    arrays = random_qkv(1, 192, 192, 4, 2, 64)
    out = check(prefill_attention, "cudnn", arrays, {"last": index, "index": index}, causal=True)
    assert (out[:, 150:] == 0).all()


# --- which implementation ---


def test_the_config_knows_the_implementations():
    assert Attention.__args__ == IMPLEMENTATIONS


def test_auto_chooses_by_the_device_and_logs_the_reason_once(caplog):
    dispatch._auto.cache_clear()
    caplog.set_level("INFO", "pallas_kernels")
    arrays = random_qkv(1, 1, 128, 4, 2, 16)
    for _ in range(2):
        decode_attention(*arrays, **ring(128, (5,), 1))
    assert [record.getMessage() for record in caplog.records] == ["decode_attention: xla, no kernel for a cpu"]


@pytest.mark.parametrize(
    ("operation", "device", "dtype", "head_dim", "causal", "expected"),
    [
        ("decode_attention", ("tpu", ""), "bfloat16", 128, False, "tpu"),
        ("decode_attention", ("gpu", "9.0"), "bfloat16", 128, False, "mosaic_gpu"),
        ("prefill_attention", ("gpu", "9.0"), "bfloat16", 128, True, "cudnn"),
        # The towers of Qwen3-VL (2B and 4B; 8B and 32B) and Qwen2.5-VL: none may fall back to xla.
        *(("vision_attention", ("gpu", "9.0"), "bfloat16", width, False, "mosaic_gpu") for width in (64, 72, 80)),
        ("prefill_attention", ("gpu", "9.0"), "bfloat16", 72, True, "cudnn"),
        ("prefill_attention", ("gpu", "9.0"), "bfloat16", 72, False, "xla"),  # the cache would be copied
        ("vision_attention", ("gpu", "9.0"), "bfloat16", 136, False, "xla"),
        ("vision_attention", ("gpu", "9.0"), "float32", 80, False, "xla"),
        ("decode_attention", ("gpu", "10.0"), "bfloat16", 128, False, "xla"),
    ],
)
def test_auto_takes_the_best_kernel_that_can(operation, device, dtype, head_dim, causal, expected):
    assert dispatch._best(operation, *device, dtype, head_dim, causal)[0] == expected


def test_a_named_implementation_never_falls_back():
    arrays, visibility = random_qkv(1, 1, 128, 4, 2, 16, jnp.float32), ring(128, (5,), 1)
    for name in ("mosaic_gpu", "cudnn"):
        with pytest.raises(NotImplementedError, match=f"{name}: got float32"):
            decode_attention(*arrays, **visibility, implementation=name)
    with pytest.raises(ValueError, match="got 'triton'; expected one of auto, xla"):
        decode_attention(*arrays, **visibility, implementation="triton")


def test_a_broken_promise_of_causal_is_detected():
    """What cuDNN would answer wrongly without a word: padding on the left, slots in another order, a token that
    attends to a later one."""
    index = jnp.asarray([[0, 1, 2, 3], [0, 1, -1, -1], [-1, -1, -1, -1], [-1, 0, 1, 2], [1, 0, 2, 3], [0, 1, 2, 3]])
    last = index.at[5, 0].set(2)
    assert cudnn.is_causal_layout(last, index).tolist() == [True, True, True, False, False, False]


def test_shapes_that_do_not_fit_are_refused():
    q, k, v = random_qkv(2, 3, 128, 4, 2, 16)
    visibility = ring(128, (5, 6), 3)
    for wrong in ((q[:, :, :3], k, v), (q, k, v[:, :, :5]), (q, k[:1], v[:1])):
        with pytest.raises(ValueError, match="decode_attention: got q"):
            decode_attention(*wrong, **visibility)
    with pytest.raises(ValueError, match="causal needs as many slots as tokens, got 128 and 3"):
        prefill_attention(q, k, v, **visibility, causal=True)
    with pytest.raises(ValueError, match="expected one range a patch"):
        vision_attention(q, k, v, first=visibility["last"], **visibility, span=4)


def test_the_default_tilings_fit_the_kernels():
    assert api.DECODE_ROWS == mosaic_gpu.ROWS
    assert tpu_kernel.Tiling().slots % tpu_kernel.LANES == 0
