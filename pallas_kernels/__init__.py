"""Attention kernels for a streaming vision-language model, usable on their own (jax and numpy only).

    decode_attention    a few new tokens against a ring buffer of slots
    prefill_attention   a chunk of new tokens against the slots, their own among them; or a complete causal sequence
    vision_attention    patches inside windows and frames

There is no attention mask: two integers a query and one a slot replace it. Query t attends to slot s iff
first[t] <= index[s] <= last[t] and index[s] >= 0. That expresses causal attention, padding, windows, frames, and a KV cache
whose slots are in any order (a ring buffer). Grouped-query attention throughout: N query heads share K kv heads.
`reference.attention` is the definition; `implementation` names one of IMPLEMENTATIONS, "auto" picks one and says why.
"""

from pallas_kernels.api import decode_attention, prefill_attention, vision_attention
from pallas_kernels.dispatch import IMPLEMENTATIONS

__all__ = ["IMPLEMENTATIONS", "decode_attention", "prefill_attention", "vision_attention"]
