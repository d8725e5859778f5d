"""The findings of the paper on the generated game: streaming modes, RoPE positions, retained tokens and training, each against
stream time, compared with the events of the game.

Every stream is a file with one line a second, named by a hash of its model and settings. A stopped run continues with the
missing files; another model or setting has other files. Held-out seeds only.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache, reduce
from hashlib import sha256
from itertools import pairwise
from operator import add
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import DOCS, record
from svlm_jax.cli.flags import integer
from svlm_jax.cli.model_flags import DEFAULT_MODEL
from svlm_jax.cli.progress import Progress, span
from svlm_jax.config import StreamConfig
from svlm_jax.decode.detokenize import split_reply
from svlm_jax.errors import InputError
from svlm_jax.files import atomic_write
from svlm_jax.touchline import commentary
from svlm_jax.touchline.film import HELD_OUT, Film, play
from svlm_jax.touchline.judge import ScoreMention, Tally, facts_at, judge, score_mentions
from svlm_jax.touchline.match import World

ASK_EVERY = 150  # seconds between questions that no frame answers
AGES = (16, 48)  # seconds; a claim this old is among the retained turns of the shipped model, in its previous text, or evicted
# Milliseconds to stream a second, by mode, and to draw a second of a game; measured on 2 CPU cores.
MS = {"streaming": 40, "full": 1000, "window": 190, "recompute": 220, "drawing": 40}
BIN = 600  # seconds of a point in the plots, and of the first and last part of a stream in the table
GROUPS = ("mode", "RoPE positions", "moved reply KV", "vision window", "text window", "training")
PLOTTED = {  # label -> property of `Tally`, top of its axis
    "F1 of events": ("f1", 1.0),
    "score accuracy": ("score_accuracy", 1.0),
    "mean delay (s)": ("mean_delay", 2.0),
    "silence precision": ("silence_precision", 1.0),
    "repetition rate": ("repetition_rate", 1.0),
}


@dataclass(frozen=True)
class Variant:
    """Settings of a stream to compare. model: a name of --compare; max_seconds: limit of slow modes; blind: all frames grey."""

    group: str
    name: str
    stream: StreamConfig
    model: str = ""
    max_seconds: int = 1 << 30
    blind: bool = False

    def seconds(self, game_seconds: int) -> int:
        return min(game_seconds, self.max_seconds)

    def file(self, weights: str, seed: int, seconds: int) -> str:
        """Name of the file of its stream. weights: `digest` of the model; seconds: of the game."""
        name = "".join(char if char.isalnum() else "_" for char in f"{self.group} {self.name}")
        settings = json.dumps([asdict(self.stream), self.blind, weights, self.seconds(seconds)], sort_keys=True)
        return f"{name}_{seed}_{sha256(settings.encode()).hexdigest()[:8]}.jsonl"


def variants(base: StreamConfig, models: dict[str, str]) -> list[Variant]:
    """All variants; each differs from the first in one setting, or in its model.

    Args:
        models: name -> directory.
    """

    def change(group: str, name: str, max_seconds: int = 1 << 30, **changes: Any) -> Variant:
        return Variant(group, name, replace(base, **changes), max_seconds=max_seconds)

    moved_reply_kv = "recompute" if base.moved_reply_kv == "reuse" else "reuse"
    differing = [
        Variant("mode", "streaming", base),
        change("mode", "full attention", 600, mode="full"),
        change("mode", "windows of 100 s, no overlap", 1800, mode="window"),
        change("mode", "recomputed every second", 1800, mode="recompute"),
        change("RoPE positions", "native, moved reply KV reused", rope_positions="native", moved_reply_kv="reuse"),
        change("moved reply KV", moved_reply_kv, moved_reply_kv=moved_reply_kv),
        Variant("vision window", "0 s (grey frames)", replace(base, vision_window=1), blind=True),
        *(change("vision window", f"{n} s", vision_window=n) for n in (1, 4, 8, 16, 32) if n != base.vision_window),
    ]
    for sink, window in ((0, 1), (256, 1), (0, 256), (256, 256), (512, 512)):
        if (sink, window) != (base.sink, base.text_window):
            differing.append(
                change("text window", f"sink {sink}, window {window - (window == 1)}", sink=sink, text_window=window)
            )
    return differing + [Variant("training", name, base, model=name) for name in models]


def digest(model: Path) -> str:
    """Checksum of all files of a model."""
    checksum = sha256()
    for path in sorted(path for path in model.rglob("*") if path.is_file()):
        checksum.update(path.read_bytes())
    return checksum.hexdigest()


class Games:
    """Patches of held-out games, uint8 [seconds, P, C]; each game is drawn once and saved to a file."""

    def __init__(self, scratch: Path, seconds: int, processor: Any) -> None:
        self.scratch, self.seconds, self.processor = scratch, seconds, processor
        self.worlds: dict[int, World] = {}

    def patches(self, seed: int, fps: int) -> np.ndarray:
        path = self.scratch / f"frames_{seed}_{self.seconds}.npy"
        if not path.exists():
            self._draw(path, seed, fps)
        return np.load(path, mmap_mode="r")

    def _draw(self, path: Path, seed: int, fps: int) -> None:
        frames, progress = Film(seed).frames(fps), Progress(f"draw game {seed}", "seconds")
        first = self._second(frames, fps)
        with atomic_write(path) as draft:
            patches = np.lib.format.open_memmap(draft, "w+", np.uint8, (self.seconds, *first.shape))
            patches[0] = first
            for second in range(1, self.seconds):
                patches[second] = self._second(frames, fps)
                progress(second + 1, self.seconds)
            patches.flush()

    def _second(self, frames: Iterator[np.ndarray], fps: int) -> np.ndarray:
        """The patches of the next second."""
        return self.processor.video(np.stack([next(frames) for _ in range(fps)]), fps=fps, raw=True).patches

    def world(self, seed: int) -> World:
        if seed not in self.worlds:
            self.worlds[seed] = play(seed, self.seconds)
        return self.worlds[seed]


def bench(args: argparse.Namespace) -> None:
    """Stream what has no file yet, then write the table and the plots of all files."""
    from svlm_jax.pretrained import from_pretrained, local_directory
    from svlm_jax.settings import read_streaming_config

    compared_models = check_flags(args)
    base, _ = read_streaming_config(local_directory(args.model))
    selected = [
        variant
        for variant in variants(base, compared_models)
        if not args.only or variant.group in args.only.split(",") or variant.name == "streaming"
    ]
    scratch = args.scratch or (args.out.parent / "runs" if args.out == DOCS else args.out) / "findings"
    models = {variant: compared_models[variant.model] if variant.model else args.model for variant in selected}
    weights = {model: digest(local_directory(model)) for model in set(models.values())}
    files = {  # variant -> seed -> the file of its stream
        variant: {
            seed: scratch / variant.file(weights[model], seed, args.seconds) for seed in range(HELD_OUT, HELD_OUT + args.seeds)
        }
        for variant, model in models.items()
    }
    print(_plan(files, args.seconds, scratch), file=sys.stderr, flush=True)
    scratch.mkdir(parents=True, exist_ok=True)
    load_model, games = cache(from_pretrained), None
    for variant, paths in files.items():
        for seed, path in paths.items():
            if not path.exists():
                vlm = load_model(models[variant])
                games = games or Games(scratch, args.seconds, vlm.processor)
                _stream(vlm, variant, games, seed, path)
    _write_results(files, args)


def check_flags(args: argparse.Namespace) -> dict[str, str]:
    """Name -> directory of the models of --compare; InputError for a bad flag."""
    if unknown := set(filter(None, args.only.split(","))) - set(GROUPS):
        raise InputError("--only", ", ".join(sorted(unknown)), f"some of {', '.join(GROUPS)}", "separate them by commas")
    if invalid := [name for name in args.compare if not all(name.partition("="))]:
        raise InputError("--compare", invalid[0], "NAME=DIR", "for example 'no SFT=touchline-base'")
    return dict(name.split("=", 1) for name in args.compare)


def _write_results(files: dict[Variant, dict[int, Path]], args: argparse.Namespace) -> None:
    rows, series, base_lines = [], {}, []
    for variant, paths in files.items():
        series[variant], scores, lines = _judge(paths, args.seconds)
        base_lines = base_lines or lines
        rows.append(_row(variant, series[variant], scores, lines) | {"same replies": f"{_share_equal(lines, base_lines):.3f}"})
        print(json.dumps(rows[-1]), flush=True)
    plot = "benchmarks/findings.svg"
    draw(series, args.out / plot)
    description = (
        f"Quality of a commentary against stream time: held-out games ({args.seeds}) of {args.seconds} s ({args.model}; "
        "greedy). F1 of events (right kind and team within 2 s), of the whole stream, its first and last 10 minutes; score "
        "accuracy: right ones of the scores in the commentary; score recall: right scores over those in the true commentary; "
        f"answer accuracy: of questions (one every {ASK_EVERY} s: the score, who scored first, which cup). New mistakes: "
        "scores that are not the one claimed before plus the goals since, of all, by the age of the one before: "
        f"under {AGES[0]} s, under {AGES[1]} s, older. Same replies: share of replies equal to those of the first row."
    )
    record("findings", description, rows, args.out, plot)


def _plan(files: dict[Variant, dict[int, Path]], seconds: int, scratch: Path) -> str:
    """One line about the work ahead. files: of each variant and seed."""
    todo = [(variant, seed) for variant, paths in files.items() for seed, path in paths.items() if not path.exists()]
    seeds = {seed for _, seed in todo if not (scratch / f"frames_{seed}_{seconds}.npy").exists()}  # games to draw
    total_ms = sum(variant.seconds(seconds) * MS.get(variant.stream.mode, MS["streaming"]) for variant, _ in todo)
    total_ms += len(seeds) * seconds * MS["drawing"]
    num_existing = sum(map(len, files.values())) - len(todo)
    return (
        f"{len(todo)} streams of up to {span(seconds)} ({num_existing} exist): about {span(total_ms / 1000)} on 2 CPU cores "
        f"with nothing else running. They are kept in {scratch}; the same command continues after a stop; --only and --seconds "
        "reduce it"
    )


def _stream(vlm: Any, variant: Variant, games: Games, seed: int, path: Path) -> None:
    from svlm_jax.decode.sampling import Sampling
    from svlm_jax.inputs import Clip
    from svlm_jax.stream.runner import VIDEO, Runner
    from svlm_jax.stream.sequence import Chunk
    from svlm_jax.stream.session import Session

    patches, config = games.patches(seed, variant.stream.chunk_frames), vlm.model.config
    seconds = variant.seconds(len(patches))
    questions = questions_by_second(games.world(seed), seconds)
    clip = vlm.processor.video(np.zeros((variant.stream.chunk_frames, 448, 672, 3), np.uint8), fps=variant.stream.fps, raw=True)
    step = config.vision.temporal_step(variant.stream.fps)
    runner = Runner(Session(vlm.model, vlm.tokenizer, variant.stream, clip.grid, sampling=Sampling()))
    runner.join(VIDEO)
    progress = Progress(f"{variant.group}: {variant.name}, game {seed}", "seconds")
    with atomic_write(path) as draft, draft.open("w") as file:
        for second in range(seconds):
            # A blind stream has grey frames: uint8 128 is about 0 once normalised.
            frame_patches = np.full_like(patches[second], 128) if variant.blind else np.array(patches[second])
            question = questions.get(second, "")
            chunk = Chunk(float(second), float(second + 1), Clip(frame_patches, clip.grid, step, video=True), question)
            started = time.perf_counter()
            caption = runner.caption(VIDEO, chunk)
            ms = 1000 * (time.perf_counter() - started)
            line = {
                "second": second,
                "text": caption.raw,
                "question": question,
                "ms": round(ms, 2),
                "slots": caption.used_slots,
            }
            file.write(json.dumps(line) + "\n")
            progress(second + 1, seconds)


def questions_by_second(world: World, seconds: int) -> dict[int, str]:
    """Second -> question, each of MEMORY_QUESTIONS in turn; a question waits until the commentary has given its answer."""
    questions = {}
    for number, second in enumerate(range(ASK_EVERY - 1, seconds, ASK_EVERY)):  # the last second of each period
        while second < seconds - 1 and commentary.is_unannounced(world.events, second):
            second += 1
        questions[second] = commentary.MEMORY_QUESTIONS[number % len(commentary.MEMORY_QUESTIONS)]
    return questions


def _judge(paths: dict[int, Path], seconds: int) -> tuple[list[Tally], list[ScoreMention], list[dict[str, Any]]]:
    """(a tally for each BIN of stream time over all games, all claims of a score, all lines). paths: seed -> file."""
    bins: list[list[Tally]] = []
    scores: list[ScoreMention] = []
    all_lines: list[dict[str, Any]] = []
    for seed, path in paths.items():
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        world, length = play(seed, seconds), len(lines)
        commentary_by_second = {line["second"]: split_reply(line["text"])[1] for line in lines}
        for number, start in enumerate(range(0, length, BIN)):
            tally = judge(commentary_by_second, world.events, start, min(start + BIN, length))
            for line in lines[start : start + BIN]:
                if line["question"]:
                    answer = commentary.answer(line["question"], facts_at(world.events, line["second"]), "")
                    tally.questions += 1
                    tally.correct_answers += split_reply(line["text"])[0] == answer
            bins += [[]] * (number + 1 - len(bins))
            bins[number] = [*bins[number], tally]
        scores += score_mentions(commentary_by_second, world.events, length)
        all_lines += [line | {"seed": seed} for line in lines]
    return [reduce(add, tallies) for tallies in bins], scores, all_lines


def _row(variant: Variant, bins: list[Tally], scores: list[ScoreMention], lines: list[dict[str, Any]]) -> dict[str, Any]:
    total = reduce(add, bins)
    numbers = {
        "F1": total.f1,
        "F1 first 10 min": bins[0].f1,
        "F1 last 10 min": bins[-1].f1,
        "mean delay (s)": total.mean_delay,
        "score accuracy": total.score_accuracy,
        "score recall": total.score_recall,
        "answer accuracy": total.answer_accuracy,
        "silence precision": total.silence_precision,
        "silence recall": total.silence_recall,
        "repetition rate": total.repetition_rate,
    }
    row: dict[str, Any] = {
        "group": variant.group,
        "variant": variant.name,
        "seconds": max(line["second"] for line in lines) + 1,
    }
    row |= {name: "-" if np.isnan(value) else f"{value:.3f}" for name, value in numbers.items()}
    row["new mistakes"] = ", ".join(_mistakes(scores, low, high) for low, high in pairwise((0, *AGES, 1 << 30)))
    return row | {
        "ms/chunk": f"{np.median([line['ms'] for line in lines]):.0f}",
        "slots": max(line["slots"] for line in lines),
    }


def _share_equal(lines: list[dict[str, Any]], base_lines: list[dict[str, Any]]) -> float:
    """Share of replies that are equal to those of the first variant."""
    expected = {(line["seed"], line["second"]): line["text"] for line in base_lines}
    return sum(line["text"] == expected[line["seed"], line["second"]] for line in lines) / len(lines)


def _mistakes(scores: list[ScoreMention], low: int, high: int) -> str:
    """ "mistakes/claims" of those with an age of low .. high - 1 seconds."""
    correct = [score.is_consistent for score in scores if low <= score.age < high]
    return f"{correct.count(False)}/{len(correct)}"


def draw(series: dict[Variant, list[Tally]], path: Path) -> None:
    """Plot PLOTTED against stream time: a row for each measure, a column for each group with the first variant in it."""
    try:
        import matplotlib
    except ImportError:
        raise InputError("findings", "no matplotlib", "the bench extra", "pip install 'svlm-jax[bench]'") from None
    matplotlib.use("svg")
    from matplotlib import pyplot

    base = next(iter(series))
    groups = [group for group in GROUPS if any(variant.group == group and variant != base for variant in series)] or [
        base.group
    ]
    size = (4 * len(groups), 2.6 * len(PLOTTED))
    figure, axes = pyplot.subplots(len(PLOTTED), len(groups), sharex=True, sharey="row", squeeze=False, figsize=size)
    for column, group in enumerate(groups):
        compared = {variant: bins for variant, bins in series.items() if variant.group == group or variant == base}
        for (label, (measure, top)), plot in zip(PLOTTED.items(), axes[:, column], strict=True):
            for variant, bins in compared.items():
                minutes = [(number + 0.5) * BIN / 60 for number in range(len(bins))]
                style = {"color": "black", "linewidth": 2.5} if variant == base else {"marker": "o", "markersize": 3}
                name = "as shipped" if variant == base else variant.name
                plot.plot(minutes, [getattr(tally, measure) for tally in bins], label=name, **style)
            plot.set_ylim(-0.03 * top, 1.03 * top)
            plot.grid(alpha=0.3)
            if not column:
                plot.set_ylabel(label)
        axes[0, column].set_title(group)
        axes[0, column].legend(fontsize=7)
        axes[-1, column].set_xlabel("minutes of stream")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default=DEFAULT_MODEL, help="default: the shipped model")
    parser.add_argument("--compare", nargs="*", default=[], metavar="NAME=DIR", help="models with other training")
    parser.add_argument("--seconds", type=integer(1), default=7200, help="of a stream (default 7200)")
    parser.add_argument("--seeds", type=integer(1), default=1, help="held-out games (default 1)")
    parser.add_argument("--only", default="", help=f"some, separated by commas, of {', '.join(GROUPS)} (default: all)")
    parser.add_argument("--scratch", type=Path, help="folder of the streams (default: runs/findings of the checkout)")
