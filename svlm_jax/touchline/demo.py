"""A model watches a game and is compared with its events, second by second: the library part of `svlm demo`.

Owns the question, the comparison and the picture of it. Does not know the terminal. Units: seconds, pixels.
"""

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from svlm_jax.config import ResizeOn, StreamConfig
from svlm_jax.decode.detokenize import split_reply
from svlm_jax.files import atomic_write, report_write_errors
from svlm_jax.inputs import Clip
from svlm_jax.stream.events import Caption
from svlm_jax.touchline.commentary import QUESTIONS, words
from svlm_jax.touchline.film import Film, play
from svlm_jax.touchline.judge import Tally, judge

if TYPE_CHECKING:
    from svlm_jax.media.processor import Processor
    from svlm_jax.stream.runner import Runner

QUESTION = QUESTIONS["score"][0]
ASK_BEFORE_END = 5  # seconds
COLUMNS, ROWS, FRAME_SIZE, CAPTION_HEIGHT = 3, 2, (480, 320), 56  # of the picture


class Game(NamedTuple):
    """The first seconds of the game of a seed. unseen: a pitch and shades that no training film has."""

    seed: int
    seconds: int
    unseen: bool = False


def captions(
    processor: "Processor", game: Game, config: StreamConfig, start: Callable[[Clip], "Runner"], resize_on: ResizeOn = "auto"
) -> Iterator[Caption]:
    """The captions of a game; near its end a viewer asks for the score.

    Args:
        start: as for `stream.runner.watch`.
    """
    from svlm_jax.stream.frames import resizes_on_device
    from svlm_jax.stream.playback import Playback
    from svlm_jax.stream.watch import watch
    from svlm_jax.touchline.source import open_match

    def question(stream: str, start: float | int, end: float | int) -> str:
        return QUESTION if start <= game.seconds - ASK_BEFORE_END < end else ""

    timing = {"fps": config.fps, "chunk_seconds": config.chunk_seconds, "duration": game.seconds}
    with Playback(processor, on_device=resizes_on_device(resize_on, processor, config)) as playback:
        source = open_match(game.seed, unseen=game.unseen, **timing)
        for event in watch(playback, source, start, question=question):
            if isinstance(event, Caption):
                yield event


class Comparison:
    """A commentary next to the true one. truth, commentary: second -> words; step_ms: milliseconds a chunk."""

    def __init__(self, game: Game) -> None:
        self.game, self.events = game, play(game.seed, game.seconds).events
        self.truth: dict[int, str] = {}
        for word in words(self.events):
            self.truth[int(word.start)] = f"{self.truth.get(int(word.start), '')} {word.text}".strip()
        self.commentary: dict[int, str] = {}
        self.step_ms: list[float] = []

    def add(self, caption: Caption) -> tuple[str, str, str]:
        """The true words of the caption's second, the model's, and its answer to a question ("": none)."""
        second = int(caption.start)
        answer, text = split_reply(caption.raw)
        self.commentary[second] = text
        self.step_ms.append(sum(caption.ms.values()))
        return self.truth.get(second, ""), text, answer

    @property
    def tally(self) -> Tally:
        """Of the seconds so far."""
        return judge(self.commentary, self.events, 0, len(self.commentary))

    @property
    def median_ms(self) -> float:
        return float(np.median(self.step_ms))


def draw(comparison: Comparison, path: Path) -> None:
    """Six frames with the commentary below each, and the true words where they differ."""
    from PIL import Image, ImageDraw, ImageFont

    game, (width, height) = comparison.game, FRAME_SIZE
    chosen = varied_seconds(comparison.commentary, COLUMNS * ROWS)
    sheet = Image.new("RGB", (COLUMNS * width, ROWS * (height + CAPTION_HEIGHT)), (16, 18, 24))
    canvas, font, small = ImageDraw.Draw(sheet), ImageFont.load_default(22), ImageFont.load_default(15)
    film = islice(Film(game.seed, size=FRAME_SIZE, unseen=game.unseen).frames(2), 2 * game.seconds)
    # The second of the two frames of a second: an event that starts in between is in it.
    frames = {number // 2: frame for number, frame in enumerate(film) if number % 2 and number // 2 in chosen}
    for cell, second in enumerate(chosen):
        left, top = width * (cell % COLUMNS), (height + CAPTION_HEIGHT) * (cell // COLUMNS)
        sheet.paste(Image.fromarray(frames[second]), (left, top))
        text, truth = comparison.commentary[second], comparison.truth.get(second, "")
        canvas.text((left + 12, top + height + 5), text, (255, 255, 255), font)
        label = f"{second} s" if text == truth else f"{second} s; in truth: {truth or 'silence'}"
        canvas.text((left + 12, top + height + 33), label, (130, 200, 140) if text == truth else (240, 120, 110), small)
    with report_write_errors(path), atomic_write(path) as draft:
        sheet.save(draft, format="PNG")


def varied_seconds(commentary: dict[int, str], count: int) -> list[int]:
    """Seconds with words, of as many kinds of phrases as there are: without names of teams a phrase is its kind."""
    spoken = [second for second, text in commentary.items() if text]
    first: dict[str, int] = {}
    for second in spoken:
        lowercase = [word for word in commentary[second].split() if not word[0].isupper() or word.isupper()]
        first.setdefault(" ".join(lowercase), second)
    chosen = sorted(first.values())[:count]
    return sorted([*chosen, *[second for second in spoken if second not in chosen][: count - len(chosen)]])
