"""Times one way to compute attention, many calls in one program, and compares it with the float32 reference.

A program calls it over several sets of keys and values in turn, more than the caches of the device hold, as often as an
argument says; the time of a call is that of many calls less that of none, so dispatching does not count. What follows from the
visibility alone XLA takes out of the loop, as it computes it once for all layers of a model;
padding of keys and values stays in it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.ceilings import Ceilings, median_seconds
from benchmarks.kernel_rivals import RIVALS, visibility
from benchmarks.trace import profile
from pallas_kernels import reference

WORKING_SET = 160 << 20  # bytes of all sets of keys and values: more than the L2 cache (50 MB)
MAX_SETS = 4  # each is a call more to compile
SECONDS = 0.05  # that a timed program runs, about
MAX_REFERENCE = 1 << 30  # scores that the reference materialises, at most
VISIBILITY = ("first", "last", "index")  # arguments that are the same for all layers of a model
COLUMNS = ("us", "kernel us", "longest kernel", "GB/s", "TFLOP/s", "of the roofline (%)", "mean error", "same again", "error")


class Variant(NamedTuple):
    """workload: a name of WORKLOADS. implementation: of `pallas_kernels`, or a name of RIVALS. tiling: None for the default."""

    workload: str
    implementation: str
    tiling: Any = None

    def columns(self) -> dict[str, Any]:
        fields = {} if self.tiling is None else self.tiling._asdict()
        tiling = ", ".join(f"{value} {name}" for name, value in fields.items()) or "default"
        return {"kernel": self.workload, "implementation": self.implementation, "tiling": tiling}


class Program(NamedTuple):
    """first: sets -> the result of the first set, [B, T, N, H]. rounds: sets, count -> what keeps count rounds alive."""

    first: Callable[..., Any]
    rounds: Callable[..., Any]


def num_sets(work) -> int:
    kv_bytes = 4 * work.batch * work.slots * work.kv_heads * work.head_dim  # keys and values in bfloat16
    return max(1, min(MAX_SETS, WORKING_SET // kv_bytes))


def compiled(work, variant: Variant) -> Program:
    """Both programs of a variant, compiled.

    Raises:
        NotImplementedError, ValueError, RuntimeError: the implementation does not take this workload, or not on this device.
    """
    sets = [work.shapes()] * num_sets(work)
    layout, attend, unfold, queries = _parts(work, variant)

    def rounds(sets, count):
        sets = [layout(arguments) for arguments in sets]

        def one_round(_, q):
            for arguments in sets:  # each output is the next queries, so that XLA can neither drop nor reorder a call
                arrays = {name: x for name, x in arguments.items() if name not in VISIBILITY} | {queries: q}
                arrays = lax.optimization_barrier(arrays)  # and moves nothing that is done with keys or values out of the loop
                q = attend(arguments | arrays).astype(q.dtype)
            return q

        return lax.fori_loop(0, count, one_round, sets[0][queries])

    first = jax.jit(lambda arguments: unfold(attend(layout(arguments)))).trace(sets[0]).lower().compile()
    return Program(first, jax.jit(rounds).trace(sets, jax.ShapeDtypeStruct((), jnp.int32)).lower().compile())


def _parts(work, variant: Variant) -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any], Any]:
    """(arguments -> what the call takes, the call, its result -> [B, T, N, H], the key of the queries in what it takes)."""
    if (rival := RIVALS.get(variant.implementation)) is None:
        attend = partial(work.run, implementation=variant.implementation, tiling=variant.tiling)
        return dict, attend, lambda out: out, "q"
    return (
        lambda arguments: dict(enumerate(rival.layout(work, arguments))),
        lambda operands: rival.attend(*operands.values()),
        partial(rival.unfold, work),
        0,
    )


def timed(work, variant: Variant, ceilings: Ceilings, program: Callable[[], Program]) -> dict[str, Any]:
    """Columns of a variant; where it does not support the workload, "error" says why.

    Args:
        program: makes its programs, or waits for them.
    """
    try:
        first, rounds = program()
        sets = [work.arguments(seed) for seed in range(num_sets(work))]
        out, again = jax.block_until_ready((first(sets[0]), first(sets[0])))
    except (NotImplementedError, ValueError, RuntimeError) as error:  # JaxRuntimeError is a RuntimeError
        return dict.fromkeys(COLUMNS, "-") | {"error": (str(error).splitlines() or [type(error).__name__])[0][:100]}
    seconds = seconds_a_call(partial(rounds, sets), len(sets))
    row: dict[str, Any] = {"us": round(1e6 * seconds, 1)} | longest_kernel(partial(rounds, sets), len(sets))
    row |= {
        "GB/s": round(work.bytes / seconds / 1e9),
        "TFLOP/s": round(work.flops / seconds / 1e12, 2),
        "of the roofline (%)": round(100 * ceilings.seconds(work.bytes, work.flops) / seconds, 1),
    }
    return row | errors(work, variant, sets[0], out, again)


def seconds_a_call(rounds: Callable[[int], Any], calls: int) -> float:
    """rounds: runs that many rounds of `calls` calls."""
    none = median_seconds(lambda: rounds(0))
    one_round = max(median_seconds(lambda: rounds(1), repeats=1) - none, 1e-6)
    count = max(2, min(200, int(SECONDS / one_round)))
    return max(median_seconds(lambda: rounds(count)) - none, 1e-9) / (count * calls)


def longest_kernel(rounds: Callable[[int], Any], calls: int) -> dict[str, Any]:
    """The kernel that takes most of a call, alone, by the profiler; "-" on a CPU, which has none."""
    if jax.default_backend() == "cpu":
        return {"kernel us": "-", "longest kernel": "-"}
    kernels = profile(lambda: jax.block_until_ready(rounds(1))).kernels
    if not kernels:
        return {"kernel us": "-", "longest kernel": "the trace is empty"}
    return {"kernel us": round(1e3 * kernels[0].ms / calls, 1), "longest kernel": kernels[0].name[:40]}


def errors(work, variant: Variant, arguments: dict[str, Any], out, again) -> dict[str, Any]:
    """Differences from the reference, and whether a second run gave the same bits: a race would show there."""
    row: dict[str, Any] = {"same again": bool((out == again).all())}
    if work.batch * work.tokens * work.slots * work.heads >= MAX_REFERENCE:
        return {"mean error": "-"} | row | {"error": "-"}
    operands = {"first": None} | arguments
    if variant.implementation in RIVALS:
        operands |= visibility(work, arguments)
    difference = jnp.abs(out.astype(jnp.float32) - jax.jit(lambda operands: reference.attention(**operands))(operands))
    return {"mean error": float(f"{float(difference.mean()):.2e}")} | row | {"error": float(difference.max())}
