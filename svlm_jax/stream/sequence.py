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
from svlm_jax.decode.detokenize import ELLIPSIS
from svlm_jax.decode.sampling import Sampling
from svlm_jax.errors import InputError
from svlm_jax.families import family_of
from svlm_jax.families.chat import Tokenizer, Tokens, opening, plain, question_text, reply_turn, user_turn
from svlm_jax.inputs import Clip
from svlm_jax.spans import Kind, Part, Span, merged_tokens, total
from svlm_jax.stream import policy
from svlm_jax.stream.policy import NO_SLOT

MAX_POSITION = 2.0**22  # exact in float32 up to here, in quarters too, which frames at 16 a second are apart
MAX_SECONDS = 9_999_999.0  # the longest time text that capacities allow for (115 days)


class Chunk(NamedTuple):
    """One step of video for one stream: seconds [start, end), its frames as patches, and a question that comes with it. keep:
    which of the frames' merged vision tokens, in (t, h, w) order, the language model is given (None: all)."""

    start: float | int
    end: float | int
    clip: Clip
    question: str = ""
    keep: Bool[np.ndarray, " M"] | None = None


class StreamSequence(NamedTuple):
    """What a stream retains, in order, and the settings it was started with.

    opening, query: its first turns. seed, sampling, max_new_tokens: how its replies are drawn and how long they are at most.
    chunk: chunks since the stream started; `window_start`: the chunk at which it was last restarted. ids, slots (NO_SLOT: not
    in the KV cache), positions of the n retained tokens; spans that add up to n. clips: (turn, frames) of the retained vision
    tokens, for a mode that computes them again every chunk.
    """

    opening: Tokens
    query: str
    seed: int
    sampling: Sampling
    max_new_tokens: int
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


class TurnTokenizer(NamedTuple):
    """Turns as tokens: a tokenizer and a model, the ids of "\n", of the mark that ends a turn and of the token with which a
    reply says that it pauses (the last of " ..."), and the tokens of text in the longest user turn without a question."""

    tokenizer: Tokenizer
    config: ModelConfig
    newline: Int32[np.ndarray, " k"]
    end_of_turn: int
    silence: int
    max_plain_text: int

    @classmethod
    def of(cls, tokenizer: Tokenizer, config: ModelConfig) -> "TurnTokenizer":
        turn_end = family_of(config).chat.turn_end
        newline, (end,), (*_, silence) = (
            tokenizer.encode(text, add_special_tokens=False) for text in ("\n", turn_end, ELLIPSIS)
        )
        turn = longest_turn((1, 2, 2), tokenizer, config)
        text = total(span for span in turn if span.kind == Kind.USER_TEXT)
        return cls(tokenizer, config, np.array(newline, np.int32), end, silence, text)

    def suppressed_ids(self) -> tuple[int, ...]:
        """Ids that no reply may hold: chat and vision markup other than the mark that ends a turn, and rows of the vocabulary
        without text."""
        markup = set(self.tokenizer.get_added_vocab().values()) - {self.end_of_turn}
        return tuple(sorted(markup | set(range(len(self.tokenizer), self.config.text.vocab_size))))


def cut_opening(opening: Tokens, config: StreamConfig) -> Tokens:
    """The turns with which a stream begins, their previous text cut to sink and window: however long it was, the first chunk
    costs no more than the others. Without the cut all of it is prefilled, and cut before the second chunk."""
    cut = policy.cut_previous(opening.spans, config)
    return Tokens(opening.ids[cut.survivors], cut.spans)


def opening_of(previous: str | Tokens, config: StreamConfig, turns: TurnTokenizer) -> Tokens:
    """The turns with which a stream begins: of previous text, or made before (`cut_opening`).

    Raises:
        InputError: special tokens in the previous text; a previous text for a stream that has no turn for it.
    """
    if not isinstance(previous, str):
        return previous
    if config.previous_text_turn:
        return opening(plain(previous, "previous text"), turns.tokenizer, turns.config)
    if previous:
        expected = "none: this stream has no turn for it"
        raise InputError("previous text", f"{previous:.40}", expected, "leave it out, or set previous_text_turn to true")
    return opening(None, turns.tokenizer, turns.config)


def longest_turn(grid: tuple[int, int, int], tokenizer: Tokenizer, config: ModelConfig) -> tuple[Span, ...]:
    """Spans of the longest user turn without a question, for frames of that grid."""
    return user_turn(MAX_SECONDS, MAX_SECONDS, grid, 1.0, tokenizer, config).spans


def check_query(query: str, config: StreamConfig, turns: TurnTokenizer) -> None:
    """Refuse what cannot stand in the first turn of a stream: special tokens, or more tokens than there is room for.

    Raises:
        InputError: in a line that names the query.
    """
    text = plain(query, "query")
    turn = user_turn(MAX_SECONDS, MAX_SECONDS, (1, 2, 2), 1.0, turns.tokenizer, turns.config, query=text)
    length = total(span for span in turn.spans if span.kind == Kind.USER_TEXT) - turns.max_plain_text
    if config.bounded and length > config.question_tokens:
        got, expected = f"{length} tokens", f"at most {config.question_tokens} (question_tokens)"
        raise InputError("query", got, expected, "shorten it")


def check_sampling(
    sampling: Sampling,
    max_new_tokens: int,
    max_top_k: int,
    config: StreamConfig,
    turns: TurnTokenizer,
    *,
    silence_rule: bool = False,
) -> None:
    """Refuse settings of a stream for which a session of this config, `max_top_k` and `silence_rule` has no program.

    Raises:
        InputError: a top_k above `max_top_k`, a silence threshold without the rule, a reply longer than the config's, an id
            outside the vocabulary.
    """
    if sampling.silence_threshold is not None and not silence_rule:
        remedy = "make the session with silence_rule=True"
        raise InputError("silence_threshold of a stream", sampling.silence_threshold, "none in this session", remedy)
    # Greedy streams do not use their top_k.
    if sampling.temperature > 0 and max_top_k and not 0 < sampling.top_k <= max_top_k:
        got = sampling.top_k or "0 (the whole vocabulary)"
        remedy = "choose a smaller one, or make the session with a larger max_top_k (0: the whole vocabulary)"
        raise InputError("top_k of a stream", got, f"1 to {max_top_k} (max_top_k of the session)", remedy)
    if not 1 <= max_new_tokens <= config.max_new_tokens:
        expected = f"1 to {config.max_new_tokens} (max_new_tokens of the session)"
        remedy = "choose a smaller one, or make the session with a larger one"
        raise InputError("max_new_tokens of a stream", max_new_tokens, expected, remedy)
    vocabulary = turns.config.text.vocab_size
    for token in sampling.suppressed:
        if not 0 <= token < vocabulary:
            raise InputError("suppressed ids of a stream", token, f"ids from 0 to {vocabulary - 1}", "leave it out")


def new_stream(opening: Tokens, query: str, seed: int, sampling: Sampling, max_new_tokens: int) -> StreamSequence:
    """A stream before its first chunk."""
    length = len(opening.ids)
    return StreamSequence(
        opening=opening,
        query=query,
        seed=seed,
        sampling=sampling,
        max_new_tokens=max_new_tokens,
        chunk=0,
        window_start=0,
        ids=opening.ids,
        slots=np.full(length, NO_SLOT, np.int32),
        positions=np.zeros((3, length), np.float32),
        spans=opening.spans,
    )


def next_turn(
    seq: StreamSequence, chunk: Chunk, config: StreamConfig, turns: TurnTokenizer
) -> tuple[StreamSequence, tuple[Span, ...]]:
    """The sequence as the reply to `chunk` begins: evicted, with the new turn, at its new positions; and spans of the tokens
    that were evicted. The slots of new tokens, and of those to be computed again, are NO_SLOT.

    Raises:
        InputError: a question for which there is no room, a mask that is not of the chunk's frames.
    """
    evicted: tuple[Span, ...] = ()
    if _must_restart(seq, config):
        evicted, seq = seq.spans, _restarted(seq)
    clips = clips_to_encode(seq, chunk, config)
    eviction = policy.evict(seq.spans, seq.chunk - seq.window_start, config)
    survivors = eviction.survivors
    turn = _new_tokens(seq, eviction.spans, chunk, config, turns)
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


def clips_to_encode(seq: StreamSequence, chunk: Chunk, config: StreamConfig) -> tuple[tuple[int, Clip], ...]:
    """(turn, frames) that the vision tower encodes for a chunk: its own; in a mode without a cache those of all retained vision
    tokens before them."""
    clips = ((seq.chunk, chunk.clip),)
    if config.mode != "recompute":
        return clips
    spans = policy.evict(seq.spans, seq.chunk - seq.window_start, config).spans
    retained = {span.turn for span in spans if span.grid is not None}
    return tuple(clip for clip in seq.clips if clip[0] in retained) + clips


def _must_restart(seq: StreamSequence, config: StreamConfig) -> bool:
    """Whether a window is over, or native positions, which grow for ever, would no longer be exact."""
    if config.mode == "window":
        return seq.chunk - seq.window_start == config.window_chunks
    inexact = bool(seq.positions.max(initial=0) > MAX_POSITION)
    if inexact:
        warnings.warn(f"positions have grown to {MAX_POSITION:.0f}: the stream begins afresh", stacklevel=3)
    return inexact


def _restarted(seq: StreamSequence) -> StreamSequence:
    first = new_stream(seq.opening, seq.query, seq.seed, seq.sampling, seq.max_new_tokens)
    return first._replace(chunk=seq.chunk, window_start=seq.chunk)


def _new_tokens(
    seq: StreamSequence, retained: tuple[Span, ...], chunk: Chunk, config: StreamConfig, turns: TurnTokenizer
) -> Tokens:
    """The user turn of a chunk and the header of the reply to it, after the "\n" that closes the last reply."""
    is_first = seq.chunk == seq.window_start
    question, query = chunk.question, seq.query if is_first else ""
    if config.question_after_frames:
        question, query = "", query + plain(question, "question")
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
    config: StreamConfig,
    turns: TurnTokenizer,
) -> StreamSequence:
    """The sequence after a reply: tokens as generated, the slots that were reserved for them (R >= r). The newest token is in
    no slot; the end of the turn is appended to a reply that was cut, or takes the place of its newest token."""
    end = turns.end_of_turn
    words = tokens[:-1] if tokens[-1] == end or config.cut_reply == "drop_last" else tokens
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
        clips=seq.clips if config.mode == "recompute" else (),
    )
