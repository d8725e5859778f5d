"""From the ids of a reply to its text, at the end or token by token.

The text has no chat markup, no blanks around it, not the " ..." that ends a reply of a trained model, and no partial character
where a reply was cut between the tokens of one. Knows no device.
"""

from collections.abc import Sequence

from svlm_jax.families.chat import Tokenizer

ELLIPSIS = " ..."  # how a reply of a trained model ends
PARTIAL = "\ufffd"  # what a decoder makes of bytes that are not (yet) a complete character


def reply_text(ids: Sequence[int], tokenizer: Tokenizer) -> str:
    """The text of a complete reply."""
    return raw_text(ids, tokenizer).strip()


def raw_text(ids: Sequence[int], tokenizer: Tokenizer) -> str:
    """The same with its blanks and newlines, which tell an answer from commentary."""
    return whole_text(ids, tokenizer).removesuffix(ELLIPSIS)


def whole_text(ids: Sequence[int], tokenizer: Tokenizer) -> str:
    """What ids decode to, without markup and without a partial character at the end."""
    ids = list(ids)
    text = tokenizer.decode(ids, skip_special_tokens=True)
    if not text.endswith(PARTIAL):
        return text
    for stop in range(len(ids), 0, -1):
        start = tokenizer.decode(ids[:stop], skip_special_tokens=True)
        if not start.endswith(PARTIAL):
            break
        if _is_written(ids[:stop], tokenizer):
            return start
    return text.rstrip(PARTIAL)


def _is_written(ids: list[int], tokenizer: Tokenizer) -> bool:
    """Whether a text that ends with PARTIAL has that very character there, in one to three tokens of its own."""
    return any(
        tokenizer.encode(tokenizer.decode(ids[-count:], skip_special_tokens=True), add_special_tokens=False) == ids[-count:]
        for count in (1, 2, 3)
    )


def split_reply(raw: str) -> tuple[str, str]:
    """(answer to a question or "", commentary) of a reply with its newlines: the first one ends the answer."""
    answer, _, words = raw.partition("\n")
    return answer.strip(), words.strip()


class Detokenizer:
    """The text of one reply as its tokens come: the results of `add` and `flush`, joined, are `reply_text` of all ids."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self.emitted = 0  # characters

    def add(self, token: int) -> str:
        """The text that is certain since the last token: complete characters, and blanks and dots once words follow them."""
        self.ids.append(token)
        text = whole_text(self.ids, self.tokenizer)
        for length in range(len(ELLIPSIS), 0, -1):  # this may become the end that is dropped
            if text.endswith(ELLIPSIS[:length]):
                text = text[:-length]
                break
        return self._emit(text.strip())

    def flush(self) -> str:
        """The rest, when the reply has ended."""
        return self._emit(reply_text(self.ids, self.tokenizer))

    def _emit(self, text: str) -> str:
        new = text[self.emitted :]
        self.emitted += len(new)
        return new
