"""Transforms of loaded parameters: projections that share their input fused and decoder matrices in 8 bits, for inference;
adapters merged, after training.

Training and checkpoints have separate q, k, v, gate and up. A decode step multiplies one row: on a GPU XLA reads the small k
and v with few blocks, and one launch costs as much as the reading; fused they are one product. Heads are fused by kv head, so a
tensor axis cuts them as before.

All functions empty `values` on the way, so that there is memory for one model only; parameters stay on their mesh.

Axes: D width, N query heads, K kv heads, G = N/K, H head dim, F MLP width.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from svlm_jax.config import ModelConfig
from svlm_jax.model.layers import to_int8
from svlm_jax.model.parameters import Parameters, shapes
from svlm_jax.sharding import shardings


def fuse(config: ModelConfig, values: Parameters) -> tuple[ModelConfig, Parameters]:
    """q, k and v as one parameter, gate and up as one: (config, parameters)."""
    config = replace(config, fused=True)
    return config, {path: _take_fused(path, values) for path in shapes(config)}


def quantize(config: ModelConfig, values: Parameters) -> tuple[ModelConfig, Parameters]:
    """Decoder matrices in 8 bits: half the bytes that a decode step reads, with a rounding error (docs/benchmarks, `int8`).

    Weights only: products are computed in the dtype of the activations. Embeddings (and with them a tied head), norms, biases
    and the vision tower, which computes much with each byte, stay as they are.
    """
    config = replace(config, weights="int8")
    expected = shapes(config)
    result: Parameters = {}
    for path in list(values):
        value, scale = values.pop(path), path.removesuffix("kernel") + "scale"
        if path.endswith(".kernel") and scale in expected:  # only what a quantized model has a scale for
            result[path], result[scale] = _to_int8(value, contract=value.ndim - len(expected[scale].shape))
        else:
            result[path] = value
    return config, result


def merge_lora(config: ModelConfig, values: Parameters) -> tuple[ModelConfig, Parameters]:
    """Low-rank adapters added to the matrices that they adapt: the same model without adapters."""
    lora_scale = config.lora_alpha / max(1, config.lora_rank)
    result: Parameters = {}
    for path in [path for path in values if not path.endswith((".lora_a", ".lora_b"))]:
        a, b = (values.pop(f"{path.removesuffix('kernel')}lora_{side}", None) for side in "ab")
        value = values.pop(path)
        if a is not None and b is not None:
            value = _add_product(value, a, b, lora_scale=lora_scale, stacked=config.scan_layers)
        result[path] = value
    return replace(config, lora_rank=0), result


@partial(jax.jit, static_argnames=("lora_scale", "stacked"))
def _add_product(kernel: jax.Array, a: jax.Array, b: jax.Array, *, lora_scale: float, stacked: bool) -> jax.Array:
    """kernel + lora_scale * A B, layer by layer where they are stacked."""
    product = partial(jnp.tensordot, axes=1, precision="highest")
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    update = jax.vmap(product)(a, b) if stacked else product(a, b)
    return (kernel.astype(jnp.float32) + lora_scale * update).astype(kernel.dtype)


_to_int8 = partial(jax.jit, static_argnames="contract")(to_int8)


def _take_fused(path: str, values: Parameters) -> jax.Array:
    """The parameter at `path` of a fused model, taken out of the parameters of a separate one."""
    if path in values:
        return values.pop(path)
    block, name, leaf = path.rsplit(".", 2)
    names, join = _FUSED[name]
    # Popped, so that the separate arrays are freed as soon as the fused one exists.
    separate = [values.pop(f"{block}.{part}.{leaf}") for part in names]
    sharding, out_sharding = separate[0].sharding, None
    if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh):
        out_sharding = shardings({path: jax.eval_shape(join, *separate).shape}, sharding.mesh)[path]
    return jax.jit(join, out_shardings=out_sharding)(*separate)


def _fuse_heads(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """[..., N, H] and twice [..., K, H] -> [..., K, G + 2, H]: each kv head behind the query heads of its group."""
    grouped = q.reshape(*k.shape[:-1], -1, k.shape[-1])
    return jnp.concatenate([grouped, k[..., None, :], v[..., None, :]], axis=-2)


def _fuse_gate_up(gate: jax.Array, up: jax.Array) -> jax.Array:
    """Twice [..., F] -> [..., 2, F]."""
    return jnp.stack([gate, up], axis=-2)


_FUSED: dict[str, tuple[tuple[str, ...], Callable]] = {
    "qkv": (("q", "k", "v"), _fuse_heads),
    "gate_up": (("gate", "up"), _fuse_gate_up),
}
