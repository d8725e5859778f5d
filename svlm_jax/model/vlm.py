"""The vision-language model: vision features replace the embeddings of vision tokens, and the decoder runs over all tokens.

Axes: B batch, T tokens, M merged vision rows, D width, V vocabulary.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32, Int

from svlm_jax.config import ModelConfig
from svlm_jax.families import family_of
from svlm_jax.inputs import Inputs
from svlm_jax.model.cache import KVCache
from svlm_jax.model.text import Decoder
from svlm_jax.model.vision import Features


class QwenVL(nnx.Module):
    """Vision tower and decoder; one path for text, images, clips and batches of samples with different grids."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs | None) -> None:
        self.config = config
        self.vision = family_of(config).vision_tower(config, rngs)
        self.text = Decoder(config, rngs)

    def embed(
        self, inputs: Inputs, features: Features | None = None
    ) -> tuple[Float[Array, "B T D"], tuple[Float[Array, "B T D"], ...]]:
        """Embeddings of text and vision tokens, and what is added to them after the first layers (`Features.by_layer`).

        The vision tower encodes `inputs.vision`; without it, `features` are those that were encoded before.
        """
        x = self.text.embed(jnp.asarray(inputs.ids))
        if inputs.vision is not None:
            features = self.vision(inputs.vision)
        if features is None:
            return x, ()
        vision_index = jnp.asarray(inputs.vision_index)[..., None]
        is_vision = vision_index >= 0

        def gather(feature: jax.Array) -> jax.Array:
            return jnp.take_along_axis(feature.astype(x.dtype), jnp.maximum(vision_index, 0), axis=1)

        deepstack = tuple(jnp.where(is_vision, gather(feature), 0) for feature in features.by_layer)
        return jnp.where(is_vision, gather(features.rows), x), deepstack

    def hidden(self, inputs: Inputs) -> Float[Array, "B T D"]:
        """Final hidden states of complete sequences."""
        x, deepstack = self.embed(inputs)
        return self.text(x, jnp.asarray(inputs.index), jnp.asarray(inputs.positions), deepstack)

    def extend(
        self, inputs: Inputs, slots: Int[Array, "B T"], cache: KVCache, features: Features | None = None
    ) -> tuple[Float[Array, "B T D"], KVCache]:
        """Final hidden states of new tokens on top of a KV cache that describes them, which gets them in `slots`."""
        x, deepstack = self.embed(inputs, features)
        return self.text.extend(x, jnp.asarray(inputs.index), jnp.asarray(inputs.positions), slots, cache, deepstack)

    def __call__(self, inputs: Inputs) -> Float32[Array, "B T V"]:
        """Logits of complete sequences under causal attention."""
        return self.text.logits(self.hidden(inputs))
