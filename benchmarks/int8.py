"""Error of int8 decoder weights: their logits against those of full weights, on the same random tokens."""

import argparse
import json
from dataclasses import replace

import numpy as np

from benchmarks.model_configs import SHAPES, model_config
from benchmarks.report import record

LENGTH, SEQUENCES = 256, 4


def bench(args: argparse.Namespace) -> None:
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from svlm_jax.checkpoint import convert
    from svlm_jax.families import config_json
    from svlm_jax.inputs import Inputs
    from svlm_jax.model.parameters import from_parameters, parameters
    from svlm_jax.model.transforms import fuse, quantize
    from svlm_jax.model.vlm import QwenVL
    from svlm_jax.pretrained import local_directory

    if args.model is None:
        config, name = model_config(args.shape, args.dtype), f"{args.shape}, random weights"
        values = parameters(QwenVL(config, nnx.Rngs(0)))
    else:
        directory = local_directory(args.model)
        config = replace(config_json.read(directory), scan_layers=False)
        config, values = fuse(config, convert.load(directory, config, None))
        name = directory.name
    ids = np.random.default_rng(0).integers(0, min(400, config.text.vocab_size), (SEQUENCES, LENGTH)).astype(np.int32)
    index = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), ids.shape)
    positions = np.broadcast_to(index[:, None].astype(np.float32), (SEQUENCES, 3, LENGTH))
    inputs = Inputs(ids, index, positions, np.full_like(ids, -1))

    def logits(config, values):
        return jax.jit(lambda values: from_parameters(config, values)(inputs))(values)

    full, size = logits(config, values), sum(x.nbytes for x in values.values())
    int8_config, values = quantize(config, values)
    quantized = logits(int8_config, values)
    p, q = jax.nn.log_softmax(full), jax.nn.log_softmax(quantized)
    row = {
        "model": name,
        "bytes (GB)": f"{size / 1e9:.2f} -> {sum(x.nbytes for x in values.values()) / 1e9:.2f}",
        "relative RMS error of logits (%)": round(100 * float(jnp.sqrt(jnp.mean((quantized - full) ** 2) / jnp.var(full))), 2),
        "KL divergence (nats)": float(f"{float(jnp.mean(jnp.sum(jnp.exp(p) * (p - q), -1))):.2g}"),
        "same greedy token (%)": round(100 * float(jnp.mean(full.argmax(-1) == quantized.argmax(-1))), 1),
    }
    print(json.dumps(row))
    description = (
        f"Decoder matrices in int8 (a scale per output channel) against {config.dtype}, {SEQUENCES} x {LENGTH} random tokens. "
        "Random weights have neither the outliers nor the confident predictions of trained ones: measure your own (--model)."
    )
    record("int8", description, [row], args.out)


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shape", default="mid", help=f"of random weights: {SHAPES} (default mid)")
    parser.add_argument("--model", help="a checkpoint directory or hub id instead of random weights")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: float32 on a CPU, otherwise bfloat16")
