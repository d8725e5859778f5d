"""`svlm evaluate game` and `svlm evaluate timing`, as a user runs them one after the other."""

import json
import sys

import pytest

from svlm_jax.cli.evaluate import game, timing
from svlm_jax.errors import InputError
from svlm_jax.eval.result import read_result
from svlm_jax.touchline.eval_sets.commentaries import BASELINES
from svlm_jax.touchline.eval_sets.games import Game
from svlm_jax.touchline.judge import judge


def call(command, monkeypatch, *args: object) -> None:
    name = command.__name__.rpartition(".")[2]
    monkeypatch.setattr(sys, "argv", [f"svlm evaluate {name}", *map(str, args)])
    command.main()


def test_the_sets_are_made_and_a_commentary_is_measured_on_them(tmp_path, monkeypatch, capsys):
    sets = ("--out", tmp_path / "sets", "--seeds", "1000000:1000002", "--seconds", 200, "--words-only")
    call(game, monkeypatch, *sets)
    assert "2 games of 3 min, words alone" in capsys.readouterr().err
    answers, truth = tmp_path / "sets/answers/infstreams/late", tmp_path / "sets/truth.jsonl"
    call(timing, monkeypatch, answers, "--truth", truth, "--out", tmp_path / "late.json", "--label", "late")
    shown = capsys.readouterr()
    assert "| event f1 |" in shown.out and "2 of 2 videos" in shown.err
    result = read_result(tmp_path / "late.json")
    assert result.label == "late" and {series.metric for series in result.series} == {each.name for each in result.metrics}
    games = [Game(seed, 200) for seed in (1000000, 1000001)]
    tallies = [judge(BASELINES["late"](each), each.events, 0, 200) for each in games]
    f1 = next(metric for metric in result.metrics if metric.name == "event_f1")
    assert f1.value == (tallies[0] + tallies[1]).f1
    details = json.loads((tmp_path / "late.json").read_text())
    assert [video["matches"] for video in details["per_video"].values()] == [tally.matches for tally in tallies]
    assert sum(details["timing_error_histogram"].values()) == sum(tally.matches for tally in tallies)
    assert details["per_mention"]["score"]["state_accuracy"] == (tallies[0] + tallies[1]).score_accuracy


def test_a_folder_of_other_games_is_refused_and_the_same_games_change_nothing(tmp_path, monkeypatch):
    flags = ("--out", tmp_path / "sets", "--words-only", "--seeds")
    call(game, monkeypatch, *flags, "1000003", "--seconds", 150)
    files = {path: path.read_bytes() for path in (tmp_path / "sets").rglob("*.json*")}
    call(game, monkeypatch, *flags, "1000003", "--seconds", 150)
    assert {path: path.read_bytes() for path in (tmp_path / "sets").rglob("*.json*")} == files
    with pytest.raises(InputError, match="seconds: got 160"):
        call(game, monkeypatch, *flags, "1000003", "--seconds", 160)
    with pytest.raises(InputError, match="seeds from 1000000"):
        call(game, monkeypatch, *flags, "3", "--seconds", 150)


@pytest.mark.slow
def test_films_that_are_there_are_kept(tmp_path, monkeypatch, capsys):
    flags = ("--out", tmp_path / "sets", "--seeds", "1000000:1000002", "--seconds", 120)
    call(game, monkeypatch, *flags)
    film = tmp_path / "sets/videos/match_1000001.mp4"
    film.unlink()
    first = (tmp_path / "sets/videos/match_1000000.mp4").stat().st_mtime_ns
    capsys.readouterr()
    call(game, monkeypatch, *flags)
    assert "1 films of 2 min (1 exist)" in capsys.readouterr().err
    assert film.stat().st_size > 0 and (tmp_path / "sets/videos/match_1000000.mp4").stat().st_mtime_ns == first
