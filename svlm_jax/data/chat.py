"""Chat turns to tokens and spans, in the Qwen format. Host side: numpy, never jax.

Text between vision blocks is tokenised in one piece; the markers are special tokens, so the pieces tokenise as the whole does.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from svlm_jax.config import ModelConfig
from svlm_jax.data.batch import Clip, Sample
from svlm_jax.spans import Kind, Span, vision_span

SYSTEM_PROMPT = "You are a helpful assistant."
_KINDS = {"system": Kind.SYSTEM, "previous text": Kind.PREVIOUS, "user": Kind.USER_TEXT, "assistant": Kind.REPLY}


class Tokenizer(Protocol):
    """What is used of a transformers tokenizer."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str: ...


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
