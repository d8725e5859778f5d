"""Prefill and decode compiled ahead of time, for the CPU or for an H100 (which need not exist): FLOPs, bytes, copies, and what
a GPU would launch.
"""

import argparse
import json
import os
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from benchmarks.launches import decode_columns, mosaic_kernels, program_columns, thunks
from benchmarks.model_configs import SHAPES, published_config, with_layers
from benchmarks.report import record
from svlm_jax.cli.flags import integer
from svlm_jax.config import Attention, ModelConfig, Weights
from svlm_jax.topology import abstract_devices

REPLY_TOKENS = 20  # of a decode loop

Program = tuple[Callable[..., Any], tuple[Any, ...]]  # a function and its abstract arguments


def bench(args: argparse.Namespace) -> None:
    attention = "mosaic_gpu" if args.target == "h100" and args.attention == "auto" else args.attention
    config = replace(published_config(args.shape), weights=args.weights, attention=attention, fused=True)
    config = replace(config, fused_decode=args.fused_decode)
    if args.layers is not None:
        config = with_layers(config, args.layers, args.layers)
    rows = []
    for name, program in programs(config, args).items():
        # A layer's keys [B, slots, K, H]: a copy of that size a layer would cost more than attention itself.
        layer_size = args.num_streams * args.slots * config.text.num_key_value_heads * config.text.head_dim
        rows.append({"step": name} | compile_stats(program, args.target, layer_size, config.text.num_hidden_layers))
        print(json.dumps(rows[-1]))
    weights = "with int8 decoder weights " if args.weights == "int8" else ""
    layers = "" if args.layers is None else f", cut to {args.layers} layers"
    description = (
        f"The {args.shape} shape in bfloat16 {weights}compiled ahead of time for {args.target} (attention: {attention}, "
        f"streams: {args.num_streams}, fused decode: {args.fused_decode}{layers}), nothing run: XLA's own counts. "
    )
    if args.target == "cpu":
        description += (
            "A CPU has no bfloat16 units, so XLA widens the weights to float32, which shows in bytes and temporaries."
        )
    name = f"aot_{args.shape}_{args.target}" + ("_int8" if weights else "") + ("_fused_decode" if args.fused_decode else "")
    record(args.name or name, description, rows, args.out)


def programs(config: ModelConfig, args: argparse.Namespace) -> dict[str, Program]:
    """Prefill and decode; the last argument of each is the donated cache."""
    import jax
    from flax import nnx

    from svlm_jax.decode.generate import prefill
    from svlm_jax.decode.loop import decode
    from svlm_jax.inputs import Inputs, blank_vision
    from svlm_jax.model.cache import KVCache
    from svlm_jax.model.parameters import abstract

    graph, state = abstract(config)
    array, batch, tokens, patches = abstract_array, args.num_streams, args.tokens, args.patches
    vision = replace(blank_vision(batch, config.vision, patches), frame_span=patches)
    vision = jax.tree.map(lambda table: array(*table.shape, dtype=table.dtype), vision)
    ids = array(batch, tokens)
    inputs = Inputs(ids, ids, array(batch, 3, tokens, dtype="float32"), ids, vision)
    cache = jax.eval_shape(lambda: KVCache.empty(config.text, batch, args.slots, config.dtype))
    hidden = array(batch, config.text.hidden_size, dtype=config.dtype)
    # cost_analysis counts the body of a loop once.
    decode_name = (
        f"decode, a loop of {REPLY_TOKENS} tokens over {args.slots} slots (FLOPs and bytes: outside the loop, plus one token)"
    )
    return {
        f"prefill, {tokens} tokens and {patches} patches": (
            lambda state, inputs, slots, cache: prefill(nnx.merge(graph, state), inputs, slots, cache),
            (state, inputs, ids, cache),
        ),
        decode_name: (
            lambda state, inputs, hidden, cache: decode(
                nnx.merge(graph, state), hidden, cache, inputs, REPLY_TOKENS, max_top_k=50
            ),
            (state, decode_inputs(batch, config.text.vocab_size), hidden, cache),
        ),
    }


def decode_inputs(batch: int, vocabulary: int) -> Any:
    """Abstract `DecodeInputs` of replies of REPLY_TOKENS tokens."""
    import jax

    from svlm_jax.decode.loop import DecodeInputs
    from svlm_jax.decode.sampling import Sampling, SamplingParams

    array = abstract_array
    ids = array(batch, vocabulary, dtype="bool")
    sampling = SamplingParams.stack([Sampling()] * batch, [REPLY_TOKENS] * batch)
    return DecodeInputs(
        index=array(batch),
        position=array(batch, dtype="float32"),
        slots=array(batch, REPLY_TOKENS),
        eos_ids=array(1),
        rng_seeds=array(batch, 2, dtype="uint32"),
        generated=ids,
        suppressed=ids,
        forced_ids=array(batch, REPLY_TOKENS),
        done=array(batch, dtype="bool"),
        sampling=jax.tree.map(lambda x: array(*x.shape, dtype=x.dtype), sampling),
    )


def abstract_array(*shape: int, dtype: Any = "int32") -> Any:
    import jax

    return jax.ShapeDtypeStruct(shape, dtype)


def compile_stats(program: Program, target: str, layer_size: int, layers: int) -> dict[str, Any]:
    """Columns of a compiled program. layer_size: elements of the smallest copy that counts as large."""
    import jax

    function, arguments = program
    jitted = jax.jit(function, donate_argnums=len(arguments) - 1)
    with tempfile.TemporaryDirectory() as directory:
        os.environ |= {"MOSAIC_GPU_DUMP_TO": directory, "MOSAIC_GPU_DUMP_PTXAS": "1"}
        dump = {"xla_dump_to": directory, "xla_dump_hlo_as_text": True} if target == "h100" else {}
        started = time.monotonic()
        lowered = lower_for_h100(jitted, *arguments) if target == "h100" else jitted.trace(*arguments).lower()
        traced = time.monotonic()
        compiled = lowered.compile(compiler_options=dump)
        stats: dict[str, Any] = {"trace (s)": round(traced - started, 1), "compile (s)": round(time.monotonic() - traced, 1)}
        if cost := compiled.cost_analysis():  # None for a device that does not exist
            stats |= {"TFLOP": round(cost["flops"] / 1e12, 3), "bytes accessed (GB)": round(cost["bytes accessed"] / 1e9, 2)}
        if memory := compiled.memory_analysis():
            stats |= {
                "arguments (GB)": round(memory.argument_size_in_bytes / 1e9, 2),
                "of them donated (GB)": round(memory.alias_size_in_bytes / 1e9, 2),
                "temporary (GB)": round(memory.temp_size_in_bytes / 1e9, 2),
            }
        return stats | (h100_columns(compiled, Path(directory), layer_size, layers) if target == "h100" else {})


def h100_columns(compiled: Any, directory: Path, layer_size: int, layers: int) -> dict[str, Any]:
    """What a GPU would launch. directory: what the compilers of XLA and of Mosaic dumped."""
    hlo = compiled.as_text() or ""
    launched = thunks(directory, hlo)
    has_loop = any(thunk.kind == "kWhile" for thunk in launched)
    return {
        "program (MB)": round(len(compiled.runtime_executable().serialize()) / 1e6, 2),
        **(decode_columns(launched, layers) if has_loop else program_columns(launched)),
        "copies or transposes as large as a layer's keys": count_large_copies(hlo, layer_size),
        "Mosaic kernels": "; ".join(f"{name}: {report}" for name, report in mosaic_kernels(directory).items()),
    }


def lower_for_h100(jitted: Any, *arguments: Any) -> Any:
    """A jitted function lowered for an H100; arguments: pytrees of ShapeDtypeStructs."""
    import jax

    from pallas_kernels.dispatch import compiling_for

    device = h100_device()
    sharding = on_device(device)
    arguments = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), arguments)
    # Or the program would hold what suits the CPU that compiles it: tiles of attention, cosines in a loop.
    with compiling_for(device):
        return jitted.trace(*arguments).lower()


def h100_device() -> Any:
    """An H100 that need not exist."""
    return abstract_devices("h100x1", "--target")[0]


def on_device(device: Any) -> Any:
    """The sharding of arrays that lie on one device."""
    import jax

    mesh = jax.sharding.Mesh([device], ("x",))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


def count_large_copies(hlo: str, min_elements: int) -> int:
    """Copies and transposes (or fusions of them) with at least `min_elements` elements that a compiled program launches. Those
    inside a fusion are an order of reading, and move nothing."""
    count, in_fusion = 0, False
    for line in hlo.splitlines():
        if computation := re.match(r"(?:ENTRY )?%([\w.\-]+) \(", line):
            in_fusion = re.search("fused|fusion|wrapped", computation[1]) is not None
        match = re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = \w+\[([\d,]+)\]\S* (copy|transpose|fusion)\(", line)
        if match and not in_fusion and (match[3] != "fusion" or re.search("transpose|copy", match[1])):
            count += int(np.prod([int(size) for size in match[2].split(",")])) >= min_elements
    return count


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shape", default="7b", help=f"{SHAPES} (default 7b)")
    parser.add_argument("--target", choices=("cpu", "h100"), default="cpu", help="h100 needs no GPU (default cpu)")
    parser.add_argument("--weights", choices=get_args(Weights), default="full", help="of the decoder (default full)")
    parser.add_argument("--attention", choices=get_args(Attention), default="auto", help="default: by the target")
    parser.add_argument("--fused-decode", action="store_true", help="fused kernels of a decode step")
    parser.add_argument("--tokens", type=integer(1), default=1024, help="prompt bucket (default 1024)")
    parser.add_argument("--patches", type=integer(1), default=4096, help="vision bucket (default 4096)")
    parser.add_argument("--slots", type=integer(1), default=16384, help="cache capacity (default 16384)")
    parser.add_argument("--num-streams", type=integer(1), default=1, help="batch size (default 1)")
    parser.add_argument("--layers", type=integer(1), help="of decoder and tower: fewer tell the structure (default: all)")
    parser.add_argument("--name", help="of the entry in docs/benchmarks (default: by shape and target)")
