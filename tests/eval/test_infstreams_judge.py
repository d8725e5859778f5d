"""Win rates on Inf-Streams-Eval, against results worked out by hand: which segments count, and what the files say."""

import json
from pathlib import Path

import pytest

from svlm_jax.cli.evaluate import main
from svlm_jax.data.annotation import Word
from svlm_jax.eval.commentary import Utterance
from svlm_jax.eval.infstreams import Segment, segment_record
from svlm_jax.eval.infstreams_answers import Answers, GameAnswers
from svlm_jax.eval.infstreams_judge import (
    Comparison,
    compare,
    faults,
    fifths,
    scores,
    write_scores,
)
from svlm_jax.eval.judging import Ballot, Candidate, Judgement, Pair, Vote
from svlm_jax.eval.result import read_result
from svlm_jax.json_lines import write
from tests.support.judge_server import KEY, MODEL, judge_server


def judgement(video: str, start: float, ab: Vote, ba: Vote, rule: str = "") -> Judgement:
    pair = Pair(f"{video}:{start}", video, start, start + 100, "", Candidate("a"), Candidate("b"), "Reds - Blues")
    return Judgement(pair, Ballot(ab), Ballot(ba), rule)


# A's votes of two: 2 1 1 in one game, 0 and 1 (with an invalid one) in the other; 0 of 2 by rule.
JUDGEMENTS = [
    judgement("x.mp4", 0, "A", "A"),
    judgement("x.mp4", 500, "A", "B"),
    judgement("x.mp4", 900, "B", "A"),
    judgement("y.mp4", 0, "B", "B"),
    judgement("y.mp4", 100, "A", "invalid"),
    judgement("y.mp4", 200, "B", "B", rule="empty"),
]
ENDS = {"x.mp4": 1000.0, "y.mp4": 300.0}
SKIPPED = Segment("z.mp4", (Word(0.0, 50.0, "w"),))


def comparison(skipped=()) -> Comparison:
    return Comparison("infinite vs chunk", [each.pair for each in JUDGEMENTS], list(skipped), ENDS)


def test_scores_by_hand():
    """x: 4 of 6. y: 1 for A, 4 for B, 1 invalid: 1 of 5. Together 5 of 11. Of the four that a judge decided with two valid
    votes (A A, A B, B A, B B) two differ. Games drawn again: rates between 1/5 and 4/6."""
    found = scores(JUDGEMENTS, comparison())
    assert found["per_video"] == {
        "x.mp4": {"A": 4, "B": 2, "win_rate_A": 0.6667, "win_rate_B": 0.3333},
        "y.mp4": {"A": 1, "B": 4, "win_rate_A": 0.2, "win_rate_B": 0.8},
    }
    assert found["global"] == {
        "A": 5,
        "B": 6,
        "win_rate_A": 0.4545,
        "win_rate_B": 0.5455,
        "invalid": 1,
        "segments": 6,
        "skipped": 0,
        "inconsistent": 0.5,
        "ci95": [0.2, 0.6667],
    }


def test_fifths_are_of_stream_time_by_the_middle_of_a_segment():
    """x, 1000 s: middles 50, 550, 950 s are 5 %, 55 %, 95 %: the first, third and fifth. y, 300 s: 50, 150, 250 s are 17 %,
    50 %, 83 %: the same. First: 2 + 0 of 2 + 2 votes. Third: 1 + 1 of 2 + 1. Fifth: 1 + 0 of 2 + 2. Nothing else."""
    assert fifths(JUDGEMENTS, ENDS) == [0.5, None, pytest.approx(2 / 3), None, 0.25]


def test_files_have_the_published_keys(tmp_path):
    write_scores(tmp_path, JUDGEMENTS, comparison(), {"model": "judge-2026"}, {"clips_sha256": "0"})
    segments = [json.loads(line) for line in (tmp_path / "score_segments.jsonl").read_text().splitlines()]
    assert segments[1] == {
        "video": "x.mp4",
        "title": "Reds - Blues",
        "start": 500,
        "end": 600,
        "winner": "equal",
        "votes": {"A": 1, "B": 1},
        "judge": {"model": "judge-2026", "vote_ab": "A", "vote_ba": "B"},
        "rule": "",
    }
    assert [each["winner"] for each in segments] == ["A", "equal", "equal", "B", "A", "B"]
    results = json.loads((tmp_path / "score_results.json").read_text())
    assert {"per_video", "global", "judge", "fifths"} <= results.keys()
    assert results["judge"] == {"model": "judge-2026", "served_models": {}, "served_temperatures": {}}
    metrics = {metric.name: metric for metric in read_result(tmp_path / "score_results.json").metrics}
    assert metrics["win_rate"].value == pytest.approx(5 / 11)
    assert metrics["win_rate"].count == 6
    assert metrics["inconsistent"].count == 5  # one was decided by rule
    assert metrics["invalid_votes"].value == pytest.approx(1 / 12)


def answers(name: str, games: dict[str, tuple[int, int]]) -> Answers:
    """Of a model that says a word a second, from and to a second of each game."""
    said = {
        video: GameAnswers(
            tuple(Utterance(t - 1.0, float(t), f"{name}{t}") for t in range(start + 1, end + 1)), ((float(start), float(end)),)
        )
        for video, (start, end) in games.items()
    }
    return Answers(name, {}, "", said, [])


def segments(video: str, *starts: int) -> list[Segment]:
    return [Segment(video, (Word(start, start + 1, "kick"), Word(start + 98, start + 99, "off"))) for start in starts]


def test_both_models_are_judged_on_the_same_segments():
    """A has no game y, B begins x at 200 s, and A stopped at 350 s, which is silence and no exemption."""
    a, b = answers("a", {"x.mp4": (0, 350)}), answers("b", {"x.mp4": (200, 500), "y.mp4": (0, 500)})
    given = [*segments("x.mp4", 100, 200, 300, 400), *segments("y.mp4", 0)]
    found = compare(given, a, b)
    assert [pair.key for pair in found.pairs] == ["x.mp4:200-299", "x.mp4:300-399", "x.mp4:400-499"]
    assert [len(pair.a.text.split()) for pair in found.pairs] == [99, 50, 0]
    assert [len(pair.b.text.split()) for pair in found.pairs] == [99, 99, 99]
    assert found.reasons == {"B: begins before 200 s, the first answer": 1, "A: no answers for this game": 1}
    assert found.ends == {"x.mp4": 500.0, "y.mp4": 500.0}
    assert list(faults(given, a)) == [
        "x.mp4: answers end at 350 s; 2 segments end later, and what is not said there is silence"
    ]
    assert list(faults(given, b)) == []


def run_file(path: Path, video: str, text: str, end: int) -> None:
    path.parent.mkdir(exist_ok=True)
    items = [{"response": text, "start_time": t - 1, "end_time": t} for t in range(1, end + 1)]
    write(path, [{"video": video, "chunk_start": 0, "chunk_end": end, "items": items}])


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Runs `svlm evaluate infstreams judge` on two games of 300 s. Both models were run on one, with three goals, and A says
    "goal" each second."""
    monkeypatch.chdir(tmp_path)
    write("clips.jsonl", [segment_record(each) for video in ("x.mp4", "y.mp4") for each in segments(video, 0, 100, 200)])
    run_file(tmp_path / "a" / "result_0.jsonl", "x.mp4", "A goal.", 300)
    run_file(tmp_path / "b" / "result_0.jsonl", "x.mp4", "A throw.", 300)
    mention = {
        "name": "goal",
        "kind": "event",
        "pattern": "goal",
        "values": [[second, second + 1, "goal"] for second in (50, 150, 250)],
    }
    write("truth.jsonl", [{"video": "x.mp4", "seconds": 300, "mentions": [mention]}])

    def run(*arguments: str) -> None:
        flags = ["--clips", "clips.jsonl", "--a", "a", "--b", "b", "--out", "scores", *arguments]
        monkeypatch.setattr("sys.argv", ["svlm evaluate", "infstreams", "judge", *flags])
        main()

    return run


def test_the_command_judges_with_the_truth(command, tmp_path, capsys):
    command("--judge", "exact", "--truth", "truth.jsonl")
    results = json.loads((tmp_path / "scores" / "score_results.json").read_text())
    assert results["global"]["win_rate_A"] == 1.0
    assert (results["global"]["segments"], results["global"]["skipped"]) == (3, 3)
    assert results["global"]["ci95"] is None  # one game
    assert results["skipped_because"] == {"A: no answers for this game": 3, "B: no answers for this game": 3}
    skipped = [json.loads(line) for line in (tmp_path / "scores" / "skipped.jsonl").read_text().splitlines()]
    assert skipped[0] == {
        "video": "y.mp4",
        "start": 0,
        "end": 99,
        "a": "no answers for this game",
        "b": "no answers for this game",
    }
    printed = capsys.readouterr()
    assert "a vs b: 100.0 % (95 %: unknown: one game)" in printed.out
    assert "3 segments are not judged: A: no answers for this game" in printed.err


def test_a_segment_without_a_vote_is_no_result(command, tmp_path, capsys):
    """The published script leaves it out and divides by fewer. Here: exit code 1, a list, and no score file."""
    command("--judge", "exact", "--truth", "truth.jsonl")
    for name in ("a", "b"):
        run_file(tmp_path / name / "result_1.jsonl", "y.mp4", "A goal.", 300)  # of which there is no truth
    with pytest.raises(SystemExit) as ended:
        command("--judge", "exact", "--truth", "truth.jsonl")
    assert ended.value.code == 1
    assert not (tmp_path / "scores" / "score_results.json").exists()
    assert "3 of 6 segments were not judged" in capsys.readouterr().err
    assert len((tmp_path / "scores" / "unresolved.jsonl").read_text().splitlines()) == 3


def test_a_server_that_always_says_a(command, tmp_path, monkeypatch):
    """Half of the votes, and nothing that it says twice alike; a second run asks nothing."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with judge_server("A") as server:
        command("--judge-url", server.url, "--judge-model", MODEL)
        num_requests = len(server.requests)  # 2 to 6: the segments have the same words, and may find the answer in the cache
        command("--judge-url", server.url, "--judge-model", MODEL)
        assert len(server.requests) == num_requests
    found = json.loads((tmp_path / "scores" / "score_results.json").read_text())
    assert found["global"] | {"A": 3, "B": 3, "win_rate_A": 0.5, "inconsistent": 1.0, "segments": 3} == found["global"]
    assert found["judge"]["model"] == MODEL
    assert found["judge"]["served_models"] == {f"{MODEL}-2026-11-28": 6}
