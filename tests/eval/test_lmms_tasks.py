"""Claims about the task files for lmms-eval: every item of a local file is asked about once, about the part of its video that
was over by then. What lmms-eval makes of the files is in `test_lmms_installed.py`."""

import json
import sys
import types

import pytest

from svlm_jax.cli.evaluate import lmms
from svlm_jax.errors import InputError
from svlm_jax.eval.lmms_tasks import ovo_messages, write_tasks
from svlm_jax.json_lines import BadLines

CHOICE = {"id": 1, "task": "OCR", "video": "a/b.mp4", "realtime": 6.2, "question": "Which?", "options": ["x", "y"], "gt": 1}
COUNT = {"id": 2, "task": "REC", "video": "c.mp4", "activity": "jump"}
COUNT["test_info"] = [{"realtime": 2, "count": 0}, {"realtime": 4.0, "count": 1}]


@pytest.fixture
def official(monkeypatch):
    """A stand-in for the prompts of lmms-eval's task."""
    for name in ("lmms_eval", "lmms_eval.tasks", "lmms_eval.tasks.ovobench", "lmms_eval.tasks.ovobench.utils"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setattr(
        sys.modules["lmms_eval.tasks.ovobench.utils"], "build_prompt", lambda doc, i: f"{doc['task']} {i}", raising=False
    )


def question(messages):
    video, words = messages[0]["content"]
    return video["url"], video["start_time"], video["end_time"], words["text"]


def test_a_question_is_about_its_video_up_to_the_second_at_which_it_is_asked(official):
    """The published clips end at the next whole second: 6.2 at 7."""
    folder = {"data_dir": "films"}
    assert question(ovo_messages(CHOICE, folder)) == ("films/a/b.mp4", 0.0, 7.0, "OCR 0")
    assert question(ovo_messages(COUNT, folder)) == ("films/c.mp4", 0.0, 2.0, "REC 0")
    messages, is_over, replies, _ = ovo_messages(COUNT, folder, round_idx=1, previous_output=["0"])
    assert question(messages) == ("films/c.mp4", 0.0, 4.0, "REC 1") and (is_over, replies) == (False, ["0"])
    assert ovo_messages(COUNT, folder, round_idx=2, previous_output=["0", "1"])[:2] == (None, True)


def test_each_category_becomes_a_task_that_holds_its_items_as_published(tmp_path):
    (tmp_path / "items.json").write_text(json.dumps([CHOICE, COUNT]))
    counts = write_tasks(tmp_path / "items.json", tmp_path, tmp_path / "out", "mine", BadLines())
    assert counts == {"mine_realtime": 1, "mine_forward": 1}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "mine.yaml",
        "mine_forward.jsonl",
        "mine_forward.yaml",
        "mine_realtime.jsonl",
        "mine_realtime.yaml",
    ]
    assert json.loads((tmp_path / "out" / "mine_forward.jsonl").read_text()) == COUNT
    text = (tmp_path / "out" / "mine_forward.yaml").read_text()
    assert "output_type: generate_until_multi_round\n" in text and f'test: "{tmp_path}/out/mine_forward.jsonl"\n' in text
    assert (tmp_path / "out" / "mine.yaml").read_text() == "group: mine\ntask: [mine_realtime, mine_forward]\n"


def test_a_wrong_item_or_folder_is_named(tmp_path, monkeypatch):
    (tmp_path / "items.json").write_text(json.dumps([CHOICE, {**COUNT, "test_info": []}]))
    with pytest.raises(InputError, match=r"items.json\[1\] test_info: got an empty list"):
        write_tasks(tmp_path / "items.json", tmp_path, tmp_path / "out", "mine", BadLines())
    with pytest.raises(InputError, match=r"--videos: got .*no such folder"):
        write_tasks(tmp_path / "items.json", tmp_path / "films", tmp_path / "out", "mine", BadLines())
    typed = ["svlm evaluate lmms", "--items", "i.json", "--videos", str(tmp_path), "--out", "o", "--name", "my tasks"]
    monkeypatch.setattr(sys, "argv", typed)
    with pytest.raises(InputError, match="--name: got 'my tasks'"):
        lmms.main()
