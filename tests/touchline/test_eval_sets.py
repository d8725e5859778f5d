"""Claims about the evaluation sets of the game: in the published formats, with answers that are known."""

import json

import pytest

from svlm_jax.eval.truth import read_truth
from svlm_jax.touchline.commentary import scores
from svlm_jax.touchline.eval_sets.commentaries import BASELINES
from svlm_jax.touchline.eval_sets.games import Game, changes
from svlm_jax.touchline.eval_sets.writing import write_sets
from svlm_jax.touchline.film import HELD_OUT, annotate, play
from svlm_jax.touchline.judge import judge

SECONDS = 300


@pytest.fixture(scope="module")
def games() -> list[Game]:
    return [Game(HELD_OUT, SECONDS), Game(HELD_OUT + 1, SECONDS)]


@pytest.fixture(scope="module")
def folder(games, tmp_path_factory):
    place = tmp_path_factory.mktemp("sets")
    write_sets(place, games)
    return place


def read_lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_game_of_a_set_is_the_one_that_its_film_shows(games):
    world = play(HELD_OUT, SECONDS)
    assert tuple(games[0].words) == annotate(world, "x.mp4", SECONDS).words
    assert [games[0].holder(second) for second in range(SECONDS - 1)] == world.holders[: SECONDS - 1]


def test_what_changes_is_told_once():
    assert list(changes([(0, "a"), (1, "a"), (2, "b"), (5, "a")], 9)) == [(0, 2, "a"), (2, 5, "b"), (5, 9, "a")]


def test_inf_streams_games_have_every_word_with_its_time(folder, games):
    lines = read_lines(folder / "eval_all_metadata.jsonl")
    assert [line["video"] for line in lines] == ["videos/match_1000000.mp4", "videos/match_1000001.mp4"]
    for line, game in zip(lines, games, strict=True):
        assert line["content"] == [list(word) for word in game.words]
        assert all(start < end for start, end, _ in line["content"])


def test_the_truth_of_a_game_has_each_event_and_the_score_at_each_time(folder, games):
    truths = read_truth(folder / "truth.jsonl")
    for game, truth in zip(games, truths.values(), strict=True):
        spans = sorted(value for mention in truth.mentions if mention.kind == "event" for value in mention.values)
        assert [start for start, _, _ in spans] == [second for second, _ in game.when()]
        score = next(mention for mention in truth.mentions if mention.name == "score")
        assert all(before.end == after.start for before, after in zip(score.values, score.values[1:], strict=False))
        for second, text in game.replies.items():
            for claim in scores(text):
                value = next(value for value in score.values if value.start <= second < value.end)
                assert value.text == f"{claim.teams[0]} {claim.goals[0]}-{claim.goals[1]} {claim.teams[1]}"


def test_baselines_are_as_good_as_their_names_say(games):
    for game in games:
        tallies = {name: judge(replies(game), game.events, 0, SECONDS) for name, replies in BASELINES.items()}
        assert tallies["truth"].f1 == tallies["truth"].score_accuracy == 1
        assert tallies["late"].f1 < tallies["errors"].f1 < 0.9 and 0 < tallies["errors"].score_accuracy < 1
        assert tallies["silence"].matches == tallies["silence"].claims == 0


def test_events_of_livesports_have_their_words_and_those_before(folder, games):
    entries = json.loads((folder / "LiveSports-3K-CC.json").read_text())
    assert len(entries) > 4
    for entry in entries:
        assert "GOAL for" in entry["event_asr_text"] and 10 <= entry["end"] - entry["begin"] <= 60
        game = next(game for game in games if game.video == entry["video"])
        assert game.text(0, SECONDS).startswith(f"{entry['preasr_text']} {entry['event_asr_text']}".strip())
    keys = [(entry["video_id"], entry["event_id"]) for entry in entries]
    assert len(set(keys)) == len(keys)
    for name in BASELINES:
        lines = read_lines(folder / "captions" / f"{name}.jsonl")
        assert [(line["video_id"], line["event_id"]) for line in lines] == keys
        assert name != "truth" or [line["pred"] for line in lines] == [entry["event_asr_text"] for entry in entries]
        assert name != "silence" or not any(line["pred"] for line in lines)


def test_published_answers_have_an_item_for_every_second(folder, games):
    for name, replies in BASELINES.items():
        for line, game in zip(read_lines(folder / f"answers/infstreams/{name}/result_0.jsonl"), games, strict=True):
            assert (line["chunk_start"], line["chunk_end"], len(line["items"])) == (0, SECONDS, SECONDS)
            said = {item["start_time"]: item["response"].strip() for item in line["items"]}
            assert {second: text for second, text in said.items() if text} == replies(game)
