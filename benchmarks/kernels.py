"""Attention kernels at the shapes of models: time, share of the roofline, and error against the float32 reference.

Beside them stands what jax ships for a GPU. Each row is written as soon as it is measured. With --target h100 nothing runs: the
Hopper kernels are compiled ahead of time, the assembler's report (ptxas) is recorded, and what must not be there is an error.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from benchmarks.assembler import assemble
from benchmarks.ceilings import measure_ceilings
from benchmarks.report import record
from svlm_jax.errors import InputError

FAILED = 1  # exit code
THREADS = 8  # that compile
HOPPER = ("mosaic_gpu", "mosaic_gpu_pingpong")  # implementations that are Mosaic kernels
DEFAULT = "xla,cudnn,mosaic_gpu,mosaic_gpu_pingpong,cudnn_lengths,jax_mgpu"


def bench(args: argparse.Namespace) -> None:
    from pallas_kernels.workloads import WORKLOADS

    names = list(WORKLOADS) if args.only is None else args.only.split(",")
    if unknown := sorted(set(names) - set(WORKLOADS)):
        raise InputError("--only", ", ".join(unknown), f"some of: {', '.join(WORKLOADS)}", "separate them by commas")
    if args.target == "h100":
        check_assembly(names, args)
    else:
        measure(names, args)


def measure(names: list[str], args: argparse.Namespace) -> None:
    """A row for each variant: compiled in threads, timed one after the other, written as they come."""
    from benchmarks import kernel_timing
    from pallas_kernels.workloads import WORKLOADS

    variants = [x for x in (quick() if args.quick else every(names, args)) if x.workload in names]
    rows: list[dict[str, Any]] = []
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        programs = [pool.submit(kernel_timing.compiled, WORKLOADS[variant.workload], variant) for variant in variants]
        ceilings = measure_ceilings()
        description = (
            f"Attention kernels in bfloat16, many calls in one program. Ceilings measured in the same run: {ceilings.text()}; "
            "the roofline time is the longer of bytes / copy and FLOPs / product. us: a call with what surrounds the kernel; "
            "kernel us: the longest kernel alone, by the profiler. Error: largest difference from the float32 reference; same "
            "again: a second run gave the same bits. cudnn_lengths and jax_mgpu (what jax ships; float16) attend to every slot."
        )
        for variant, program in zip(variants, programs, strict=True):
            row = kernel_timing.timed(WORKLOADS[variant.workload], variant, ceilings, program.result)
            rows.append(_print(variant.columns() | row))
            record(args.name, description, rows, args.out)


def _print(row: dict[str, Any]) -> dict[str, Any]:
    print(json.dumps(row), flush=True)
    return row


def every(names: list[str], args: argparse.Namespace) -> Iterator[Any]:
    """All implementations of each workload; with --tilings, the Hopper kernels cut in other ways too."""
    from benchmarks.kernel_timing import Variant
    from pallas_kernels.workloads import WORKLOADS

    for name in names:
        for implementation in args.implementations.split(","):
            yield Variant(name, implementation)
            if args.tilings:
                yield from (Variant(name, implementation, tiling) for tiling in tilings(WORKLOADS[name], implementation))


def quick() -> Iterator[Any]:
    """What decides between kernels, in a minute: most telling first."""
    from benchmarks.kernel_timing import Variant
    from pallas_kernels import mosaic_gpu, mosaic_gpu_pingpong
    from pallas_kernels.grid import sm_count

    before, pingpong = mosaic_gpu.Tiling(128, 2, 2, 1), mosaic_gpu_pingpong.Tiling(blocks=sm_count())
    chunk, frame, windows = "prefill 7b in runs", "frame 720p", "windows 720p"
    yield from (Variant(chunk, name) for name in HOPPER)
    yield Variant(chunk, "mosaic_gpu", before)  # two waves of blocks, as on 2026-11-28
    yield Variant(chunk, "mosaic_gpu_pingpong", pingpong._replace(pingpong=False))
    yield Variant(chunk, "mosaic_gpu_pingpong", pingpong._replace(overlap=False))
    yield from (Variant(chunk, name) for name in ("jax_mgpu", "cudnn_lengths"))
    yield from (Variant(frame, name) for name in (*HOPPER, "cudnn_lengths"))
    yield from (Variant(windows, name) for name in (*HOPPER, "cudnn_lengths"))
    yield Variant(windows, "mosaic_gpu", mosaic_gpu.Tiling(64, 2, 1, 1))  # a window a block
    yield from (Variant("prefill 7b", name) for name in HOPPER)  # slots in any order: hardly a tile is seen whole
    yield from (Variant("prefill 7b 40 tokens", name) for name in HOPPER)
    yield from (Variant("decode 7b", name) for name in ("mosaic_gpu", "cudnn_lengths"))


def tilings(work, implementation: str) -> list[Any]:
    """Other ways to cut the work of a Hopper kernel than the default."""
    from pallas_kernels import mosaic_gpu, mosaic_gpu_pingpong
    from pallas_kernels.grid import sm_count

    if implementation == "mosaic_gpu_pingpong" and work.operation != "decode":
        tiling = partial(mosaic_gpu_pingpong.Tiling, blocks=sm_count())
        if work.span is not None and work.span <= 64:
            small = partial(mosaic_gpu_pingpong.Tiling, 64, warpgroups=1, registers=128)
            return [small(), small(overlap=False, blocks=2 * sm_count(), stages=3), tiling(64, 3)]
        wide = [tiling(64, 4), tiling(blocks=0), tiling(pingpong=False), tiling(overlap=False)]
        return wide + ([tiling(128, 3), tiling(64, 4, 3)] if work.head_dim <= 80 else [])
    if implementation != "mosaic_gpu":
        return []
    cut = mosaic_gpu.Tiling
    if work.operation == "decode":
        return [cut(n, stages, 1, splits) for n, stages in ((64, 4), (64, 6), (128, 2), (128, 3)) for splits in (16, 32, 64)]
    if work.operation == "prefill":
        return [cut(64, 4, 2, 3), *(cut(128, 2, 2, splits) for splits in (1, 2, 3, 4, 6, 11))]
    return [cut(64, 2, 1), cut(64, 4, 1), cut(64, 2, 2), cut(64, 2, 3), cut(128, 2, 1)]


def check_assembly(names: list[str], args: argparse.Namespace) -> None:
    """A row for each Hopper kernel, compiled ahead of time; ends with exit code 1 where one has what it must not have."""
    from pallas_kernels import mosaic_gpu_pingpong
    from pallas_kernels.workloads import WORKLOADS

    rows, faults = [], []
    programs = {WORKLOADS[name]._replace(in_runs=False): name for name in reversed(names)}  # the order of slots changes nothing
    for work, name in reversed(programs.items()):
        for implementation in HOPPER if work.operation != "decode" else HOPPER[:1]:
            assembly = assemble(partial(work.run, implementation=implementation), work.shapes())
            rows.append(_print({"kernel": name, "implementation": implementation} | assembly.columns()))
            overlaps = implementation == "mosaic_gpu_pingpong" and (work.span is None or work.span > 64)  # not in windows
            # A lane has half of the slots of a tile as exps, in either branch: masked or not.
            hidden = mosaic_gpu_pingpong.Tiling().slots if overlaps else 0
            faults += [f"{name}, {implementation}: {fault}" for fault in assembly.faults(hidden)]
    description = (
        "Attention kernels compiled ahead of time for an H100 (report of the assembler, ptxas, and its machine code); nothing "
        "was run. Exps under products: instructions of the softmax that run while the tensor cores do."
    )
    record("kernels_h100", description, rows, args.out)
    if rows and rows[0]["exps under products"] == "-":
        print("nvdisasm is not on PATH: whether the softmax overlaps with products was not checked", file=sys.stderr)
    if faults:
        print(f"kernels that will be slow: {'; '.join(faults)}", file=sys.stderr)
        sys.exit(FAILED)


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--implementations", default=DEFAULT, help=f"default: {DEFAULT}")
    parser.add_argument("--name", default="kernels", help="of the entry in docs/benchmarks (default kernels)")
    parser.add_argument("--only", help="names of workloads, separated by commas (default: all)")
    parser.add_argument("--tilings", action="store_true", help="also measure other tilings of the Hopper kernels")
    parser.add_argument("--quick", action="store_true", help="what decides between the Hopper kernels: about a minute on a GPU")
    parser.add_argument("--target", choices=("local", "h100"), default="local", help="h100: compile only, without a GPU")
