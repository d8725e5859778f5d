"""Prefill and decode compiled ahead of time, for the CPU or for an H100 (which need not exist): XLA's FLOPs, bytes, copies."""

import argparse
import json
import re
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import numpy as np

from benchmarks.model_configs import published_config
from benchmarks.report import record
from svlm_jax.cli.flags import integer
from svlm_jax.config import Attention, ModelConfig, Weights
from svlm_jax.topology import abstract_devices

REPLY_TOKENS = 20  # of a decode loop

Program = tuple[Callable[..., Any], tuple[Any, ...]]  # a function and its abstract arguments


def bench(args: argparse.Namespace) -> None:
    attention = "mosaic_gpu" if args.target == "h100" and args.attention == "auto" else args.attention
    config = replace(published_config(args.shape), weights=args.weights, attention=attention, fused=True)
    rows = []
    for name, program in programs(config, args.tokens, args.patches, args.slots).items():
        # A layer's keys [1, slots, K, H]: a copy of that size a layer would cost more than attention itself.
        layer_size = args.slots * config.text.num_key_value_heads * config.text.head_dim
        rows.append({"step": name} | compile_stats(program, args.target, layer_size))
        print(json.dumps(rows[-1]))
    weights = "with int8 decoder weights " if args.weights == "int8" else ""
    description = (
        f"The {args.shape} shape in bfloat16 {weights}compiled ahead of time for {args.target} (attention: {attention}), "
        "nothing run: XLA's own counts. "
    )
    if args.target == "cpu":
        description += (
            "A CPU has no bfloat16 units, so XLA widens the weights to float32, which shows in bytes and temporaries."
        )
    record(f"aot_{args.shape}_{args.target}" + ("_int8" if weights else ""), description, rows, args.out)


def programs(config: ModelConfig, tokens: int, patches: int, slots: int) -> dict[str, Program]:
    """Prefill and decode of one stream; the last argument of each is the donated cache or state."""
    import jax
    from flax import nnx

    from svlm_jax.decode.generate import prefill
    from svlm_jax.decode.loop import DecodeInputs, DecodeState, decode_until
    from svlm_jax.decode.sampling import Sampling, SamplingParams
    from svlm_jax.inputs import Inputs, VisionInput
    from svlm_jax.model.cache import KVCache
    from svlm_jax.model.parameters import abstract

    graph, state = abstract(config)
    array = abstract_array
    pair = array(1, patches, 2)
    vision = VisionInput(array(1, patches, 1176, dtype="uint8"), pair, pair, pair, patches)
    inputs = Inputs(array(1, tokens), array(1, tokens), array(1, 3, tokens, dtype="float32"), array(1, tokens), vision)
    cache = jax.eval_shape(lambda: KVCache.empty(config.text, 1, slots, config.dtype))
    done, ids = array(1, dtype="bool"), array(1, config.text.vocab_size, dtype="bool")
    sampling = jax.tree.map(lambda x: array(*x.shape, dtype=x.dtype), SamplingParams.stack([Sampling()], [REPLY_TOKENS]))
    decode_inputs = DecodeInputs(
        index=array(1),
        position=array(1, dtype="float32"),
        slots=array(1, REPLY_TOKENS),
        eos_ids=array(1),
        rng_seeds=array(1, 2, dtype="uint32"),
        generated=ids,
        suppressed=ids,
        forced_ids=array(1, REPLY_TOKENS),
        done=done,
        sampling=sampling,
    )
    decode_state = DecodeState(array(1, REPLY_TOKENS), array(1), done, ids, cache, None)
    # cost_analysis counts the body of a loop once.
    decode_name = (
        f"decode, a loop of {REPLY_TOKENS} tokens over {slots} slots (FLOPs and bytes: outside the loop, plus one token)"
    )
    return {
        f"prefill, {tokens} tokens and {patches} patches": (
            lambda state, inputs, slots, cache: prefill(nnx.merge(graph, state), inputs, slots, cache),
            (state, inputs, array(1, tokens), cache),
        ),
        decode_name: (
            lambda state, inputs, decoded: decode_until(nnx.merge(graph, state), decoded, inputs, REPLY_TOKENS, max_top_k=50),
            (state, decode_inputs, decode_state),
        ),
    }


def abstract_array(*shape: int, dtype: Any = "int32") -> Any:
    import jax

    return jax.ShapeDtypeStruct(shape, dtype)


def compile_stats(program: Program, target: str, layer_size: int) -> dict[str, Any]:
    """Columns of a compiled program. layer_size: elements of the smallest copy that counts as large."""
    import jax

    function, arguments = program
    if target == "h100":
        sharding = h100_sharding()
        arguments = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), arguments)
    started = time.monotonic()
    compiled = jax.jit(function, donate_argnums=len(arguments) - 1).trace(*arguments).lower().compile()
    stats: dict[str, Any] = {"compile (s)": round(time.monotonic() - started, 1)}
    if cost := compiled.cost_analysis():  # None for a device that does not exist
        stats |= {"TFLOP": round(cost["flops"] / 1e12, 3), "bytes accessed (GB)": round(cost["bytes accessed"] / 1e9, 2)}
    if memory := compiled.memory_analysis():
        stats |= {
            "arguments (GB)": round(memory.argument_size_in_bytes / 1e9, 2),
            "of them donated (GB)": round(memory.alias_size_in_bytes / 1e9, 2),
            "temporary (GB)": round(memory.temp_size_in_bytes / 1e9, 2),
        }
    if target == "h100":
        stats["copies or transposes as large as a layer's keys"] = count_large_copies(compiled.as_text() or "", layer_size)
    return stats


def h100_sharding() -> Any:
    """The sharding of one H100 that need not exist."""
    import jax

    mesh = jax.sharding.Mesh(abstract_devices("h100x1", "--target")[:1], ("x",))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


def count_large_copies(hlo: str, min_elements: int) -> int:
    """Copies and transposes (or fusions of them) with at least `min_elements` elements in a compiled program."""
    count = 0
    for line in hlo.splitlines():
        match = re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = \w+\[([\d,]+)\]\S* (copy|transpose|fusion)\(", line)
        if match and (match[3] != "fusion" or re.search("transpose|copy", match[1])):
            count += int(np.prod([int(size) for size in match[2].split(",")])) >= min_elements
    return count


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shape", default="7b", help="3b, 7b, 32b or 72b (default 7b)")
    parser.add_argument("--target", choices=("cpu", "h100"), default="cpu", help="h100 needs no GPU (default cpu)")
    parser.add_argument("--weights", choices=get_args(Weights), default="full", help="of the decoder (default full)")
    parser.add_argument("--attention", choices=get_args(Attention), default="auto", help="default: by the target")
    parser.add_argument("--tokens", type=integer(1), default=1024, help="prompt bucket (default 1024)")
    parser.add_argument("--patches", type=integer(1), default=4096, help="vision bucket (default 4096)")
    parser.add_argument("--slots", type=integer(1), default=16384, help="cache capacity (default 16384)")
