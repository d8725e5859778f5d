"""Teacher forcing: how likely a model finds given continuations of a prompt, for multiple choice and for evaluation.

Owns the layout of continuations behind prompts; chooses no token. The probabilities are the model's own: no temperature, no
repetition penalty. Logits exist for a block of tokens at a time.

Axes: N continuations, C tokens of the longest (bucketed), B prompts (N, or 1 that all share), D width, V vocabulary.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int32

from svlm_jax.config import ModelConfig
from svlm_jax.decode.generate import REPLY_BUCKETS, ReplyLayout, prefill_prompts, reply_layout
from svlm_jax.errors import InputError
from svlm_jax.inputs import Inputs, bucket
from svlm_jax.model.cache import kv_cache_dtype
from svlm_jax.model.parameters import Parameters, from_parameters, parameters
from svlm_jax.model.text import target_log_probs
from svlm_jax.model.vlm import QwenVL
from svlm_jax.sharding import mesh_of, on_mesh

BLOCK = 16  # tokens of each continuation whose logits exist at one time: 10 MB in float32 at V = 152064; divides every bucket


class Scores(NamedTuple):
    """log_probs [N] float32: of each continuation, in nats; token_log_probs: of its tokens, one float32 [n] a continuation."""

    log_probs: np.ndarray
    token_log_probs: list[np.ndarray]


def score(
    model: QwenVL, inputs: Inputs, continuations: Sequence[Sequence[int] | np.ndarray], *, length_normalized: bool = False
) -> Scores:
    """Log-probabilities of continuations, on the devices that the parameters lie on.

    Args:
        inputs: a padded batch of prompts, one for each continuation, or a single one that all share and that is computed once.
        continuations: ids that follow the prompt.
        length_normalized: `log_probs` are means over the tokens instead of sums, so that a long continuation is no less likely
            for its length.

    Raises:
        InputError: no continuation, or not one for each prompt; one without tokens, or with ids outside the vocabulary.
    """
    batch, count, vocabulary = len(inputs.ids), len(continuations), model.config.text.vocab_size
    if count == 0 or batch not in (1, count):
        expected = f"{batch}, one for each prompt" if batch > 1 else "at least 1"
        raise InputError("continuations", count, expected, "pass one for each prompt, or a single prompt")
    lengths = [len(ids) for ids in continuations]
    if min(lengths) == 0:
        raise InputError(f"continuation {lengths.index(0)}", "no tokens", "at least 1", "leave it out")
    size = bucket(max(lengths), REPLY_BUCKETS, "tokens of a continuation", "pass a shorter one")
    targets = np.full((count, size), -1, np.int32)
    for row, ids in zip(targets, continuations, strict=True):
        row[: len(ids)] = ids
        outside = [token for token in row[: len(ids)].tolist() if not 0 <= token < vocabulary]
        if outside:
            raise InputError("ids of a continuation", outside[0], f"0 to {vocabulary - 1}", "use the model's tokenizer")
    params = parameters(model)
    static = {"config": model.config, "dtype": kv_cache_dtype(model.config, params)}
    with on_mesh(mesh_of(params)):
        token_log_probs = _score(params, inputs, reply_layout(inputs, size), targets, **static)
    by_token = [row[:length] for row, length in zip(np.asarray(token_log_probs), lengths, strict=True)]
    reduce = np.mean if length_normalized else np.sum
    return Scores(np.array([reduce(row) for row in by_token], np.float32), by_token)


@partial(jax.jit, static_argnames=("config", "dtype"))
def _score(
    params: Parameters,
    inputs: Inputs,
    layout: ReplyLayout,
    targets: Int32[Array | np.ndarray, "N C"],
    *,
    config: ModelConfig,
    dtype: str,
) -> Float32[Array, "N C"]:
    """Log-probability of each target id after the prompt and the targets before it, 0 where a target is negative (padding)."""
    model, targets = from_parameters(config, params), jnp.asarray(targets)
    count, size = targets.shape
    prompt_hidden, cache = prefill_prompts(model, inputs, layout, dtype)
    if len(prompt_hidden) != count:  # a shared prompt: its vision and its tokens have been computed once
        layout, prompt_hidden, cache = jax.tree.map(lambda x: jnp.repeat(x, count, axis=0), (layout, prompt_hidden, cache))
    offset, valid = jnp.arange(size), targets >= 0
    index = jnp.where(valid, layout.index[:, None] + offset, -1)
    positions = jnp.broadcast_to((layout.position[:, None] + offset)[:, None], (count, 3, size))
    slots = jnp.where(valid, layout.slots, cache.capacity)  # padding is dropped
    embeddings = model.text.embed(jnp.maximum(targets, 0))
    hidden, _ = model.text.extend(embeddings, index, positions, slots, cache)
    # The hidden state of a token predicts the next one: the newest of the prompt predicts the first target.
    hidden = jnp.concatenate([prompt_hidden[:, None], hidden[:, :-1]], axis=1)

    def block_log_probs(block: tuple[jax.Array, jax.Array]) -> jax.Array:
        return target_log_probs(model.text.logits(block[0]), block[1])

    hidden_blocks = hidden.reshape(count, -1, BLOCK, hidden.shape[-1]).swapaxes(0, 1)
    target_blocks = targets.reshape(count, -1, BLOCK).swapaxes(0, 1)
    return jax.lax.map(block_log_probs, (hidden_blocks, target_blocks)).swapaxes(0, 1).reshape(count, size)
