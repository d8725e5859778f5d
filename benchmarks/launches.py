"""What a program compiled for a GPU launches, read from what the compiler dumps: XLA's thunks, and ptxas of Mosaic kernels.

A thunk is one step of an executable: a kernel, a copy, a custom call, a loop. The thunks of a command buffer are a CUDA graph,
which is launched as a whole; those outside are launched by the host one by one.
"""

import re
from pathlib import Path
from typing import Any, NamedTuple

CONTAINERS = ("kCommandBuffer", "kSequential", "kWhile", "kConditional")
_LINE = re.compile(r" *(\d+): (k\w+)")
_METADATA = re.compile(r'profile_annotation: "([^"]*)"\s+(?:thunk_id: (\d+)\s+)?}')
_SCOPE = re.compile(r'%([\w.\-]+) = .*op_name="([^"]*)"')
_PTXAS = re.compile(r"entry function '(\w+?)_mosaic_gpu_kernel'.*?(\d+) bytes spill stores.*?Used (\d+) registers", re.S)


class Thunk(NamedTuple):
    """kind: XLA's name of it. scope: `jax.named_scope`s of its instruction, or of the one before. inside: kinds of the thunks
    around it, and "body" or "condition" of a loop."""

    kind: str
    scope: str
    inside: tuple[str, ...]

    @property
    def is_launch(self) -> bool:
        return self.kind not in CONTAINERS

    @property
    def in_graph(self) -> bool:
        return "kCommandBuffer" in self.inside


def thunks(directory: Path, hlo: str) -> list[Thunk]:
    """All thunks of a program, in order; those of a loop once.

    Args:
        directory: what XLA dumped (`xla_dump_to`, `xla_dump_hlo_as_text`) of this program alone.
        hlo: the compiled program.
    """
    files = sorted(directory.glob("*thunk_sequence*.txt"))  # as emitted, then "after_thunk_passes", which is what runs
    metadata = "".join(path.read_text() for path in directory.glob("*thunk_metadata.txt"))
    instructions = {int(number or 0): name for name, number in _METADATA.findall(metadata)}
    scopes = dict(_SCOPE.findall(hlo))
    result: list[Thunk] = []
    around: list[tuple[int, str]] = []  # indentation and kind
    for line in max(files, key=lambda path: len(path.name)).read_text().splitlines():
        match, label, indent = _LINE.match(line), line.strip().removesuffix(":"), len(line) - len(line.lstrip())
        if label == "condition":  # printed without indentation, wherever its loop is
            indent = next(start for start, kind in reversed(around) if kind == "kWhile") + 2
        around = [(start, kind) for start, kind in around if start < indent]
        if match:
            # A product whose sums XLA cut into parts has lost its scope; it stands behind what made its operand.
            scope = scopes.get(instructions.get(int(match[1]), "")) or (result[-1].scope if result else "")
            result.append(Thunk(match[2], scope, tuple(kind for _, kind in around)))
        around.append((indent, match[2] if match else label))
    return result


def mosaic_kernels(directory: Path) -> dict[str, str]:
    """Registers and spilled bytes of each Mosaic kernel, as ptxas reports them (`MOSAIC_GPU_DUMP_PTXAS`)."""
    reports = "".join(path.read_text() for path in sorted(directory.glob("*.ptxas")))
    return {name: f"{registers} registers, {spills} B spilled" for name, spills, registers in _PTXAS.findall(reports)}


def program_columns(launched: list[Thunk]) -> dict[str, Any]:
    """Columns of a program without a loop."""
    kernels = [thunk for thunk in launched if thunk.is_launch]
    return {
        "kernels": len(kernels),
        "custom calls": sum(thunk.kind == "kCustomCall" for thunk in kernels),
        "launches by the host": _host_launches(launched),
    }


def decode_columns(launched: list[Thunk], layers: int) -> dict[str, Any]:
    """Columns of a program whose loop computes a token a turn."""
    step = [thunk for thunk in launched if "body" in thunk.inside]
    kernels = [thunk for thunk in step if thunk.is_launch]
    by_layer = sorted(sum(f"/layer_{layer}/" in thunk.scope for thunk in kernels) for layer in range(layers))
    # What all layers share is computed in the scope of one of them: the median layer has its own kernels alone.
    a_layer = by_layer[(layers - 1) // 2]
    return {
        "kernels a layer and token": a_layer,
        "custom calls a layer": sum(thunk.kind == "kCustomCall" for thunk in kernels) // layers,
        "kernels a token outside layers": len(kernels) - layers * a_layer,
        "launches by the host a token": _host_launches(step),
    }


def _host_launches(launched: list[Thunk]) -> int:
    """CUDA graphs, kernels outside them, and loops and branches whose predicate the host waits for."""
    return sum(not thunk.in_graph and thunk.kind != "kSequential" for thunk in launched)
