"""What of attention is worth keeping where a layer is computed again for its backward pass (`jax.checkpoint`).

A kernel's result is a few kilobytes a token and costs the most FLOPs of all that a layer could keep of that size.
"""

from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

OUTPUT = "attention"
# jax's primitive of cuDNN's forward pass: (output, log-sum-exp), both of which its backward pass reads. They have no name, and
# to name the output alone would save it without sparing the call that computes the log-sum-exp again.
CUDNN_FORWARD = "dot_product_attention_fwd_wrapper"


def named(out: jax.Array) -> jax.Array:
    """The output of attention, by the name that `save_attention` knows."""
    return checkpoint_name(out, OUTPUT)


def save_attention(primitive: Any, *_: Any, **params: Any) -> bool:
    """A policy of `jax.checkpoint`: what spares attention's forward pass a second run."""
    return primitive.name == CUDNN_FORWARD or (primitive.name == "name" and params["name"] == OUTPUT)
