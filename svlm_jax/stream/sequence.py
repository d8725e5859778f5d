"""The retained sequence of one stream on the host: ids, spans, positions and slots, carried from chunk to chunk.

`next_turn` applies what `policy` decides and appends the user turn, `with_reply` what was generated. Both return a new value.
Knows no device. Units: places and slots in tokens, seconds on the video's clock.
"""

import warnings
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from svlm_jax.config import ModelConfig, StreamConfig
from svlm_jax.decode.sampling import Sampling
from svlm_jax.errors import InputError
from svlm_jax.families import family_of
from svlm_jax.families.chat import Tokenizer, Tokens, plain, question_text, reply_turn, user_turn
from svlm_jax.inputs import Clip
from svlm_jax.spans import Kind, Part, Span, merged_tokens, total
from svlm_jax.stream import policy
from svlm_jax.stream.policy import NO_SLOT

EXACT = 2.0**22  # positions up to here are exact in float32, in quarters too, which frames at 16 a second stand at
LATEST = 9_999_999.0  # seconds; the longest time text that capacities allow for (115 days)


class Chunk(NamedTuple):
    """One step of video for one stream: seconds [start, end), its frames as patches, and a question that comes with it. keep:
    which of the frames' merged vision tokens, in (t, h, w) order, the language model is given (None: all)."""

    start: float | int
    end: float | int
    clip: Clip
    question: str = ""
    keep: Bool[np.ndarray, " M"] | None = None


class Sequence(NamedTuple):
    """What a stream retains, in order, and how it began.

    seed, sampling, max_new_tokens: how its replies are drawn and how long they are at most.
    ids, slots [n] int32 (slot NO_SLOT: not computed yet), positions [3, n] float32, spans that add up to n. chunk counts the
    chunks since the stream began, `since` is the one at which it was last begun afresh. clips: (turn, frames) of the retained
    vision, for a mode that computes it again every chunk.
    """

    opening: Tokens
    query: str
    seed: int
    sampling: Sampling
    max_new_tokens: int
    chunk: int
    since: int
    ids: np.ndarray
    slots: np.ndarray
    positions: np.ndarray
    spans: tuple[Span, ...]
    clips: tuple[tuple[int, Clip], ...] = ()

    @property
    def cached(self) -> int:
        """Tokens whose keys and values are held. The others follow them, but for a moved reply that is to be computed anew."""
        return int(np.count_nonzero(self.slots >= 0))


class Language(NamedTuple):
    """What a stream needs of a tokenizer and a model: how turns are written, the ids of "\n" and of the mark that ends a
    turn, and the tokens of text in the longest user turn without a question."""

    tokenizer: Tokenizer
    config: ModelConfig
    newline: np.ndarray
    end: int
    plain_turn: int

    @classmethod
    def of(cls, tokenizer: Tokenizer, config: ModelConfig) -> "Language":
        newline, (end,) = (tokenizer.encode(text, add_special_tokens=False) for text in ("\n", family_of(config).chat.turn_end))
        turn = longest_turn((1, 2, 2), tokenizer, config)
        text = total([span for span in turn if span.kind == Kind.USER_TEXT])
        return cls(tokenizer, config, np.array(newline, np.int32), end, text)

    def suppressed_ids(self) -> tuple[int, ...]:
        """Ids that no reply may hold: chat and vision markup other than the mark that ends a turn, and rows of the vocabulary
        without text."""
        markup = set(self.tokenizer.get_added_vocab().values()) - {self.end}
        return tuple(sorted(markup | set(range(len(self.tokenizer), self.config.text.vocab_size))))


def longest_turn(grid: tuple[int, int, int], tokenizer: Tokenizer, config: ModelConfig) -> tuple[Span, ...]:
    """Spans of the longest user turn without a question, for frames of that grid."""
    return user_turn(LATEST, LATEST, grid, 1.0, tokenizer, config).spans


def _used_up(held: Sequence, config: StreamConfig) -> bool:
    """Whether a stream begins afresh: a window is over, or native positions, which grow for ever, would no longer be exact."""
    if config.mode == "window":
        return held.chunk - held.since == config.window_chunks
    ends = held.positions.max() > EXACT
    if ends:
        warnings.warn(f"positions have grown to {EXACT:.0f}: the stream begins afresh", stacklevel=2)
    return bool(ends)


def check_query(query: str, config: StreamConfig, language: Language) -> None:
    """Refuse what cannot stand in the first turn of a stream: special tokens, or more tokens than there is room for.

    Raises:
        InputError: in a line that names the query.
    """
    text = plain(query, "query")
    turn = user_turn(LATEST, LATEST, (1, 2, 2), 1.0, language.tokenizer, language.config, query=text)
    length = total([span for span in turn.spans if span.kind == Kind.USER_TEXT]) - language.plain_turn
    if config.bounded and length > config.question_tokens:
        got, expected = f"{length} tokens", f"at most {config.question_tokens} (question_tokens)"
        raise InputError("query", got, expected, "shorten it")


def check_sampling(sampling: Sampling, max_new_tokens: int, max_top_k: int, config: StreamConfig, language: Language) -> None:
    """Refuse settings of a stream for which a session of this config and this `max_top_k` has no program.

    Raises:
        InputError: a top_k above `max_top_k`, a reply longer than the config's, an id outside the vocabulary.
    """
    # Greedy streams do not use their top_k.
    if sampling.temperature > 0 and max_top_k and not 0 < sampling.top_k <= max_top_k:
        got = sampling.top_k or "0 (the whole vocabulary)"
        remedy = "choose a smaller one, or make the session with a larger max_top_k (0: the whole vocabulary)"
        raise InputError("top_k of a stream", got, f"1 to {max_top_k} (max_top_k of the session)", remedy)
    if not 1 <= max_new_tokens <= config.max_new_tokens:
        expected = f"1 to {config.max_new_tokens} (max_new_tokens of the session)"
        remedy = "choose a smaller one, or make the session with a larger one"
        raise InputError("max_new_tokens of a stream", max_new_tokens, expected, remedy)
    vocabulary = language.config.text.vocab_size
    for token in sampling.suppressed:
        if not 0 <= token < vocabulary:
            raise InputError("suppressed ids of a stream", token, f"ids from 0 to {vocabulary - 1}", "leave it out")


def start(opening: Tokens, query: str, seed: int, sampling: Sampling, max_new_tokens: int) -> Sequence:
    """A stream that has seen nothing."""
    length = len(opening.ids)
    return Sequence(
        opening=opening,
        query=query,
        seed=seed,
        sampling=sampling,
        max_new_tokens=max_new_tokens,
        chunk=0,
        since=0,
        ids=opening.ids,
        slots=np.full(length, NO_SLOT, np.int32),
        positions=np.zeros((3, length), np.float32),
        spans=opening.spans,
    )


def next_turn(held: Sequence, chunk: Chunk, config: StreamConfig, language: Language) -> tuple[Sequence, tuple[Span, ...]]:
    """What is retained when the reply to `chunk` begins (evicted, with the new turn, at its new positions), and spans of the
    tokens that were evicted. The slots of new tokens, and of those to be computed anew, are NO_SLOT."""
    restart = _used_up(held, config)
    if restart:
        evicted = held.spans
        afresh = start(held.opening, held.query, held.seed, held.sampling, held.max_new_tokens)
        held = afresh._replace(chunk=held.chunk, since=held.chunk)
    number = held.chunk - held.since
    eviction = policy.evict(held.spans, number, config)
    spans, order = eviction.spans, eviction.survivors
    evicted = evicted if restart else eviction.evicted
    turn = user_turn(
        chunk.start,
        chunk.end,
        chunk.clip.grid,
        chunk.clip.step,
        language.tokenizer,
        language.config,
        question=question_text(chunk.question, first=number == 0) if chunk.question else "",
        query=held.query if number == 0 else "",
        turn=held.chunk,
        keep=_checked_keep(chunk, language.config),
    )
    ids, kept = [held.ids[order], turn.ids], spans
    if spans[-1].kind == Kind.REPLY:  # every other turn has its "\n" already
        ids.insert(1, language.newline)
        kept += (Span(Kind.REPLY, len(language.newline), spans[-1].turn, part=Part.TAIL),)
    kept += turn.spans
    _check_questions(kept, config, language)
    sequence = np.concatenate(ids)
    slots = np.full(len(sequence), NO_SLOT, np.int32)
    clips: tuple[tuple[int, Clip], ...] = ((held.chunk, chunk.clip),)
    if config.mode == "recompute":
        turns = {span.turn for span in spans if span.grid is not None}
        clips = tuple(clip for clip in held.clips if clip[0] in turns) + clips
    else:
        slots[: len(order)] = held.slots[order]
        if config.moved_reply_kv == "recompute":
            slots[: len(order)][policy.moved_replies(held.spans, eviction)] = NO_SLOT
    merge = language.config.vision.spatial_merge_size
    if config.rope_positions == "contiguous" or config.mode == "recompute":
        positions = policy.positions(kept, config, merge)
    else:
        positions = _appended(held.positions[:, order], slots, kept, config, merge)
    return held._replace(ids=sequence, slots=slots, positions=positions, spans=kept, clips=clips), evicted


def _checked_keep(chunk: Chunk, config: ModelConfig) -> Bool[np.ndarray, " M"] | None:
    if chunk.keep is None:
        return None
    keep, merged = np.asarray(chunk.keep), merged_tokens(chunk.clip.grid, config.vision.spatial_merge_size)
    if keep.dtype != bool or keep.shape != (merged,):
        got = f"{keep.dtype} of shape {keep.shape}"
        raise InputError("keep of a chunk", got, f"bool of shape ({merged},)", "give one for each merged token of its frames")
    return keep


def _check_questions(spans: tuple[Span, ...], config: StreamConfig, language: Language) -> None:
    """Refuse a question for which there may be no slot in a later chunk; a cache that grows has one for each."""
    if not config.bounded:
        return
    user = [span for span in spans if span.kind == Kind.USER_TEXT]
    turns = {turn: sum(span.length for span in user if span.turn == turn) for turn in {span.turn for span in user}}
    asked = sum(max(0, length - language.plain_turn) for length in turns.values())
    if asked > config.question_tokens:
        got, expected = f"{asked} tokens of questions retained", f"at most {config.question_tokens} (question_tokens)"
        raise InputError("question", got, expected, "ask a shorter one, or wait until the last ones are forgotten")


def _appended(held: np.ndarray, slots: np.ndarray, spans: tuple[Span, ...], config: StreamConfig, merge: int) -> np.ndarray:
    """Positions as they were computed, and those of new tokens after the temporal one of the newest."""
    cached = int(np.count_nonzero(slots >= 0))
    left, new = cached, []
    for span in spans:
        gone = min(left, span.length)
        left -= gone
        if gone < span.length:
            new.append(span if gone == 0 else span._replace(length=span.length - gone))
    start = float(held[0, cached - 1]) + 1 if cached else 0.0
    return np.concatenate([held[:, :cached], policy.positions(new, config, merge, start)], axis=1)


def with_reply(held: Sequence, tokens: np.ndarray, slots: np.ndarray, config: StreamConfig, language: Language) -> Sequence:
    """With a reply: tokens [n] int32 as generated, slots [>= n] that they were given. The newest token is in no slot; an
    <|im_end|> is appended to a reply that was cut."""
    start = held.positions[0, -1] + 1
    ended = tokens if tokens[-1] == language.end else np.append(tokens, np.int32(language.end))
    given = np.full(len(ended), NO_SLOT, np.int32)
    given[: len(tokens) - 1] = slots[: len(tokens) - 1]
    turn = held.spans[-1].turn
    place = np.broadcast_to(start + np.arange(len(ended), dtype=np.float32), (3, len(ended)))
    return held._replace(
        chunk=held.chunk + 1,
        ids=np.concatenate([held.ids, ended]).astype(np.int32),
        slots=np.concatenate([held.slots, given]),
        positions=np.concatenate([held.positions, place], axis=1),
        spans=held.spans + reply_turn(ended.tolist(), turn),
        clips=held.clips if config.mode == "recompute" else (),
    )
