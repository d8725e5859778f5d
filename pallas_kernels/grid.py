"""How many thread blocks a kernel for Hopper starts: its work cut to the streaming multiprocessors (SMs) of the GPU.

A block that fills an SM (registers, shared memory) runs alone on it, so blocks run in waves of one an SM, and a last wave of a
few blocks takes as long as a full one.
"""

import jax

DECODE_TILE = 64  # slots that a thread block of a decode step takes at a time
SM_COUNT = 132  # of an H100 SXM and an H200 (NVIDIA H100 Tensor Core GPU Architecture, table 3); a PCIe H100 has 114
MAX_SPLITS = 32
# In steps of the loop over tiles of slots (128 rows, 128 slots, about 2 us on an H200): what a block does around the loop;
# what the merge does for a tile of rows and each partial result that it reads or writes; what starting it takes.
BLOCK_STEPS, MERGE_STEPS, LAUNCH_STEPS = 1.0, 0.0035, 2.0
MIN_DECODE_TILES = 4  # that a block of a decode step goes through, at least: it keeps three in flight
MAX_DECODE_SPLITS = 31  # XLA merges 32 partial results or more in five kernels, fewer in three


def sm_count() -> int:
    """Of the GPU that jax runs on; that of an H100 SXM where there is none (programs compiled ahead of time)."""
    if jax.default_backend() != "gpu":
        return SM_COUNT
    return getattr(jax.devices()[0], "core_count", SM_COUNT)


def kv_splits(blocks: int, kv_tiles: int) -> int:
    """Into how many parts the slots of each tile of query rows are cut: the number that takes least time.

    Args:
        blocks: tiles of query rows times kv heads times streams, each a thread block if nothing is split.
        kv_tiles: tiles of slots that a block goes through, at most.
    """
    sms = sm_count()

    def steps(splits: int) -> float:
        waves = -(-blocks * splits // sms)
        merge = 0.0 if splits == 1 else LAUNCH_STEPS + MERGE_STEPS * blocks * (2 * splits + 1)
        return waves * (-(-kv_tiles // splits) + BLOCK_STEPS) + merge

    return min(range(1, max(1, min(kv_tiles, MAX_SPLITS)) + 1), key=steps)


def decode_splits(blocks: int, kv_tiles: int, max_splits: int = MAX_DECODE_SPLITS) -> int:
    """Into how many parts a decode step cuts the slots, so that its blocks are one wave that fills the GPU.

    Args:
        blocks: kv heads times streams, each a thread block if nothing is split.
        kv_tiles: tiles of slots of the cache.
        max_splits: that the merge takes.
    """
    splits = max(1, min(sm_count() // blocks, kv_tiles // MIN_DECODE_TILES, max_splits))
    # Parts have as many tiles each: of 31 parts of 8 tiles the last three would have none of 224.
    return -(-kv_tiles // -(-kv_tiles // splits))
