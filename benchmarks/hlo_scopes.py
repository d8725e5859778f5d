"""The named scope of every HLO instruction in a profiler's trace: what a kernel of a compiled model belongs to.

A trace holds the modules that ran, serialized (HloProto), in a place that `jax.profiler.ProfileData` does not show. The few
fields that this needs are read here by their numbers; XLA never reuses one.
"""

import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

# Parts of an op_name that are no named scope of ours: transformations, loops, calls, functions of a vmap, einsums.
NO_SCOPE = re.compile(
    r"\w+\(.*\)|.*[<>].*|while|body|cond|branch_\d+_fun|closed_call|eval_jaxpr|checkpoint|remat\d*|pjit|scan|custom_\w+|"
)
OTHER = "other"


class Instruction(NamedTuple):
    """scope: "" if its op_name has none. operands: ids. calls: computations that it fuses, loops over, or calls."""

    name: str
    id: int
    scope: str
    operands: list[int]
    calls: list[int]


def instruction_scopes(xspace: bytes) -> dict[tuple[str, str], str]:
    """(module, instruction) -> scope, of every HLO module in a serialized trace. A module is "NAME(PROGRAM_ID)", for a function
    is compiled for several shapes; and "NAME", for events that tell no id."""
    scopes: dict[tuple[str, str], str] = {}
    for plane in (plane for plane in _messages(xspace, 1) if _text(plane, 2) == "/host:metadata"):
        for metadata in (metadata for entry in _messages(plane, 4) for metadata in _messages(entry, 2)):  # XEventMetadata
            for hlo in (hlo for stat in _messages(metadata, 5) for hlo in _messages(stat, 6)):
                for module in _messages(hlo, 1):
                    scopes_of_module = module_scopes(module)
                    for name in (_text(module, 1), _text(metadata, 2)):
                        scopes |= {(name, instruction): scope for instruction, scope in scopes_of_module.items()}
    return scopes


def module_scopes(module: bytes) -> dict[str, str]:
    """instruction -> scope, of a serialized HloModuleProto.

    XLA drops the op_name of many fusions, batched products and copies. They have the scope of most of what they fuse or call;
    else that of the next instruction that uses them, or of what they use.
    """
    computations = {_number(message, 5): [_instruction(m) for m in _messages(message, 2)] for message in _messages(module, 3)}
    program = _text(module, 1).removeprefix("jit_")
    scopes: dict[str, str] = {}
    for instructions in computations.values():
        known = {item.id: item.scope or _called_scope(item, computations) for item in instructions}
        for item in reversed(instructions):  # they are in order of execution, so users come first here
            for operand in item.operands:
                known[operand] = known.get(operand) or known[item.id]
        for item in instructions:
            known[item.id] = known[item.id] or next((known[i] for i in item.operands if known.get(i)), f"{program}/{OTHER}")
            scopes[item.name] = known[item.id]
    return scopes


def scope_of(op_name: str) -> str:
    """Named scopes of an op_name, layers taken together: jit(f)/decode/while/body/layer_3/mlp/mul -> decode/layer/mlp."""
    parts = op_name.partition(";")[0].split("/")[:-1]  # instructions made of several have all of their names
    return "/".join(re.sub(r"_\d+$", "", part) for part in parts if not NO_SCOPE.fullmatch(part))


def _called_scope(item: Instruction, computations: dict[int, list[Instruction]]) -> str:
    """The scope of most instructions that one fuses or calls; "" if it calls none with a scope."""
    counts: Counter[str] = Counter()
    waiting = list(item.calls)
    for computation in waiting:  # grows below
        for inner in computations.get(computation, []):
            counts.update([inner.scope] if inner.scope else [])
            waiting += [call for call in inner.calls if call not in waiting]
    return counts.most_common(1)[0][0] if counts else ""


def _instruction(message: bytes) -> Instruction:
    op_name = "".join(_text(metadata, 2) for metadata in _messages(message, 7))
    operands, calls = (_numbers(message, field) for field in (36, 38))
    return Instruction(_text(message, 1), _number(message, 35), scope_of(op_name), operands, calls)


# protocol buffers: a message is a sequence of fields, (number << 3 | type) and a value


def _messages(message: bytes, field: int) -> Iterator[bytes]:
    """Values of a field that is a message or bytes."""
    return (value for tag, value in _fields(message) if tag == (field << 3 | 2) and isinstance(value, bytes))


def _text(message: bytes, field: int) -> str:
    return b"".join(_messages(message, field)).decode(errors="replace")


def _number(message: bytes, field: int) -> int:
    """0 if the message lacks it."""
    return next((value for tag, value in _fields(message) if tag == field << 3 and isinstance(value, int)), 0)


def _numbers(message: bytes, field: int) -> list[int]:
    """A repeated field of whole numbers, packed."""
    numbers = []
    for packed in _messages(message, field):
        position = 0
        while position < len(packed):
            value, position = _varint(packed, position)
            numbers.append(value)
    return numbers


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(tag, value): whole numbers, and the bytes of strings and messages. Other fields are passed over."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        if tag & 7 == 0:
            value, position = _varint(message, position)
            yield tag, value
        elif tag & 7 == 2:
            size, position = _varint(message, position)
            yield tag, message[position : position + size]
            position += size
        elif tag & 7 in (1, 5):  # 8 and 4 bytes
            position += 8 if tag & 7 == 1 else 4
        else:
            return  # it was no message: text, in a field that elsewhere holds one


def _varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        position, value, shift = position + 1, value | (byte & 127) << shift, shift + 7
        if byte < 128:
            return value, position
