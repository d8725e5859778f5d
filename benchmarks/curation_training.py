"""Small models trained on the truth, on curated and on damaged transcripts of the same films, with the same steps and seeds;
how well each comments on held-out games.

From `touchline-base`, a model that sees and reads and does not stream yet, or from `touchline`, which streams. Stopped, the
same command goes on: films, checkpoints and what a model said are kept. Units: seconds of the video.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.curated import EDITORS, LISTED, curate
from benchmarks.report import record
from benchmarks.word_accuracy import Accuracy, word_accuracy
from svlm_jax.curate.training_windows import to_annotation
from svlm_jax.curate.transcript import Transcript
from svlm_jax.data import records
from svlm_jax.data.annotation import Annotation, parse_line
from svlm_jax.data.config import Bucket
from svlm_jax.data.windows import cut
from svlm_jax.errors import InputError
from svlm_jax.files import atomic_write
from svlm_jax.touchline.corrupt import corrupt, repair_minimally
from svlm_jax.touchline.demo import Comparison, Game, captions
from svlm_jax.touchline.film import HELD_OUT, play
from svlm_jax.touchline.judge import Tally, judge
from svlm_jax.touchline.recipe import CONFIGS, FRAME_PATCHES

BASE = "touchline-base"
WINDOW = 12  # seconds, without overlap: half of the paper's, for a quarter of the time
VISION_WINDOW = 8  # seconds of frames while they watch
ARMS: dict[str, Callable[[Annotation, Transcript], Annotation]] = {  # name -> (truth, damaged) -> what is trained on
    "truth": lambda truth, damaged: truth,
    "curated": lambda truth, damaged: to_annotation(curate(damaged, EDITORS[LISTED]).edited),
    "damaged": lambda truth, damaged: replace(truth, words=repair_minimally(damaged)),
}


def bench(args: argparse.Namespace, scratch: Path) -> None:
    films = scratch / f"films_{args.films}_{args.seconds}"
    print(_plan(args, scratch), file=sys.stderr, flush=True)
    if not (films / "matches.jsonl").exists():
        _svlm("world", "--out", films, "--seeds", f"0:{args.films}", "--seconds", args.seconds, "--keep")
    truths = [replace(parse_line(line, name), query="") for name, line in records.Records([films / "matches.jsonl"])]
    damaged = [corrupt(truth, "", seed)[0] for seed, truth in enumerate(truths)]
    rows = [_row(f"nothing: {args.start} itself", _watch_all(args.start, scratch / args.start, args))]
    for name, learn_from in ARMS.items():
        annotations = [learn_from(truth, transcript) for truth, transcript in zip(truths, damaged, strict=True)]
        pairs = zip(truths, annotations, strict=True)
        accuracy = sum((word_accuracy(truth.words, each.words) for truth, each in pairs), start=Accuracy())
        run = scratch / f"{args.start}_{name}_{args.films}_{args.seconds}_{args.steps}"
        model = _train(annotations, films, run, args)
        rows.append({**_row(name, _watch_all(str(model), run, args)), "words right": f"{accuracy.share:.2%}"})
        print(json.dumps(rows[-1]), flush=True)
    description = (
        f"A small model ({args.start}) trained for {args.steps} steps of 2 windows of {WINDOW} s on {args.films} films of "
        f"{args.seconds} s, the text model alone: on the true commentary, on what `svlm curate clean` and `edit` by rules make "
        "of the damaged one, and on the damaged one as it is (words without times left out, the others sorted). Steps, seeds "
        f"and films are the same. Then each watches {args.held_out} held-out games of {args.watch_seconds} s. F1 of events; "
        "scores right: of those said; score recall: right ones over those of the true commentary. Words right: of the training "
        "words, as in the table of curation."
    )
    record(f"curation_training_{args.start.replace('-', '_')}", description, rows, args.out)


def _plan(args: argparse.Namespace, scratch: Path) -> str:
    minutes = args.films * args.seconds / 4000 + 3 * args.steps / 25 + 4 * args.held_out * args.watch_seconds / 1000
    return f"3 trainings of {args.steps} steps: about {minutes:.0f} min on 2 CPU cores, in {scratch}; stopped, it goes on"


def _svlm(*arguments: Any) -> None:
    command = [sys.executable, "-m", "svlm_jax.cli", *map(str, arguments)]
    if code := subprocess.run(command).returncode:
        raise InputError(f"svlm {arguments[0]}", f"exit code {code}", "0", "see above")


def _train(annotations: list[Annotation], films: Path, run: Path, args: argparse.Namespace) -> Path:
    """The directory of the trained model."""
    from svlm_jax.pretrained import local_directory
    from svlm_jax.train.run import build_trainer

    model, windows = run / "model", run / "windows.jsonl"
    if model.exists():
        return model
    run.mkdir(parents=True, exist_ok=True)
    if not windows.exists():
        options = {"as_streamed": True, "window": WINDOW, "stride": WINDOW}
        silent = [replace(each, questions=()) for each in annotations]
        records.write(windows, (window for each in silent for window in cut(each, **options)))
    stage = CONFIGS["touchline_stage4"]
    bucket = Bucket(tokens=1152, patches=WINDOW * 2 * FRAME_PATCHES, labels=576, frame_patches=FRAME_PATCHES)
    data = replace(stage.data, paths=(str(windows),), root=str(films), buckets=(bucket,))
    run_settings = {"model": args.start, "run_dir": str(run / "run"), "steps": args.steps, "save_every": 80}
    config = replace(stage, data=data, trainable=r"text\..*", **run_settings)
    trainer = build_trainer(config, local_directory(args.start), log=lambda line: print(line, file=sys.stderr, flush=True))
    trainer.run()
    _svlm("convert", run / "run", model)
    return model


def _watch_all(model: str, folder: Path, args: argparse.Namespace) -> Tally:
    """The tally of a model over all held-out games."""
    games = [Game(seed, args.watch_seconds) for seed in range(HELD_OUT, HELD_OUT + args.held_out)]
    tallies = [_watch(model, game, folder / f"said_{game.seed}_{game.seconds}.json") for game in games]
    return sum(tallies[1:], start=tallies[0])


def _watch(model: str, game: Game, path: Path) -> Tally:
    """path: of what it says, by second; it watches where there is no such file."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as draft:
            draft.write_text(json.dumps(_say(model, game)))
    commentary = {int(second): text for second, text in json.loads(path.read_text()).items()}
    return judge(commentary, play(game.seed, game.seconds).events, 0, game.seconds)


def _say(model: str, game: Game) -> dict[int, str]:
    """The commentary of a model, by second."""
    from svlm_jax.pretrained import from_pretrained, local_directory
    from svlm_jax.settings import read_streaming_config
    from svlm_jax.stream.runner import VIDEO, Runner

    comparison, vlm = Comparison(game), from_pretrained(model)
    base, sampling = read_streaming_config(local_directory(BASE))
    config = replace(base, vision_window=VISION_WINDOW, moved_reply_kv="recompute")

    def start(clip: Any) -> Runner:
        runner = Runner.compiled(vlm.model, vlm.tokenizer, config, clip, sampling=sampling)
        runner.join(VIDEO)
        return runner

    for caption in captions(vlm.processor, game, config, start):
        comparison.add(caption)
    return comparison.commentary


def _row(name: str, tally: Tally) -> dict[str, Any]:
    return {
        "trained on": name,
        "F1": f"{tally.f1:.3f}",
        "precision": f"{tally.precision:.3f}",
        "recall": f"{tally.recall:.3f}",
        "scores right": f"{tally.correct_scores} of {tally.scores}",
        "score recall": f"{tally.score_recall:.3f}",
        "scores of the truth": tally.expected_scores,
        "silence recall": f"{tally.silence_recall:.3f}",
    }
