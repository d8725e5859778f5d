"""Prefill and decode compiled ahead of time, on the CPU or for an H100 that is not there: XLA's flops, bytes, copies."""

import argparse
import json
import re
import time
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from benchmarks.report import record
from benchmarks.shapes import published
from svlm_jax.topology import abstract_devices

REPLY = 20  # tokens of a decode loop


def bench(args: argparse.Namespace) -> None:
    import jax
    from flax import nnx

    from svlm_jax.decode.generate import prefill
    from svlm_jax.decode.loop import DecodeInputs, DecodeState, decode_until
    from svlm_jax.decode.sampling import Sampling, SamplingParams
    from svlm_jax.inputs import Inputs, VisionInput
    from svlm_jax.model.cache import KVCache
    from svlm_jax.model.parameters import abstract

    attention = "mosaic_gpu" if args.target == "h100" and args.attention == "auto" else args.attention
    config = replace(published(args.shape), weights=args.weights, attention=attention, fused=True)
    graph, state = abstract(config)
    tokens, patches, slots = args.tokens, args.patches, args.slots
    sharding = h100() if args.target == "h100" else None

    def sds(*shape: int, dtype="int32") -> Any:
        return jax.ShapeDtypeStruct(shape, dtype)

    pair = sds(1, patches, 2)
    vision = VisionInput(sds(1, patches, 1176, dtype="uint8"), pair, pair, pair, patches)
    inputs = Inputs(sds(1, tokens), sds(1, tokens), sds(1, 3, tokens, dtype="float32"), sds(1, tokens), vision)
    cache = jax.eval_shape(lambda: KVCache.empty(config.text, 1, slots, config.dtype))
    done, ids = sds(1, dtype="bool"), sds(1, config.text.vocab_size, dtype="bool")
    sampling = jax.tree.map(lambda x: sds(*x.shape, dtype=x.dtype), SamplingParams.stack([Sampling()], [REPLY]))
    decode_inputs = DecodeInputs(
        index=sds(1),
        position=sds(1, dtype="float32"),
        slots=sds(1, REPLY),
        eos_ids=sds(1),
        rng_seeds=sds(1, 2, dtype="uint32"),
        generated=ids,
        suppressed=ids,
        forced_ids=sds(1, REPLY),
        done=done,
        sampling=sampling,
    )
    decode_state = DecodeState(sds(1, REPLY), sds(1), done, ids, cache, None)
    steps = {
        f"prefill, {tokens} tokens and {patches} patches": (
            lambda state, inputs, slots, cache: prefill(nnx.merge(graph, state), inputs, slots, cache),
            (state, inputs, sds(1, tokens), cache),
        ),
        f"decode, a loop of {REPLY} tokens over {slots} slots (flops and bytes: what comes once, and one token)": (
            lambda state, inputs, decoded: decode_until(nnx.merge(graph, state), decoded, inputs, REPLY, max_top_k=50),
            (state, decode_inputs, decode_state),
        ),
    }
    layer = cache.keys[0].size
    rows = []
    for name, (function, arguments) in steps.items():
        if sharding is not None:
            place = partial(jax.ShapeDtypeStruct, sharding=sharding)
            arguments = jax.tree.map(lambda x, place=place: place(x.shape, x.dtype), arguments)
        started = time.monotonic()
        compiled = jax.jit(function, donate_argnums=len(arguments) - 1).trace(*arguments).lower().compile()
        row: dict[str, Any] = {"step": name, "compile (s)": round(time.monotonic() - started, 1)}
        if cost := compiled.cost_analysis():  # none for a device that is not there
            row |= {"TFLOP": round(cost["flops"] / 1e12, 3), "bytes accessed (GB)": round(cost["bytes accessed"] / 1e9, 2)}
        if memory := compiled.memory_analysis():
            row |= {
                "arguments (GB)": round(memory.argument_size_in_bytes / 1e9, 2),
                "of them updated in place (GB)": round(memory.alias_size_in_bytes / 1e9, 2),
                "temporary (GB)": round(memory.temp_size_in_bytes / 1e9, 2),
            }
        if args.target == "h100":
            row["copies or transposes as large as a layer's keys"] = large_moves(compiled.as_text() or "", layer)
        rows.append(row)
        print(json.dumps(rows[-1]))
    held = "with decoder weights in 8 bits " if args.weights == "int8" else ""
    what = f"The {args.shape} shape in bfloat16 {held}compiled ahead of time for {args.target} (attention: {attention}), "
    what += "nothing run: XLA's own counts. "
    if args.target == "cpu":
        what += "A CPU has no bfloat16 units, so XLA widens the weights to float32, which shows in bytes and temporaries."
    record(f"aot_{args.shape}_{args.target}" + ("_int8" if held else ""), what, rows, args.out)


def h100() -> Any:
    """The sharding of one H100 that is not there."""
    import jax

    mesh = jax.sharding.Mesh(abstract_devices("h100x1", "--target")[:1], ("x",))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


def large_moves(hlo: str, elements: int) -> int:
    """How many copies and transposes (or fusions of them) of at least that many elements a compiled program holds."""
    count = 0
    for line in hlo.splitlines():
        made = re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = \w+\[([\d,]+)\]\S* (copy|transpose|fusion)\(", line)
        if made and (made[3] != "fusion" or re.search("transpose|copy", made[1])):
            count += int(np.prod([int(size) for size in made[2].split(",")])) >= elements
    return count
