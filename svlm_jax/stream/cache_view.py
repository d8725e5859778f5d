"""The KV cache of a stream as a few runs of tokens that can be drawn: what it holds, and what a chunk evicted.

Owns the kinds that a viewer tells apart; derived from spans alone. Knows no model and no device. Units: tokens; turns are
counted from the stream's first chunk.
"""

from collections.abc import Iterable
from typing import NamedTuple

from svlm_jax.config import StreamConfig
from svlm_jax.spans import Kind, Part, Span

KINDS = ("system", "sink", "window", "user", "vision", "reply")  # "window": the sliding end of the previous text
TURN_KINDS = ("user", "vision", "reply")  # those that belong to a turn
_KIND_NAMES = {
    Kind.SYSTEM: "system",
    Kind.PREVIOUS: "window",
    Kind.USER_TEXT: "user",
    Kind.VISION: "vision",
    Kind.REPLY: "reply",
}


class CacheRun(NamedTuple):
    """Neighbouring tokens of one kind (of KINDS) and one turn (0 for system and previous text)."""

    kind: str
    length: int
    turn: int


def cache_runs(spans: Iterable[Span], config: StreamConfig) -> list[CacheRun]:
    """The retained sequence, in order; lengths add up to those of the spans. The previous text is split where its attention
    sink ends."""
    spans = list(spans)
    head = sum(span.length for span in spans if span.kind == Kind.PREVIOUS and span.part == Part.HEAD)
    sink_left = head + (config.sink or 0)
    runs: list[CacheRun] = []
    for span in spans:
        if span.kind == Kind.PREVIOUS:
            in_sink = min(sink_left, span.length)
            sink_left -= in_sink
            _append(runs, CacheRun("sink", in_sink, 0))
            _append(runs, CacheRun("window", span.length - in_sink, 0))
        else:
            _append(runs, _run(span))
    return runs


def evicted_runs(evicted: Iterable[Span]) -> list[CacheRun]:
    """The tokens that left a stream for a chunk (`Reply.evicted`), in the order that they had. Evicted previous text is of its
    sliding window: the sink stays."""
    runs: list[CacheRun] = []
    for span in evicted:
        _append(runs, _run(span))
    return runs


def _run(span: Span) -> CacheRun:
    kind = _KIND_NAMES[span.kind]
    return CacheRun(kind, span.length, span.turn if kind in TURN_KINDS else 0)


def _append(runs: list[CacheRun], run: CacheRun) -> None:
    """Append, or lengthen the last run when the new one continues it."""
    if run.length and runs and runs[-1]._replace(length=run.length) == run:
        runs[-1] = run._replace(length=runs[-1].length + run.length)
    elif run.length:
        runs.append(run)
