"""What a stream retains, as a few runs that can be drawn; and what went just now.

Derived from the spans of its `Sequence`: integers on the host, nothing of the device. Units: tokens; turns are counted from the
stream's first chunk.
"""

from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np

from svlm_jax.config import StreamConfig
from svlm_jax.spans import Kind, Part, Span
from svlm_jax.stream import policy
from svlm_jax.stream.sequence import Sequence

KINDS = ("system", "sink", "window", "user", "vision", "reply")  # "window": the sliding end of the previous text
TIMED = ("user", "vision", "reply")  # those that belong to a turn
_NAMES = {Kind.SYSTEM: "system", Kind.USER_TEXT: "user", Kind.VISION: "vision", Kind.REPLY: "reply"}


class Held(NamedTuple):
    """Neighbouring tokens of one kind (of KINDS) and, but for system and previous text, of one turn."""

    kind: str
    length: int
    turn: int


def runs(spans: tuple[Span, ...], config: StreamConfig) -> list[Held]:
    """What is retained, in order; lengths add up to those of the spans. The previous text is split where its sink ends."""
    sink = sum(span.length for span in spans if span.kind == Kind.PREVIOUS and span.part == Part.HEAD)
    sink += config.sink or 0
    result: list[Held] = []
    for span in spans:
        pieces = [(_NAMES.get(span.kind, ""), span.length)]
        if span.kind == Kind.PREVIOUS:
            head = min(sink, span.length)
            sink -= head
            pieces = [("sink", head), ("window", span.length - head)]
        for kind, length in pieces:
            _add(result, Held(kind, length, span.turn if kind in TIMED else 0))
    return result


def evicted(before: Sequence, config: StreamConfig) -> list[Held]:
    """What leaves a stream when its next chunk comes: the tokens that `policy.evict` does not keep, as runs in their order."""
    spans = before.spans
    stays = np.zeros(sum(span.length for span in spans), bool)
    if not (config.mode == "window" and before.chunk - before.since == config.window_chunks):  # there everything goes
        _, order = policy.evict(spans, before.chunk - before.since, config)
        stays[order] = True
    ends = [0, *accumulate(span.length for span in spans)]
    gone: list[Held] = []
    for span, start, end in zip(spans, ends[:-1], ends[1:], strict=True):
        kind = _NAMES.get(span.kind, "window")
        _add(gone, Held(kind, int((~stays[start:end]).sum()), span.turn if kind in TIMED else 0))
    return gone


def _add(held: list[Held], one: Held) -> None:
    """Append, or lengthen the last one."""
    if one.length and held and held[-1]._replace(length=one.length) == one:
        held[-1] = one._replace(length=held[-1].length + one.length)
    elif one.length:
        held.append(one)


def picture(before: Sequence, after: Sequence, seconds: dict[int, float], config: StreamConfig) -> dict[str, Any]:
    """{"retained": [[kind, tokens, second], ...], "evicted": the same} for JSON: kinds as places in KINDS; the second at which
    the turn began, or null.

    Args:
        before, after: the stream before and after a step.
        seconds: when turns began; those that are not retained any more are removed from it.
    """
    gone, held = evicted(before, config), runs(after.spans, config)
    turns = {one.turn for one in [*gone, *held]}
    told = {"retained": _told(held, seconds), "evicted": _told(gone, seconds)}
    for turn in [turn for turn in seconds if turn not in turns]:
        del seconds[turn]
    return told


def _told(held: list[Held], seconds: dict[int, float]) -> list[list[Any]]:
    return [[KINDS.index(one.kind), one.length, seconds.get(one.turn) if one.kind in TIMED else None] for one in held]
