"""Curation proved on the generated game: its true commentary is damaged as speech recognisers damage it, and what `svlm curate`
makes of that is compared with the truth, word by word. With --train small models learn from the truth, from the curated
transcripts and from the damaged ones, and watch held-out games (`benchmarks.curation_training`).

Owns the comparison of words. Rules alone edit: no server is asked.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import curation_training
from benchmarks.curated import EDITORS, LISTED, curate
from benchmarks.report import DOCS, record
from benchmarks.word_accuracy import TOLERANCE, Accuracy, word_accuracy
from svlm_jax.cli.flags import integer
from svlm_jax.data.annotation import Annotation
from svlm_jax.touchline.corrupt import RATES, Damage, corrupt
from svlm_jax.touchline.film import annotate, play


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--games", type=integer(1), default=4, help="of which the words are compared (default 4)")
    parser.add_argument("--seconds", type=integer(60), default=1800, help="of each (default 1800)")
    parser.add_argument("--train", action="store_true", help="train small models, and let them watch held-out games instead")
    start = "model to train: touchline-base does not stream yet, touchline does (default touchline-base)"
    parser.add_argument("--start", choices=["touchline-base", "touchline"], default="touchline-base", help=start)
    parser.add_argument("--steps", type=integer(1), default=160, help="of each training (default 160)")
    parser.add_argument("--films", type=integer(1), default=6, help="to train on, of --seconds (default 6)")
    parser.add_argument("--held-out", type=integer(1), default=2, help="games to watch (default 2)")
    parser.add_argument("--watch-seconds", type=integer(60), default=600, help="of each held-out game (default 600)")
    parser.add_argument("--scratch", type=Path, help="films and models (default: runs/curation of the checkout)")


def bench(args: argparse.Namespace) -> None:
    if args.train:
        scratch = args.scratch or (args.out.parent / "runs" if args.out == DOCS else args.out) / "curation"
        curation_training.bench(args, scratch)
        return
    games = [annotate(play(seed, args.seconds), f"match_{seed}.mp4", args.seconds) for seed in range(args.games)]
    rows = [compare(str(kind), games, {kind: rate}, LISTED) for kind, rate in RATES.items()]
    rows += [compare("all of these", games, RATES, name) for name in EDITORS]
    description = (
        f"The true words of {args.games} generated games of {args.seconds} s, damaged as speech recognisers do it "
        "(touchline/corrupt.py; the rates are in it), then `svlm curate clean`, then `edit` by rules. Right: 1 minus "
        f"substituted, inserted, deleted and mistimed words (a start or an end off by more than {TOLERANCE:g} s, or missing) "
        "over the words of the truth. The four counts are of the last column. Glossary: what the editor knows."
    )
    record("curation", description, rows, args.out)


def compare(name: str, games: list[Annotation], rates: Mapping[Damage, float], editor: str) -> dict[str, Any]:
    """The row of some damages, over all games."""
    totals, done = [Accuracy(), Accuracy(), Accuracy()], 0
    for seed, game in enumerate(games):
        damaged, log = corrupt(game, "", seed, rates)
        curated = curate(damaged, EDITORS[editor])
        stages = (damaged, curated.cleaned, curated.edited)
        totals = [total + word_accuracy(game.words, stage.words) for total, stage in zip(totals, stages, strict=True)]
        done += len(log)
    last = totals[-1]
    row = {"damage": name, "glossary": editor, "times": done, "words": last.words}
    row |= {column: f"{total.share:.2%}" for column, total in zip(("damaged", "cleaned", "edited"), totals, strict=True)}
    row |= {column: getattr(last, column) for column in ("substituted", "inserted", "deleted", "mistimed")}
    print(json.dumps(row), flush=True)
    return row
