"""LiveSports-3K QA: what is asked, which letter counts, and the accuracies, by hand."""

import json

import numpy as np
import pytest

from svlm_jax.errors import InputError
from svlm_jax.eval import livesports_qa
from svlm_jax.eval.frames import FrameSet
from svlm_jax.eval.livesports_qa import (
    by_reply,
    by_score,
    chosen,
    prompts,
    published_answers,
    queries,
    read_questions,
    read_responses,
    score,
)
from svlm_jax.json_lines import BadLines

OPTIONS = ["A. A red boat", "B. Blue", "C. A", "D. Nobody"]
ITEM = {
    "video_id": "v",
    "question_id": 1,
    "q_type": "who",
    "OCR": 0,
    "question": "Who leads?",
    "options": OPTIONS,
    "answer": "B",
}


def items(tmp_path, *changes, allowed=0):
    (tmp_path / "qa.json").write_text(json.dumps([ITEM | change for change in changes]))
    bad = BadLines(allowed)
    return read_questions(tmp_path / "qa.json", bad), bad


@pytest.fixture
def five(tmp_path):
    """Right answers B, B, B, D, A; videos v, v, w, w, x; two with text on screen; types who and when."""
    changes = [{}, {"question_id": 2, "OCR": 1}, {"video_id": "w", "q_type": "when"}]
    changes += [{"video_id": "w", "question_id": "2", "answer": "D"}, {"video_id": "x", "OCR": 1, "answer": "A"}]
    return items(tmp_path, *changes)[0]


def test_a_question_as_published_with_and_without_its_part_of_the_video(tmp_path):
    (first, second), _ = items(tmp_path, {}, {"question_id": "q2", "video_start": 3, "video_end": 9.5, "video": "v.mp4"})
    assert (first.key, first.ocr, first.start, first.end) == ("v_1", False, 0.0, None)
    assert (second.key, second.start, second.end, second.video) == ("v_q2", 3.0, 9.5, "v.mp4")


@pytest.mark.filterwarnings("ignore:left out")
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"question_id": 1}, "a second time"),
        ({"answer": "E"}, "one letter of ABCD"),
        ({"answer": ""}, "one letter"),
        ({"answer": "AB"}, "one letter"),
        ({"options": ["A. x"]}, "2 to 10"),
        ({"options": ["A. x", "C. y"]}, '"B."'),
        ({"options": ["A. x", 7]}, '"B."'),
        ({"options": ["Apple", "B. y"]}, '"A."'),
        ({"options": "A. x"}, "a list"),
        ({"video_start": 5.0, "video_end": 5.0}, "start < end"),
        ({"question": None}, "question: got nothing"),
    ],
)
def test_malformed_and_doubled_questions_are_named_and_left_out_only_if_allowed(tmp_path, change, named):
    change = {"question_id": 2} | change
    with pytest.raises(InputError, match=named):
        items(tmp_path, {}, change)
    questions, bad = items(tmp_path, {}, change, allowed=1)
    assert len(questions) == len(bad.errors) == 1


def test_accuracies_by_hand(five):
    """Given B (right), none (missing), "perhaps B or C" (unclear), "D. Nobody" (right), "B" (wrong for A): 2 of 5. With text on
    screen: the missing and the wrong one, 0 of 2. who: 2 of 4; when: 0 of 1. The published rule: first character, 2 of 5."""
    responses = {"v_1": "B", "w_1": "perhaps B or C", "w_2": "D. Nobody", "x_1": "B"}
    result, details = score(five, responses, "m")
    assert [(metric.name, metric.value, metric.count) for metric in result.metrics] == [
        ("overall", 2 / 5, 5),
        ("overall_compat", 2 / 5, 5),
        ("OCR", 0.0, 2),
        ("when", 0.0, 1),
        ("who", 2 / 4, 4),
    ]
    assert (details["questions"], details["correct"]) == (5, 2)
    assert (details["missing"], details["not_parsed"]) == (["v_2"], ["w_1"])
    assert details["per_type"]["who"]["accuracy"] == 2 / 4


def test_intervals_are_over_videos(five):
    """v has 1 of 2, w 1 of 2, x 0 of 1: a resample that is all x gives 0, one of v and w alone gives 1/2."""
    overall = score(five, {"v_1": "B", "w_2": "D"}, "m")[0].metrics[0]
    assert overall.ci95 == (0.0, 0.5)


def test_the_published_rule_takes_a_word_for_a_letter(five):
    """By the published rule "Blue, I think" is B; it is no letter at all."""
    result = score(five, {"v_1": "Blue, I think"}, "m")[0]
    assert [metric.value for metric in result.metrics[:2]] == [0.0, 1 / 5]


def test_an_empty_answer_is_wrong_and_no_crash(five):
    assert score(five, {each.key: "" for each in five}, "m")[0].metrics[1].value == 0.0


@pytest.mark.parametrize(
    ("response", "letter"),
    [*zip(OPTIONS, "ABCD", strict=True), ("b", "B"), ("Answer: C", "C"), ("E", None), ("A and B", None), ("...", None)],
)
def test_a_response_that_repeats_an_option_is_that_option(five, response, letter):
    assert chosen(five[0], response) == letter


def test_no_question_is_no_accuracy(five):
    assert score([five[0]], {}, "m")[0].metrics[2].value is None


class Model:
    """Likes C, whatever is asked."""

    def __init__(self):
        self.requests = []

    def settings(self):
        return {}

    def choose(self, request, options, *, ended=False):
        self.requests.append((request, options))
        return 2, [-7.5, -7.5, -3.0, -7.5]

    def answer(self, request):
        self.requests.append((request, None))
        return "(C)"


FRAMES = FrameSet(np.zeros((1, 2, 2, 3), np.uint8), 2.0, 0.0)


def asked(tmp_path, monkeypatch, *changes, allowed=0):
    """The queries of questions about v.mp4, which is 30 s long."""
    monkeypatch.setattr(livesports_qa, "declared_length", lambda path: None if path.stem == "silent" else 30.0)
    (tmp_path / "v.mp4").write_bytes(b"video")
    questions, _ = items(tmp_path, *changes)
    bad = BadLines(allowed)
    return queries(questions, tmp_path, bad), prompts(questions, "{question}\n{options}"), bad


def test_options_are_scored_after_the_published_prefix(tmp_path, monkeypatch):
    (query,), prompt, _ = asked(tmp_path, monkeypatch, {})
    model = Model()
    answer = by_score(model, prompt)(query, FRAMES)
    request, options = model.requests[0]
    assert request.text == "Who leads?\nA. A red boat\nB. Blue\nC. A\nD. Nobody"
    assert options == ["Answer: A", "Answer: B", "Answer: C", "Answer: D"]
    assert answer == {"response": "C", "log_probs": [-7.5, -7.5, -3.0, -7.5]}
    assert by_reply(model, prompt)(query, FRAMES) == {"response": "(C)"}


def test_the_part_of_the_video_that_a_question_names_is_shown_or_all_of_it(tmp_path, monkeypatch):
    part = {"question_id": 2, "video_start": 3.0, "video_end": 9.5}
    found, _, _ = asked(tmp_path, monkeypatch, {}, part)
    assert [(each.key, each.video, each.start, each.end) for each in found] == [
        ("v_1", "v.mp4", 0.0, 30.0),
        ("v_2", "v.mp4", 3.0, 9.5),
    ]


@pytest.mark.filterwarnings("ignore:left out")
def test_videos_that_are_missing_or_do_not_say_how_long_they_are_are_told_first(tmp_path, monkeypatch):
    (tmp_path / "silent.mp4").write_bytes(b"video")
    changes = [{"video_id": "none"}, {}, {"video_id": "silent"}]
    with pytest.raises(InputError, match="question none_1 video: got no file"):
        asked(tmp_path, monkeypatch, *changes)
    found, _, bad = asked(tmp_path, monkeypatch, *changes, allowed=2)
    assert [each.key for each in found] == ["v_1"] and "no length" in bad.errors[1]


def test_answers_are_read_in_both_forms(tmp_path, five):
    responses = {"v_1": "B. Blue", "v_2": "", "w_1": "C. A", "w_2": "D. Nobody", "x_1": "B. Blue"}
    assert published_answers(five, responses | {"x_1": "(B)"}) == published_answers(five, responses)
    published = published_answers(five, responses)
    assert [len(entry["questions"]) for entry in published] == [2, 2, 1]
    assert {"video_id": "v", **published[0]["questions"][1]} == ITEM | {"question_id": 2, "OCR": 1, "response": ""}
    (tmp_path / "published.json").write_text(json.dumps(published))
    lines = [{"key": each.key, "response": responses[each.key]} for each in five]
    (tmp_path / "ours.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for name in ("published.json", "ours.jsonl"):
        assert read_responses(tmp_path / name, five, BadLines()) == responses


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ({"key": "v_1", "response": "B"}, "a second one"),
        ({"video_id": "v", "questions": [{"question_id": 1, "response": "B"}]}, "a second one"),
        ({"key": "v_9", "response": "B"}, "one of the items"),
        ({"key": "v_2"}, "response: got nothing"),
        ({"key": "v_2", "response": None}, "a text"),
        ({"video_id": "v", "questions": [7]}, "objects"),
    ],
)
def test_answers_that_fit_no_question_are_errors(tmp_path, five, line, named):
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, [{"key": "v_1", "response": "B"}, line])))
    with pytest.raises(InputError, match=named):
        read_responses(tmp_path / "a.jsonl", five, BadLines())
