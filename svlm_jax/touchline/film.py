"""The game as video: frames at any rate, and mp4 files with their annotations.

Owns the times of frames, and which seeds are held out from training. Host side: numpy, never jax. Units: seconds, pixels.
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

HELD_OUT = 1_000_000  # seeds from this one are for testing; `svlm world` refuses to write training films of them
SIZE = (672, 448)  # default width and height of a frame
QUERY = "Commentate on this match"


def moments(world: World, fps: float | int, start: float | int = 0.0) -> Iterator[Moment]:
    """The moments at start + k / fps, without end; positions between two ticks are interpolated."""
    number = 0
    for current, following in pairwise(world.moments()):
        while (time := start + number / fps) < following.time - 1e-9:
            if time >= current.time - 1e-9:
                yield _between(current, following, (time - current.time) / TICK)._replace(time=time)
            number += 1


def _between(current: Moment, following: Moment, fraction: float) -> Moment:
    # No interpolation across the start of a scene: the ball may jump there.
    if fraction < 1e-6 or current.scene is not following.scene:
        return current
    players = current.players + (following.players - current.players) * fraction
    return current._replace(players=players, ball=current.ball + (following.ball - current.ball) * fraction)


class Film:
    """The game of a seed as frames; `world.events` holds the events up to the newest frame."""

    def __init__(self, seed: int, *, size: tuple[int, int] = SIZE, unseen: bool = False, rules: Rules = Rules.MATCH) -> None:
        """Args:
        size: width and height.
        unseen: pitches and shades that no training film has.
        rules: of the game.
        """
        self.world, self.draw = World(seed, rules), Renderer(seed, *size, unseen)

    def frames(self, fps: float | int, start: float | int = 0.0) -> Iterator[np.ndarray]:
        """Frames, uint8 [H, W, 3], `fps` a second, without end."""
        return (self.draw(moment) for moment in moments(self.world, fps, start))


def write_film(
    path: str | Path,
    seed: int,
    *,
    seconds: int,
    fps: float | int = 2.0,
    size: tuple[int, int] = SIZE,
    unseen: bool = False,
    rules: Rules = Rules.MATCH,
    progress: Callable[[int], None] = lambda num_frames: None,
) -> World:
    """Write an mp4 file; returns the game up to its end. progress: called after each frame with the number of frames so far."""
    film = Film(seed, size=size, unseen=unseen, rules=rules)

    def drawn() -> Iterator[np.ndarray]:
        for number, frame in enumerate(islice(film.frames(fps), round(seconds * fps)), 1):
            yield frame
            progress(number)

    write_video(path, drawn(), fps)
    return film.world


def play(seed: int, seconds: float | int, rules: Rules = Rules.MATCH) -> World:
    """The first seconds of a game without drawing any frame."""
    world = World(seed, rules)
    next(moment for moment in world.moments() if moment.time >= seconds)
    return world


def annotate(
    world: World, video: str, seconds: int, questions: float = 0.0, question_kinds: Sequence[str] = tuple(commentary.QUESTIONS)
) -> Annotation:
    """Commentary and questions of the first `seconds` of a game that was played at least so far.

    Args:
        questions, question_kinds: `rate` and `kinds` of `commentary.questions`.
    """
    words = tuple(word for word in commentary.words(world.events) if word.end <= seconds)
    asked_questions = tuple(commentary.questions(world, seconds, questions, question_kinds))
    query = QUERY if world.seed % 2 else ""  # half of the training streams have a query
    return Annotation(video, 0.0, float(seconds), query, "", words, asked_questions)
