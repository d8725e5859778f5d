"""The retained sequence of one stream on the host: ids, spans, positions and slots, carried from chunk to chunk.

`next_turn` evicts by the rule of `policy` and appends the user turn, `with_reply` appends the generated tokens. Both return a
new value. Knows no device. Units: indices and slots in tokens, seconds on the video's clock.
Axes: n retained tokens, M merged tokens of a chunk's frames.
"""

import warnings
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int32

from svlm_jax.config import ModelConfig, StreamConfig
from svlm_jax.decode.choice import Choice
from svlm_jax.decode.sampling import Sampling
from svlm_jax.errors import InputError
from svlm_jax.families.chat import Tokens, plain, question_text, reply_turn, user_turn
from svlm_jax.inputs import Clip
from svlm_jax.spans import Kind, Part, Span, merged_tokens, total
from svlm_jax.stream import policy
from svlm_jax.stream.policy import NO_SLOT
from svlm_jax.stream.stream_settings import StreamSettings
from svlm_jax.stream.turn_tokenizer import TurnTokenizer

MAX_POSITION = 2.0**22  # exact in float32 up to here, in quarters too, which frames at 16 a second are apart


class Chunk(NamedTuple):
    """One step of video for one stream: seconds [start, end), its frames as patches, and a question that comes with it. keep:
    which of the frames' merged vision tokens, in (t, h, w) order, the language model is given (None: all). choice: the answers
    to the question, if there are only a few. max_new_tokens: of the reply to it; None: the stream's. At most that is taken."""

    start: float | int
    end: float | int
    clip: Clip
    question: str = ""
    keep: Bool[np.ndarray, " M"] | None = None
    choice: Choice | None = None
    max_new_tokens: int | None = None


class StreamSequence(NamedTuple):
    """What a stream retains, in order, and the settings that it goes by.

    opening: its first turns. settings: as they were asked for; config, sampling: those in force, `config.max_new_tokens` too.
    chunk: chunks since the stream started; `window_start`: the chunk at which it was last restarted. ids, slots (NO_SLOT: not
    in the KV cache), positions of the n retained tokens; spans that add up to n. clips: (turn, frames) of the retained vision
    tokens, for a mode that computes them again every chunk.
    """

    opening: Tokens
    settings: StreamSettings
    config: StreamConfig
    sampling: Sampling
    chunk: int
    window_start: int
    ids: Int32[np.ndarray, " n"]
    slots: Int32[np.ndarray, " n"]
    positions: Float32[np.ndarray, "3 n"]
    spans: tuple[Span, ...]
    clips: tuple[tuple[int, Clip], ...] = ()

    @property
    def cached(self) -> int:
        """Tokens in the KV cache. The others follow them, but for a moved reply that is to be computed again."""
        return int(np.count_nonzero(self.slots >= 0))


def new_stream(opening: Tokens, settings: StreamSettings, config: StreamConfig, sampling: Sampling) -> StreamSequence:
    """A stream before its first chunk; the arguments are those of `StreamSequence`."""
    length = len(opening.ids)
    return StreamSequence(
        opening=opening,
        settings=settings,
        config=config,
        sampling=sampling,
        chunk=0,
        window_start=0,
        ids=opening.ids,
        slots=np.full(length, NO_SLOT, np.int32),
        positions=np.zeros((3, length), np.float32),
        spans=opening.spans,
    )


def next_turn(seq: StreamSequence, chunk: Chunk, turns: TurnTokenizer) -> tuple[StreamSequence, tuple[Span, ...]]:
    """The sequence as the reply to `chunk` begins: evicted, with the new turn, at its new positions; and spans of the tokens
    that were evicted. The slots of new tokens, and of those to be computed again, are NO_SLOT.

    Raises:
        InputError: a question for which there is no room, a mask that is not of the chunk's frames.
    """
    config, evicted = seq.config, ()
    if _must_restart(seq):
        evicted, seq = seq.spans, _restarted(seq)
    clips = clips_to_encode(seq, chunk)
    eviction = policy.evict(seq.spans, seq.chunk, config)
    survivors = eviction.survivors
    turn = _new_tokens(seq, eviction.spans, chunk, turns)
    spans = eviction.spans + turn.spans
    _check_questions(spans, config, turns)
    ids = np.concatenate([seq.ids[survivors], turn.ids])
    slots = np.full(len(ids), NO_SLOT, np.int32)
    if config.mode != "recompute":  # survivors stay in their slots: no key or value moves
        slots[: len(survivors)] = seq.slots[survivors]
        if config.moved_reply_kv == "recompute":
            slots[: len(survivors)][policy.moved_replies(seq.spans, eviction)] = NO_SLOT
    merge = turns.config.vision.spatial_merge_size
    if config.rope_positions == "contiguous" or config.mode == "recompute":
        positions = policy.positions(spans, config, merge, first_turn=seq.window_start)
    else:
        positions = _native_positions(seq.positions[:, survivors], slots, spans, config, merge, seq.window_start)
    return seq._replace(ids=ids, slots=slots, positions=positions, spans=spans, clips=clips), evicted + eviction.evicted


def clips_to_encode(seq: StreamSequence, chunk: Chunk) -> tuple[tuple[int, Clip], ...]:
    """(turn, frames) that the vision tower encodes for a chunk: its own; in a mode without a cache those of all retained vision
    tokens before them."""
    clips = ((seq.chunk, chunk.clip),)
    if seq.config.mode != "recompute":
        return clips
    spans = policy.evict(seq.spans, seq.chunk, seq.config).spans
    retained = {span.turn for span in spans if span.grid is not None}
    return tuple(clip for clip in seq.clips if clip[0] in retained) + clips


def _must_restart(seq: StreamSequence) -> bool:
    """Whether a window is over, or native positions, which grow for ever, would no longer be exact."""
    if seq.config.mode == "window":
        return seq.chunk - seq.window_start >= seq.config.window_chunks  # more where it was made shorter
    inexact = bool(seq.positions.max(initial=0) > MAX_POSITION)
    if inexact:
        warnings.warn(f"positions have grown to {MAX_POSITION:.0f}: the stream begins afresh", stacklevel=3)
    return inexact


def _restarted(seq: StreamSequence) -> StreamSequence:
    first = new_stream(seq.opening, seq.settings, seq.config, seq.sampling)
    return first._replace(chunk=seq.chunk, window_start=seq.chunk)


def _new_tokens(seq: StreamSequence, retained: tuple[Span, ...], chunk: Chunk, turns: TurnTokenizer) -> Tokens:
    """The user turn of a chunk and the header of the reply to it, after the "\n" that closes the last reply."""
    is_first = seq.chunk == seq.window_start
    question, query = chunk.question, seq.settings.query if is_first else ""
    if seq.config.question_after_frames:
        question, query = "", plain(query + question, "question")
    turn = user_turn(
        chunk.start,
        chunk.end,
        chunk.clip.grid,
        chunk.clip.step,
        turns.tokenizer,
        turns.config,
        question=question_text(question, first=is_first) if question else "",
        query=query,
        turn=seq.chunk,
        keep=_checked_keep(chunk, turns.config),
    )
    if not retained or retained[-1].kind != Kind.REPLY:  # every other turn has its "\n" already
        return turn
    newline = Span(Kind.REPLY, len(turns.newline), retained[-1].turn, part=Part.TAIL)
    return Tokens(np.concatenate([turns.newline, turn.ids]), (newline, *turn.spans))


def _checked_keep(chunk: Chunk, config: ModelConfig) -> Bool[np.ndarray, " M"] | None:
    if chunk.keep is None:
        return None
    keep, merged = np.asarray(chunk.keep), merged_tokens(chunk.clip.grid, config.vision.spatial_merge_size)
    if keep.dtype != bool or keep.shape != (merged,):
        got = f"{keep.dtype} of shape {keep.shape}"
        raise InputError("keep of a chunk", got, f"bool of shape ({merged},)", "give one for each merged token of its frames")
    return keep


def _check_questions(spans: tuple[Span, ...], config: StreamConfig, turns: TurnTokenizer) -> None:
    """Refuse a question for which there may be no slot in a later chunk; a cache that grows has one for each."""
    if not config.bounded:
        return
    user = [span for span in spans if span.kind == Kind.USER_TEXT]
    lengths = {turn: total(span for span in user if span.turn == turn) for turn in {span.turn for span in user}}
    questions = sum(max(0, length - turns.max_plain_text) for length in lengths.values())
    if questions > config.question_tokens:
        got, expected = f"{questions} tokens of questions retained", f"at most {config.question_tokens} (question_tokens)"
        raise InputError("question", got, expected, "ask a shorter one, or wait until the last ones are forgotten")


def _native_positions(
    prev: Float32[np.ndarray, "3 p"],
    slots: Int32[np.ndarray, " n"],
    spans: tuple[Span, ...],
    config: StreamConfig,
    merge: int,
    first_turn: int,
) -> Float32[np.ndarray, "3 n"]:
    """Cached tokens stay at the positions they were computed at; new ones go on after the temporal one of the newest."""
    cached = int(np.count_nonzero(slots >= 0))
    left, new = cached, []
    for span in spans:
        in_cache = min(left, span.length)
        left -= in_cache
        if in_cache < span.length:
            new.append(span if in_cache == 0 else span._replace(length=span.length - in_cache))
    start = float(prev[0, cached - 1]) + 1 if cached else 0.0
    return np.concatenate([prev[:, :cached], policy.positions(new, config, merge, start, first_turn)], axis=1)


def with_reply(
    seq: StreamSequence,
    tokens: Int32[np.ndarray, " r"],
    reply_slots: Int32[np.ndarray, " R"],
    turns: TurnTokenizer,
) -> StreamSequence:
    """The sequence after a reply: tokens as generated, the slots that were reserved for them (R >= r). The newest token is in
    no slot; the end of the turn is appended to a reply that was cut, or takes the place of its newest token."""
    end = turns.end_of_turn
    words = tokens[:-1] if tokens[-1] == end or seq.config.cut_reply == "drop_last" else tokens
    ids = np.append(words, np.int32(end))
    # The newest generated token was chosen and not computed: its key and value come with the next turn.
    slots = np.full(len(ids), NO_SLOT, np.int32)
    slots[: len(tokens) - 1] = reply_slots[: len(tokens) - 1]
    start = seq.positions[0, -1] + 1
    positions = np.broadcast_to(start + np.arange(len(ids), dtype=np.float32), (3, len(ids)))
    return seq._replace(
        chunk=seq.chunk + 1,
        ids=np.concatenate([seq.ids, ids]).astype(np.int32),
        slots=np.concatenate([seq.slots, slots]),
        positions=np.concatenate([seq.positions, positions], axis=1),
        spans=seq.spans + reply_turn(ids.tolist(), seq.spans[-1].turn),
        clips=seq.clips if seq.config.mode == "recompute" else (),
    )
