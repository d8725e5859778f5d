"""Claims about `benchmarks curation`: what is compared is the same films and words, and the truth gets full marks."""

import argparse
import json

import pytest

from benchmarks import curation, curation_training
from benchmarks.__main__ import parser
from benchmarks.curated import LISTED
from svlm_jax.data.annotation import Annotation, parse
from svlm_jax.data.windows import cut
from svlm_jax.touchline.corrupt import RATES, Damage, corrupt
from svlm_jax.touchline.demo import Comparison, Game
from svlm_jax.touchline.film import HELD_OUT, annotate, play

SECONDS = 240


@pytest.fixture(scope="module")
def game() -> Annotation:
    return annotate(play(3, SECONDS), "match_3.mp4", SECONDS)


def test_a_row_counts_what_is_left_after_each_step(game):
    row = curation.compare("all", [game], RATES, LISTED)
    damaged, cleaned, edited = (float(row[name].rstrip("%")) for name in ("damaged", "cleaned", "edited"))
    assert damaged < cleaned < edited and row["words"] == len(game.words) and row["times"] > 20
    assert curation.compare("names", [game], {Damage.MISHEARD: 1}, "nothing")["substituted"] > 10  # nothing to know them by


def test_all_models_train_on_windows_of_the_same_seconds(game):
    damaged, _ = corrupt(game, "", 3)
    bounds = []
    for learn_from in curation_training.ARMS.values():
        windows = [parse(window) for window in cut(learn_from(game, damaged), window=12, stride=12, as_streamed=True)]
        bounds.append([(window.video, window.start, window.end) for window in windows])
    assert bounds[0] == bounds[1] == bounds[2] and len(bounds[0]) == SECONDS // 12


def test_the_truth_gets_full_marks(tmp_path):
    game = Game(HELD_OUT, SECONDS)
    args = argparse.Namespace(held_out=1, watch_seconds=SECONDS)
    (tmp_path / f"said_{HELD_OUT}_{SECONDS}.json").write_text(json.dumps(Comparison(game).truth))  # what a model said
    row = curation_training._row("truth", curation_training._watch_all("no model is loaded", tmp_path, args))
    assert row["F1"] == row["score recall"] == "1.000"


def test_what_is_about_to_be_done_is_told():
    args = parser().parse_args(["--out", "x", "curation", "--train", "--steps", "10"])
    assert "3 trainings of 10 steps" in curation_training._plan(args, args.out)
