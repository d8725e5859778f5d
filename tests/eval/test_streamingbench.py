"""StreamingBench: its files as they are published, with their faults, and scores that can be worked out by hand."""

import json

import pytest

from svlm_jax import json_lines
from svlm_jax.errors import InputError
from svlm_jax.eval import streamingbench as sb
from svlm_jax.eval.asking import Query
from svlm_jax.eval.streamingbench_score import score

OPTIONS = ["A. red", "B. blue", "C. green", "D. All"]


def question(stamp="00:01:30", answer="B", task="Counting", options=OPTIONS, **more):
    return {"task_type": task, "question": "Who leads?", "time_stamp": stamp, "answer": answer, "options": options, **more}


def entry(*questions, video="./videos/v1.mp4"):
    return {"time": "[0:00:00 - 0:02:00]", "questions": list(questions), "video_path": video}


REAL = [
    entry(question(), question("0:00:10", "D", "Object Recognition")),
    entry(question("0:00:20", "A", "Object Recognition"), video="./videos/v2.mp4"),
    entry(question(answer="C"), question(answer="C"), video="./videos/v2.mp4"),
]
REPLIES = {
    "0.0": "B. blue",  # right
    "0.1": "(D)",  # right; officially its first character is "("
    "1.0": "All of them",  # names no option; officially its first character is "A"
    "2.0": "",  # silence: wrong; the published counter stops here
    # 2.1: no answer; the published counter leaves it out
}


def read(tmp_path, tree, allowed=0):
    (tmp_path / "q.json").write_text(json.dumps(tree))
    return sb.read_questions(tmp_path / "q.json", json_lines.BadLines(allowed))


def test_what_is_asked_and_when(tmp_path):
    data = read(tmp_path, REAL)
    assert (data.subset, [each.key for each in data.questions]) == ("real", ["0.0", "0.1", "1.0", "2.0", "2.1"])
    first, second, *_ = data.questions
    assert first.query(60) == Query("0.0", "Counting", "videos/v1.mp4", 30.0, 90.0, ("A", "B", "C", "D"))
    assert (first.query(0).start, first.query(-1).start, second.query(60).start) == (0.0, 0.0, 0.0)
    assert "Who leads?\nA. red\nB. blue\nC. green\nD. All\n" in first.prompt(sb.PROMPTS)


def test_scores_by_hand(tmp_path):
    result, details = score(read(tmp_path, REAL), REPLIES, "m")
    values = {metric.name: metric.value for metric in result.metrics}
    # Counting: right, silence, no answer. Object Recognition: right, no option named. Officially right are 0.0 and 1.0.
    assert values == {"Counting": 1 / 3, "Object Recognition": 1 / 2, "total": 2 / 5, "total_compat": 2 / 5}
    assert details["tasks"]["Object Recognition"]["compat"] == 1 / 2
    assert (details["missing"], details["not_parsed"]) == (["2.1"], ["1.0", "2.0"])
    # Two videos: of 2 questions 2 are right, of 3 none. Resampled, both of one or of the other: from 0 to 1.
    assert details["total"]["ci95"] == (0.0, 1.0)


@pytest.mark.parametrize(
    "stamp, seconds", [("00:01:30", 90), ("1:00:00", 3600), ("00:24", 24), ("00:00:8", 8), ("0:01:05 ", 65)]
)
def test_time_stamps_are_read_as_published(stamp, seconds):
    assert sb.seconds(stamp, "s") == seconds


@pytest.mark.filterwarnings("ignore:left out")
@pytest.mark.parametrize(
    "change, field",
    [
        ({"time_stamp": "00:12450"}, "time_stamp"),  # published; their script reads it as 12,450 s
        ({"time_stamp": "00:75:00"}, "time_stamp"),
        ({"time_stamp": "now"}, "time_stamp"),
        ({"time_stamp": 30}, "time_stamp"),
        ({"answer": "E"}, "answer"),
        ({"answer": ""}, "answer"),
        ({"answer": "AB"}, "answer"),
        ({"options": ["A. one"]}, "options"),
        ({"options": ["A. one", 2]}, "options"),
        ({"question": None}, "question"),
    ],
)
def test_a_malformed_question_is_named_and_left_out_only_if_allowed(tmp_path, change, field):
    tree = [entry(question(), {**question(), **change})]
    with pytest.raises(InputError, match=rf"q\.json\[0\]\[1\] {field}"):
        read(tmp_path, tree)
    assert [each.key for each in read(tmp_path, tree, 1).questions] == ["0.0"]


@pytest.mark.parametrize(
    "tree", [[], [[]], [entry()], ["x"], [{"video_path": "v"}], [entry("x")], [{"questions": [question()]}]]
)
def test_a_file_without_questions_is_one_error(tmp_path, tree):
    with pytest.raises(InputError):
        read(tmp_path, tree)


@pytest.mark.parametrize(
    "options",
    [
        ["red", "blue", "green", "All"],
        ["A.red", "blue", "green", "All"],  # only the first has its letter
        ["A. red", "B. blue", "B. green", "D. All"],  # a slip of the pen
        ["A. red", "", "B. blue", "C. green", " ", "D. All"],
        ["A. red", "B. blue", "C. green", "D. All", "D. All", "E. .", "F. Translated"],
    ],
)
def test_options_with_and_without_letters_are_the_same(tmp_path, options):
    assert read(tmp_path, [entry(question(options=options))]).questions[0].options == ("red", "blue", "green", "All")


def test_an_option_that_was_broken_in_two_is_one(tmp_path):
    options = ["A. red", "B. blue, he says,", "'or so.'", "C. green", "D. All"]
    assert read(tmp_path, [entry(question(options=options))]).questions[0].options[1:3] == ("blue, he says, 'or so.'", "green")


def test_sequential_questions_know_what_came_before(tmp_path):
    one, two = (question(stamp, answer, sb.SEQUENTIAL) for stamp, answer in (("00:00:36", "A"), ("00:03:02", "C")))
    tree = [[entry(one), entry({**two, "question": "And {now}?"})], [entry(one, video="./videos/v2.mp4")]]
    data = read(tmp_path, tree)
    assert (data.subset, [each.key for each in data.questions]) == ("sqa", ["0.0.0", "0.1.0", "1.0.0"])
    first, second, other = data.questions
    assert sb.earlier_of(second, data.questions) == [first] and not sb.earlier_of(other, data.questions)
    assert second.prompt(sb.PROMPTS) == first.prompt(sb.PROMPTS).replace("Who leads?", "And {now}?")
    text = second.prompt(sb.PROMPTS, [(first, "A")])
    assert "At 00:00:36: Who leads? A. red; B. blue; C. green; D. All Answer: A\n" in text and "And {now}?\nA. red" in text
    # The form for online models has one entry a video.
    grouped = read(tmp_path, [{"video_path": "./videos/v1.mp4", "questions": [one, two]}])
    assert (grouped.subset, len(sb.earlier_of(grouped.questions[1], grouped.questions))) == ("sqa", 1)


def test_questions_about_sound_are_said_to_be(tmp_path):
    data = read(tmp_path, [entry(question(task="Emotion Recognition"))])
    result, details = score(data, {}, "m")
    assert result.benchmark == "streamingbench_omni" and "sound" in details["note"]


@pytest.mark.filterwarnings("ignore:left out")
def test_the_published_shape_is_written_and_read(tmp_path):
    data = read(tmp_path, REAL)
    tree = sb.published(data.tree, "m", REPLIES)
    assert tree[0]["questions"][0] == {**REAL[0]["questions"][0], "m": "B. blue"} and "m" not in tree[2]["questions"][1]
    assert data.tree == REAL  # a copy
    (tmp_path / "answers.json").write_text(json.dumps(tree))
    keys = [each.key for each in data.questions]
    assert sb.read_replies(tmp_path / "answers.json", keys, "m", json_lines.BadLines()) == REPLIES
    with pytest.raises(InputError, match="--model other"):
        sb.read_replies(tmp_path / "answers.json", keys, "other", json_lines.BadLines())
    with pytest.raises(InputError, match="one to question 2"):
        sb.read_replies(tmp_path / "answers.json", keys[:2], "m", json_lines.BadLines(1))
    json_lines.write(tmp_path / "answers.jsonl", [{"key": key, "response": reply} for key, reply in REPLIES.items()])
    assert sb.read_replies(tmp_path / "answers.jsonl", keys, "", json_lines.BadLines()) == REPLIES
