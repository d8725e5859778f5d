"""Both orders of each pair are judged, once, whatever happens: a number is of all the segments that it says."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from svlm_jax.errors import InputError
from svlm_jax.eval.commentary import Utterance
from svlm_jax.eval.judging import Ballot, Candidate, JudgeError, Pair, judge_pairs, unresolved, unresolved_path
from tests.support import ROOT


def pair(key: str, a: str = "a goal", b: str = "a corner") -> Pair:
    return Pair(key, "game.mp4", 0.0, 100.0, "it is a goal", Candidate(a), Candidate(b))


PAIRS = [pair(f"segment {number}") for number in range(6)]


class FakeJudge:
    """Prefers A; fails for the (key, swapped) that it is told to, and remembers what it was asked."""

    def __init__(self, failing=(), version=1):
        self.failing, self.version = set(failing), version
        self.asked: list[tuple[str, bool]] = []

    def settings(self):
        return {"judge": "fake", "version": self.version}

    def vote(self, pair: Pair, swapped: bool) -> Ballot:
        self.asked.append((pair.key, swapped))
        if (pair.key, swapped) in self.failing:
            raise JudgeError("the server does not answer")
        return Ballot("A", f"{pair.key} {swapped}", {"model": "fake-2026"})


def test_both_orders_are_asked_once_and_come_back_in_the_order_of_the_pairs(tmp_path):
    judge = FakeJudge()
    judgements = judge_pairs(PAIRS, judge, tmp_path / "votes.jsonl")
    assert sorted(judge.asked) == [(each.key, swapped) for each in PAIRS for swapped in (False, True)]
    assert [each.pair for each in judgements] == PAIRS
    assert all(each.ab.answer == f"{each.pair.key} False" for each in judgements)
    assert all(each.ba.answer == f"{each.pair.key} True" for each in judgements)
    records = [json.loads(line) for line in (tmp_path / "votes.jsonl").read_text().splitlines()]
    assert [(each["key"], each["order"]) for each in records] == [(p.key, o) for p in PAIRS for o in ("AB", "BA")]
    assert records[0]["judge"] == {"judge": "fake", "version": 1}
    assert records[0]["details"] == {"model": "fake-2026"}


def test_a_second_run_asks_nothing_and_leaves_the_same_bytes(tmp_path):
    path = tmp_path / "votes.jsonl"
    first = judge_pairs(PAIRS, FakeJudge(), path)
    before, judge = path.read_bytes(), FakeJudge()
    assert judge_pairs(PAIRS, judge, path) == first
    assert judge.asked == []
    assert path.read_bytes() == before


def test_votes_for_other_texts_or_of_another_judge_do_not_count(tmp_path):
    """Else a model that was run again would keep the votes of its old words."""
    path = tmp_path / "votes.jsonl"
    judge_pairs(PAIRS, FakeJudge(), path)
    timed = Candidate("a goal", (Utterance(1.0, 2.0, "a goal"),))
    changed = [pair("segment 0", "two goals"), PAIRS[1]._replace(a=timed), *PAIRS[2:]]
    judge = FakeJudge()
    judge_pairs(changed, judge, path)
    assert {key for key, _ in judge.asked} == {"segment 0", "segment 1"}
    other = FakeJudge(version=2)
    judge_pairs(changed, other, path)
    assert len(other.asked) == 2 * len(PAIRS)


def test_what_the_judge_did_not_answer_is_listed_and_asked_for_by_the_next_run(tmp_path):
    path = tmp_path / "votes.jsonl"
    judgements = judge_pairs(PAIRS, FakeJudge(failing=[("segment 1", False), ("segment 4", True)]), path)
    assert [each.pair.key for each in unresolved(judgements)] == ["segment 1", "segment 4"]
    assert judgements[1].ab.vote == "invalid"
    assert judgements[1].ba.vote == "A"  # this order was answered, and is kept
    listed = [json.loads(line) for line in unresolved_path(path).read_text().splitlines()]
    assert [(each["key"], each["error"]) for each in listed] == [
        ("segment 1", "the server does not answer"),
        ("segment 4", "the server does not answer"),
    ]
    judge = FakeJudge()
    judgements = judge_pairs(PAIRS, judge, path)
    assert sorted(judge.asked) == [("segment 1", False), ("segment 4", True)]
    assert unresolved(judgements) == []
    assert unresolved_path(path).read_text() == ""
    judge_pairs(PAIRS, FakeJudge(), tmp_path / "at once.jsonl")
    assert path.read_bytes() == (tmp_path / "at once.jsonl").read_bytes()


def test_a_judge_that_answers_nobody_is_given_up(tmp_path):
    """A server that is down would else cost minutes of retries for each of thousands of segments."""
    pairs = [pair(f"{number}") for number in range(100)]
    judge = FakeJudge(failing=[(each.key, swapped) for each in pairs for swapped in (False, True)])
    judgements = judge_pairs(pairs, judge, tmp_path / "votes.jsonl", concurrency=2)
    assert len(unresolved(judgements)) == 100
    assert "not asked" in judgements[-1].error
    assert len(judge.asked) < 200


@pytest.mark.parametrize(
    ("a", "b", "vote", "rule"),
    [
        (Candidate("a goal"), Candidate(" \n"), "A", "empty"),
        (Candidate(""), Candidate("a goal"), "B", "empty"),
        (Candidate(""), Candidate(""), "tie", "empty"),
        (Candidate("", missing=True), Candidate("a goal"), "invalid", "missing"),
        (Candidate("a goal"), Candidate("", missing=True), "invalid", "missing"),
    ],
)
def test_silence_loses_by_rule_and_what_was_never_made_wins_for_nobody(tmp_path, a, b, vote, rule):
    judge = FakeJudge()
    [judgement] = judge_pairs([pair("only")._replace(a=a, b=b)], judge, tmp_path / "votes.jsonl")
    assert (judgement.ab.vote, judgement.ba.vote, judgement.rule, judgement.error) == (vote, vote, rule, "")
    assert judge.asked == []
    assert json.loads((tmp_path / "votes.jsonl").read_text().splitlines()[0])["rule"] == rule


def test_two_segments_of_one_key_are_refused(tmp_path):
    with pytest.raises(InputError, match="segment one: got 2 times"):
        judge_pairs([pair("one"), pair("one")], FakeJudge(), tmp_path / "votes.jsonl")


def test_a_file_of_something_else_is_refused(tmp_path):
    (tmp_path / "votes.jsonl").write_text('{"video": "x"}\n')
    with pytest.raises(InputError, match=r"votes\.jsonl:1 key"):
        judge_pairs(PAIRS, FakeJudge(), tmp_path / "votes.jsonl")


def test_a_second_run_beside_one_that_is_running_is_refused(tmp_path):
    """Both would pay for all votes, and one would lose its own."""
    refused = []

    def run_another(done: int, total: int) -> None:
        if done == 1:
            with pytest.raises(InputError, match="another run is writing") as error:
                judge_pairs(PAIRS, FakeJudge(), tmp_path / "votes.jsonl")
            refused.append(error)

    judge_pairs(PAIRS, FakeJudge(), tmp_path / "votes.jsonl", progress=run_another)
    assert refused


def test_an_error_that_concerns_all_ends_the_run_and_keeps_what_is_there(tmp_path):
    class Expelled(FakeJudge):
        def vote(self, pair, swapped):
            if len(self.asked) == 3:
                raise InputError("--judge-url", "a wrong key", "a key", "set it")
            return super().vote(pair, swapped)

    with pytest.raises(InputError, match="a wrong key"):
        judge_pairs(PAIRS, Expelled(), tmp_path / "votes.jsonl", concurrency=1)
    assert len((tmp_path / "votes.jsonl").read_text().splitlines()) == 3


def test_progress_and_what_will_be_asked_are_told(tmp_path):
    told, announced = [], []
    judge_pairs(PAIRS[:1], FakeJudge(), tmp_path / "a", progress=lambda *each: told.append(each), announce=announced.append)
    assert told == [(1, 2), (2, 2)]
    assert [(question.pair.key, question.order) for question in announced[0]] == [("segment 0", "AB"), ("segment 0", "BA")]


def test_an_interrupt_does_not_wait_for_a_slow_judge_and_keeps_what_came(tmp_path):
    hanging = threading.Event()

    class Slow(FakeJudge):
        def vote(self, pair, swapped):
            if pair.key == "segment 5":
                hanging.wait()
            return super().vote(pair, swapped)

    def interrupt(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    path = tmp_path / "votes.jsonl"
    try:
        with pytest.raises(KeyboardInterrupt):  # would never come if the hanging threads were waited for
            judge_pairs(PAIRS, Slow(), path, concurrency=4, progress=interrupt)
        stored = [json.loads(line) for line in path.read_text().splitlines()]
        assert len(stored) >= 5
    finally:
        hanging.set()
    judge = FakeJudge()
    judge_pairs(PAIRS, judge, path)
    assert not {(each["key"], each["order"] == "BA") for each in stored} & set(judge.asked)


KILLED_RUN = """
import os, signal, sys
from tests.eval.test_judging import FakeJudge, PAIRS
from svlm_jax.eval.judging import judge_pairs

def kill(done, total):
    if done == 5:
        with open(sys.argv[1], "ab") as file:  # and in the middle of a line
            file.write(b'{"key": "segm')
        os.kill(os.getpid(), signal.SIGKILL)

judge_pairs(PAIRS, FakeJudge(), sys.argv[1], concurrency=3, progress=kill)
"""


def test_a_run_that_was_killed_goes_on_and_ends_with_the_same_bytes(tmp_path):
    path = tmp_path / "votes.jsonl"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    killed = subprocess.run([sys.executable, "-c", KILLED_RUN, str(path)], env=env, cwd=ROOT, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    stored = [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
    assert len(stored) == 5
    judge = FakeJudge()
    judge_pairs(PAIRS, judge, path)
    assert len(judge.asked) == 2 * len(PAIRS) - 5
    assert not {(each["key"], each["order"] == "BA") for each in stored} & set(judge.asked)
    judge_pairs(PAIRS, FakeJudge(), tmp_path / "at once.jsonl")
    assert path.read_bytes() == Path(tmp_path / "at once.jsonl").read_bytes()
