"""What was said, and when: the form in which every benchmark of commentary has its candidates and references.

Units: seconds of the video.
"""

from collections.abc import Iterable
from typing import NamedTuple


class Utterance(NamedTuple):
    """What was said for the video between start and end; "" for silence."""

    start: float
    end: float
    text: str


def spoken(utterances: Iterable[Utterance], start: float, end: float) -> str:
    """The text of those that end after `start` and at `end` at the latest, stripped and joined by one blank.

    The published rule of Inf-Streams-Eval and of LiveSports-3K: `start < int(utterance.end) <= end`.
    """
    texts = (each.text.strip() for each in utterances if start < int(each.end) <= end)
    return " ".join(filter(None, texts))
