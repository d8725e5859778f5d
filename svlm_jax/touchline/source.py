"""The game as a source of video: match:SEED.

Owns the names of games, and the latest start of a stream in a game. Host side: numpy, never jax. Units: seconds.
"""

import math
import re
import secrets
import warnings
from collections.abc import Callable, Iterator, Mapping
from itertools import islice

import numpy as np

from svlm_jax.errors import InputError, shortened
from svlm_jax.media import sources
from svlm_jax.media.chunks import Source, Timing
from svlm_jax.media.sources import Opener
from svlm_jax.media.video import SLACK
from svlm_jax.touchline.film import HELD_OUT, Film, moments

MAX_START = 1e6  # seconds; a game is played without drawing from 0 s up to the start of the stream
SLOW_START = 600.0  # seconds; a later start gets a warning with the time that this takes
NAME = re.compile(r"match:(\d+)(:unseen)?")


class MatchSource(Source):
    """match:SEED, an endless game, drawn while it is watched. With :unseen after it: pitches and shades that no training film
    has."""

    endless = True

    def __init__(self, name: str, timing: Timing) -> None:
        """Raises:
        InputError: another name, or a start beyond `MAX_START`.
        """
        super().__init__(shortened(name), timing)
        if not (match := NAME.fullmatch(name)):
            raise InputError("source", repr(self.name), "match:SEED or match:SEED:unseen", "for example match:1000000")
        if self.start > MAX_START:
            got, expected = f"{self.start:g} s of {self.name}", f"at most {MAX_START:g} s"
            raise InputError("start", got, expected, "the game is played up to its start first: start earlier")
        if self.start > SLOW_START:
            warnings.warn(f"{self.name} is played up to {self.start:g} s first: some 10 s for each hour of it", stacklevel=3)
        self.film = Film(int(match[1]), unseen=bool(match[2]))
        self.total = self._chunks_in(None)

    def frames(self) -> Iterator[np.ndarray]:
        return (draw() for draw in self.lazy_frames())

    def lazy_frames(self) -> Iterator[Callable[[], np.ndarray]]:
        count = None if self.duration is None else math.ceil(self.duration * self.fps - SLACK)
        for moment in islice(moments(self.film.world, self.fps, self.start), count):
            self.film.world.drop_history()
            yield lambda moment=moment: self.film.draw(moment)


SCHEMES: Mapping[str, Opener] = {**sources.SCHEMES, "match": MatchSource}


def random_match(max_seed: int) -> str:
    """The name of a game that no training film shows, of a seed up to `max_seed`."""
    return f"match:{HELD_OUT + secrets.randbelow(max_seed - HELD_OUT)}"


def open_match(
    seed: int,
    *,
    unseen: bool = False,
    fps: float | int = 2.0,
    chunk_seconds: float | int = 1.0,
    start: float | int = 0.0,
    duration: float | int | None = None,
) -> Source:
    """The game of a seed as a source that `Pretrained.watch` takes; for the other arguments see `media.sources.open_source`."""
    return MatchSource(f"match:{seed}{':unseen' if unseen else ''}", Timing(fps, chunk_seconds, start, duration))
