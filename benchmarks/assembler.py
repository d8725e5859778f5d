"""What the assembler (ptxas) makes of Mosaic kernels compiled ahead of time, and what it must not make of them.

A kernel stays right and becomes slow without a word in three ways: registers are spilled to memory; each wgmma is waited for
before the next is issued (ptxas says so, C7510 to C7513); or the compiler moved the softmax behind the wait for the products
that it ought to run under. The last shows in the machine code alone, for which nvdisasm has to be on PATH.
"""

import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.aot import lower_for_h100
from svlm_jax.errors import InputError

_REPORT = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores.*?Used (\d+) registers", re.S)
_SERIALIZED = re.compile(r"\(?(C751[0-3])\)?")
_INSTRUCTION = re.compile(r"\*/\s+(?:@!?U?P\d+ )?(HGMMA|MUFU\.EX2|WARPGROUP\.DEPBAR\S* gsb0, 0x\d+)")


class Assembly(NamedTuple):
    """Of all Mosaic kernels of a program. spilled, stack: bytes. serialized: codes of ptxas's warnings.
    hidden_exps: see `hidden_exps`; None without nvdisasm. seconds: of compilation. temporary: bytes, None if unknown."""

    registers: int
    spilled: int
    stack: int
    serialized: list[str]
    hidden_exps: int | None
    seconds: float
    temporary: int | None

    def columns(self) -> dict[str, Any]:
        return {
            "registers": self.registers,
            "spilled (bytes)": self.spilled,
            "stack (bytes)": self.stack,
            "wgmma serialized": ", ".join(self.serialized) or "no",
            "exps under products": "-" if self.hidden_exps is None else self.hidden_exps,
            "temporary (MB)": None if self.temporary is None else round(self.temporary / 1e6, 2),
            "compile (s)": round(self.seconds, 1),
        }

    def faults(self, min_hidden_exps: int) -> list[str]:
        """What must not be, in words. min_hidden_exps: that have to run under products."""
        problems = [f"{self.spilled} bytes spilled"] if self.spilled else []
        problems += [f"wgmma serialized ({', '.join(self.serialized)})"] if self.serialized else []
        if self.hidden_exps is not None and self.hidden_exps < min_hidden_exps:
            problems.append(f"{self.hidden_exps} of {min_hidden_exps} exps under products")
        return problems


def assemble(run: Callable[..., Any], *arguments: Any) -> Assembly:
    """Compile `run` for an H100.

    Args:
        arguments: pytrees of ShapeDtypeStructs.

    Raises:
        InputError: ptxas reported nothing.
    """
    import jax
    import jax.experimental.mosaic.gpu  # sets the variable that is set below

    disassembler = shutil.which("nvdisasm")
    with tempfile.TemporaryDirectory() as directory:
        os.environ |= {"MOSAIC_GPU_DUMP_TO": directory, "MOSAIC_GPU_DUMP_PTXAS": "1"}
        if disassembler is not None:
            root = str(Path(disassembler).parents[1])
            os.environ |= {"MOSAIC_GPU_DUMP_SASS": "1", "MOSAIC_GPU_CUDA_ROOT": root, "CUDA_ROOT": root}
        started = time.monotonic()
        compiled = lower_for_h100(jax.jit(run), *arguments).compile()
        seconds = time.monotonic() - started
        report, code = (
            "".join(path.read_text() for path in sorted(Path(directory).glob(name))) for name in ("*.ptxas", "*.sass*")
        )
    if not (reports := [[int(number) for number in match] for match in _REPORT.findall(report)]):
        raise InputError("--target h100", "no output of ptxas", "ptxas on PATH, of CUDA 12.8 or later", "install cuda-nvcc")
    stack, spilled, registers = zip(*reports, strict=True)
    memory = compiled.memory_analysis()
    return Assembly(
        registers=max(registers),
        spilled=sum(spilled),
        stack=max(stack),
        serialized=sorted(set(_SERIALIZED.findall(report))),
        hidden_exps=hidden_exps(code) if code else None,
        seconds=seconds,
        temporary=None if memory is None else memory.temp_size_in_bytes,
    )


def hidden_exps(code: str) -> int:
    """Instructions for exps in machine code that run while the tensor cores do: between a wait that leaves a group of wgmma
    under way (gsb0, 0x1) and the wait for that group."""
    count, is_under_way = 0, False
    for instruction in _INSTRUCTION.findall(code):
        if instruction.startswith("WARPGROUP.DEPBAR"):
            is_under_way = not instruction.endswith(" 0x0")
        elif instruction == "MUFU.EX2":
            count += is_under_way
    return count
