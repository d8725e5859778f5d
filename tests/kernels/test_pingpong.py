"""Claims about the kernel whose softmax overlaps with products: every way to cut its work gives the same, and no warpgroup
reads what another has not yet written, or overwrites what another still reads."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks
from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

from pallas_kernels import blocks, mosaic_gpu_pingpong, prefill_attention, stream_k
from pallas_kernels.mosaic_gpu_pingpong import Tiling
from tests.kernels.test_contract import REFERENCE, random_qkv, ring, segments


def runs(slots, count, length):
    """A ring buffer filled in long runs, as a stream fills it: most tiles of slots are seen whole."""
    index = np.full((1, slots), -1, np.int32)
    index[0, np.roll(np.arange(slots), 37)[:count]] = np.arange(count)
    return ring(slots, (count,), length) | {"index": index}


VISIBILITIES = {
    "any order": ring(256, (200,), 50),
    "runs": runs(448, 440, 50),
    "segments": segments((20, 12), 40),
    "few slots": ring(256, (3,), 50),  # most rows are padding, most tiles empty
}


@pytest.mark.slow
@pytest.mark.usefixtures("interpreted")
def test_it_runs_by_its_name_and_has_gradients():
    limits = {name: jnp.asarray(x) for name, x in ring(128, (100,), 12).items()}
    arrays = random_qkv(1, 12, 128, 2, 1, 16, jnp.float32)

    def value_and_gradients(implementation):
        def loss(*qkv):
            return jnp.square(prefill_attention(*qkv, **limits, implementation=implementation)).sum()

        return jax.value_and_grad(loss, (0, 1, 2))(*arrays)

    got, want = value_and_gradients("interpret_pingpong"), value_and_gradients("xla")
    for x, expected in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(x, expected, rtol=1e-5, atol=2e-5)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(
    ("visibility", "tiling"),
    [
        pytest.param("any order", Tiling(), marks=pytest.mark.slow),
        ("runs", Tiling(blocks=3)),
        pytest.param("runs", Tiling(blocks=5, pingpong=False), marks=pytest.mark.slow),
        ("segments", Tiling(warpgroups=1, overlap=False, registers=128)),
        pytest.param("segments", Tiling(blocks=2), marks=pytest.mark.slow),
        pytest.param("few slots", Tiling(blocks=17, overlap=False), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_every_cut_of_the_work_gives_the_same_without_races(visibility, tiling):
    given = {name: jnp.asarray(x) for name, x in VISIBILITIES[visibility].items()}
    limits = {"first": None} | given
    arrays = random_qkv(1, given["last"].shape[1], given["index"].shape[1], 4, 2, 16, jnp.float32)
    interpret = InterpretGPUParams(detect_races=True)
    tiling = tiling._replace(slots=64)
    flash = partial(mosaic_gpu_pingpong.flash, **limits, rotary=None, tiling=tiling, interpret=interpret)
    out = jax.jit(flash)(*arrays)
    np.testing.assert_allclose(out, REFERENCE(*arrays, **limits), rtol=0, atol=2e-6)
    if jax.__version_info__ < (0, 11):  # 0.11 flags a copy into memory that a barrier freed, in the library's pipeline too
        assert not gpu_callbacks.get_races().races_found


def test_a_tile_without_a_mask_is_seen_whole_by_every_row():
    """Else a row attends to a slot that it must not see."""
    rng = np.random.default_rng(0)
    last, first = rng.integers(-1, 40, (2, 64)).astype(np.int32), rng.integers(0, 5, (2, 64)).astype(np.int32)
    index = np.sort(rng.permutation(60)[:48])[None].repeat(2, 0).astype(np.int32)
    index[:, 40:] = blocks.EMPTY_SLOT_INDEX
    for start in (None, first):
        got = np.asarray(blocks.whole_tiles(start, jnp.asarray(last), jnp.asarray(index), 16, 8))
        low = np.zeros_like(last) if start is None else start
        visible = (index[:, None] <= last[..., None]) & (index[:, None] >= low[..., None])
        want = visible.reshape(2, 4, 16, 6, 8).all((2, 4))
        assert (got[..., :-1] == want).all() and (got[..., -1] == 0).all()


def test_steps_are_cut_evenly_and_each_is_done_once():
    rng, cut = np.random.default_rng(0), jax.jit(stream_k.cut, static_argnums=(1, 2, 3))
    shapes = [(1, 1, 1, 1, 7), (2, 3, 8, 39, 5), (1, 2, 3, 20, 59), (2, 1, 7, 6, 17)]
    for batch, heads, tiles, kv_tiles, count in [shape for shape in shapes for _ in range(10)]:
        low = rng.integers(0, kv_tiles + 1, (batch, tiles))
        high = np.maximum(low, rng.integers(0, kv_tiles + 1, (batch, tiles)))
        shares = cut(jnp.asarray(np.stack([low, high], -1), jnp.int32), heads, kv_tiles, count)
        offsets, parts, share = np.asarray(shares.offsets), np.asarray(shares.parts).reshape(-1), int(shares.blocks[0, 2])
        done, written = np.zeros(batch * heads * tiles, int), [[] for _ in range(batch * heads * tiles)]
        for block, (start, end, _) in enumerate(np.asarray(shares.blocks)):
            for tile in range(start, end):
                steps = min(offsets[tile + 1], (block + 1) * share) - max(offsets[tile], block * share)
                if steps > 0:
                    done[tile] += steps
                    written[tile].append(block - offsets[tile] // share)
        assert (done == np.diff(offsets)).all() and parts.max() <= shares.max_parts
        assert written == [list(range(number)) for number in parts]
