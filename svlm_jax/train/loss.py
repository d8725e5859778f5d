"""Cross-entropy of the labels of a batch, without ever holding all its logits.

`cross_entropy_at` is what training runs; `cross_entropy` takes a label for each token, as the original does, for comparison.
Owns the shift to the next token, the mean over labels and the block size. Knows nothing of optimizers or data.

Axes: B batch, T tokens, K labels of a sample, D width, V vocabulary.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

from svlm_jax.inputs import Inputs
from svlm_jax.model.text import Decoder, target_log_probs
from svlm_jax.model.vlm import QwenVL
from svlm_jax.sharding import constrain

# Tokens of each sample whose logits exist at one time: 0.3 GB in float32 at V = 152064. All logits of a sample of 8192 tokens
# would be 5 GB, and their gradient as much again.
BLOCK = 512


def loss(model: QwenVL, inputs: Inputs, labels: Int[Array | np.ndarray, "B T"]) -> tuple[Float32[Array, ""], Int[Array, ""]]:
    """(mean loss, count) of a batch; see `cross_entropy`."""
    return cross_entropy(model.text, model.hidden(inputs), labels)


def cross_entropy(
    text: Decoder, hidden: Float[Array, "B T D"], labels: Int[Array | np.ndarray, "B T"], block: int = BLOCK
) -> tuple[Float32[Array, ""], Int[Array, ""]]:
    """(mean, count): the mean of -log p(label) in nats over the labels of the batch, and their number.

    mean * count is the sum, for a mean over several batches. Without a label the mean is 0, and so are its gradients.

    Args:
        text: has the head.
        hidden: final hidden states, after the norm.
        labels: of each token itself, negative where there is none; token t is scored on the label of t + 1, so the first label
            of a sample counts for nothing.
        block: tokens of each sample at a time.
    """
    targets = jnp.pad(labels[:, 1:], ((0, 0), (0, 1)), constant_values=-1)
    total, count = token_nll(text, hidden, targets, block)
    return total / jnp.maximum(count, 1), count


def cross_entropy_at(
    text: Decoder,
    hidden: Float[Array, "B T D"],
    index: Int[Array | np.ndarray, "B K"],
    labels: Int[Array | np.ndarray, "B K"],
    block: int = BLOCK,
) -> tuple[Float32[Array, ""], Int[Array, ""]]:
    """(sum, count): the hidden state of token index[b, k] is scored on labels[b, k] (negative: on none). A twentieth of a
    window's tokens have labels, so the head does a twentieth of the work."""
    scored = jnp.take_along_axis(hidden, jnp.asarray(index)[..., None], axis=1)
    return token_nll(text, constrain(scored, "batch", None, None), labels, block)


def token_nll(
    text: Decoder, hidden: Float[Array, "B T D"], targets: Int[Array | np.ndarray, "B T"], block: int = BLOCK
) -> tuple[Float32[Array, ""], Int[Array, ""]]:
    """(sum, count) of -log p(target) where the target is not negative, `block` tokens of each sample at a time."""
    batch, length, width = hidden.shape
    block = min(block, length)
    padding = -length % block
    targets = jnp.pad(targets, ((0, 0), (0, padding)), constant_values=-1)
    hidden = jnp.pad(hidden, ((0, 0), (0, padding), (0, 0)))

    @jax.checkpoint  # the backward pass computes the logits of a block again, or all of them would be kept for it
    def block_nll(hidden: jax.Array, targets: jax.Array) -> jax.Array:
        logits = constrain(text.logits(hidden), "batch", None, "vocab")
        return -jnp.sum(target_log_probs(logits, targets))

    hidden_blocks = hidden.reshape(batch, -1, block, width).swapaxes(0, 1)
    target_blocks = targets.reshape(batch, -1, block).swapaxes(0, 1)
    with jax.named_scope("head_loss"):
        total, _ = jax.lax.scan(
            lambda total, blocks: (total + block_nll(*blocks), None),
            jnp.zeros((), jnp.float32),
            (hidden_blocks, target_blocks),
        )
    return total, jnp.sum(targets >= 0)
