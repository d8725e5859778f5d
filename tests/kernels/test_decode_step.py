"""Claims about the kernels of a decode step: each is what the plain operations give, on shapes that break kernels.

On a CPU they run interpreted; `test_no_block_races_with_another` with the race detector. The whole loop is held to the model's
own: same tokens, same cache.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks
from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

from pallas_kernels import decode_step
from pallas_kernels.blocks import filled_tiles
from svlm_jax.decode.loop import DecodeInputs, decode
from svlm_jax.decode.sampling import COMMENTARY, Sampling, SamplingParams
from svlm_jax.errors import InputError
from svlm_jax.model.cache import KVCache
from svlm_jax.model.fused_decode import interpreted as runs_interpreted
from svlm_jax.model.layers import RMSNorm
from svlm_jax.model.parameters import from_parameters, shapes
from tests.kernels.test_contract import REFERENCE, XLA

pytestmark = pytest.mark.usefixtures("interpreted")


def step_arguments(counts, slots, group, kv_heads, width, dtype, ended=()):
    """A ring of slots in any order with counts[b] tokens, the newest of which is to be written, but not that of `ended`."""
    batch, rng = len(counts), np.random.default_rng(sum(counts))
    shapes_of = [(batch, kv_heads, decode_step.row_count(group), width), *[(batch, kv_heads, slots, width)] * 3]
    new, *caches = (jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes_of)
    index, slot = np.full((batch, slots), -1, np.int32), np.full(batch, slots, np.int32)
    for b, count in enumerate(counts):
        order = rng.permutation(slots)[:count]
        index[b, order] = np.arange(count)
        slot[b] = slots if b in ended else order[-1]
    last = np.array(counts, np.int32) - 1
    tiles = filled_tiles(jnp.asarray(index), decode_step.DECODE_TILE)
    return new, caches, decode_step.StepMetadata(jnp.asarray(slot), jnp.asarray(last), jnp.asarray(index), tiles)


def written(caches, new, group, slot):
    """The caches with the rows of the new token, as the model's own scatter leaves them."""
    result = []
    for number, cache in enumerate(caches):
        array = np.array(cache.astype(jnp.float32))
        for b in np.flatnonzero(np.asarray(slot) < array.shape[2]):
            array[b, :, slot[b]] = np.asarray(new[b, :, group + number].astype(jnp.float32))
        result.append(array)
    return result


@pytest.mark.parametrize(
    ("dtype", "counts", "slots", "group", "kv_heads", "width", "splits"),
    [
        pytest.param("float32", (125, 40), 128, 2, 2, 16, 2, marks=pytest.mark.slow),
        pytest.param("float32", (125, 40), 128, 4, 2, 16, 2, marks=pytest.mark.slow),
        pytest.param("float32", (125, 40), 128, 6, 2, 16, 2, marks=pytest.mark.slow),
        (
            "float32",
            (1, 192, 100),
            192,
            3,
            1,
            16,
            3,
        ),  # a token alone: most splits have no tile; a full ring; a reply that has ended
        ("bfloat16", (120,), 128, 7, 1, 128, 2),  # as in 7B
    ],
    ids=["two streams", "groups of 4", "groups of 6", "one token, all slots, and an ended reply", "7 heads of width 128"],
)
def test_attention_writes_the_token_and_sees_it(dtype, counts, slots, group, kv_heads, width, splits):
    new, caches, metadata = step_arguments(counts, slots, group, kv_heads, width, dtype, ended=(2,))
    run = jax.jit(lambda *arrays: decode_step.attend(*arrays, metadata, group=group, splits=splits, interpret=True))
    out, *updated = run(new, *caches)
    for cache, expected in zip(updated, written(caches, new, group, metadata.slot), strict=True):
        np.testing.assert_array_equal(cache.astype(jnp.float32), expected)
    assert np.isfinite(out.astype(jnp.float32)).all()
    q = new[:, :, :group].reshape(len(counts), 1, kv_heads * group, width)
    visibility = {"first": None, "last": metadata.last[:, None], "index": metadata.index}
    want = REFERENCE(q, updated[0], updated[2], **visibility)[:2]  # the result of an ended reply is not used
    plain = np.abs(XLA(q, updated[0], updated[2], **visibility)[:2].astype(jnp.float32) - want).max()
    assert np.abs(out[:2].astype(jnp.float32) - want).max() <= 2 * max(plain, 2e-6)


def test_no_block_races_with_another():
    """The block that writes the token's rows is the only one that reads their tile."""
    new, caches, metadata = step_arguments((120,), 128, 2, 1, 16, "float32")
    params = InterpretGPUParams(detect_races=True)
    jax.jit(lambda *a: decode_step.attend(*a, metadata, group=2, splits=2, interpret=params))(new, *caches)[
        0
    ].block_until_ready()
    if jax.__version_info__ < (0, 11):  # 0.11 flags the library's own pipeline as well
        assert not gpu_callbacks.get_races().races_found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_norm_is_the_modules(dtype):
    rng = np.random.default_rng(1)
    x, update = (jnp.asarray(rng.normal(size=(3, 256)), dtype) for _ in range(2))
    norm = RMSNorm(256, 1e-6, dtype=dtype)
    norm.scale[...] = jnp.asarray(rng.normal(size=256), dtype)
    for added, total in ((update, x + update), (None, x)):  # one operation after the other: jitted, XLA would round less often
        got, normed = jax.jit(lambda *a: decode_step.add_rms_norm(*a, norm.scale[...], 1e-6, interpret=True))(x, added)
        np.testing.assert_array_equal(got.astype(jnp.float32), total.astype(jnp.float32))
        np.testing.assert_allclose(normed.astype(jnp.float32), norm(total).astype(jnp.float32), rtol=2 * jnp.finfo(dtype).eps)


@pytest.fixture(scope="module")
def config(tiny_dir):
    from svlm_jax.families import config_json

    config = config_json.read(tiny_dir).compute("float32")
    return replace(config, fused=True, attention="interpret", text=replace(config.text, num_hidden_layers=2))


@pytest.fixture(scope="module")
def qwen3(config):
    """The decoder of Qwen3-VL: norms of q and k, no biases, a head dim of its own, interleaved M-RoPE."""
    fields = {"head_dim": 32, "mrope_section": (6, 5, 5), "mrope_interleaved": True, "qkv_bias": False, "qk_norm": True}
    return replace(config, text=replace(config.text, **fields))


def replies(config, length: int = 4):
    """A sampled and a greedy reply after prompts of other lengths in 128 slots; the second ends two tokens before the first."""
    rng = np.random.default_rng(3)
    values = {path: jnp.asarray(rng.normal(size=x.shape) * 0.1, x.dtype) for path, x in shapes(config).items()}
    model, text = from_parameters(config, values), config.text
    counts, slots = np.array([70, 5]), 128
    index = np.full((2, slots), -1, np.int32)
    reply_slots = np.zeros((2, length), np.int32)
    for b, count in enumerate(counts):
        order = rng.permutation(slots)
        index[b, order[: count + length]] = np.arange(count + length)
        reply_slots[b] = order[count : count + length]
    shape = (2, text.num_key_value_heads, slots, text.head_dim)
    keys, values = ([jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(2)] for _ in "kv")
    positions = np.broadcast_to(np.maximum(index, 0)[:, None], (2, 3, slots)).astype(np.float32)
    cache = KVCache(tuple(keys), tuple(values), jnp.asarray(index), jnp.asarray(positions))
    ids = np.zeros((2, text.vocab_size), bool)
    inputs = DecodeInputs(
        index=counts.astype(np.int32),
        position=counts.astype(np.float32),
        slots=reply_slots,
        eos_ids=np.array([-1], np.int32),
        rng_seeds=np.array([(1, 0), (1, 1)], np.uint32),
        generated=ids,
        suppressed=ids,
        forced_ids=np.full((2, length), -1, np.int32),
        done=np.zeros(2, bool),
        sampling=SamplingParams.stack([COMMENTARY, Sampling()], [length, length - 2]),
    )
    hidden = jnp.asarray(rng.normal(size=(2, text.hidden_size)), jnp.float32)
    run = jax.jit(lambda hidden, cache: decode(model, hidden, cache, inputs, length, max_top_k=50, record=True))
    return run(hidden, cache)


@pytest.mark.parametrize("name", ["config", pytest.param("qwen3", marks=pytest.mark.slow)])
def test_a_reply_is_that_of_the_plain_decode_step(request, name):
    config = request.getfixturevalue(name)
    state, expected = replies(replace(config, fused_decode=True)), replies(replace(config, attention="xla"))
    np.testing.assert_array_equal(state.tokens, expected.tokens)
    assert state.count.tolist() == [4, 2]
    np.testing.assert_allclose(state.logits, expected.logits, rtol=0, atol=1e-4)
    for name in ("keys", "values", "rotated_keys"):
        for layer, want in zip(getattr(state.cache, name), getattr(expected.cache, name), strict=True):
            np.testing.assert_allclose(layer, want, rtol=0, atol=1e-5)


def test_what_it_does_not_take_is_one_line(config):
    on = replace(config, fused_decode=True)
    assert runs_interpreted(on, 1, 128)
    for changed, devices, capacity, message in (
        (on, 2, 128, "2 devices, expected one"),
        (on, 1, 100, "100 slots, expected a multiple of 64"),
        (replace(on, attention="xla"), 1, 128, "attention xla, expected mosaic_gpu"),
        (replace(on, attention="mosaic_gpu"), 1, 128, "head dim 16, expected a multiple of 128"),
    ):
        with pytest.raises(InputError, match=message) as error:
            runs_interpreted(changed, devices, capacity)
        assert str(error.value).startswith("fused_decode: ") and len(str(error.value)) < 300


@pytest.mark.parametrize("batch", [1, 16])
def test_real_shapes_are_lowered_for_the_device(batch):
    def abstract_array(*shape, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(shape, dtype)

    ints = [abstract_array(batch, dtype=jnp.int32)] * 2 + [abstract_array(batch, n, dtype=jnp.int32) for n in (14336, 2)]
    cache = abstract_array(batch, 4, 14336, 128)
    run = jax.jit(lambda new, caches, metadata: decode_step.attend(new, *caches, metadata, group=7))
    traced = run.trace(abstract_array(batch, 4, 16, 128), [cache] * 3, decode_step.StepMetadata(*ints))
    assert traced.lower(lowering_platforms=("cuda",)).as_text().count("mosaic_gpu_v2") == 2  # attention, and the merge


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [1, 2, 16])
def test_a_decode_step_of_7b_on_the_device(batch):
    new, caches, metadata = step_arguments([14000 - 7 * b for b in range(batch)], 14336, 7, 4, 128, "bfloat16")
    out, *updated = jax.jit(lambda *arrays: decode_step.attend(*arrays, metadata, group=7))(new, *caches)
    for cache, expected in zip(updated, written(caches, new, 7, metadata.slot), strict=True):
        np.testing.assert_array_equal(cache.astype(jnp.float32), expected)
    q = new[:, :, :7].reshape(batch, 1, 28, 128)
    visibility = {"first": None, "last": metadata.last[:, None], "index": metadata.index}
    want = REFERENCE(q, updated[0], updated[2], **visibility)
    plain = np.abs(XLA(q, updated[0], updated[2], **visibility).astype(jnp.float32) - want).max()
    assert np.abs(out.astype(jnp.float32) - want).max() <= 2 * plain


@pytest.mark.gpu
def test_the_norm_of_7b_on_the_device():
    rng = np.random.default_rng(0)
    x, update, scale = (jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for shape in ((2, 3584), (2, 3584), (3584,)))
    norm = RMSNorm(3584, 1e-6, dtype="bfloat16")
    norm.scale[...] = scale
    total, normed = decode_step.add_rms_norm(x, update, scale, 1e-6)
    np.testing.assert_array_equal(total.astype(jnp.float32), (x + update).astype(jnp.float32))
    np.testing.assert_allclose(normed.astype(jnp.float32), norm(x + update).astype(jnp.float32), rtol=2**-7)
