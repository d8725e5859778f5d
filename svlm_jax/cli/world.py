"""Write films of the generated ball game, with their annotations.

    svlm world --out films --seeds 0:8 --seconds 7200     # films/match_0.mp4 .. match_7.mp4, films/matches.jsonl
    svlm world --out one --seeds 1000000 --seconds 60 --fps 25 --size 960x640 --test
    svlm world --out games --seeds 0:4 --subtitles rough  # games/match_0.vtt beside each film, games/glossary.json

Then `svlm windows films/matches.jsonl --out train.jsonl`. Seeds from 1,000,000 on are for testing: --test films them.
"""

import multiprocessing
import os
import signal
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from svlm_jax.cli.flags import Parser, integer, number
from svlm_jax.cli.progress import Progress, span
from svlm_jax.data import records
from svlm_jax.data.annotation import Annotation
from svlm_jax.data.windows import to_record
from svlm_jax.errors import InputError
from svlm_jax.files import atomic_write, draft_path, local_path, report_write_errors
from svlm_jax.json_lines import write_json
from svlm_jax.processes import end_with_parent
from svlm_jax.touchline.commentary import QUESTIONS
from svlm_jax.touchline.corrupt import MISHEARD
from svlm_jax.touchline.film import HELD_OUT, annotate, play, write_film
from svlm_jax.touchline.match import LEAD, Kind, Moment, Rules, World
from svlm_jax.touchline.render import Renderer
from svlm_jax.touchline.subtitles import rough_words, to_webvtt

# Measured on one core.
FRAME_MS, PIXEL_MS = 7.0, 7e-5  # milliseconds to draw and encode a frame: constant, and for each pixel
PLAY_MS = 1.0  # milliseconds to play a second of a game without drawing
PIXEL_BYTES = 0.07  # of a film
GLOSSARY = "glossary.json"  # names and how --subtitles rough mishears them, for svlm curate edit


class Filming(NamedTuple):
    """What films are made, and how; the fields are the flags of this command. size: width and height."""

    out: Path
    seconds: int
    size: tuple[int, int] = (336, 224)
    fps: float = 2.0
    jobs: int = 1
    rules: Rules = Rules.MATCH
    unseen: bool = False
    keep: bool = False
    words_only: bool = False
    questions: float = 0.0
    ask: tuple[str, ...] = tuple(QUESTIONS)
    subtitles: str = ""

    def path(self, seed: int) -> Path:
        return self.out / f"{self.rules}_{seed}.mp4"

    def subtitles_path(self, seed: int) -> Path:
        return self.path(seed).with_suffix(".vtt")

    def is_wanted(self, seed: int) -> bool:
        """Whether this film is to be drawn."""
        return not (self.words_only or (self.keep and self.path(seed).exists()))


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for films and index; created if missing")
    parser.add_argument("--seeds", default="0:8", metavar="A[:B]", help="seeds A .. B - 1, or A alone (default 0:8)")
    parser.add_argument("--seconds", type=integer(1), default=600, metavar="S", help="length of a film (default 600)")
    parser.add_argument("--fps", type=number(0.01, 1000), default=2.0, help="frames a second (default 2, as models watch)")
    parser.add_argument("--size", default="336x224", metavar="WxH", help="pixels (default 336x224)")
    parser.add_argument("--questions", type=number(0, 1), default=0.0, metavar="SHARE", help="share of seconds with a question")
    parser.add_argument("--ask", nargs="+", choices=QUESTIONS, default=[*QUESTIONS], help="kinds of questions (default: all)")
    parser.add_argument(
        "--rules",
        choices=[*Rules],
        type=Rules,
        default=Rules.MATCH,
        help="practice: more goals; drill: goals only, one after another",
    )
    parser.add_argument(
        "--subtitles",
        nargs="?",
        const="exact",
        default="",
        choices=["exact", "rough"],
        help="write NAME.vtt beside each film: what is said, or (rough) what a speech recogniser makes of it",
    )
    parser.add_argument("--words-only", action="store_true", help="write the index only, no films")
    parser.add_argument("--keep", action="store_true", help="keep films that exist: continue after a stop")
    parser.add_argument("--test", action="store_true", help="allow held-out seeds (and only those)")
    parser.add_argument("--unseen", action="store_true", help="pitches and shades that training films do not have")
    parser.add_argument("--jobs", type=integer(1, 1024), default=os.cpu_count() or 1, help="processes (default: CPUs)")
    parser.add_argument("--index", default="matches.jsonl", metavar="NAME.jsonl", help="annotations (default matches.jsonl)")
    parser.add_argument("--sheet", action="store_true", help="write one picture instead: OUT/world.png, a scene of each kind")
    args = parser.parse_args()
    local_path(args.out, "--out")
    if args.sheet:
        sheet(args.out / "world.png", _size(args.size))
        return
    seeds = parse_seeds(args.seeds, args.test)
    index = args.out / args.index
    filming = Filming(
        args.out, args.seconds, _size(args.size), args.fps, args.jobs, args.rules, args.unseen, args.keep, args.words_only,
        args.questions, tuple(args.ask), args.subtitles,
    )  # fmt: skip
    films = [] if args.words_only or args.keep else [filming.path(seed) for seed in seeds]
    glossary = args.out / GLOSSARY
    subtitles = [filming.subtitles_path(seed) for seed in seeds] if args.subtitles and not args.keep else []
    subtitles += [glossary] if args.subtitles == "rough" and not args.keep else []
    for path in (index, records.seeks_path(index), *films, *subtitles):
        if path.exists():
            raise InputError(str(path), "something that exists already", "a new name", "remove it or choose another")
    args.out.mkdir(parents=True, exist_ok=True)
    print(plan(filming, seeds), file=sys.stderr, flush=True)
    annotations = make_films(filming, seeds)
    if args.subtitles == "rough":
        write_json(glossary, MISHEARD)
    records.write(index, (to_record(annotation) for annotation in annotations))
    size = sum(path.stat().st_size for path in map(filming.path, seeds) if path.exists())
    words = sum(len(annotation.words) for annotation in annotations)
    print(f"{len(seeds)} films, {len(seeds) * args.seconds} s, {words} words, {size / 1e6:.1f} MB -> {index}")


def plan(filming: Filming, seeds: range) -> str:
    """One line about the work ahead; times were measured on one of 2 CPU cores for each process."""
    todo = [seed for seed in seeds if filming.is_wanted(seed)]
    width, height = filming.size
    num_frames = len(todo) * filming.seconds * filming.fps
    frame_ms = FRAME_MS + PIXEL_MS * width * height
    parallel = min(filming.jobs, len(seeds), os.cpu_count() or 1)
    seconds = (num_frames * frame_ms + len(seeds) * filming.seconds * PLAY_MS) / 1000 / parallel
    length = span(filming.seconds)
    films = f"{len(todo)} films of {length}" if todo else f"{len(seeds)} games of {length}, words alone"
    existing = f" ({len(seeds) - len(todo)} exist)" if todo and len(todo) < len(seeds) else ""
    disk = f", {num_frames * width * height * PIXEL_BYTES / 1e6:.0f} MB" if todo else ""
    return f"{films}{existing}, {filming.jobs} at a time: about {span(seconds)}{disk} in {filming.out}"


def make_films(filming: Filming, seeds: range) -> list[Annotation]:
    """Write the films in parallel, with one progress line for all of them."""
    context, annotations = multiprocessing.get_context("spawn"), []
    seconds_done, total = context.Value("q", 0), len(seeds) * filming.seconds
    progress = Progress("draw" if any(map(filming.is_wanted, seeds)) else "write", "seconds of film")
    previous_handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # the children inherit it: Ctrl-C ends the parent alone
    try:
        pool = context.Pool(min(filming.jobs, len(seeds)), _start_worker, (seconds_done,))
    finally:
        signal.signal(signal.SIGINT, previous_handler)
    try:
        with pool:
            results = pool.imap(partial(_make_film, filming=filming), seeds)
            while len(annotations) < len(seeds):
                with suppress(multiprocessing.TimeoutError):
                    annotations.append(results.next(timeout=1))
                progress(max(min(seconds_done.value, total - 1), len(annotations) * filming.seconds), total)
    finally:
        for seed in seeds:  # of children that were ended in the middle of a film
            draft_path(filming.path(seed)).unlink(missing_ok=True)
    return annotations


_seconds_done: Any = None  # in a child: the shared counter of seconds that all children have drawn


def _start_worker(counter: Any) -> None:
    global _seconds_done
    _seconds_done = counter
    end_with_parent()


def _add_seconds(seconds: int) -> None:
    if _seconds_done is not None and seconds:
        with _seconds_done.get_lock():
            _seconds_done.value += seconds


def sheet(path: Path, size: tuple[int, int], seed: int = 3) -> None:
    """Draw a scene of each kind, five in a row, and one more with an unseen look."""
    from PIL import Image

    renderer, unseen_renderer = (Renderer(seed, *size, unseen) for unseen in (False, True))
    first: dict[Kind, Moment] = {}
    for moment in World(seed).moments():
        if moment.time - moment.since >= LEAD:
            first.setdefault(moment.scene, moment)
        if len(first) == len(Kind) - 1:  # Kind.WIN has no scene
            break
    pictures = [*(renderer(first[kind]) for kind in Kind if kind in first), unseen_renderer(first[Kind.PLAY])]
    pictures += [np.zeros_like(pictures[0])] * (-len(pictures) % 5)
    bands = [np.concatenate(pictures[start : start + 5], axis=1) for start in range(0, len(pictures), 5)]
    path.parent.mkdir(parents=True, exist_ok=True)
    with report_write_errors(path), atomic_write(path) as draft:
        Image.fromarray(np.concatenate(bands)).save(draft, format="PNG", optimize=True)
    print(f"{len(pictures)} scenes -> {path}")


def _make_film(seed: int, *, filming: Filming) -> Annotation:
    path = filming.path(seed)
    if not filming.is_wanted(seed):
        world = play(seed, filming.seconds, filming.rules)
        _add_seconds(filming.seconds)
    else:
        seconds_before = 0

        def progress(num_frames: int) -> None:
            nonlocal seconds_before
            seconds = int(num_frames / filming.fps)
            _add_seconds(seconds - seconds_before)
            seconds_before = seconds

        looks = {"size": filming.size, "unseen": filming.unseen, "rules": filming.rules}
        world = write_film(path, seed, seconds=filming.seconds, fps=filming.fps, progress=progress, **looks)
    annotation = annotate(world, path.name, filming.seconds, filming.questions, filming.ask)
    if filming.subtitles:
        words = annotation.words if filming.subtitles == "exact" else rough_words(annotation, seed)
        with atomic_write(filming.subtitles_path(seed)) as draft:
            draft.write_text(to_webvtt(words), encoding="utf-8")
    return annotation


def parse_seeds(text: str, test: bool) -> range:
    """The seeds of a --seeds flag. test: held out seeds, and only those."""
    first, _, last = text.partition(":")
    if not (first.isdigit() and (last or first).isdigit()):
        raise InputError("--seeds", repr(text), "a number, or two with a colon between", "for example 0:8")
    seeds = range(int(first), int(last) if last else int(first) + 1)
    if not seeds:
        raise InputError("--seeds", repr(text), "the smaller number first", "for example 0:8")
    if (seeds[0] >= HELD_OUT) != test or (seeds[-1] >= HELD_OUT) != test:
        expected = f"seeds {'from' if test else 'below'} {HELD_OUT}"
        raise InputError(
            "--seeds", repr(text), expected, "those are held out for tests (world --test), the others train models"
        )
    return seeds


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdigit() and height.isdigit() and min(int(width), int(height)) >= 28):
        raise InputError("--size", repr(text), "WIDTHxHEIGHT, 28 pixels or more", "for example 336x224")
    if int(width) % 2 or int(height) % 2:
        raise InputError("--size", repr(text), "even sides", "for example 336x224")
    return int(width), int(height)
