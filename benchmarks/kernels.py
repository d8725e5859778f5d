"""Attention kernels at the shapes of models: time, share of the roofline, and error against the float32 reference.

On a device each implementation runs over several sets of keys and values in turn, more than its caches hold, in one program.
With --target h100 nothing runs: each is compiled ahead of time, and the assembler's report (ptxas) is recorded.
"""

import argparse
import json
import os
import re
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.aot import h100_sharding
from benchmarks.report import record
from svlm_jax.errors import InputError

WORKING_SET = 512 << 20  # bytes of all sets of keys and values: more than the L2 cache
ROUNDS, REPEATS = 5, 7
PTXAS_REPORT = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores.*?Used (\d+) registers", re.S)


def bench(args: argparse.Namespace) -> None:
    from pallas_kernels.workloads import WORKLOADS

    names = list(WORKLOADS) if args.only is None else args.only.split(",")
    if unknown := sorted(set(names) - set(WORKLOADS)):
        raise InputError("--only", ", ".join(unknown), f"some of: {', '.join(WORKLOADS)}", "separate them by commas")
    if args.target == "h100":
        rows = [_print(assembler_report(name, WORKLOADS[name])) for name in names]
        description = "Attention kernels compiled ahead of time for an H100 (report of the assembler, ptxas); nothing was run."
        record("kernels_h100", description, rows, args.out)
        return
    rows, ceilings = [], measure_ceilings()
    for name in names:
        work = WORKLOADS[name]
        for implementation in args.implementations.split(","):
            candidates = tilings(work) if args.tilings and implementation == "mosaic_gpu" else [None]
            rows += [_print({"kernel": name} | timed(work, implementation, ceilings, tiling)) for tiling in candidates]
    copy, product = ceilings
    description = (
        f"Attention kernels in bfloat16. Ceilings measured in the same run: copy {copy / 1e9:.0f} GB/s, matrix product "
        f"{product / 1e12:.1f} TFLOP/s; the roofline time is the longer of bytes / copy and FLOPs / product. "
        "Error: largest difference from the float32 reference."
    )
    record(args.name, description, rows, args.out)


def _print(row: dict[str, Any]) -> dict[str, Any]:
    print(json.dumps(row), flush=True)
    return row


def tilings(work) -> list[Any]:
    """The default tiling for Hopper (None), and other candidates."""
    from pallas_kernels.mosaic_gpu import Tiling

    if work.operation == "decode":
        return [None, *(Tiling(n, stages, 1, splits) for n, stages in ((64, 4), (128, 2), (128, 3)) for splits in (16, 32, 64))]
    if work.operation == "prefill":
        return [None, Tiling(64, 2, 2), Tiling(64, 4, 2), Tiling(128, 2, 2, 2), Tiling(128, 2, 2, 3)]
    return [None, Tiling(64, 4, 1), Tiling(64, 2, 2), Tiling(64, 4, 2), Tiling(128, 2, 1)]


def timed(work, implementation: str, ceilings: tuple[float, float], tiling: Any = None) -> dict[str, Any]:
    """Columns of one implementation; where it does not support the shape, "error" says why.

    Args:
        ceilings: as measured by `measure_ceilings`.
    """
    import jax
    import jax.numpy as jnp

    from pallas_kernels import reference

    kv_bytes = 4 * work.batch * work.slots * work.kv_heads * work.head_dim  # keys and values in bfloat16
    sets = [work.arguments(seed) for seed in range(max(1, min(16, WORKING_SET // kv_bytes)))]
    tiling_name = "default" if tiling is None else ", ".join(f"{value} {name}" for name, value in tiling._asdict().items())
    row: dict[str, Any] = {"implementation": implementation, "tiling": tiling_name if implementation == "mosaic_gpu" else "-"}
    copy, product = ceilings
    empty = dict.fromkeys(("us", "GB/s", "TFLOP/s", "of the roofline (%)", "error"), "-")
    try:
        run = jax.jit(partial(work.run, implementation=implementation, tiling=tiling))
        out = run(sets[0])
    except (NotImplementedError, ValueError, RuntimeError) as error:  # JaxRuntimeError is a RuntimeError
        return row | empty | {"error": str(error).splitlines()[0][:100]}
    expected = reference.attention(**({"first": None} | sets[0])) if work.tokens * work.slots * work.heads < 1 << 30 else None

    @jax.jit
    def rounds(sets, count):
        def one_round(_, q):
            for arguments in sets:  # each output is the next queries, so that XLA can neither drop nor reorder a run
                q = work.run(arguments | {"q": q}, implementation, tiling)
            return q

        return jax.lax.fori_loop(0, count, one_round, sets[0]["q"])

    seconds = _median(lambda: rounds(sets, ROUNDS)) / (ROUNDS * len(sets))
    roofline = max(work.bytes / copy, work.flops / product)
    return row | {
        "us": round(1e6 * seconds, 1),
        "GB/s": round(work.bytes / seconds / 1e9),
        "TFLOP/s": round(work.flops / seconds / 1e12, 2),
        "of the roofline (%)": round(100 * roofline / seconds, 1),
        "error": "-" if expected is None else float(jnp.abs(out.astype(jnp.float32) - expected).max()),
    }


def measure_ceilings() -> tuple[float, float]:
    """(bytes a second of a large copy, read and written; operations a second of a large bfloat16 product)."""
    import jax
    import jax.numpy as jnp

    small = jax.default_backend() == "cpu"
    size, side = (1 << 26, 1024) if small else (1 << 30, 8192)  # bytes; rows of a square matrix
    block = jax.random.normal(jax.random.key(0), (size // 2,), jnp.bfloat16)
    lhs, rhs = jax.random.normal(jax.random.key(1), (2, side, side), jnp.bfloat16)
    move, multiply = jax.jit(lambda x: x + 1), jax.jit(jnp.matmul)
    return 2 * size / _median(lambda: move(block)), 2 * side**3 / _median(lambda: multiply(lhs, rhs))


def _median(call) -> float:
    import jax

    jax.block_until_ready(call())  # compiles
    durations = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        jax.block_until_ready(call())
        durations.append(time.perf_counter() - started)
    return float(np.median(durations))


def assembler_report(name: str, work) -> dict[str, Any]:
    """Registers, spills and temporaries of the Hopper kernel."""
    import jax

    sharding = h100_sharding()
    arguments = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), work.shapes())
    with tempfile.TemporaryDirectory() as directory:
        os.environ |= {"MOSAIC_GPU_DUMP_TO": directory, "MOSAIC_GPU_DUMP_PTXAS": "1"}
        started = time.monotonic()
        compiled = jax.jit(partial(work.run, implementation="mosaic_gpu")).trace(arguments).lower().compile()
        seconds = time.monotonic() - started
        output = "".join(path.read_text() for path in sorted(Path(directory).glob("*.ptxas")))
    if not (reports := PTXAS_REPORT.findall(output)):
        raise InputError("--target h100", "no output of ptxas", "ptxas on PATH, of CUDA 12.8 or later", "install cuda-nvcc")
    stack, spills, registers = reports[-1]
    memory = compiled.memory_analysis()
    return {
        "kernel": name,
        "registers": int(registers),
        "spilled (bytes)": int(spills),
        "stack (bytes)": int(stack),
        "temporary (MB)": None if memory is None else round(memory.temp_size_in_bytes / 1e6, 2),
        "compile (s)": round(seconds, 1),
    }


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--implementations", default="xla,cudnn,mosaic_gpu", help="default: xla,cudnn,mosaic_gpu")
    parser.add_argument("--name", default="kernels", help="of the entry in docs/benchmarks (default kernels)")
    parser.add_argument("--only", help="names of workloads, separated by commas (default: all)")
    parser.add_argument("--tilings", action="store_true", help="also measure other tilings (mosaic_gpu)")
    parser.add_argument("--target", choices=("local", "h100"), default="local", help="h100: compile only, without a GPU")
