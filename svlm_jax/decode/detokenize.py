"""From the ids of a reply to the words that are shown, whole or as they come.

What is shown has no chat markup, no blanks around it, not the " ..." that ends a reply of a trained model, and no half
character where a reply was cut between the tokens of one. Knows no device.
"""

from collections.abc import Sequence

from svlm_jax.data.chat import Tokenizer

CUT = " ..."  # how a reply of a trained model ends
HALF = "\ufffd"  # what a decoder makes of bytes that are no whole character (yet)


def shown(ids: Sequence[int], tokenizer: Tokenizer) -> str:
    """The words of a whole reply."""
    return raw(ids, tokenizer).strip()


def raw(ids: Sequence[int], tokenizer: Tokenizer) -> str:
    """The same with its blanks and newlines, which say what is an answer and what is commentary."""
    return tokenizer.decode(ids, skip_special_tokens=True).rstrip(HALF).removesuffix(CUT)


class Detokenizer:
    """The words of one reply as its tokens come: what `add` and `flush` give, joined, is what `shown` gives of all ids."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self.given = 0  # characters

    def add(self, token: int) -> str:
        """What can be shown since the last token: characters that are whole, and blanks and dots once words follow them."""
        self.ids.append(token)
        text = self.tokenizer.decode(self.ids, skip_special_tokens=True).rstrip(HALF)
        for length in range(len(CUT), 0, -1):  # this may become the end that is not shown
            if text.endswith(CUT[:length]):
                text = text[:-length]
                break
        return self._more(text.strip())

    def flush(self) -> str:
        """The rest, when the reply has ended."""
        return self._more(shown(self.ids, self.tokenizer))

    def _more(self, text: str) -> str:
        more = text[self.given :]
        self.given += len(more)
        return more
