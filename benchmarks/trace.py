"""Device time by kernel and by named scope, from the profiler's trace (`*.xplane.pb`). Knows no model.

On a GPU an operation is a kernel or a copy on a stream, on a CPU a thunk of the thread pool; both carry the name of their HLO
instruction and module. The scopes come from the HLO of the modules, which the trace holds too.

A traced GPU runs kernel by kernel: XLA turns its CUDA graphs off while a profiler listens, and each launch takes longer. So the
time that kernels take is right, and the time between them is not: compare `Profile.busy_ms` with a chunk that nobody traced.
Units: milliseconds; times in the trace are nanoseconds.
"""

import re
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.hlo_scopes import OTHER, instruction_scopes

OPERATION_LINES = ("Stream #", "XLA Ops")  # of a device's plane on a GPU and a TPU; the other lines repeat them in groups


class Operation(NamedTuple):
    """A kernel, a copy, or a thunk. start, end: nanoseconds. own: those that no operation inside it takes (a loop's body)."""

    name: str
    module: str
    instruction: str
    start: float
    end: float
    own: float


class Kernel(NamedTuple):
    """Operations of one name in one scope, added up over the trace."""

    scope: str
    name: str
    count: int
    ms: float


class Profile(NamedTuple):
    """kernels: longest first. busy_ms: time in which the device had work. span_ms: from the first operation to the last."""

    kernels: list[Kernel]
    busy_ms: float
    span_ms: float


def profile(call: Callable[[], Any]) -> Profile:
    """Run `call`, which waits for what it starts, and add up the operations of the devices meanwhile."""
    import jax

    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # a frame for each Python call slows the host down
    with tempfile.TemporaryDirectory() as directory:
        with jax.profiler.trace(directory, profiler_options=options):
            call()
        (path,) = Path(directory).rglob("*.xplane.pb")
        return summarize(path.read_bytes())


def summarize(xspace: bytes) -> Profile:
    """The profile of a serialized trace."""
    scopes, device_operations = instruction_scopes(xspace), list(operations(xspace))
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    for operation in device_operations:
        scope = scopes.get((operation.module, operation.instruction), OTHER)
        times[scope, kernel_name(operation.name)].append(operation.own / 1e6)
    kernels = [Kernel(scope, name, len(ms), sum(ms)) for (scope, name), ms in times.items()]
    spans = sorted((operation.start, operation.end) for operation in device_operations)
    span = max((end for _, end in spans), default=0.0) - min((start for start, _ in spans), default=0.0)
    return Profile(sorted(kernels, key=lambda kernel: -kernel.ms), covered(spans) / 1e6, span / 1e6)


def rows(profile: Profile, runs: int, num_kernels: int = 40) -> list[dict[str, Any]]:
    """Rows of a table, for one run of several that were traced: each scope, then its kernels, of those that take longest."""
    total = sum(kernel.ms for kernel in profile.kernels)
    scopes: dict[str, list[Kernel]] = defaultdict(list)
    for kernel in profile.kernels:
        scopes[kernel.scope].append(kernel)

    def row(scope: str, name: str, kernels: list[Kernel]) -> dict[str, Any]:
        count, ms = sum(kernel.count for kernel in kernels), sum(kernel.ms for kernel in kernels)
        each = {"n": round(count / runs, 1), "us each": round(1000 * ms / count, 2)}
        return {"scope": scope, "kernel": name} | each | {"ms": round(ms / runs, 3), "share (%)": round(100 * ms / total, 1)}

    largest = set(profile.kernels[:num_kernels])
    table = [row("all", "all", profile.kernels)] if profile.kernels else []
    for scope, kernels in sorted(scopes.items(), key=lambda item: -sum(kernel.ms for kernel in item[1])):
        table.append(row(scope, "all", kernels))
        table += [row(scope, kernel.name, [kernel]) for kernel in kernels if kernel in largest]
    return table


def kernel_name(name: str) -> str:
    """Without the numbers that tell equal kernels of other layers apart: loop_add_fusion_12.3 -> loop_add_fusion."""
    return re.sub(r"([._]\d+)+$", "", re.sub(r"([._]\d+)+(?=[._]|$)", "", name)) or name


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union of intervals that are sorted by their start."""
    length, last = 0.0, float("-inf")
    for start, end in spans:
        length, last = length + max(0.0, end - max(start, last)), max(last, end)
    return length


def operations(xspace: bytes) -> Iterator[Operation]:
    """What the devices ran."""
    import jax

    for plane in jax.profiler.ProfileData.from_serialized_xspace(xspace).planes:
        on_device = plane.name.startswith("/device:") and "CUSTOM" not in plane.name
        if not on_device and plane.name != "/host:CPU":
            continue
        for line in plane.lines:
            if on_device and not line.name.startswith(OPERATION_LINES):
                continue
            device_operations = []
            for event in line.events:
                stats = dict(event.stats)
                if on_device or ("hlo_op" in stats and not event.name.startswith("end: ")):
                    end = event.start_ns + event.duration_ns
                    names = event.name, _module(stats), str(stats.get("hlo_op", event.name))
                    device_operations.append(Operation(*names, event.start_ns, end, event.duration_ns))
            yield from with_own_time(device_operations)


def _module(stats: dict[str, Any]) -> str:
    """As the trace names the HLO of a module."""
    program_id = f"({stats['program_id']})" if "program_id" in stats else ""
    return f"{stats.get('hlo_module', '')}{program_id}"


def with_own_time(line: Sequence[Operation]) -> list[Operation]:
    """Operations of one line, each without the time of those inside it."""
    own, open_operations = [], []  # indexes of those that the next one may be inside of
    for operation in sorted(line, key=lambda operation: (operation.start, -operation.end)):
        while open_operations and own[open_operations[-1]].end <= operation.start:
            open_operations.pop()
        if open_operations:
            parent = own[open_operations[-1]]
            own[open_operations[-1]] = parent._replace(own=parent.own - (min(operation.end, parent.end) - operation.start))
        open_operations.append(len(own))
        own.append(operation)
    return own
