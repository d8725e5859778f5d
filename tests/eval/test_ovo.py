"""OVO-Bench: its items as they are published, and scores that can be worked out by hand."""

import json

import pytest

from svlm_jax import json_lines
from svlm_jax.errors import InputError
from svlm_jax.eval import ovo, ovo_score
from svlm_jax.eval.asking import Query

CHOICE = {"question": "What is it?", "answer": "a kite", "options": ["a ball", "a kite", "a dog", "All"], "gt": 1}
ITEMS = [
    {"id": 0, "task": "EPM", "video": "a.mp4", "realtime": 10.2, **CHOICE},
    {"id": 1, "task": "EPM", "video": "b.mp4", "realtime": 11, **CHOICE},
    {"id": 2, "task": "EPM", "video": "b.mp4", "realtime": 12, **CHOICE, "gt": 0},
    {"id": 3, "task": "HLD", "video": "a.mp4", "realtime": 20, **CHOICE, "gt": 2},
    {"id": 4, "task": "OCR", "video": "a.mp4", "realtime": 0, **CHOICE},
    {"id": 5, "task": "OCR", "video": "b.mp4", "realtime": 1, **CHOICE, "gt": 3},
    {
        "id": 6, "task": "REC", "video": "c.mp4", "activity": "throw a ball", "start_times": [1, 5], "end_times": [2, 6],
        "test_info": [{"realtime": 3, "count": 1}, {"realtime": 7.0, "count": 10}, {"realtime": 9, "count": 0}],
    },
    {
        "id": 7, "task": "SSR", "video": "c.mp4", "tutorial": "Tea", "all_steps": ["boil", "pour"], "start_time": [1, 5],
        "end_time": [4, 9],
        "test_info": [{"realtime": 2, "step": "boil", "type": 1}, {"realtime": 3, "step": "pour", "type": 0}],
    },
    {
        "id": 8, "task": "CRR", "video": "d.mp4", "question": "Who wins?", "answer": "red", "ask_time": 5, "clue_time": 8,
        "test_info": [{"realtime": 5, "type": 0}, {"realtime": 9, "type": 1}],
    },
]  # fmt: skip
REPLIES = {
    "0": "B",  # right
    "1": "**All** of them, B",  # one letter stands alone: B, right
    "2": "All of them",  # names no option; the official rule finds an A
    "3": None,  # the published form of a failure
    "4": "",  # silence; right is B
    # 5: no answer
    "6_0": "They did it once, 1 time.",
    "6_1": "1 0",  # two numbers; the official rule reads ten
    "6_2": "ten",
    "7_0": "yes",  # right; the official rule knows "Yes" alone
    "7_1": "Not sure",  # neither; the official rule finds "No"
    "8_0": "No, not yet",
    "8_1": "Y",
}


@pytest.fixture
def items(tmp_path):
    (tmp_path / "ovo_bench_new.json").write_text(json.dumps(ITEMS))
    return ovo.read_items(tmp_path / "ovo_bench_new.json", json_lines.BadLines())


@pytest.fixture
def questions(items):
    return ovo.questions_of(items)


def test_what_is_asked_and_when(questions):
    queries = [question.query() for question in questions]
    assert queries[0] == Query("0", "EPM", "a.mp4", 0.0, 11.0, ("A", "B", "C", "D"))  # up to the next whole second
    assert [each.key for each in queries[6:]] == ["6_0", "6_1", "6_2", "7_0", "7_1", "8_0", "8_1"]
    assert queries[6].options == tuple(map(str, range(11))) and queries[-1].options == ("Yes", "No")
    texts = {question.key: question.prompt(ovo.PROMPTS) for question in questions}
    assert "What is it?\nA. a ball\nB. a kite\nC. a dog\nD. All\n" in texts["0"]
    assert "throw a ball" in texts["6_0"] and "pour" in texts["7_1"] and "Who wins?" in texts["8_0"]
    assert not any("{" in text for text in texts.values())


def test_scores_by_hand(questions):
    result, details = ovo_score.score(questions, REPLIES, "m")
    values = {metric.name: metric.value for metric in result.metrics}
    # Strictly. EPM: B B -, 2 of 3. HLD: 0 of 1. OCR: 0 of 2. REC: 1 right, two numbers, ten is not 0: 1 of 3.
    # SSR: yes, and no answer: 1 of 2. CRR: 2 of 2.
    backward, realtime, forward = (2 / 3 + 0) / 2, 0.0, (1 / 3 + 1 / 2 + 1) / 3
    expected = {"EPM": 2 / 3, "HLD": 0.0, "OCR": 0.0, "REC": 1 / 3, "SSR": 1 / 2, "CRR": 1.0}
    expected |= {"backward": backward, "realtime": realtime, "forward": forward, "total": (backward + realtime + forward) / 3}
    assert {name: values[name] for name in expected} == pytest.approx(expected)
    # Officially. EPM: B in "B", B in "**All** of them, B", A in "All of them": 3 of 3. REC: "1" and "10" are right, "" is not
    # "0": 2 of 3. SSR: "Yes" is not in "yes", "No" is in "Not sure": 1 of 2. CRR: 2 of 2.
    backward, forward = (1 + 0) / 2, (2 / 3 + 1 / 2 + 1) / 3
    expected = {"backward_compat": backward, "realtime_compat": 0.0, "forward_compat": forward}
    expected["total_compat"] = (backward + 0.0 + forward) / 3
    assert {name: values[name] for name in expected} == pytest.approx(expected)
    assert details["tasks"]["EPM"]["compat"] == 1.0
    assert details["missing"] == ["3", "5"] and details["not_parsed"] == ["2", "4", "6_1", "7_1"]


def test_a_benchmark_without_a_category_has_no_total(questions):
    result, _ = ovo_score.score([each for each in questions if each.task != "OCR"], REPLIES, "m")
    values = {metric.name: metric.value for metric in result.metrics}
    assert values["total"] is None and values["realtime"] is None and values["forward"] is not None


def test_the_published_shape_is_written_and_read(items, questions, tmp_path):
    shape = ovo.published(items, REPLIES)
    assert shape["backward"][0] == {
        "id": 0, "video": "a.mp4", "task": "EPM", "question": "What is it?", "response": "B", "ground_truth": "B",
    }  # fmt: skip
    assert [test["response"] for test in shape["forward"][0]["test_info"]] == [REPLIES[f"6_{index}"] for index in range(3)]
    assert shape["forward"][0]["test_info"][0]["count"] == 1 and shape["forward"][1]["tutorial"] == "Tea"
    # A model's answers may lie in several files, one a group of tasks.
    (tmp_path / "m").mkdir()
    for name, entries in shape.items():
        (tmp_path / "m" / f"{name}.json").write_text(json.dumps({name: entries}))
    read = ovo.read_replies(tmp_path / "m", questions, json_lines.BadLines())
    assert read == {**dict.fromkeys((each.key for each in questions), None), **REPLIES}


@pytest.mark.filterwarnings("ignore:left out")
def test_a_second_answer_is_named_and_does_not_count(questions, tmp_path):
    entry = {"id": 0, "response": "A"}
    (tmp_path / "r.json").write_text(json.dumps({"backward": [entry, {**entry, "response": ["B"]}, {**entry, "id": 99}]}))
    with pytest.raises(InputError, match=r"backward\[1\].*a second one to question 0"):
        ovo.read_replies(tmp_path / "r.json", questions, json_lines.BadLines())
    bad = json_lines.BadLines(2)
    assert ovo.read_replies(tmp_path / "r.json", questions, bad) == {"0": "A"}
    assert "question 99" in bad.errors[1]


@pytest.mark.filterwarnings("ignore:left out")
@pytest.mark.parametrize(
    "index, change, field",
    [
        (0, {"task": "XYZ"}, "task"),
        (0, {"gt": 4}, "gt"),
        (0, {"options": ["one"]}, "options"),
        (0, {"options": ["a", 2]}, "options"),
        (0, {"realtime": -1}, "realtime"),
        (0, {"realtime": "10"}, "realtime"),
        (1, {"id": 0}, "id"),
        (6, {"test_info": []}, "test_info"),
        (6, {"test_info": [7]}, "test_info"),
        (6, {"test_info": [{"realtime": 3, "count": -1}]}, "count"),
        (7, {"test_info": [{"realtime": 3, "type": 1}]}, "step"),
        (8, {"test_info": [{"realtime": 3, "type": 2}]}, "type"),
    ],
)
def test_a_malformed_item_is_named_and_left_out_only_if_allowed(tmp_path, index, change, field):
    path = tmp_path / "items.json"
    path.write_text(json.dumps([{**item, **change} if place == index else item for place, item in enumerate(ITEMS)]))
    with pytest.raises(InputError, match=field):
        ovo.read_items(path, json_lines.BadLines())
    assert len(ovo.read_items(path, json_lines.BadLines(1))) == len(ITEMS) - 1


def test_tasks_are_chosen(tmp_path):
    path = tmp_path / "items.json"
    path.write_text(json.dumps(ITEMS))
    assert {item.record["id"] for item in ovo.read_items(path, json_lines.BadLines(), ("EPM", "CRR"))} == {0, 1, 2, 8}
    with pytest.raises(InputError, match="no item of STU"):
        ovo.read_items(path, json_lines.BadLines(), ("STU",))
