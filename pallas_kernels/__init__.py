"""Attention kernels for a streaming vision-language model, usable on their own (jax and numpy only).

    decode_attention    a few new tokens against a ring buffer of slots
    prefill_attention   a chunk of new tokens against the slots, themselves among them; or a whole causal sequence
    vision_attention    patches inside windows and frames

What is visible is two integers a query and one a slot, never a mask: query t sees slot s iff first[t] <= index[s] <= last[t]
and index[s] >= 0. That says causality, padding, windows, frames, and a ring buffer whose slots are in any order.
`reference.attention` is the definition; `implementation` names one of IMPLEMENTATIONS, "auto" picks one and says why.
"""

from pallas_kernels.api import decode_attention, prefill_attention, vision_attention
from pallas_kernels.dispatch import IMPLEMENTATIONS

__all__ = ["IMPLEMENTATIONS", "decode_attention", "prefill_attention", "vision_attention"]
