"""What a stream retains: which tokens survive before a chunk, in which order, at which positions, in which slots.

Integers on the host and nothing else: no ids are looked at, no array of the device is touched. Source: sections 3.1 and 3.2 of
StreamingVLM (arXiv 2510.09608) and the published code, whose quirks are part of the trained behaviour.
Units: windows in chunks, lengths in tokens; a "place" is a token's rank in the retained sequence.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from svlm_jax.config import StreamConfig
from svlm_jax.errors import InputError
from svlm_jax.spans import Kind, Part, Span, total, truncate
from svlm_jax.spans import positions as contiguous

NOWHERE = -1  # slot of a token whose key and value are in no slot (yet)


class Run(NamedTuple):
    """A span of the retained sequence and the place of its first token."""

    span: Span
    place: int


def evict(spans: Iterable[Span], chunk: int, config: StreamConfig) -> tuple[tuple[Span, ...], np.ndarray]:
    """What survives before the `chunk`-th chunk of a stream (counted from 0).

    Returns:
        The surviving spans in their new order, and the places [n] int32 that their tokens had before.
    """
    runs = _runs(spans)
    if config.mode in ("streaming", "recompute"):
        vision, rounds = config.vision_window, config.text_rounds
        if chunk >= rounds:
            runs = _move_oldest_reply(runs)
            if vision > rounds:
                runs = _drop_oldest(runs, _is_time)
        if chunk >= vision and vision < rounds:
            runs = _drop_oldest(runs, _is_vision)
        if chunk >= max(vision, rounds):
            runs = _drop_oldest(runs, _is_user)
        if chunk > 0 and config.sink is not None and config.text_window is not None:
            runs = _truncate_previous(runs, config.sink, config.text_window)
    order = [np.arange(run.place, run.place + run.span.length, dtype=np.int32) for run in runs]
    return _merged(run.span for run in runs), np.concatenate(order)


def moved(before: Iterable[Span], after: Iterable[Span], order: np.ndarray) -> np.ndarray:
    """Which tokens [n] bool were a reply's and are previous text now; `after`, `order`: what `evict` made of `before`."""
    was, now = (np.concatenate([np.full(span.length, span.kind) for span in spans]) for spans in (before, after))
    return (was[order] == Kind.REPLY) & (now == Kind.PREVIOUS)


def _is_time(span: Span) -> bool:
    return span.kind == Kind.USER_TEXT and span.part == Part.BODY


def _is_vision(span: Span) -> bool:
    return span.kind == Kind.VISION


def _is_user(span: Span) -> bool:
    return span.kind in (Kind.USER_TEXT, Kind.VISION)


def _runs(spans: Iterable[Span]) -> list[Run]:
    runs, place = [], 0
    for span in spans:
        runs.append(Run(span, place))
        place += span.length
    return runs


def _drop_oldest(runs: list[Run], which: Callable[[Span], bool]) -> list[Run]:
    """Without all spans that are `which` in the oldest turn that has one."""
    turn = next((run.span.turn for run in runs if which(run.span)), None)
    return [run for run in runs if not (which(run.span) and run.span.turn == turn)]


def _move_oldest_reply(runs: list[Run]) -> list[Run]:
    """The words of the oldest reply go to the end of the previous text; what else its turn holds is dropped."""
    turn = next((run.span.turn for run in runs if run.span.kind == Kind.REPLY), None)
    reply = [run for run in runs if run.span.kind == Kind.REPLY and run.span.turn == turn]
    words = [run._replace(span=Span(Kind.PREVIOUS, run.span.length)) for run in reply if run.span.part == Part.BODY]
    rest = [run for run in runs if run not in reply]
    end = next(n for n, run in enumerate(rest) if run.span.kind == Kind.PREVIOUS and run.span.part == Part.TAIL)
    return rest[:end] + words + rest[end:]


def _truncate_previous(runs: list[Run], sink: int, text_window: int) -> list[Run]:
    """Keep the header and first `sink` words of the previous text, and its last `text_window` + 1 tokens."""
    previous = [run for run in runs if run.span.kind == Kind.PREVIOUS]
    first = runs.index(previous[0])
    head = total([run.span for run in previous if run.span.part == Part.HEAD])
    kept = truncate(total([run.span for run in previous]), head + sink, text_window + 1)
    survivors = [part for places in kept for part in _cut(previous, places)]
    return runs[:first] + survivors + runs[first + len(previous) :]


def _cut(runs: Iterable[Run], places: range) -> list[Run]:
    """The part of neighbouring runs whose tokens, counted from the first one, are `places`."""
    result, at = [], 0
    for span, place in runs:
        start, stop = max(places.start - at, 0), min(places.stop - at, span.length)
        if start < stop:
            result.append(Run(span._replace(length=stop - start), place + start))
        at += span.length
    return result


def _merged(spans: Iterable[Span]) -> tuple[Span, ...]:
    """Neighbours of one kind, turn and part as one span: the previous text does not grow by a span a chunk."""
    result: list[Span] = []
    for span in spans:
        if result and span.grid is None and result[-1]._replace(length=span.length) == span:
            result[-1] = span._replace(length=result[-1].length + span.length)
        else:
            result.append(span)
    return tuple(result)


def positions(spans: Sequence[Span], config: StreamConfig, merge: int, start: float = 0.0) -> np.ndarray:
    """(t, h, w) of a sequence that begins at `start`, float32 [3, n]: contiguous RoPE, or one axis for all three."""
    if config.mrope_axes == 1:
        return np.broadcast_to(start + np.arange(total(spans), dtype=np.float32), (3, total(spans))).copy()
    return contiguous(spans, merge, start)


def allocate(slots: np.ndarray, reply: int, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """Give the lowest free slots to the tokens that have none, and to a reply to come.

    Args:
        slots: [n] int32 of the retained sequence, NOWHERE where a token has none.
        reply: tokens that the reply may need.

    Returns:
        The slots [n] without NOWHERE, and those of the reply [reply].

    Raises:
        InputError: there are not so many free slots. Nothing has changed then.
    """
    free = np.ones(capacity, bool)
    free[slots[slots >= 0]] = False
    lowest = np.flatnonzero(free)
    new = np.flatnonzero(slots < 0)
    if len(new) + reply > len(lowest):
        got = f"{len(slots)} tokens and a reply of {reply}"
        raise InputError("slots", got, f"at most {capacity} (the capacity)", "shorten the windows, the frames or the questions")
    filled = slots.copy()
    filled[new] = lowest[: len(new)]
    return filled, lowest[len(new) : len(new) + reply].astype(np.int32)


def capacity(config: StreamConfig, opening: Sequence[Span], turn: Sequence[Span], chunks: int) -> int:
    """Most slots that a stream needs.

    Args:
        opening: spans of the system and previous-text turns as the stream begins.
        turn: spans of the longest user turn without a question, with the header of the reply.
        chunks: number of chunks to hold when the config has no bound of its own.
    """
    vision, user, head = (
        total([span for span in turn if span.kind == kind]) for kind in (Kind.VISION, Kind.USER_TEXT, Kind.REPLY)
    )
    reply = head + config.max_new_tokens + 2  # an <|im_end|> when it was cut, and a "\n"
    begun = total(opening) + vision + user + reply
    if config.mode == "window" or not config.bounded:
        kept = config.window_chunks if config.mode == "window" else chunks
        return total(opening) + kept * (vision + user + reply) + config.question_tokens
    before = total([span for span in opening if span.kind == Kind.SYSTEM or span.part == Part.HEAD])
    words = (config.sink or 0) + (config.text_window or 0) + 1
    turns = max(config.vision_window, config.text_rounds) * user + config.vision_window * vision + config.text_rounds * reply
    return max(begun, before + words + turns) + config.question_tokens
