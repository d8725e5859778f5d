"""The shipped model watches a game that it has never seen, beside what happened in it; nothing is downloaded.

    svlm demo                              # a minute and a half of a held-out game
    svlm demo --unseen --seed 1000007      # on a pitch and in shades that no training film has
    svlm demo --picture docs/demo.png      # what it saw and said, as a picture

The real path: pictures -> patches -> vision tower -> decoder with its ring of slots -> words, second by second.
"""

import argparse
import sys
import time
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

    began = time.monotonic()
    with interruptible():
        set_compile_cache(args)
        vlm = from_pretrained(args.model)
    print(settings_line(config, sampling), file=sys.stderr)
    size = sum(value.size for value in vlm.parameters.values())
    print(f"{args.model}, {size / 1e6:.1f} M parameters, watches game {args.seed}: {args.seconds} s, as fast as it can\n")
    watched = Watched(args.seed, args.seconds)
    for second, reply in replies(vlm, args, config, sampling):
        watched.hear(second, reply)
    watched.sum_up(time.monotonic() - began)
    if args.picture:
        picture(watched, args)
        print(f"drew {args.picture}")
    print("\nlive, in a browser: pip install -e '.[serve]'; svlm serve")
    print("your own video: svlm stream match.mp4 --model Qwen/Qwen2.5-VL-3B-Instruct")


def replies(vlm: Any, args: argparse.Namespace, config: StreamConfig, sampling: Any):
    """(second, Reply) of the game; the score is asked for near the end."""
    from svlm_jax.stream.sequence import Chunk
    from svlm_jax.stream.session import Session

    fps = round(config.fps)
    pictures, session, state = Film(args.seed, unseen=args.unseen).pictures(fps), None, None
    for second in range(args.seconds):
        clip = vlm.processor.video(np.stack(list(islice(pictures, fps))), fps=fps, raw=True)
        if session is None or state is None:
            session = Session(vlm.model, vlm.tokenizer, config, clip.grid, sampling=sampling)
            with compiling():
                state = session.join(session.warm(session.start(), clip))
        question = QUESTION if second == args.seconds - ASK_BEFORE_END else ""
        state, (reply,) = session.step(state, [Chunk(float(second), float(second + 1), clip, question)])
        yield second, reply


class Watched:
    """What happened and what was said about it, a line a second in which there is anything."""

    def __init__(self, seed: int, seconds: int) -> None:
        from svlm_jax.touchline.commentary import words

        self.events = play(seed, seconds).events
        self.truth: dict[int, str] = {}
        for word in words(self.events):
            self.truth[int(word.start)] = f"{self.truth.get(int(word.start), '')} {word.text}".strip()
        self.said: dict[int, str] = {}
        self.spent: list[float] = []
        print(f"{'s':>4}  {'what happened':40}  {'what it says':40}")

    def hear(self, second: int, reply: Any) -> None:
        answer, self.said[second] = words_of(reply.raw)
        self.spent.append(sum(reply.ms.values()))
        truth, said = self.truth.get(second, ""), self.said[second]
        if answer:
            print(f"{second:4}  {'(' + QUESTION + ')':40}  {answer:40}")
        if truth or said:
            mark = "✓" if truth == said else "✗"
            print(f"{second:4}  {truth:40}  {said:40}  {mark}  F1 so far {self.tally.f1:.2f}", flush=True)

    @property
    def tally(self) -> Tally:
        return judge(self.said, self.events, 0, len(self.said))

    def sum_up(self, seconds: float) -> None:
        tally, ms = self.tally, float(np.median(self.spent))
        print(
            f"\nevents: F1 {tally.f1:.2f} ({tally.matched} of {tally.events} told, {tally.claimed - tally.matched} told that "
            f"were not); scores right: {tally.right} of {tally.scores}; quiet seconds kept: {tally.silence_recall:.0%}"
        )
        print(f"{ms:.0f} ms a second of video, {1000 / ms:.0f} times real time; {seconds:.0f} s all told")


def picture(watched: Watched, args: argparse.Namespace) -> None:
    """Six moments in which something was said, with the words below: what it says, and what happened where that differs."""
    from PIL import Image, ImageDraw, ImageFont

    told = [second for second, words in watched.said.items() if words]
    chosen = _telling(told, watched.said)
    width, height, foot = 480, 320, 56
    sheet = Image.new("RGB", (3 * width, 2 * (height + foot)), (16, 18, 24))
    draw, font, small = ImageDraw.Draw(sheet), ImageFont.load_default(22), ImageFont.load_default(15)
    film = islice(Film(args.seed, size=(width, height), unseen=args.unseen).pictures(2), 2 * args.seconds)
    frames = {number // 2: frame for number, frame in enumerate(film) if number % 2 and number // 2 in chosen}
    for place, second in enumerate(chosen):
        left, top = width * (place % 3), (height + foot) * (place // 3)
        sheet.paste(Image.fromarray(frames[second]), (left, top))
        right = watched.said[second] == watched.truth.get(second, "")
        draw.text((left + 12, top + height + 5), watched.said[second], (255, 255, 255), font)
        below = f"{second} s" if right else f"{second} s; in truth: {watched.truth.get(second, 'silence')}"
        draw.text((left + 12, top + height + 33), below, (130, 200, 140) if right else (240, 120, 110), small)
    sheet.save(args.picture)


def _telling(told: list[int], said: dict[int, str]) -> list[int]:
    """Six seconds, of as many kinds of phrases as there are."""
    first: dict[str, int] = {}
    for second in told:
        first.setdefault(" ".join(word for word in said[second].split() if not word[0].isupper() or word.isupper()), second)
    chosen = sorted(first.values())[:6]
    return sorted([*chosen, *[second for second in told if second not in chosen][: 6 - len(chosen)]])
