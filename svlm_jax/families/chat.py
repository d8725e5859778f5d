"""Chat turns to tokens and spans. Host side: numpy, never jax.

Owns the order of what stands in a turn, which training data and streams share. The markup and the time text are the family's
(`families.family.ChatFormat`): a clip is one vision block, or one for each temporal patch, with a time stamp before it.
`encode` renders a conversation; `opening`, `user_turn` and `reply_turn` the turns of a stream.
Text between two vision blocks is tokenised at once: marks are special tokens, so a conversation tokenises as its parts do.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool

from svlm_jax.config import ModelConfig
from svlm_jax.errors import InputError
from svlm_jax.families import family_of
from svlm_jax.families.family import ChatFormat
from svlm_jax.inputs import Clip, Grid, Sample, patch_times
from svlm_jax.spans import Kind, Part, Span, vision_span

# Tokens of the header of the previous-text turn and of any other turn, and of a turn's footer: a mark, words, newline.
PREVIOUS_HEAD, TURN_HEAD, TURN_END = 4, 3, 2
_MARKUP = re.compile(r"<\|\w+\|>")
_HALF = re.compile("[\ud800-\udfff]")
_KINDS = {"system": Kind.SYSTEM, "previous text": Kind.PREVIOUS, "user": Kind.USER_TEXT, "assistant": Kind.REPLY}


@runtime_checkable
class Tokenizer(Protocol):
    """What is used of a transformers tokenizer."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str: ...

    def get_added_vocab(self) -> dict[str, int]: ...

    def __len__(self) -> int: ...


class Turn(NamedTuple):
    """One turn: role ("system", "previous text", "user", "assistant") and its text and clips in order."""

    role: str
    content: tuple[str | Clip, ...]


class Block(NamedTuple):
    """A block of vision tokens: the time stamp before its marks ("": none), its patch grid, and which of its merged tokens
    exist (None: all)."""

    stamp: str
    grid: Grid
    keep: Bool[np.ndarray, " m"] | None = None


def _blocks(
    chat: ChatFormat, grid: Grid, times: Sequence[float], keep: Bool[np.ndarray, " M"] | None = None
) -> Iterator[Block]:
    """The blocks that a clip of video is: one, or one for each temporal patch, with the times of these."""
    if chat.frame_text is None:
        yield Block("", grid, keep)
        return
    t, h, w = grid
    if len(times) != t:
        raise InputError("times of a clip", len(times) or "none", f"{t}, one a temporal patch", "give it its times")
    masks = [None] * t if keep is None else np.split(keep, t)
    for time, mask in zip(times, masks, strict=True):
        yield Block(chat.frame_text(time), (1, h, w), mask)


def encode(turns: Iterable[Turn], tokenizer: Tokenizer, config: ModelConfig, *, reply: bool = True) -> Sample:
    """Tokens of a conversation; the family's system turn, if it has one, is added when there is none.

    Args:
        reply: end with the header of an assistant turn, which the model continues.

    Raises:
        ValueError: an unknown role.
        InputError: special tokens in a text, or in texts that stand next to each other; a clip whose times are not known, in a
            family that tells them.
    """
    turns, chat = list(turns), family_of(config).chat
    if chat.system_prompt and (not turns or turns[0].role != "system"):
        turns.insert(0, Turn("system", (chat.system_prompt,)))
    ids: list[int] = []
    spans: list[Span] = []
    clips: list[Clip] = []

    def add_text(text: str, kind: Kind, turn: int) -> None:
        tokens = tokenizer.encode(text, add_special_tokens=False)
        ids.extend(tokens)
        spans.append(Span(kind, len(tokens), turn))

    for number, (role, content) in enumerate(turns):
        if role not in _KINDS:
            raise ValueError(f"role: got {role!r}, expected one of {', '.join(_KINDS)}")
        text = chat.header(role)
        plain("".join(item if isinstance(item, str) else "\n" for item in content), f"text of role {role}")
        for item in content:
            if isinstance(item, str):
                text += item
                continue
            blocks = _blocks(chat, item.grid, item.times) if item.video else [Block("", item.grid)]
            for block in blocks:
                add_text(text + block.stamp + chat.vision_start, _KINDS[role], number)
                span = vision_span(block.grid, config.vision.spatial_merge_size, number, item.step)
                ids.extend([config.video_token_id if item.video else config.image_token_id] * span.length)
                spans.append(span)
                text = chat.vision_end
            clips.append(item)
        add_text(text + chat.footer, _KINDS[role], number)
    if reply:
        add_text(chat.header("assistant"), Kind.REPLY, len(turns))
    return Sample(np.array(ids, np.int32), tuple(spans), tuple(clips))


class Tokens(NamedTuple):
    """A run of tokens: ids int32 [n] and the spans that add up to n."""

    ids: np.ndarray
    spans: tuple[Span, ...]

    @classmethod
    def join(cls, *runs: tuple[Span, list[int]]) -> "Tokens":
        ids = [token for _, tokens in runs for token in tokens]
        return cls(np.array(ids, np.int32), tuple(span for span, _ in runs if span.length))


def opening(previous: str | None, tokenizer: Tokenizer, config: ModelConfig) -> Tokens:
    """The first tokens of a stream: the family's system turn, if it has one, and the previous-text turn (empty or not), unless
    `previous` is None: such a stream has none, and its opening may be empty."""
    chat, turns = family_of(config).chat, []
    if chat.system_prompt:
        system = tokenizer.encode(f"{chat.header('system')}{chat.system_prompt}{chat.footer}", add_special_tokens=False)
        turns.append(_run(Kind.SYSTEM, system, 0, Part.BODY))
    if previous is not None:
        turn = tokenizer.encode(f"{chat.header('previous text')}{previous}{chat.footer}", add_special_tokens=False)
        head, body, tail = turn[:PREVIOUS_HEAD], turn[PREVIOUS_HEAD:-TURN_END], turn[-TURN_END:]
        turns.append(_run(Kind.PREVIOUS, head, 0, Part.HEAD))
        turns.append(_run(Kind.PREVIOUS, body, 0, Part.BODY))
        turns.append(_run(Kind.PREVIOUS, tail, 0, Part.TAIL))
    return Tokens.join(*turns)


def user_turn(
    start: float | int,
    end: float | int,
    grid: tuple[int, int, int] | None,
    step: float | int,
    tokenizer: Tokenizer,
    config: ModelConfig,
    *,
    question: str = "",
    query: str = "",
    turn: int = 0,
    keep: Bool[np.ndarray, " M"] | None = None,
    times: Sequence[float] = (),
) -> Tokens:
    """The user turn of one chunk, and the header of the reply to it.

    Where the family has time stamps, one stands before each temporal patch, in place of the time text. It belongs to the
    vision, so it is evicted with it, and it is tokenised apart from a question, which may stay.

    Args:
        start, end: seconds of the chunk.
        grid, step: of the chunk's frames; None: it has no frames.
        question: follows the time text: `question_text`, or the blank of training data. Without a time text no blank goes
            before it.
        query: stands after the vision; a stream has one in its first turn.
        turn: its number.
        keep: which of the frames' merged tokens exist; all by default.
        times: seconds of the temporal patches; by default those of frames at equal distances from `start` on.
    """
    chat = family_of(config).chat
    text = f"{chat.time_text(start, end)}{question}" if chat.frame_text is None else question.lstrip()
    head = tokenizer.encode(f"{chat.header('user')}{text}", add_special_tokens=False)
    rest = tokenizer.encode(f"{query}{chat.footer}{chat.header('assistant')}", add_special_tokens=False)
    vision = []
    if grid is not None:
        size = config.vision.temporal_patch_size
        num_frames = grid[0] * size
        times = times or patch_times(start + np.arange(num_frames) * (end - start) / num_frames, size)
        for block in _blocks(chat, grid, times, keep):
            stamp = tokenizer.encode(block.stamp, add_special_tokens=False)
            pads = vision_span(block.grid, config.vision.spatial_merge_size, turn, step, block.keep)
            vision += [
                _run(Kind.VISION, [*stamp, config.vision_start_token_id], turn, Part.HEAD),
                (pads, [config.video_token_id] * pads.length),
                _run(Kind.VISION, [config.vision_end_token_id], turn, Part.TAIL),
            ]
    return Tokens.join(
        _run(Kind.USER_TEXT, head[:TURN_HEAD], turn, Part.HEAD),
        _run(Kind.USER_TEXT, head[TURN_HEAD:], turn, Part.BODY),
        *vision,
        _run(Kind.USER_TEXT, rest[:-TURN_HEAD], turn, Part.TAIL),
        _run(Kind.REPLY, rest[-TURN_HEAD:], turn, Part.HEAD),
    )


def plain(text: str, field: str) -> str:
    """`text`, after a check that it holds no special tokens: the tokenizer would obey them, and pads would count as frames.

    Raises:
        InputError: a special token; half a character (of JSON, of a command line that is no UTF-8), which no tokenizer takes.
    """
    if _HALF.search(text):
        raise InputError(field, "half of a surrogate pair", "Unicode text", "remove it, or write it as UTF-8")
    if mark := _MARKUP.search(text):
        raise InputError(field, f"special token {mark[0]}", "plain text", "remove it")
    return text


def question_text(question: str, *, first: bool = False) -> str:
    """A question as it stands in a user turn, between the time text and the vision, in training data and in a live stream
    alike. A blank goes before it, except in a stream's first turn.

    Raises:
        InputError: special tokens in it.
    """
    return plain(question, "question") if first else f" {plain(question, 'question')}"


def reply_turn(tokens: Sequence[int], turn: int) -> tuple[Span, ...]:
    """Spans of the tokens of a reply, the turn's end mark included: the last two are the TAIL (" ..." and the mark)."""
    tail = min(2, len(tokens))
    body = Span(Kind.REPLY, len(tokens) - tail, turn), Span(Kind.REPLY, tail, turn, part=Part.TAIL)
    return tuple(span for span in body if span.length)


def _run(kind: Kind, tokens: list[int], turn: int, part: Part) -> tuple[Span, list[int]]:
    return Span(kind, len(tokens), turn, part=part), tokens
