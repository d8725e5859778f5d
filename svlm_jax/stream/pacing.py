"""How much a stream may talk, whatever its model would say. Host side; knows no device and no model.

A talk is a run of neighbouring chunks with words. Units: seconds of the video.
"""

from dataclasses import dataclass
from typing import NamedTuple

from svlm_jax.errors import InputError

_ROUNDING = 1e-6  # of sums of chunks


@dataclass(frozen=True)
class Pacing:
    """Limits on when a stream speaks.

    min_gap: seconds of silence, at least, between two talks. max_talk: seconds of a talk, at most, but one chunk in any case;
    a chunk of silence follows, or `min_gap` of them. None: no limit. An answer to a question is never silenced.
    """

    min_gap: float | int = 0.0
    max_talk: float | int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.min_gap < float("inf"):
            raise InputError("min_gap", self.min_gap, "0 seconds or more", "change it")
        if self.max_talk is not None and not 0 < self.max_talk < float("inf"):
            raise InputError("max_talk", self.max_talk, "more than 0 seconds", "change it, or leave it out")


NO_PACING = Pacing()


class Talk(NamedTuple):
    """The newest talk of a stream: its seconds so far. It goes on if the chunk at `end` has words."""

    start: float | int
    end: float | int

    def must_pause(self, pacing: Pacing, start: float | int, end: float | int) -> bool:
        """Whether the chunk from `start` to `end` must be silent, unless it comes with a question."""
        if start - self.end < _ROUNDING:
            return pacing.max_talk is not None and end - self.start > pacing.max_talk + _ROUNDING
        return start - self.end < pacing.min_gap - _ROUNDING


def talk_after(talk: Talk | None, start: float | int, end: float | int) -> Talk:
    """The newest talk once the chunk from `start` to `end` has had words."""
    goes_on = talk is not None and start - talk.end < _ROUNDING
    return Talk(talk.start if talk is not None and goes_on else start, end)
