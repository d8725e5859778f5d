"""The eviction rule: which tokens of a stream stay in the KV cache, in which order, at which positions, in which slots.

An attention sink, a sliding window of vision tokens, a sliding window of text, contiguous RoPE: `evict` reads as the rule.
Integers on the host and nothing else: no token id is looked at, no array of the device is touched. Source: sections 3.1 and 3.2
of StreamingVLM (arXiv 2510.09608) and the published code, whose quirks are part of the trained behaviour.
Units: windows in chunks, lengths in tokens; an index is a token's rank in the retained sequence.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int32

from svlm_jax.config import StreamConfig
from svlm_jax.errors import InputError
from svlm_jax.spans import Kind, Part, Span, total, truncate
from svlm_jax.spans import positions as contiguous_positions

NO_SLOT = -1  # slot of a token whose key and value are not in the cache (yet)


class Eviction(NamedTuple):
    """spans: what survives, in its new order. survivors [n] int32: the index that each surviving token had before. evicted:
    spans of the tokens that do not survive."""

    spans: tuple[Span, ...]
    survivors: Int32[np.ndarray, " n"]
    evicted: tuple[Span, ...]


class Run(NamedTuple):
    """A span of the retained sequence and the index of its first token."""

    span: Span
    index: int


def evict(spans: Sequence[Span], turn: int, config: StreamConfig) -> Eviction:
    """What survives before the chunk that becomes turn number `turn` of a stream.

    Attention sink: the system turn, the head of the previous text and its first `sink` tokens are never evicted.
    Vision window: the vision tokens of the last `vision_window` chunks.
    Text window: the last `text_rounds` replies in their turns; the words of an older reply move to the end of the previous
    text, of which the last `text_window` tokens stay. Where the stream has no previous text they are dropped.
    Time stamps of frames are vision tokens: they go when their frames go.
    Positions follow from the new order (`positions`): contiguous RoPE, however much was evicted.

    The age of a turn decides, not how many there are: windows may have another length than before the last chunk.
    """
    runs = _runs(spans)
    if config.mode in ("streaming", "recompute") and any(_is_reply(span) for span in spans):
        vision, rounds = config.vision_window, config.text_rounds
        for oldest in _turns_until(runs, turn - rounds, _is_reply):
            runs = _move_reply(runs, oldest) if config.previous_text_turn else _drop(runs, oldest, _is_reply)
            if vision > rounds:  # the vision tokens of that turn stay, without its time text and its question
                runs = _drop(runs, oldest, _is_time)
        for oldest in _turns_until(runs, turn - vision, _is_vision) if vision < rounds else ():
            runs = _drop(runs, oldest, _is_vision)  # the text of that turn stays, without its vision tokens
        for oldest in _turns_until(runs, turn - max(vision, rounds), _is_user):
            runs = _drop(runs, oldest, _is_user)  # nothing of the user turn is in a window
        if config.previous_text_turn and config.sink is not None and config.text_window is not None:
            runs = _truncate_previous(runs, config.sink, config.text_window)
    survivors = _indices(runs)
    return Eviction(_merged(run.span for run in runs), survivors, _evicted(spans, survivors))


def cut_previous(spans: Sequence[Span], config: StreamConfig) -> Eviction:
    """What survives of the turns with which a stream begins when its previous text is cut before the first chunk, as `evict`
    would cut it before the second."""
    runs = _runs(spans)
    if config.previous_text_turn and config.sink is not None and config.text_window is not None:
        runs = _truncate_previous(runs, config.sink, config.text_window)
    survivors = _indices(runs)
    return Eviction(_merged(run.span for run in runs), survivors, _evicted(spans, survivors))


def moved_replies(before: Iterable[Span], eviction: Eviction) -> Bool[np.ndarray, " n"]:
    """Which surviving tokens were a reply's and are previous text now; `before`: the spans that `evict` was given."""
    old, new = (np.concatenate([np.full(span.length, span.kind) for span in spans]) for spans in (before, eviction.spans))
    return (old[eviction.survivors] == Kind.REPLY) & (new == Kind.PREVIOUS)


def _is_time(span: Span) -> bool:
    return span.kind == Kind.USER_TEXT and span.part == Part.BODY


def _is_vision(span: Span) -> bool:
    return span.kind == Kind.VISION


def _is_reply(span: Span) -> bool:
    return span.kind == Kind.REPLY


def _is_user(span: Span) -> bool:
    return span.kind in (Kind.USER_TEXT, Kind.VISION)


def _runs(spans: Iterable[Span]) -> list[Run]:
    runs, index = [], 0
    for span in spans:
        runs.append(Run(span, index))
        index += span.length
    return runs


def _turns_until(runs: Iterable[Run], newest: int, matches: Callable[[Span], bool]) -> list[int]:
    """The turns up to number `newest` that have a span that matches, the oldest first."""
    return sorted({run.span.turn for run in runs if matches(run.span) and run.span.turn <= newest})


def _drop(runs: list[Run], turn: int, matches: Callable[[Span], bool]) -> list[Run]:
    """Without the spans of a turn that match."""
    return [run for run in runs if not (matches(run.span) and run.span.turn == turn)]


def _move_reply(runs: list[Run], turn: int) -> list[Run]:
    """The words of a reply go to the end of the previous text; its head and tail are dropped."""
    reply = [run for run in runs if run.span.kind == Kind.REPLY and run.span.turn == turn]
    words = [run._replace(span=Span(Kind.PREVIOUS, run.span.length)) for run in reply if run.span.part == Part.BODY]
    rest = [run for run in runs if run not in reply]
    end = next(n for n, run in enumerate(rest) if run.span.kind == Kind.PREVIOUS and run.span.part == Part.TAIL)
    return rest[:end] + words + rest[end:]


def _truncate_previous(runs: list[Run], sink: int, text_window: int) -> list[Run]:
    """Keep the head and first `sink` tokens of the previous text, and its last `text_window` + 1 (its tail is two of them)."""
    previous = [run for run in runs if run.span.kind == Kind.PREVIOUS]
    first = next(n for n, run in enumerate(runs) if run.span.kind == Kind.PREVIOUS)
    head = total(run.span for run in previous if run.span.part == Part.HEAD)
    survivors = truncate(total(run.span for run in previous), head + sink, text_window + 1)
    cut = [run for indices in survivors for run in _slice(previous, indices)]
    return runs[:first] + cut + runs[first + len(previous) :]


def _slice(runs: Iterable[Run], indices: range) -> list[Run]:
    """The part of neighbouring runs whose tokens, counted from the first one, are `indices`."""
    result, offset = [], 0
    for span, index in runs:
        start, stop = max(indices.start - offset, 0), min(indices.stop - offset, span.length)
        if start < stop:
            result.append(Run(span._replace(length=stop - start), index + start))
        offset += span.length
    return result


def _merged(spans: Iterable[Span]) -> tuple[Span, ...]:
    """Neighbours of one kind, turn and part as one span: the previous text does not grow by a span a chunk."""
    result: list[Span] = []
    for span in spans:
        if result and span.grid is None and _equal_but_length(result[-1], span):
            result[-1] = span._replace(length=result[-1].length + span.length)
        else:
            result.append(span)
    return tuple(result)


def _equal_but_length(a: Span, b: Span) -> bool:
    return (a.kind, a.turn, a.part) == (b.kind, b.turn, b.part) and a._replace(length=b.length) == b


def _indices(runs: Sequence[Run]) -> Int32[np.ndarray, " n"]:
    """The index of every token of some runs: one range for those that follow each other, of which there are hundreds."""
    ranges: list[list[int]] = []
    for span, index in runs:
        if ranges and ranges[-1][1] == index:
            ranges[-1][1] += span.length
        else:
            ranges.append([index, index + span.length])
    return np.concatenate([np.zeros(0, np.int32), *(np.arange(first, last, dtype=np.int32) for first, last in ranges)])


def _evicted(spans: Sequence[Span], survivors: np.ndarray) -> tuple[Span, ...]:
    """Spans of the tokens whose index is not among the survivors."""
    dropped = np.ones(total(spans) + 1, np.int32)
    dropped[survivors] = 0
    lengths = np.array([span.length for span in spans], np.int64)
    first = np.cumsum(lengths) - lengths
    before = np.cumsum(dropped) - dropped  # tokens dropped before each index
    counts = (before[first + lengths] - before[first]).tolist()
    return tuple(span._replace(length=count) for span, count in zip(spans, counts, strict=True) if count)


def positions(
    spans: Sequence[Span], config: StreamConfig, merge: int, start: float = 0.0, first_turn: int = 0
) -> Float32[np.ndarray, "3 n"]:
    """(t, h, w) of a sequence that begins at `start`: contiguous RoPE on three axes, on one for all three, or on three in the
    turn of number `first_turn` alone."""
    if config.mrope_turns == "first":
        spans = [span if span.turn == first_turn else span._replace(grid=None) for span in spans]
    if config.mrope_axes == 1:
        return np.broadcast_to(start + np.arange(total(spans), dtype=np.float32), (3, total(spans))).copy()
    return contiguous_positions(spans, merge, start)


def allocate(
    slots: Int32[np.ndarray, " n"], reply: int, capacity: int
) -> tuple[Int32[np.ndarray, " n"], Int32[np.ndarray, " reply"]]:
    """Give the lowest free slots to the tokens that have none, and to a reply to come.

    Args:
        slots: of the retained sequence, NO_SLOT where a token has none.
        reply: tokens that the reply may need.

    Returns:
        The slots [n] without NO_SLOT, and those of the reply [reply].

    Raises:
        InputError: there are not so many free slots. Nothing has changed then.
    """
    is_free = np.ones(capacity, bool)
    is_free[slots[slots >= 0]] = False
    free = np.flatnonzero(is_free)
    new = np.flatnonzero(slots < 0)
    if len(new) + reply > len(free):
        got = f"{len(slots)} tokens and a reply of {reply}"
        raise InputError("slots", got, f"at most {capacity} (the capacity)", "shorten the windows, the frames or the questions")
    allocated = slots.copy()
    allocated[new] = free[: len(new)]
    return allocated, free[len(new) : len(new) + reply].astype(np.int32)


def capacity(
    config: StreamConfig, opening: Sequence[Span], turn: Sequence[Span], chunks: int, first: Sequence[Span] | None = None
) -> int:
    """The largest number of slots that a stream needs.

    Args:
        opening: spans of the system and previous-text turns as the stream starts.
        turn: spans of the longest user turn without a question, with the header of the reply.
        chunks: number of chunks to hold when the config has no bound of its own.
        first: spans of a stream's first turn, if that is longer than the others.
    """
    excess = 0 if first is None else max(0, total(first) - total(turn))
    vision, user, head = (
        total(span for span in turn if span.kind == kind) for kind in (Kind.VISION, Kind.USER_TEXT, Kind.REPLY)
    )
    reply = head + config.max_new_tokens + 2  # an <|im_end|> when it was cut, and a "\n"
    first_turn = total(opening) + vision + user + reply + excess
    if config.mode == "window" or not config.bounded:
        num_turns = config.window_chunks if config.mode == "window" else chunks
        return total(opening) + num_turns * (vision + user + reply) + excess + config.question_tokens
    # The first turn may have more previous text than sink and window keep: it is cut when the second one begins.
    before = total(span for span in opening if span.kind == Kind.SYSTEM or span.part == Part.HEAD)
    text = (config.sink or 0) + (config.text_window or 0) + 1 if config.previous_text_turn else 0
    turns = max(config.vision_window, config.text_rounds) * user + config.vision_window * vision + config.text_rounds * reply
    return max(first_turn, before + text + turns + excess) + config.question_tokens
