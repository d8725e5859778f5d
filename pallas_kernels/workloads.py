"""The shapes that matter, for tests and benchmarks alike: models of several sizes watching 720p at 2 frames a second.

Sizes without a family are those of Qwen2.5-VL; Qwen2-VL-7B and 72B have the same heads, and so has Qwen3-VL-32B with 72B. The
decode kernel of 72B is that of every dense Qwen3-VL: 8 kv heads, and a tile of 64 query rows whatever the group.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.api import decode_attention, prefill_attention, vision_attention
from pallas_kernels.rotary import Rotary

OPERATIONS = {"decode": decode_attention, "prefill": prefill_attention, "vision": vision_attention}


class Workload(NamedTuple):
    """One call. span: length of the segments of patches; rotated: whether keys are rotated on read; in_runs: slots are filled
    as a stream fills them, not in any order."""

    operation: str
    batch: int
    tokens: int
    slots: int
    heads: int
    kv_heads: int
    head_dim: int
    span: int | None = None
    rotated: bool = False
    in_runs: bool = False

    @property
    def flops(self) -> int:
        """Of the two products, over the keys attended to: a segment, or the slots up to a token's own."""
        pairs = self.tokens * self.span if self.span else self.tokens * self.slots - self.tokens * (self.tokens - 1) // 2
        return 4 * self.batch * pairs * self.heads * self.head_dim

    @property
    def bytes(self) -> int:
        """Queries, keys and values read once and results written once, in bfloat16; the angles in float32."""
        queries = 2 * self.batch * self.tokens * self.heads * self.head_dim
        cache = 2 * self.batch * self.slots * self.kv_heads * self.head_dim
        return 2 * (queries + cache) + self.rotated * 4 * self.batch * self.slots * self.head_dim

    def shapes(self) -> dict:
        """Arguments of the operation as ShapeDtypeStructs."""
        return jax.eval_shape(self.arguments)

    def arguments(self, seed: int = 0) -> dict:
        """Random arguments: a ring buffer nearly full, or segments of `span` patches."""
        keys = jax.random.split(jax.random.key(seed), 4)
        shapes = [(self.tokens, self.heads), (self.kv_heads, self.slots), (self.kv_heads, self.slots)]
        arrays = [
            jax.random.normal(key, (self.batch, *shape, self.head_dim), jnp.bfloat16)
            for key, shape in zip(keys[:3], shapes, strict=True)
        ]
        arguments: dict = dict(zip("qkv", arrays, strict=True))
        token = jnp.arange(self.tokens)
        if self.span is not None:
            first = token // self.span * self.span
            last = jnp.minimum(first + self.span, self.tokens) - 1
            ranges = {"first": first, "last": last, "index": token}
        else:
            index = self._slots_in_runs(seed) if self.in_runs else np.random.default_rng(seed).permutation(self.slots)
            ranges = {"last": self.slots - self.tokens - 3 + token, "index": jnp.where(index > self.slots - 4, -1, index)}
        arguments |= {name: jnp.tile(x.astype(jnp.int32), (self.batch, 1)) for name, x in ranges.items()}
        if self.rotated:
            angles = jax.random.uniform(keys[3], (self.batch, self.slots, self.head_dim // 2), maxval=6.0)
            arguments["rotary"] = Rotary(jnp.cos(angles), jnp.sin(angles))
        return arguments

    def _slots_in_runs(self, seed: int) -> np.ndarray:
        """Index of each slot's token: the new ones in the lowest free slots, a stretch with gaps, the others in one run around
        them."""
        rng, stretch = np.random.default_rng(seed), min(self.slots, self.tokens + 60)
        start = min(self.slots // 3, self.slots - stretch)
        new = np.sort(rng.choice(np.arange(start, start + stretch), self.tokens, replace=False))
        old = np.setdiff1d(np.arange(self.slots), new)
        index = np.empty(self.slots, np.int32)
        index[new] = self.slots - 3 - self.tokens + np.arange(self.tokens)
        index[old] = np.r_[np.arange(self.slots - 3 - self.tokens), self.slots - 3 + np.arange(3)]  # the last three are empty
        return index

    def run(self, arguments: dict, implementation: str, tiling=None) -> jax.Array:
        static = {} if self.span is None else {"span": self.span}
        return OPERATIONS[self.operation](**arguments, **static, implementation=implementation, tiling=tiling)


WORKLOADS = {
    "decode 7b": Workload("decode", 1, 1, 14336, 28, 4, 128),
    "decode 7b rotated on read": Workload("decode", 1, 1, 14336, 28, 4, 128, rotated=True),
    "decode 7b 16K slots": Workload("decode", 1, 1, 16384, 28, 4, 128),
    "decode 7b 16 streams": Workload("decode", 16, 1, 14336, 28, 4, 128),
    "decode 7b 8 tokens": Workload("decode", 1, 8, 14336, 28, 4, 128),
    "decode 72b": Workload("decode", 1, 1, 14336, 64, 8, 128),
    "decode qwen2-vl-2b": Workload("decode", 1, 1, 14336, 12, 2, 128),
    "prefill 3b": Workload("prefill", 1, 784, 14336, 16, 2, 128),
    "prefill 7b": Workload("prefill", 1, 784, 14336, 28, 4, 128),
    "prefill 7b in runs": Workload("prefill", 1, 784, 14336, 28, 4, 128, in_runs=True),
    "prefill 7b 40 tokens": Workload("prefill", 1, 40, 14336, 28, 4, 128, in_runs=True),
    "prefill 72b": Workload("prefill", 1, 784, 14336, 64, 8, 128, in_runs=True),
    "prefill qwen2-vl-2b": Workload("prefill", 1, 784, 14336, 12, 2, 128, in_runs=True),
    "prefill qwen3-vl-2b": Workload("prefill", 1, 784, 14336, 16, 8, 128, in_runs=True),
    "prefill qwen3-vl-8b": Workload("prefill", 1, 784, 14336, 32, 8, 128, in_runs=True),
    "windows 720p": Workload("vision", 1, 3600, 3600, 16, 16, 80, span=64),
    "frame 720p": Workload("vision", 1, 3600, 3600, 16, 16, 80, span=3600),
    "frame qwen3-vl-2b": Workload("vision", 1, 2880, 2880, 16, 16, 64, span=2880),
    "frame qwen3-vl-8b": Workload("vision", 1, 2880, 2880, 16, 16, 72, span=2880),
}
