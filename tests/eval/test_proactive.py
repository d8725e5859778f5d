"""Proactive output: polled as published, and native; what was said, when, and whether that was in time."""

import json
from pathlib import Path

import numpy as np
import pytest

from svlm_jax import json_lines
from svlm_jax.errors import InputError
from svlm_jax.eval import proactive
from svlm_jax.eval.asking import View, write_answers
from svlm_jax.eval.commentary import Utterance
from svlm_jax.eval.commentator import Answer, Finished
from svlm_jax.eval.frames import FrameSet
from svlm_jax.eval.proactive import ProactiveQuestion, outcome
from svlm_jax.eval.streamingbench import PROMPTS, published
from svlm_jax.media.video import write_video

QUESTION = ProactiveQuestion("0.0", "Proactive Output", "videos/v1.mp4", 20.0, 23.0, 'When it is 3, output "3".', "3")
RECORD = {
    "task_type": "Proactive Output", "question": QUESTION.text, "time_stamp": "00:00:20",
    "ground_truth_time_stamp": "00:00:23", "ground_truth_output": "3", "required_ability": "working memory",
}  # fmt: skip


def tree(*changes):
    return [{"video_path": "./videos/v1.mp4", "questions": [{**RECORD, **change} for change in changes or [{}]]}]


def read(tmp_path, content, allowed=0):
    (tmp_path / "q.json").write_text(json.dumps(content))
    return proactive.read_questions(tmp_path / "q.json", json_lines.BadLines(allowed))


def test_questions_are_read(tmp_path):
    assert read(tmp_path, tree()) == (tree(), [QUESTION])


@pytest.mark.parametrize(
    "change",
    [{"ground_truth_time_stamp": "00:00:19"}, {"ground_truth_output": " "}, {"ground_truth_output": 3}, {"time_stamp": ""}],
)
@pytest.mark.filterwarnings("ignore:left out")
def test_a_malformed_question_is_named_and_left_out_only_if_allowed(tmp_path, change):
    with pytest.raises(InputError, match=r"q\.json\[0\]\[1\]"):
        read(tmp_path, tree({}, change))
    assert read(tmp_path, tree({}, change), 1)[1] == [QUESTION]


class Scripted:
    """Replies to each poll as the script says for its second, and says "3" when asked what is to be said."""

    def __init__(self, script):
        self.script, self.asked = script, []

    def settings(self):
        return {}

    def answer(self, request):
        second = request.frames.start
        self.asked.append(second)
        return self.script.get(second, "No.") if '"3"? ' in request.text else f"It is 3 at {second:g}"


def show(now):
    return FrameSet(np.zeros((1, 2, 2, 3), np.uint8), 1.0, now)


def poll(script):
    return proactive.poll(QUESTION, show, Scripted(script), PROMPTS)


def test_polling_ends_at_the_first_yes():
    polls = poll({22.0: "Yes."})
    assert [entry["time"] for entry in polls] == [21.0, 22.0]
    assert "answer" not in polls[0] and polls[1]["answer"] == "It is 3 at 22"
    assert outcome(QUESTION, {"polls": polls}, "strict") == outcome(QUESTION, {"polls": polls}, "official") == (22.0, True)


def test_polling_without_a_yes_ends_four_seconds_after_the_moment():
    polls = poll({})
    assert [entry["time"] for entry in polls] == [21.0, 22.0, 23.0, 24.0, 25.0, 26.0, 27.0]
    assert outcome(QUESTION, {"polls": polls}, "strict") == (None, False)


def test_polling_goes_on_after_a_yes_that_only_the_official_rule_hears():
    # "eyes" has a yes in it: officially the model has answered at 21 s; strictly it says yes at 24 s.
    polls = poll({21.0: "I see eyes", 24.0: "yes"})
    assert [entry.get("answer") for entry in polls] == ["It is 3 at 21", None, None, "It is 3 at 24"]
    assert outcome(QUESTION, {"polls": polls}, "official") == (21.0, True)
    assert outcome(QUESTION, {"polls": polls}, "strict") == (24.0, True)


@pytest.mark.parametrize(
    "said, strict, official",
    [
        (["", "It is 3!", "3"], (22.0, True), (22.0, True)),
        (["13 to 2", "", "3"], (23.0, True), (21.0, True)),  # "3" is a part of "13"
        (["1:3", "", ""], (None, False), (21.0, True)),
        (["", "", ""], (None, False), (None, False)),
    ],
)
def test_native_what_counts_is_when_the_words_are_first_said(said, strict, official):
    record = {"utterances": [[20.0 + second, 21.0 + second, text] for second, text in enumerate(said)]}
    assert (outcome(QUESTION, record, "strict"), outcome(QUESTION, record, "official")) == (strict, official)


def test_native_words_that_come_in_two_utterances_are_said_with_the_second():
    question = QUESTION._replace(output="Goal by white team")
    record = {"utterances": [[20, 21, " goal by"], [21, 22, "white team"]]}
    assert outcome(question, record, "strict") == (22, True)


def test_scores_by_hand():
    """Due at 23 s. Right and in time; in time and wrong; right and too late; never; no answer."""
    questions = [QUESTION._replace(key=str(number), video=f"{number % 2}") for number in range(5)]
    records = {
        "0": {"polls": [{"time": 21.0, "reply": "Yes", "answer": "3"}]},  # 2 s early is in time
        "1": {"polls": [{"time": 24.0, "reply": "yes", "answer": "13"}]},  # officially 13 has a 3 in it
        "2": {"utterances": [[25.0, 26.0, "3"]]},
        "3": {"polls": [{"time": 27.0, "reply": "No"}]},
    }
    result, details = proactive.score(questions, records, "m")
    values = {metric.name: metric.value for metric in result.metrics}
    assert values == {
        "answer_correct": 1 / 5,
        "time_correct": 2 / 5,
        "answer_correct_compat": 2 / 5,
        "time_correct_compat": 2 / 5,
        "mean_delay": (-2 + 1 + 3) / 3,
    }
    assert (details["missing"], details["never_said"]) == (["4"], ["3", "4"])
    assert details["within_seconds"] == {"1": 1 / 5, "2": 2 / 5, "3": 3 / 5, "5": 3 / 5, "10": 3 / 5}


def test_all_are_polled_on_the_frames_since_the_request(tmp_path):
    write_video(tmp_path / "v.mp4", (np.full((16, 16, 3), 2 * frame, np.uint8) for frame in range(60)), 2)
    asked = []

    class Eyes(Scripted):
        def answer(self, request):
            asked.append((request.frames.start, len(request.frames.pixels)))
            return "Yes" if len(asked) == 2 else "No"

    questions = [QUESTION._replace(video="v.mp4"), QUESTION._replace(key="1.0", video="none.mp4")]
    (query, record), (_, error) = proactive.poll_all(questions, tmp_path, View(), Eyes({}), PROMPTS)
    assert asked == [(20.0, 2), (20.0, 4), (20.0, 4)]
    assert (query.key, [entry["time"] for entry in record["polls"]]) == ("0.0", [21.0, 22.0])
    assert isinstance(error, InputError)


class Stage:
    def __init__(self, error="", refused=""):
        self.jobs, self.error, self.refused = [], error, refused

    def settings(self):
        return {}

    def run(self, jobs, *, skip=()):
        self.jobs = list(jobs)
        for job in jobs:
            said = tuple(Utterance(second, second + 1.0, "3") for second in np.arange(job.start, job.end))
            answers = tuple(Answer("", max(second, job.start + 1), "", self.refused) for second, _ in job.questions)
            yield Finished(job, said, answers, self.error)


def test_native_the_request_is_made_once_and_what_was_said_before_does_not_count(tmp_path):
    stage = Stage()
    ((query, record),) = proactive.play_all([QUESTION], tmp_path, stage, PROMPTS, context=5, request="say")
    (job,) = stage.jobs
    assert (job.path, job.start, job.end, job.query) == (tmp_path / QUESTION.video, 15.0, 27.0, "say")
    assert job.questions == ((20.0, QUESTION.text),)
    assert [each[1] for each in record["utterances"]] == [20.0, 21.0, 22.0, 23.0, 24.0, 25.0, 26.0, 27.0]
    write_answers(tmp_path, [query], lambda done: [(query, record)], json_lines.BadLines())
    assert proactive.read_records(tmp_path, [QUESTION], "", json_lines.BadLines())["0.0"]["utterances"] == record["utterances"]


def test_native_nothing_is_requested_of_a_model_that_comments_by_itself(tmp_path):
    stage = Stage()
    ((_, record),) = proactive.play_all([QUESTION], tmp_path, stage, {**PROMPTS, "native": ""}, context=5)
    assert stage.jobs[0].questions == () and record["utterances"][0][1] == QUESTION.request_time


def test_native_a_video_that_ends_early_counts_as_far_as_it_goes(tmp_path):
    ((_, record),) = proactive.play_all([QUESTION], tmp_path, Stage(error="ends at 27 s"), PROMPTS)
    assert len(record["utterances"]) == 7


def test_native_a_request_that_was_refused_is_no_answer():
    ((_, error),) = proactive.play_all([QUESTION], Path(), Stage(refused="too long"), PROMPTS)
    assert isinstance(error, InputError) and "too long" in str(error)


def published_count(answer):
    """What the published counter makes of an answer: the last message and its time."""
    last = answer["dialog_history"][-1]
    in_time = -2 <= last["time"] - QUESTION.due <= 2
    return in_time, in_time and QUESTION.output in last["content"]


@pytest.mark.parametrize(
    "record",
    [
        {"polls": poll({22.0: "Yes."})},
        {"polls": poll({})},
        {"polls": poll({21.0: "I see eyes", 24.0: "yes"})},
        {"utterances": [[20.0, 21.0, "no"], [21.0, 22.0, "now 3"], [22.0, 23.0, "more"]]},
        {"utterances": [[20.0, 21.0, "no"]]},
        {"utterances": []},
    ],
)
def test_the_published_shape_is_counted_the_same(tmp_path, record):
    answer = proactive.published_answer(QUESTION, record, PROMPTS)
    result, _ = proactive.score([QUESTION], {"0.0": record}, "m")
    values = {metric.name: metric.value for metric in result.metrics}
    assert published_count(answer) == (values["time_correct_compat"], values["answer_correct_compat"])
    if "polls" in record:  # and is read again
        (tmp_path / "a.json").write_text(json.dumps(published(tree(), "m", {"0.0": answer})))
        read_again = proactive.read_records(tmp_path / "a.json", [QUESTION], "m", json_lines.BadLines())
        assert outcome(QUESTION, read_again["0.0"], "official") == outcome(QUESTION, record, "official")


@pytest.mark.parametrize(
    "record", [{"polls": [7]}, {"polls": [{"time": 1}]}, {}, {"utterances": [[1, 2]]}, {"utterances": ["x"]}]
)
def test_malformed_answers_are_named(tmp_path, record):
    json_lines.write(tmp_path / "answers.jsonl", [{"key": "0.0", **record}])
    with pytest.raises(InputError, match=r"answers\.jsonl:1"):
        proactive.read_records(tmp_path, [QUESTION], "", json_lines.BadLines())
