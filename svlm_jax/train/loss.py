"""Cross-entropy of the labelled tokens of a batch, without ever holding all its logits.

`gathered` is what training runs; `cross_entropy` scores labels where they stand, as the original does, for comparison. Owns the
shift to the next token, the mean over labelled tokens and the block size. Knows nothing of optimisers or data. At the published
sizes the logits of one sample would be 8192 x 152064 float32 = 5 GB, and as much again for their gradient: the head runs over
blocks of tokens instead, and its backward pass computes a block's logits anew.

Axes: B batch, T tokens, D width, V vocabulary, c tokens in a block.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

from svlm_jax.inputs import Inputs
from svlm_jax.model.text import Decoder
from svlm_jax.model.vlm import QwenVL
from svlm_jax.sharding import constrain

BLOCK = 512  # tokens of each row whose logits exist at one time (0.3 GB in float32 at V = 152064)


def loss(model: QwenVL, inputs: Inputs, labels: Int[Array | np.ndarray, "B T"]) -> tuple[Float32[Array, ""], Int[Array, ""]]:
    """(mean loss, count) of a batch; see `cross_entropy`."""
    return cross_entropy(model.text, model.hidden(inputs), labels)


def cross_entropy(
    text: Decoder, hidden: Float[Array, "B T D"], labels: Int[Array | np.ndarray, "B T"], block: int = BLOCK
) -> tuple[Float32[Array, ""], Int[Array, ""]]:
    """(mean, count): the mean of -log p(label) in nats over the labelled tokens of the batch, and their number.

    mean * count is the sum, for a mean over several batches. Without a label the mean is 0, and so are its gradients.

    Args:
        text: has the head.
        hidden: final hidden states, after the norm.
        labels: of each token itself, negative where there is none; token t is scored on the label of t + 1, so the first label
            of a row counts for nothing.
        block: tokens of each row at a time.
    """
    total, count = surprise(text, hidden, jnp.pad(labels[:, 1:], ((0, 0), (0, 1)), constant_values=-1), block)
    return total / jnp.maximum(count, 1), count


def gathered(
    text: Decoder,
    hidden: Float[Array, "B T D"],
    at: Int[Array | np.ndarray, "B K"],
    labels: Int[Array | np.ndarray, "B K"],
    block: int = BLOCK,
) -> tuple[Float32[Array, ""], Int[Array, ""]]:
    """(sum, count) over learned tokens alone: the hidden state of token at[b, k] is scored on labels[b, k] (negative: on none).
    A twentieth of a window's tokens are learned, so the head does a twentieth of the work."""
    chosen = jnp.take_along_axis(hidden, jnp.asarray(at)[..., None], axis=1)
    return surprise(text, constrain(chosen, "batch", None, None), labels, block)


def surprise(
    text: Decoder, hidden: Float[Array, "B T D"], targets: Int[Array | np.ndarray, "B T"], block: int = BLOCK
) -> tuple[Float32[Array, ""], Int[Array, ""]]:
    """(sum, count) of -log p(target) where the target is not negative, `block` tokens of each row at a time."""
    rows, length, width = hidden.shape
    block = min(block, length)
    padding = -length % block
    targets = jnp.pad(targets, ((0, 0), (0, padding)), constant_values=-1)
    hidden = jnp.pad(hidden, ((0, 0), (0, padding), (0, 0)))

    @jax.checkpoint
    def of_block(hidden: jax.Array, targets: jax.Array) -> jax.Array:
        logits = constrain(text.logits(hidden), "batch", None, "vocab")
        # A masked sum, because a gather along a vocabulary that is cut over devices would first collect it.
        chosen = jnp.sum(jnp.where(jnp.arange(logits.shape[-1]) == targets[..., None], logits, 0), axis=-1)
        return jnp.sum(jnp.where(targets >= 0, jax.nn.logsumexp(logits, axis=-1) - chosen, 0))

    blocks = (hidden.reshape(rows, -1, block, width).swapaxes(0, 1), targets.reshape(rows, -1, block).swapaxes(0, 1))
    total, _ = jax.lax.scan(lambda sum, one: (sum + of_block(*one), None), jnp.zeros((), jnp.float32), blocks)
    return total, jnp.sum(targets >= 0)
