"""The shipped model watches a game that it has never seen, beside what happened in it; nothing is downloaded.

    svlm demo                              # a minute and a half of a held-out game
    svlm demo --unseen --seed 1000007      # on a pitch and in shades that no training film has
    svlm demo --picture docs/demo.png      # frames and commentary as a picture

The real path: frames -> patches -> vision tower -> decoder with its KV cache -> words, second by second.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from svlm_jax.cli.flags import Parser, integer
from svlm_jax.cli.model_flags import DEFAULT_MODEL, compile_cache_flag, set_compile_cache
from svlm_jax.cli.progress import compiling, interruptible
from svlm_jax.cli.stream_flags import retention_flags, settings_line, stream_settings
from svlm_jax.config import StreamConfig
from svlm_jax.errors import InputError
from svlm_jax.stream.events import Caption
from svlm_jax.touchline.film import HELD_OUT, Film, play
from svlm_jax.touchline.judge import Tally, judge, words_of

QUESTION = "What is the score?"
ASK_BEFORE_END = 5  # seconds


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--model", default=DEFAULT_MODEL, help="default: the shipped model")
    parser.add_argument("--seed", type=integer(0), default=HELD_OUT, help=f"of the game (default {HELD_OUT}: held out)")
    parser.add_argument("--seconds", type=integer(2 * ASK_BEFORE_END), default=90, help="of the game (default 90)")
    parser.add_argument("--unseen", action="store_true", help="a pitch and shades that no training film has")
    parser.add_argument("--picture", type=Path, metavar="FILE.png", help="also draw what was seen and said")
    compile_cache_flag(parser)
    retention_flags(parser)
    args = parser.parse_args()
    if args.picture and (args.picture.suffix != ".png" or not args.picture.absolute().parent.is_dir()):
        raise InputError("--picture", args.picture, "a FILE.png in a directory that exists", "make the directory")
    config, sampling = stream_settings(args)
    from svlm_jax import from_pretrained

    started = time.monotonic()
    with interruptible():
        set_compile_cache(args)
        vlm = from_pretrained(args.model)
    print(settings_line(config, sampling), file=sys.stderr)
    size = sum(value.size for value in vlm.parameters.values())
    print(f"{args.model}, {size / 1e6:.1f} M parameters, watches game {args.seed}: {args.seconds} s, as fast as it can\n")
    report = Report(args.seed, args.seconds)
    for caption in captions(vlm, args, config, sampling):
        report.add(int(caption.start), caption)
    report.summarize(time.monotonic() - started)
    if args.picture:
        draw(report, args)
        print(f"drew {args.picture}")
    print("\nlive, in a browser: pip install -e '.[serve]'; svlm serve")
    print("your own video: svlm stream match.mp4 --model Qwen/Qwen2.5-VL-3B-Instruct")


def captions(vlm: Any, args: argparse.Namespace, config: StreamConfig, sampling: Any) -> Iterator[Caption]:
    """Captions of the game, second by second; the score is asked for near the end."""
    from svlm_jax.media.sources import open_source
    from svlm_jax.stream.playback import Playback
    from svlm_jax.stream.runner import VIDEO, Runner, watch
    from svlm_jax.touchline.source import SCHEMES

    name = f"match:{args.seed}{':unseen' if args.unseen else ''}"
    timing = {"fps": config.fps, "chunk_seconds": config.chunk_seconds, "duration": args.seconds}

    def start(clip: Any) -> Runner:
        with compiling():
            runner = Runner.compiled(vlm.model, vlm.tokenizer, config, clip, sampling=sampling)
        runner.join(VIDEO)
        return runner

    def question(stream: str, start: float | int, end: float | int) -> str:
        return QUESTION if start <= args.seconds - ASK_BEFORE_END < end else ""

    with Playback(vlm.processor) as playback:
        events = watch(playback, open_source(name, schemes=SCHEMES, **timing), start, question=question)
        yield from (event for event in events if isinstance(event, Caption))


class Report:
    """What happened in the game and the commentary on it, a line for each second in which there is anything."""

    def __init__(self, seed: int, seconds: int) -> None:
        from svlm_jax.touchline.commentary import words

        self.events = play(seed, seconds).events
        self.truth: dict[int, str] = {}
        for word in words(self.events):
            self.truth[int(word.start)] = f"{self.truth.get(int(word.start), '')} {word.text}".strip()
        self.commentary: dict[int, str] = {}
        self.step_ms: list[float] = []
        print(f"{'s':>4}  {'what happened':40}  {'what it says':40}")

    def add(self, second: int, caption: Caption) -> None:
        answer, text = words_of(caption.raw)
        self.commentary[second] = text
        self.step_ms.append(sum(caption.ms.values()))
        truth = self.truth.get(second, "")
        if answer:
            print(f"{second:4}  {'(' + QUESTION + ')':40}  {answer:40}")
        if truth or text:
            mark = "✓" if truth == text else "✗"
            print(f"{second:4}  {truth:40}  {text:40}  {mark}  F1 so far {self.tally.f1:.2f}", flush=True)

    @property
    def tally(self) -> Tally:
        return judge(self.commentary, self.events, 0, len(self.commentary))

    def summarize(self, seconds: float) -> None:
        tally, ms = self.tally, float(np.median(self.step_ms))
        print(
            f"\nevents: F1 {tally.f1:.2f} ({tally.matched} of {tally.events} told, {tally.claimed - tally.matched} told that "
            f"were not); scores right: {tally.right} of {tally.scores}; quiet seconds kept: {tally.silence_recall:.0%}"
        )
        print(f"{ms:.0f} ms a second of video, {1000 / ms:.0f} times real time; {seconds:.0f} s all told")


def draw(report: Report, args: argparse.Namespace) -> None:
    """Six moments with commentary, the words below each, and what really happened where that differs."""
    from PIL import Image, ImageDraw, ImageFont

    chosen = varied_seconds([second for second, text in report.commentary.items() if text], report.commentary)
    width, height, foot = 480, 320, 56
    sheet = Image.new("RGB", (3 * width, 2 * (height + foot)), (16, 18, 24))
    canvas, font, small = ImageDraw.Draw(sheet), ImageFont.load_default(22), ImageFont.load_default(15)
    film = islice(Film(args.seed, size=(width, height), unseen=args.unseen).pictures(2), 2 * args.seconds)
    frames = {number // 2: frame for number, frame in enumerate(film) if number % 2 and number // 2 in chosen}
    for cell, second in enumerate(chosen):
        left, top = width * (cell % 3), (height + foot) * (cell // 3)
        sheet.paste(Image.fromarray(frames[second]), (left, top))
        text, truth = report.commentary[second], report.truth.get(second, "")
        canvas.text((left + 12, top + height + 5), text, (255, 255, 255), font)
        label = f"{second} s" if text == truth else f"{second} s; in truth: {truth or 'silence'}"
        canvas.text((left + 12, top + height + 33), label, (130, 200, 140) if text == truth else (240, 120, 110), small)
    sheet.save(args.picture)


def varied_seconds(seconds: list[int], commentary: dict[int, str]) -> list[int]:
    """Six of these seconds, with as many kinds of phrases as there are: without its names, a phrase is its kind."""
    first: dict[str, int] = {}
    for second in seconds:
        words = [word for word in commentary[second].split() if not word[0].isupper() or word.isupper()]
        first.setdefault(" ".join(words), second)
    chosen = sorted(first.values())[:6]
    return sorted([*chosen, *[second for second in seconds if second not in chosen][: 6 - len(chosen)]])
