"""The memory of a stream of every published model: weights, and the KV cache at the paper's windows. Computed, nothing runs."""

import argparse
import json
from typing import Any

import numpy as np

from benchmarks.host import make_session
from benchmarks.model_configs import published_config
from benchmarks.report import record
from svlm_jax.families import presets


def bench(args: argparse.Namespace) -> None:
    names, configs = [], []
    for name in args.shapes.split(",") if args.shapes else presets():
        if (config := published_config(name)) not in configs:  # LiveCC-7B has the shape of Qwen2-VL-7B
            names.append(name)
            configs.append(config)
    rows = []
    for name in names:
        rows.append(memory_row(name))
        print(json.dumps(rows[-1]), flush=True)
    description = (
        "Memory of a stream, computed from the shapes of parameters and cache, nothing run: bfloat16, 1280x720 video at 2 "
        "frames a second, the default windows (16 s of frames, 512 + 512 tokens of text, replies of 20). Slots are counted "
        "with the small tokenizer of the tests, whose questions and time stamps are a little longer. While a reply is decoded, "
        "keys are held a second time, rotated. Activations and programs come on top."
    )
    record(args.name, description, rows, args.out)


def memory_row(name: str) -> dict[str, Any]:
    """Columns of a published model."""
    import jax

    from svlm_jax.model.cache import KVCache
    from svlm_jax.model.parameters import shapes

    config = published_config(name)
    weights = sum(shape.size * shape.dtype.itemsize for shape in shapes(config).values())
    session, _ = make_session(1, config)
    cache = jax.eval_shape(lambda: KVCache.empty(config.text, 1, session.capacity, config.dtype))
    keys, values = (sum(x.size * x.dtype.itemsize for x in layers) for layers in (cache.keys, cache.values))
    return {
        "model": name,
        "weights (GB)": round(weights / 1e9, 2),
        "vision tokens a chunk": int(np.prod(session.grid)) // config.vision.merge_unit,
        "slots": session.capacity,
        "KV cache a token (KiB)": (keys + values) / session.capacity / 1024,
        "KV cache (GB)": round((keys + values) / 1e9, 2),
        "KV cache in a reply (GB)": round((2 * keys + values) / 1e9, 2),
    }


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shapes", help="names separated by commas (default: every published model)")
    parser.add_argument("--name", default="memory", help="of the entry in docs/benchmarks (default memory)")
