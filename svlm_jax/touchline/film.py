"""The game as video: pictures at any frame rate, and mp4 files with their annotations.

Owns the clock of pictures and which seeds nobody may train on. Host side: numpy, never jax. Units: seconds, pixels.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path

import numpy as np

from svlm_jax.data.annotation import Annotation
from svlm_jax.media.video import write_video
from svlm_jax.touchline import commentary
from svlm_jax.touchline.match import TICK, Moment, Rules, World
from svlm_jax.touchline.render import Renderer

HELD_OUT = 1_000_000  # seeds from here on are for testing; `svlm world` refuses to make training films of them
SIZE = (672, 448)  # of pictures nobody has asked another size of
QUERY = "Commentate on this match"


def moments(world: World, fps: float | int, start: float | int = 0.0) -> Iterator[Moment]:
    """What is seen at start + k / fps, without end; places between two ticks are interpolated."""
    number = 0
    for now, after in pairwise(world.moments()):
        while (time := start + number / fps) < after.time - 1e-9:
            if time >= now.time - 1e-9:
                yield _between(now, after, (time - now.time) / TICK)._replace(time=time)
            number += 1


def _between(now: Moment, after: Moment, share: float) -> Moment:
    if share < 1e-6 or now.scene is not after.scene:
        return now
    players = now.players + (after.players - now.players) * share
    return now._replace(players=players, ball=now.ball + (after.ball - now.ball) * share)


class Film:
    """The game of a seed as pictures; `world.events` is what happened in those that were taken."""

    def __init__(self, seed: int, *, size: tuple[int, int] = SIZE, unseen: bool = False, rules: Rules = Rules.MATCH) -> None:
        """Args:
        size: width and height.
        unseen: pitches and shades that no training film has.
        rules: how it is played.
        """
        self.world, self.draw = World(seed, rules), Renderer(seed, *size, unseen)

    def pictures(self, fps: float | int, start: float | int = 0.0) -> Iterator[np.ndarray]:
        """uint8 [H, W, 3] `fps` times a second, without end."""
        return (self.draw(moment) for moment in moments(self.world, fps, start))


def write(
    path: str | Path,
    seed: int,
    *,
    seconds: int,
    fps: float | int = 2.0,
    size: tuple[int, int] = SIZE,
    unseen: bool = False,
    rules: Rules = Rules.MATCH,
    progress: Callable[[int], None] = lambda pictures: None,
) -> World:
    """Write an mp4 file; returns the game as far as it shows it. progress: told how many pictures are drawn, after each."""
    film = Film(seed, size=size, unseen=unseen, rules=rules)

    def drawn() -> Iterator[np.ndarray]:
        for number, picture in enumerate(islice(film.pictures(fps), round(seconds * fps)), 1):
            yield picture
            progress(number)

    write_video(path, drawn(), fps)
    return film.world


def play(seed: int, seconds: float | int, rules: Rules = Rules.MATCH) -> World:
    """The first seconds of a game without pictures."""
    world = World(seed, rules)
    next(moment for moment in world.moments() if moment.time >= seconds)
    return world


def annotate(
    world: World, video: str, seconds: int, questions: float = 0.0, ask: Sequence[str] = tuple(commentary.QUESTIONS)
) -> Annotation:
    """What is said in the first `seconds` of a game that has gone so far; for the last two see `commentary.questions`."""
    words = tuple(word for word in commentary.words(world.events) if word.end <= seconds)
    asked = tuple(commentary.questions(world, seconds, questions, ask))
    query = QUERY if world.seed % 2 else ""  # streams are begun with and without one
    return Annotation(video, 0.0, float(seconds), query, "", words, asked)
