"""LiveSports-3K QA: what is asked, which letter counts, and the accuracies, by hand."""

import json

import numpy as np
import pytest

from svlm_jax.errors import InputError
from svlm_jax.eval import livesports_qa
from svlm_jax.eval.frames import FrameSet
from svlm_jax.eval.lines import BadLines
from svlm_jax.eval.livesports_qa import (
    ask,
    by_reply,
    by_score,
    chosen,
    published_answers,
    read_answers,
    read_questions,
    score,
)

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
        ("overall, compat", 2 / 5, 5),
        ("OCR", 0.0, 2),
        ("when", 0.0, 1),
        ("who", 2 / 4, 4),
    ]
    assert details == {"questions": 5, "right": 2, "missing": ["v_2"], "unclear": ["w_1"]}


def test_intervals_are_over_videos(five):
    """v has 1 of 2, w 1 of 2, x 0 of 1: a resample that is all x gives 0, one of v and w alone gives 1/2."""
    overall = score(five, {"v_1": "B", "w_2": "D"}, "m")[0].metrics[0]
    assert overall.ci95 == (0.0, 0.5)


def test_the_published_rule_takes_a_word_for_a_letter(five):
    """ "Blue, I think" begins with a B: right by the published rule for B, and no letter at all."""
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
    """Likes `favourite`, whatever is asked."""

    def __init__(self, favourite="C"):
        self.favourite, self.requests = favourite, []

    def settings(self):
        return {}

    def choose(self, request, options):
        self.requests.append((request, options))
        return "ABCD".index(self.favourite), [-3.0 if option[-1] == self.favourite else -7.5 for option in options]

    def answer(self, request):
        self.requests.append((request, None))
        return f"({self.favourite})"


@pytest.fixture
def shown(monkeypatch):
    seen = []

    def prefix(path, end, **options):
        seen.append((path, end, options))
        if path == "broken":
            raise InputError("video", "nothing", "a video", "mend it")
        return FrameSet(np.zeros((1, 2, 2, 3), np.uint8), 2.0, 0.0)

    monkeypatch.setattr(livesports_qa, "prefix", prefix)
    monkeypatch.setattr(livesports_qa, "declared_length", lambda path: 30.0)
    monkeypatch.setattr(livesports_qa, "existing_file", lambda path, kind: path)
    return seen


def test_options_are_scored_after_the_published_prefix(tmp_path, shown):
    questions, _ = items(tmp_path, {}, {"question_id": 2, "video_start": 3.0, "video_end": 9.5})
    model = Model()
    videos = {"v_1": "f", "v_2": "f"}
    records = [line for _, line in ask(questions, videos, "{question}\n{options}", 4, by_score(model), set())]
    request, options = model.requests[0]
    assert request.text == "Who leads?\nA. A red boat\nB. Blue\nC. A\nD. Nobody"
    assert options == ["Answer: A", "Answer: B", "Answer: C", "Answer: D"]
    assert shown == [("f", 30.0, {"max_frames": 4, "start": 0.0}), ("f", 9.5, {"max_frames": 4, "start": 3.0})]
    assert records[0] == {"video_id": "v", "question_id": 1, "response": "C. A", "log_probs": [-4.5, -4.5, 0.0, -4.5]}


def test_a_captioner_is_read_strictly_and_what_is_done_or_broken_is_not_asked(tmp_path, shown):
    questions, _ = items(tmp_path, {}, {"question_id": 2}, {"question_id": 3}, {"question_id": 4})
    videos = {"v_1": "f", "v_2": "f", "v_3": "broken"}
    given = dict(ask(questions, videos, "{question}", 4, by_reply(Model()), {"v_1"}))
    assert given["v_2"] == {"video_id": "v", "question_id": 2, "response": "(C)"}
    assert isinstance(given["v_3"], InputError) and "question v_3" in str(given["v_3"])
    assert set(given) == {"v_2", "v_3"}


def test_answers_are_read_in_both_forms(tmp_path, five):
    responses = {"v_1": "B", "v_2": "", "w_1": "C. A", "w_2": "D. Nobody", "x_1": "B"}
    published = published_answers(five, responses)
    assert [len(entry["questions"]) for entry in published] == [2, 2, 1]
    assert {"video_id": "v", **published[0]["questions"][1]} == ITEM | {"question_id": 2, "OCR": 1, "response": ""}
    (tmp_path / "published.json").write_text(json.dumps(published))
    lines = [{"video_id": each.video_id, "question_id": each.question_id, "response": responses[each.key]} for each in five]
    (tmp_path / "ours.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for name in ("published.json", "ours.jsonl"):
        assert read_answers(tmp_path / name, five, BadLines()) == responses


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ({"question_id": 1, "response": "B"}, "a second time"),
        ({"question_id": 9, "response": "B"}, "a question of the items"),
        ({"question_id": 2}, "response: got nothing"),
        ({"question_id": 2, "response": None}, "a text"),
    ],
)
def test_answers_that_fit_no_question_are_errors(tmp_path, five, line, named):
    lines = [{"video_id": "v", "question_id": 1, "response": "B"}, {"video_id": "v"} | line]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(InputError, match=named):
        read_answers(tmp_path / "a.jsonl", five, BadLines())
