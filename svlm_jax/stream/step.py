"""What passes between the parts of a step: the state, frames that are being encoded, chunks that are planned, arguments of the
programs, replies; and the time that each stage takes.

Axes: B rows of the programs, M merged vision tokens, R longest reply, V vocabulary.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float32, Int32

from svlm_jax.decode.detokenize import raw_text, reply_text
from svlm_jax.decode.loop import DecodeInputs
from svlm_jax.model.cache import KVCache
from svlm_jax.model.vision import Features
from svlm_jax.spans import Span
from svlm_jax.stream.batch import PrefillBatch, ScheduledSequence
from svlm_jax.stream.events import Finish
from svlm_jax.stream.results import Reply
from svlm_jax.stream.sequence import Chunk, StreamSequence
from svlm_jax.stream.turn_tokenizer import TurnTokenizer


class StreamState(NamedTuple):
    """All that goes from one chunk to the next. `step` consumes the cache it is given (it is donated to the device)."""

    cache: KVCache
    streams: tuple[StreamSequence | None, ...]


@dataclass(frozen=True, eq=False)
class EncodedGroup:
    """Streams whose programs run as one batch, and what the vision tower makes of their frames.

    stream_ids: of the rows of the programs, those of streams that wait included. features: the device may still be at work.
    tower_rows [M] of each stream: for each merged token of its frames the row in the features.
    """

    stream_ids: list[int]
    features: Features
    tower_rows: list[np.ndarray]


class Prepared(NamedTuple):
    """A chunk that `step` will not refuse. prev: the sequence before it. evicted: spans of the tokens that leave for it.
    encoded: where its frames are; None: not sent to the vision tower yet."""

    prev: StreamSequence
    chunk: Chunk
    scheduled: ScheduledSequence
    evicted: tuple[Span, ...]
    encoded: EncodedGroup | None


class ProgramInputs(NamedTuple):
    """What the decoder is given for a group: batches of new tokens, index and positions of every slot of the KV cache, and the
    replies to come."""

    prefill_batches: Iterator[PrefillBatch]
    slots: dict[str, np.ndarray]
    decode: DecodeInputs


class GroupReplies(NamedTuple):
    """Replies of a group of streams: the tokens of each, logits before each token if they are recorded,
    `DecodeState.probability`, and which were cancelled."""

    tokens: list[Int32[np.ndarray, " r"]]
    logits: Float32[np.ndarray, "B R V"] | None
    probability: Float32[np.ndarray, " B"]
    cancelled: Bool[np.ndarray, " B"]


def reply_of(
    prepared: Prepared, replies: GroupReplies, index: int, timer: "StageTimer", turn_tokenizer: TurnTokenizer
) -> Reply:
    """The reply at an index of a group, to the chunk that was prepared for it."""
    chunk, seq, tokens = prepared.chunk, prepared.scheduled.seq, replies.tokens[index]
    ids, tokenizer = tokens.tolist(), turn_tokenizer.tokenizer
    return Reply(
        start=chunk.start,
        end=chunk.end,
        text=reply_text(ids, tokenizer),
        raw=raw_text(ids, tokenizer),
        tokens=tokens,
        ms=timer.ms,
        before=seq.cached,
        after=len(seq.ids) + len(tokens) - 1,  # the newest token is not computed
        logits=None if replies.logits is None else replies.logits[index, : len(tokens)],
        evicted=prepared.evicted,
        finish=_finish(ids, bool(replies.cancelled[index]), turn_tokenizer),
        probability=_probability(prepared, replies, index),
    )


def _finish(ids: list[int], cancelled: bool, turn_tokenizer: TurnTokenizer) -> Finish:
    if cancelled:
        return "cancelled"
    return "stop" if ids[-1] == turn_tokenizer.end_of_turn else "length"


def _probability(prepared: Prepared, replies: GroupReplies, index: int) -> float | None:
    """Of yes, or of silence: nobody has asked for that of a reply that is an answer."""
    chunk = prepared.chunk
    if chunk.question and chunk.choice is None:
        return None
    probability = float(replies.probability[index])
    return probability if probability >= 0 else None


class StageTimer:
    """Milliseconds of the host between laps, added up by stage; together they are the time of the step.

    The device works while the host goes on, so "vision" and "prefill" are what was left to wait for. With `wait` each program
    is waited for before the next one is dispatched: stages are then what each takes alone, and the step is slower. What the
    call of a program takes is a stage of its own ("prefill dispatch").
    """

    def __init__(self, wait: bool = False) -> None:
        self.wait = wait
        self.ms: dict[str, float] = {}
        self.last = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.ms[stage], self.last = self.ms.get(stage, 0.0) + 1000 * (now - self.last), now

    def dispatched(self, stage: str, outputs: Any) -> None:
        """A lap at the call of a program whose outputs these are."""
        self.lap(f"{stage} dispatch")
        if self.wait:
            self.wait_for(stage, outputs)

    def wait_for(self, stage: str, outputs: Any) -> None:
        """A lap when the program has ended."""
        jax.block_until_ready(outputs)
        self.lap(stage)

    def resume(self) -> None:
        """Leave out the time since the last lap: the caller's."""
        self.last = time.perf_counter()
