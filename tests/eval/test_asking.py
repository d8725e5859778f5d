"""Questions are asked once, in order, about what could be seen; a killed run leaves the same file as one that was not."""

import threading

import numpy as np
import pytest

from svlm_jax import json_lines
from svlm_jax.errors import InputError
from svlm_jax.eval.asking import (
    Query,
    View,
    answering,
    ask_offline,
    ask_online,
    choosing,
    in_order,
    read_answers,
    write_answers,
)
from svlm_jax.eval.commentator import Answer, Finished, job_seed
from svlm_jax.media.video import write_video

QUERIES = [Query(str(second), "T", "v.mp4", 0.0, float(second), ("1", "10")) for second in (2, 4, 6)]


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """A film of ten seconds, ever brighter: 20 a second."""
    folder = tmp_path_factory.mktemp("videos")
    write_video(folder / "v.mp4", (np.full((32, 32, 3), 10 * frame, np.uint8) for frame in range(20)), 2)
    return folder


class Echo:
    """Answers with the brightness of the newest frame; fails when told to."""

    def __init__(self, fail_at=None):
        self.asked, self.fail_at, self.lock = [], fail_at, threading.Lock()

    def settings(self):
        return {"model": "echo"}

    def answer(self, request):
        with self.lock:
            self.asked.append(request.text)
        if request.text == self.fail_at:
            raise KeyboardInterrupt
        return f"{round(request.frames.pixels[-1].mean() / 10)}"

    def choose(self, request, options, *, ended=False):
        self.asked.append((options, ended))
        return 1, [-2.0, -1.00001]


def prompt(query):
    return f"at {query.key}"


def offline(videos, echo, queries=QUERIES, concurrency=1):
    return ask_offline(queries, videos, View(), answering(echo, prompt, 8), concurrency=concurrency)


@pytest.mark.parametrize("concurrency", [1, 3])
def test_each_question_is_about_its_prefix_and_answers_come_in_order(videos, concurrency):
    answers = list(offline(videos, Echo(), concurrency=concurrency))
    assert [(query.key, answer["response"]) for query, answer in answers] == [("2", "3"), ("4", "7"), ("6", "11")]


def test_recent_frames_are_all_that_is_shown(videos):
    frames = View("recent", 2).of(videos / "v.mp4", QUERIES[2])
    assert (len(frames.pixels), frames.start) == (2, 5.0)
    assert len(View("prefix", 3).of(videos / "v.mp4", QUERIES[2]).pixels) == 3


def test_replies_are_compared_with_their_end_where_one_begins_another(videos):
    echo = Echo()
    ask = choosing(echo, prompt, "It is ")
    (_, answer), *_ = ask_offline(QUERIES[:1], videos, View(), ask)
    assert answer == {"response": "10", "log_probs": [-2.0, -1.0]}
    assert echo.asked == [(["It is 1", "It is 10"], True)]


@pytest.mark.parametrize("concurrency", [1, 3])
def test_a_video_that_is_missing_keeps_no_other_question_from_being_asked(videos, concurrency):
    queries = [QUERIES[0], QUERIES[1]._replace(video="none.mp4"), QUERIES[2]]
    (_, first), (_, error), (_, last) = offline(videos, Echo(), queries, concurrency)
    assert (first, last) == ({"response": "3"}, {"response": "11"})
    assert isinstance(error, InputError) and "none.mp4" in str(error)


def run(folder, videos, echo, queries=QUERIES, bad=None):
    folder.mkdir(exist_ok=True)

    def ask(done):
        return offline(videos, echo, [query for query in queries if query.key not in done])

    return write_answers(folder, queries, ask, bad or json_lines.BadLines())


def test_a_killed_run_goes_on_and_leaves_the_same_file(videos, tmp_path):
    run(tmp_path / "whole", videos, Echo())
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", videos, Echo(fail_at="at 4"))
    with (tmp_path / "killed" / "answers.partial.jsonl").open("a") as file:
        file.write('{"key": "4", "resp')  # what a power cut leaves
    echo = Echo()
    answers = run(tmp_path / "killed", videos, echo)
    assert echo.asked == ["at 4", "at 6"]
    assert answers["4"] == {"key": "4", "task": "T", "video": "v.mp4", "time": 4.0, "response": "7"}
    names = [sorted(file.name for file in (tmp_path / name).iterdir()) for name in ("killed", "whole")]
    assert names == [["answers.jsonl"]] * 2
    assert (tmp_path / "killed" / "answers.jsonl").read_bytes() == (tmp_path / "whole" / "answers.jsonl").read_bytes()


@pytest.mark.filterwarnings("ignore:left out")
def test_questions_that_fail_are_named_and_asked_again_by_the_next_run(videos, tmp_path):
    queries = [QUERIES[0], QUERIES[1]._replace(video="none.mp4"), QUERIES[2]]
    with pytest.raises(InputError, match=r"question 4 .*none\.mp4"):
        run(tmp_path, videos, Echo(), queries)
    echo = Echo()
    assert run(tmp_path, videos, echo, queries, json_lines.BadLines(1)).keys() == {"2", "6"}
    assert echo.asked == []  # but for the one without a video


def test_work_is_done_no_further_ahead_than_told():
    begun = []
    results = in_order(range(10), lambda item: begun.append(item) or item, 3)
    item, future = next(results)
    assert (item, future.result()) == (0, 0) and len(begun) <= 3
    results.close()


class Stage:
    """A commentator that answers each question with the second at which it was asked, last job first."""

    def __init__(self, refuse=()):
        self.jobs, self.refuse = [], refuse

    def settings(self):
        return {}

    def run(self, jobs, *, skip=()):
        self.jobs = list(jobs)
        for job in reversed([job for job in jobs if job.key not in skip]):
            (second, text), *_ = job.questions
            refused = "too long" if job.key in self.refuse else ""
            yield Finished(job, (), (Answer(text, second, f"{second:g}", refused),))


def test_online_a_question_is_asked_when_it_falls_due(videos):
    stage = Stage()
    queries = [QUERIES[0]._replace(start=1.5, end=3.2), QUERIES[1], QUERIES[2]._replace(end=30.0)]
    answers = ask_online(queries, videos, stage, prompt, request="say", seed=7, skip=("4",))
    assert [(query.key, answer) for query, answer in answers] == [
        ("6", {"response": "10", "asked": 10.0}),
        ("2", {"response": "3", "asked": 3.0}),
    ]
    assert [(job.start, job.end) for job in stage.jobs] == [(1.0, 3.0), (0.0, 4.0), (0.0, 10.0)]  # whole seconds of the video
    job = stage.jobs[0]
    assert (job.query, job.questions, job.seed) == ("say", ((3.0, "at 2"),), job_seed(7, "2"))


def test_online_what_was_not_asked_has_no_answer_and_says_why(videos):
    queries = [*QUERIES, QUERIES[0]._replace(key="x", video="none.mp4")]
    found = {query.key: answer for query, answer in ask_online(queries, videos, Stage(refuse=("2",)), prompt)}
    assert found["4"] == {"response": "4", "asked": 4.0}
    assert "too long" in str(found["2"]) and "none.mp4" in str(found["x"])


@pytest.mark.filterwarnings("ignore:left out")
def test_answers_are_read_by_key(tmp_path):
    path = tmp_path / "answers.jsonl"
    json_lines.write(
        path, [{"key": "a", "response": "B"}, {"key": "b", "response": None}, {"key": "a", "response": "C"}, {"key": "z"}]
    )
    with pytest.raises(InputError, match=r"answers\.jsonl:3.*a second one to question a"):
        read_answers(path, ["a", "b"], json_lines.BadLines())
    assert read_answers(tmp_path, ["a", "b"], json_lines.BadLines(2)) == {"a": "B", "b": None}
