"""What decoder weights in 8 bits cost in exactness: logits against those of full weights, on the same random text."""

import argparse
import json
from dataclasses import replace

import numpy as np

from benchmarks.report import record
from benchmarks.shapes import shape

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
        config, name = shape(args.shape, args.dtype), f"{args.shape}, random weights"
        values = parameters(QwenVL(config, nnx.Rngs(0)))
    else:
        directory = local_directory(args.model)
        config = replace(config_json.read(directory), scan_layers=False)
        config, values = fuse(config, convert.load(directory, config, None))
        name = directory.name
    ids = np.random.default_rng(0).integers(0, min(400, config.text.vocab_size), (SEQUENCES, LENGTH)).astype(np.int32)
    place = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), ids.shape)
    positions = np.broadcast_to(place[:, None].astype(np.float32), (SEQUENCES, 3, LENGTH))
    inputs = Inputs(ids, place, positions, np.full_like(ids, -1))

    def logits(config, values):
        return jax.jit(lambda values: from_parameters(config, values)(inputs))(values)

    full, size = logits(config, values), sum(x.nbytes for x in values.values())
    small, values = quantize(config, values)
    eighth = logits(small, values)
    p, q = jax.nn.log_softmax(full), jax.nn.log_softmax(eighth)
    row = {
        "model": name,
        "bytes (GB)": f"{size / 1e9:.2f} -> {sum(x.nbytes for x in values.values()) / 1e9:.2f}",
        "error of logits, rms over rms (%)": round(100 * float(jnp.sqrt(jnp.mean((eighth - full) ** 2) / jnp.var(full))), 2),
        "KL divergence (nats)": float(f"{float(jnp.mean(jnp.sum(jnp.exp(p) * (p - q), -1))):.2g}"),
        "same greedy token (%)": round(100 * float(jnp.mean(full.argmax(-1) == eighth.argmax(-1))), 1),
    }
    print(json.dumps(row))
    what = (
        f"Decoder matrices in 8 bits (a scale an output channel) against {config.dtype}, {SEQUENCES} x {LENGTH} random ids. "
        "Random weights have neither the outliers nor the confident choices of trained ones: measure your own (--model)."
    )
    record("int8", what, [row], args.out)
