"""Claims about the evaluation sets of the game through the scorers of the benchmarks: who is right has 100 %, who is wrong has
what arithmetic says."""

import json
from collections import Counter
from pathlib import Path

import pytest

from svlm_jax.eval import (
    infstreams_judge,
    livesports_cc,
    livesports_judge,
    livesports_qa,
    ovo,
    ovo_score,
    proactive,
    streamingbench,
    streamingbench_score,
)
from svlm_jax.eval.exact_judge import ExactJudge
from svlm_jax.eval.infstreams import cut, read_games
from svlm_jax.eval.infstreams_answers import read_answers
from svlm_jax.eval.judging import Judge, Pair
from svlm_jax.eval.result import Result
from svlm_jax.eval.truth import read_truth
from svlm_jax.json_lines import BadLines
from svlm_jax.touchline.eval_sets.games import Game
from svlm_jax.touchline.eval_sets.writing import write_sets
from svlm_jax.touchline.film import HELD_OUT

SECONDS = 300


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("sets")
    write_sets(place, [Game(HELD_OUT, SECONDS), Game(HELD_OUT + 1, SECONDS)])
    return place


def values(result: Result) -> dict[str, float | None]:
    return {metric.name: metric.value for metric in result.metrics}


def scored(folder: Path, benchmark: str, answers: Path | None = None, reply: str = "") -> dict[str, float | None]:
    """With a file of answers, or with the same reply to every question."""
    bad = BadLines()
    if benchmark == "ovo":
        questions = ovo.questions_of(ovo.read_items(folder / "ovo_bench_new.json", bad))
        replies = ovo.read_replies(answers, questions, bad) if answers else {each.key: reply for each in questions}
        return values(ovo_score.score(questions, replies, "test")[0])
    if benchmark == "livesports_qa":
        asked = livesports_qa.read_questions(folder / "LiveSports-3K-QA.json", bad)
        said = livesports_qa.read_responses(answers, asked, bad) if answers else {each.key: reply for each in asked}
        return values(livesports_qa.score(asked, said, "test")[0])
    data = streamingbench.read_questions(folder / f"questions_{benchmark.removeprefix('streamingbench_')}.json", bad)
    keys = {each.key for each in data.questions}
    found = streamingbench.read_replies(answers, keys, "", bad) if answers else dict.fromkeys(keys, reply)
    return values(streamingbench_score.score(data, found, "test")[0])


@pytest.mark.parametrize("benchmark", ["ovo", "livesports_qa", "streamingbench_real", "streamingbench_sqa"])
def test_the_right_answers_score_100_percent(folder, benchmark):
    found = scored(folder, benchmark, folder / "answers/right" / f"{benchmark}.jsonl")
    assert len(found) > 1 and set(found.values()) == {1}


@pytest.mark.parametrize("protocol", ["polled", "native"])
def test_what_is_said_unasked_in_time_scores_100_percent(folder, protocol):
    _, questions = proactive.read_questions(folder / "questions_proactive.json", BadLines())
    answers = folder / f"answers/right/streamingbench_{protocol}.jsonl"
    found = values(proactive.score(questions, proactive.read_records(answers, questions, "", BadLines()), "test")[0])
    assert found["answer_correct"] == found["time_correct"] == 1 and found["mean_delay"] == 0
    assert values(proactive.score(questions, {}, "test")[0])["answer_correct"] == 0


def test_always_the_first_option_is_as_often_right_as_it_comes(folder):
    qa = json.loads((folder / "LiveSports-3K-QA.json").read_text())
    assert scored(folder, "livesports_qa", reply="A")["overall"] == sum(each["answer"] == "A" for each in qa) / len(qa)
    real = [each["questions"][0] for each in json.loads((folder / "questions_real.json").read_text())]
    found = scored(folder, "streamingbench_real", reply="A.")
    assert found["total"] == sum(each["answer"] == "A" for each in real) / len(real)
    items = json.loads((folder / "ovo_bench_new.json").read_text())
    found = scored(folder, "ovo", reply="A")
    for task, number in Counter(item["task"] for item in items).items():
        right = sum(item.get("gt") == 0 for item in items if item["task"] == task)
        assert found[task] == right / number, task  # no letter is a count, a yes or a no
    assert found["forward"] == 0


def test_always_no_is_right_about_every_step_that_is_not_being_taken(folder):
    items = json.loads((folder / "ovo_bench_new.json").read_text())
    found = scored(folder, "ovo", reply="No")
    for task in ("SSR", "CRR"):
        tests = [test["type"] for item in items if item["task"] == task for test in item["test_info"]]
        assert found[task] == tests.count(0) / len(tests)
    assert found["REC"] == found["backward"] == 0


def rates(judge: Judge, pairs: list[Pair]) -> Counter:
    return Counter(judge.vote(pair, swapped).vote for pair in pairs for swapped in (False, True))


@pytest.mark.parametrize("baseline", ["errors", "late", "silence", "truth"])
def test_the_exact_judge_takes_the_truth_before_each_baseline(folder, baseline):
    judge = ExactJudge(read_truth(folder / "truth.jsonl"), "")
    segments = [each for game in read_games(folder / "eval_all_metadata.jsonl", BadLines()) for each in cut(game, 100, 20)[0]]
    videos = sorted({segment.video for segment in segments})
    a, b = (read_answers(folder / f"answers/infstreams/{name}", videos, BadLines()) for name in ("truth", baseline))
    compared = infstreams_judge.compare(segments, a, b).pairs
    assert len(compared) == 6  # two games of three pieces
    assert rates(judge, compared) == ({"tie": 12} if baseline == "truth" else {"A": 12})

    events = livesports_cc.read_events(folder / "LiveSports-3K-CC.json", BadLines())
    c, d = (
        livesports_cc.read_predictions(folder / f"captions/{name}.jsonl", events, BadLines()) for name in ("truth", baseline)
    )
    found = rates(judge, livesports_judge.pairs(events, c, d))
    if baseline == "errors":  # some events have no second that is wrong
        same = sum(c[event.key].text == d[event.key].text for event in events)
        assert found == Counter({"A": 2 * (len(events) - same), "tie": 2 * same})
    else:
        assert found == {"tie" if baseline == "truth" else "A": 2 * len(events)}
