"""Chat turns to tokens and spans, in the Qwen format. Host side: numpy, never jax.

Text between vision blocks is tokenised in one piece; the markers are special tokens, so the pieces tokenise as the whole does.
`encode` renders a conversation; `opening`, `user_turn` and `reply_turn` the turns of a stream, which training data shares.
"""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from svlm_jax.config import ModelConfig
from svlm_jax.errors import InputError
from svlm_jax.inputs import Clip, Sample
from svlm_jax.spans import Kind, Part, Span, vision_span

SYSTEM_PROMPT = "You are a helpful assistant."
PREVIOUS_HEAD, TURN_HEAD, TURN_END = 4, 3, 2  # tokens of <|im_start|>previous text\n, <|im_start|>user\n, <|im_end|>\n
_MARKUP = re.compile(r"<\|\w+\|>")
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


def encode(turns: Iterable[Turn], tokenizer: Tokenizer, config: ModelConfig, *, reply: bool = True) -> Sample:
    """Tokens of a conversation, <|im_start|>role ... <|im_end|> a turn; the default system turn is added when there is none.

    Args:
        reply: end with the header of an assistant turn, for the model to go on from.

    Raises:
        ValueError: an unknown role.
    """
    turns = list(turns)
    if not turns or turns[0].role != "system":
        turns.insert(0, Turn("system", (SYSTEM_PROMPT,)))
    ids: list[int] = []
    spans: list[Span] = []
    clips: list[Clip] = []

    def say(text: str, kind: Kind, turn: int) -> None:
        tokens = tokenizer.encode(text, add_special_tokens=False)
        ids.extend(tokens)
        spans.append(Span(kind, len(tokens), turn))

    for number, (role, content) in enumerate(turns):
        if role not in _KINDS:
            raise ValueError(f"role: got {role!r}, expected one of {', '.join(_KINDS)}")
        text = f"<|im_start|>{role}\n"
        for piece in content:
            if isinstance(piece, str):
                text += piece
                continue
            say(text + "<|vision_start|>", _KINDS[role], number)
            span = vision_span(piece.grid, config.vision.spatial_merge_size, number, piece.step)
            ids.extend([config.video_token_id if piece.video else config.image_token_id] * span.length)
            spans.append(span)
            clips.append(piece)
            text = "<|vision_end|>"
        say(text + "<|im_end|>\n", _KINDS[role], number)
    if reply:
        say("<|im_start|>assistant\n", Kind.REPLY, len(turns))
    return Sample(np.array(ids, np.int32), tuple(spans), tuple(clips))


class Tokens(NamedTuple):
    """A run of tokens: ids int32 [n] and the spans that add up to n."""

    ids: np.ndarray
    spans: tuple[Span, ...]

    @classmethod
    def join(cls, *runs: tuple[Span, list[int]]) -> "Tokens":
        ids = [token for _, tokens in runs for token in tokens]
        return cls(np.array(ids, np.int32), tuple(span for span, _ in runs if span.length))


def opening(previous: str, tokenizer: Tokenizer) -> Tokens:
    """What a stream begins with: the system turn and the previous-text turn (empty or not)."""
    system = tokenizer.encode(f"<|im_start|>system\n{SYSTEM_PROMPT}<|im_end|>\n", add_special_tokens=False)
    turn = tokenizer.encode(f"<|im_start|>previous text\n{previous}<|im_end|>\n", add_special_tokens=False)
    head, body, tail = turn[:PREVIOUS_HEAD], turn[PREVIOUS_HEAD:-TURN_END], turn[-TURN_END:]
    return Tokens.join(
        _run(Kind.SYSTEM, system, 0, Part.BODY),
        _run(Kind.PREVIOUS, head, 0, Part.HEAD),
        _run(Kind.PREVIOUS, body, 0, Part.BODY),
        _run(Kind.PREVIOUS, tail, 0, Part.TAIL),
    )


def user_turn(
    start: float | int,
    end: float | int,
    grid: tuple[int, int, int] | None,
    step: float | int,
    tokenizer: Tokenizer,
    config: ModelConfig,
    *,
    asked: str = "",
    query: str = "",
    turn: int = 0,
) -> Tokens:
    """The user turn of one chunk, and the header of the reply to it.

    Args:
        start, end: seconds, printed with one decimal.
        grid, step: of the chunk's frames; None: it has none.
        asked: stands right after the time text: a question (`question_text`), or the blank of training data.
        query: stands after the vision; a stream has one in its first turn.
        turn: its number.
    """
    text = f"<|im_start|>user\nTime={start:.1f}-{end:.1f}s{asked}"
    time = tokenizer.encode(text, add_special_tokens=False)
    tail = tokenizer.encode(f"{query}<|im_end|>\n", add_special_tokens=False)
    head = tokenizer.encode("<|im_start|>assistant\n", add_special_tokens=False)
    vision = []
    if grid is not None:
        pads = vision_span(grid, config.vision.spatial_merge_size, turn, step)
        vision = [
            _run(Kind.VISION, [config.vision_start_token_id], turn, Part.HEAD),
            (pads, [config.video_token_id] * pads.length),
            _run(Kind.VISION, [config.vision_end_token_id], turn, Part.TAIL),
        ]
    return Tokens.join(
        _run(Kind.USER_TEXT, time[:TURN_HEAD], turn, Part.HEAD),
        _run(Kind.USER_TEXT, time[TURN_HEAD:], turn, Part.BODY),
        *vision,
        _run(Kind.USER_TEXT, tail, turn, Part.TAIL),
        _run(Kind.REPLY, head, turn, Part.HEAD),
    )


def plain(text: str, field: str) -> str:
    """`text`, which holds no special tokens: they would be tokenised as such, and pads be taken for frames."""
    if found := _MARKUP.search(text):
        raise InputError(field, f"special token {found[0]}", "plain text", "remove it")
    return text


def question_text(question: str, *, first: bool = False) -> str:
    """What a question becomes in a user turn, right after the time text and before the vision: training data and a viewer's
    question in a live stream alike. A blank goes before it, but not in the first turn of all.

    Raises:
        InputError: special tokens in it.
    """
    return plain(question, "question") if first else f" {plain(question, 'question')}"


def reply_turn(tokens: Sequence[int], turn: int) -> tuple[Span, ...]:
    """Spans of the tokens of a reply, its <|im_end|> included: the last two are the TAIL (" ..." and <|im_end|>)."""
    tail = min(TURN_END, len(tokens))
    body = Span(Kind.REPLY, len(tokens) - tail, turn), Span(Kind.REPLY, tail, turn, part=Part.TAIL)
    return tuple(span for span in body if span.length)


def _run(kind: Kind, tokens: list[int], turn: int, part: Part) -> tuple[Span, list[int]]:
    return Span(kind, len(tokens), turn, part=part), tokens
