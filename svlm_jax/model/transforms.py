"""A loaded model made ready for replies: projections that share their input joined, and decoder matrices in 8 bits if wanted;
a trained one freed of its adapters.

Training and checkpoints hold q, k, v, gate and up on their own. A decode step multiplies one row: on a GPU XLA reads the small
k and v with few blocks, and one launch costs as much as the reading; joined they are one product. Heads are joined by kv head,
so a tensor axis cuts them as before.

All functions empty `values` on the way, so that no two models are held; what lies on a mesh stays there.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from svlm_jax.config import ModelConfig
from svlm_jax.model.layers import to_int8
from svlm_jax.model.vlm import Parameters, shapes
from svlm_jax.sharding import shardings


def fuse(config: ModelConfig, values: Parameters) -> tuple[ModelConfig, Parameters]:
    """q, k and v as one parameter, gate and up as one: (config, parameters)."""
    config = replace(config, fused=True)
    return config, {path: _fused(path, values) for path in shapes(config)}


def quantize(config: ModelConfig, values: Parameters) -> tuple[ModelConfig, Parameters]:
    """Decoder matrices in 8 bits: half the bytes that a decode step reads, with an error (docs/benchmarks, `int8`).

    Weights only: products are computed in the dtype of the activations. Embeddings (and with them a tied head), norms, biases
    and the vision tower, which computes much with each byte, stay as they are.
    """
    config = replace(config, weights="int8")
    wanted = shapes(config)
    result: Parameters = {}
    for path in list(values):
        value, scale = values.pop(path), path.removesuffix("kernel") + "scale"
        if path.endswith(".kernel") and scale in wanted:
            result[path], result[scale] = _to_int8(value, contract=value.ndim - len(wanted[scale].shape))
        else:
            result[path] = value
    return config, result


def merge(config: ModelConfig, values: Parameters) -> tuple[ModelConfig, Parameters]:
    """Low-rank adapters added to the matrices that they adapt: a model without them."""
    strength = config.lora_alpha / max(1, config.lora_rank)
    result: Parameters = {}
    for path in [path for path in values if not path.endswith((".lora_a", ".lora_b"))]:
        a, b = (values.pop(f"{path.removesuffix('kernel')}lora_{side}", None) for side in "ab")
        value = values.pop(path)
        if a is not None and b is not None:
            value = _added(value, a, b, strength=strength, stacked=config.scan_layers)
        result[path] = value
    return replace(config, lora_rank=0), result


@partial(jax.jit, static_argnames=("strength", "stacked"))
def _added(kernel: jax.Array, a: jax.Array, b: jax.Array, *, strength: float, stacked: bool) -> jax.Array:
    """kernel + strength * A B, layer by layer where they are stacked."""
    product = partial(jnp.tensordot, axes=1, precision="highest")
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    both = jax.vmap(product)(a, b) if stacked else product(a, b)
    return (kernel.astype(jnp.float32) + strength * both).astype(kernel.dtype)


_to_int8 = partial(jax.jit, static_argnames="contract")(to_int8)


def _fused(path: str, values: Parameters) -> jax.Array:
    if path in values:
        return values.pop(path)
    block, name, leaf = path.rsplit(".", 2)
    parts, join = _JOINED[name]
    given = [values.pop(f"{block}.{part}.{leaf}") for part in parts]
    target, place = None, given[0].sharding
    if isinstance(place, NamedSharding) and isinstance(place.mesh, Mesh):
        target = shardings({path: jax.eval_shape(join, *given).shape}, place.mesh)[path]
    return jax.jit(join, out_shardings=target)(*given)


def _heads(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """[..., N, H] and twice [..., K, H] -> [..., K, G + 2, H]: each kv head behind the query heads that look at it."""
    grouped = q.reshape(*k.shape[:-1], -1, k.shape[-1])
    return jnp.concatenate([grouped, k[..., None, :], v[..., None, :]], axis=-2)


def _side_by_side(gate: jax.Array, up: jax.Array) -> jax.Array:
    """Twice [..., F] -> [..., 2, F]."""
    return jnp.stack([gate, up], axis=-2)


_JOINED: dict[str, tuple[tuple[str, ...], Callable]] = {
    "qkv": (("q", "k", "v"), _heads),
    "gate_up": (("gate", "up"), _side_by_side),
}
