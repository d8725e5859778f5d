"""Decode steps of a few layers: milliseconds a token of the ways to compute them, side by side on one device.

A loop of `--layers` layers at a model's width, with its embedding, head and sampling, over a nearly full cache. What a token
takes is the time of a long reply less that of a short one, by the tokens between. "loop in a graph": the loop itself is part of
a CUDA graph (XLA_FLAGS=--xla_gpu_enable_command_buffer=+WHILE), so that the host launches once a reply.
"""

import argparse
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.ceilings import median_seconds
from benchmarks.model_configs import SHAPES, model_config, with_layers
from benchmarks.report import record
from svlm_jax.cli.flags import integer
from svlm_jax.config import ModelConfig
from svlm_jax.errors import InputError

SHORT, LONG = 4, 20  # tokens of the two replies
# As XLA has them by default, and WHILE.
GRAPH_COMMANDS = "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,DYNAMIC_SLICE_FUSION,CONDITIONAL,WHILE"
VARIANTS = {  # name -> fields of the config, options of XLA
    "default": ({}, {}),
    "fused decode": ({"fused_decode": True}, {}),
    "default, loop in a graph": ({}, {"xla_gpu_enable_command_buffer": GRAPH_COMMANDS}),
    "fused decode, loop in a graph": ({"fused_decode": True}, {"xla_gpu_enable_command_buffer": GRAPH_COMMANDS}),
}


def bench(args: argparse.Namespace) -> None:
    names = list(VARIANTS) if args.only is None else args.only.split("+")
    if unknown := sorted(set(names) - set(VARIANTS)):
        raise InputError("--only", ", ".join(unknown), f"some of: {'; '.join(VARIANTS)}", "separate them by +")
    config = with_layers(model_config(args.shape, None), args.layers, 1)
    rows = measured(config, names, args.num_streams, args.slots)
    description = (
        f"{args.layers} layers of the {args.shape} shape with embedding, head and sampling (temperature 0.9, top-k 50), "
        f"{args.num_streams} streams, {args.slots} slots. ms/token: of the reply of {LONG} tokens, less that of {SHORT}. "
        "Same tokens: as the first row, of all chosen."
    )
    record(args.name, description, rows, args.out)


def measured(config: ModelConfig, names: list[str], num_streams: int, slots: int) -> list[dict[str, Any]]:
    """A row for each variant; where one does not run, "error" says why."""
    from flax import nnx

    from svlm_jax.model.vlm import QwenVL

    _, state = nnx.split(QwenVL(config, nnx.Rngs(0)))
    with ThreadPoolExecutor() as pool:
        programs = {name: pool.submit(compiled, config, name, state, num_streams, slots) for name in names}
    rows, first = [], None
    for name in names:
        row: dict[str, Any] = {"decode": name, "ms/token": "-", "same tokens": "-", "error": "-"}
        try:
            tokens, seconds = timed(config, programs[name].result(), state, num_streams, slots)
        except (InputError, NotImplementedError, RuntimeError, ValueError) as error:  # JaxRuntimeError is a RuntimeError
            rows.append(row | {"error": str(error).splitlines()[0][:120]})
        else:
            first = tokens if first is None else first
            same = f"{int((tokens == first).sum())} of {first.size}"
            rows.append(row | {"ms/token": round(1e3 * seconds, 3), "same tokens": same})
        print(json.dumps(rows[-1]), flush=True)
    return rows


def compiled(config: ModelConfig, name: str, state: Any, num_streams: int, slots: int) -> Callable[..., Any]:
    """The program of a variant: (parameters, inputs, hidden, limit, cache) -> `DecodeState`, the cache donated."""
    import jax
    from flax import nnx

    from svlm_jax.decode.loop import decode
    from svlm_jax.model.parameters import abstract

    fields, options = VARIANTS[name]
    graph, _ = abstract(replace(config, **fields))

    def run(state, inputs, hidden, limit, cache):
        return decode(nnx.merge(graph, state), hidden, cache, inputs, limit, max_top_k=50)

    arguments = jax.eval_shape(lambda: (*program_inputs(config, num_streams, slots), new_cache(config, num_streams, slots)))
    inputs, hidden, cache = arguments
    lowered = jax.jit(run, donate_argnums=4).trace(state, inputs, hidden, np.int32(LONG), cache).lower()
    return lowered.compile(compiler_options=options if jax.default_backend() == "gpu" else None)


def timed(config: ModelConfig, program: Callable[..., Any], state: Any, num_streams: int, slots: int) -> tuple[Any, float]:
    """(tokens of the long reply, seconds a token)."""
    inputs, hidden = program_inputs(config, num_streams, slots)
    cache = new_cache(config, num_streams, slots)

    def reply(limit: int) -> Any:
        nonlocal cache
        decoded = program(state, inputs, hidden, np.int32(limit), cache)
        cache = decoded.cache._replace(rotated_keys=())
        return decoded.tokens

    short, long = (median_seconds(lambda limit=limit: reply(limit)) for limit in (SHORT, LONG))
    return np.asarray(reply(LONG)), (long - short) / (LONG - SHORT)


def program_inputs(config: ModelConfig, num_streams: int, slots: int) -> tuple[Any, Any]:
    """(`DecodeInputs` of replies that nothing ends, hidden states [B, D])."""
    import jax
    import jax.numpy as jnp

    from svlm_jax.decode.loop import DecodeInputs
    from svlm_jax.decode.sampling import COMMENTARY, SamplingParams

    batch, vocabulary = num_streams, config.text.vocab_size
    count, nothing = slots - LONG, jnp.zeros((batch, vocabulary), bool)
    inputs = DecodeInputs(
        index=jnp.full(batch, count, jnp.int32),
        position=jnp.full(batch, count, jnp.float32),
        slots=jnp.asarray(np.stack([_slots(b, slots)[count:] for b in range(batch)])),
        eos_ids=jnp.full(1, -1, jnp.int32),
        rng_seeds=jnp.stack([jnp.full(batch, 1), jnp.arange(batch)], axis=1).astype(jnp.uint32),
        generated=nothing,
        suppressed=nothing,
        forced_ids=jnp.full((batch, LONG), -1, jnp.int32),
        done=jnp.zeros(batch, bool),
        sampling=jax.tree.map(jnp.asarray, SamplingParams.stack([COMMENTARY] * batch, [LONG] * batch)),
    )
    return inputs, jax.random.normal(jax.random.key(1), (batch, config.text.hidden_size), config.dtype)


def new_cache(config: ModelConfig, num_streams: int, slots: int) -> Any:
    """A full cache of random keys and values, the slots of the reply among them, in any order."""
    import jax
    import jax.numpy as jnp

    from svlm_jax.model.cache import KVCache

    text = config.text
    shape = (num_streams, text.num_key_value_heads, slots, text.head_dim)
    keys, values = (
        tuple(
            jax.random.normal(key, shape, config.dtype)
            for key in jax.random.split(jax.random.key(seed), text.num_hidden_layers)
        )
        for seed in (2, 3)
    )
    index = np.stack([np.argsort(_slots(b, slots)) for b in range(num_streams)]).astype(np.int32)
    positions = np.broadcast_to(index[:, None], (num_streams, 3, slots)).astype(np.float32)
    return KVCache(keys, values, jnp.asarray(index), jnp.asarray(positions))


def _slots(stream: int, slots: int) -> np.ndarray:
    """The slot of each token of a stream, in the order of its tokens."""
    return np.random.default_rng(stream).permutation(slots).astype(np.int32)


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shape", default="7b", help=f"{SHAPES} (default 7b)")
    parser.add_argument("--layers", type=integer(1), default=4, help="of the decoder (default 4)")
    parser.add_argument("--slots", type=integer(64), default=14336, help="cache capacity (default 14336)")
    parser.add_argument("--num-streams", type=integer(1), default=1, help="batch size (default 1)")
    parser.add_argument("--only", help=f"some, separated by +, of: {'; '.join(VARIANTS)} (default: all)")
    parser.add_argument("--name", default="decode", help="of the entry in docs/benchmarks (default decode)")
