"""Claims about the files that timing reads: which seconds a model commented on, and what is told of those it did not."""

import json

import pytest

from svlm_jax.errors import InputError
from svlm_jax.eval.commentary import Utterance
from svlm_jax.eval.timing_runs import read_run_files
from svlm_jax.json_lines import BadLines
from tests.eval.test_timing import FILM

TRUTHS = {
    "videos/film.mp4": FILM._replace(video="videos/film.mp4"),
    "videos/other.mp4": FILM._replace(video="videos/other.mp4"),
}


def written(path, *records: dict):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def answers(start: int, end: int, video: str = "film.mp4") -> dict:
    items = [{"response": f"\n at {second}", "start_time": second, "end_time": second + 1} for second in range(start, end)]
    return {"video": video, "chunk_start": start, "chunk_end": end, "items": items}


def test_answers_to_inf_streams_are_silent_after_their_end_and_missing_in_a_hole(tmp_path):
    written(tmp_path / "result_0.jsonl", answers(0, 2))
    written(tmp_path / "result_1.jsonl", answers(5, 6))
    run = read_run_files([tmp_path], TRUTHS, BadLines())
    (said,) = run.videos.values()
    assert list(run.videos) == ["videos/film.mp4"]
    assert said.covered == {0, 1, 5, 6, 7}  # the last true word ends at 8 s: there the published protocol ends
    assert [utterance.text.strip() for utterance in said.utterances] == ["at 0", "at 1", "at 5"]
    assert any("between 2 and 5 s" in fault for fault in run.faults)
    without = {video: truth._replace(commentary=None) for video, truth in TRUTHS.items()}
    run = read_run_files([tmp_path], without, BadLines())
    assert run.videos["videos/film.mp4"].covered == {0, 1, 5, 6, 7, 8, 9}
    assert any("nothing after 6 s: the rest, until 10 s, counts as silence" in fault for fault in run.faults)


def test_what_a_model_was_not_shown_does_not_count(tmp_path):
    written(tmp_path / "result_0.jsonl", {**answers(0, 3), "error": "the film is damaged"})
    run = read_run_files([tmp_path], TRUTHS, BadLines())
    assert run.videos["videos/film.mp4"].covered == {0, 1, 2} and not any("silence" in fault for fault in run.faults)


def test_answers_without_times_have_no_timing(tmp_path):
    line = {"video": "film.mp4", "chunk_start": 0, "chunk_end": 10, "items": [{"response": "A goal!", "end_time": 10}]}
    file = written(tmp_path / "gpt.jsonl", line, answers(0, 10, "other.mp4"))
    with pytest.raises(InputError, match="one a segment"):
        read_run_files([file], TRUTHS, BadLines())
    with pytest.warns(UserWarning, match="one a segment"):
        assert list(read_run_files([file], TRUTHS, BadLines(1)).videos) == ["videos/other.mp4"]


def test_captions_are_of_the_video_of_their_name(tmp_path):
    cues = ({"start": 3, "end": 4, "text": "Goal for Reds!", "tokens": [1]}, {"start": 4, "end": 6, "text": "", "dropped": 2})
    run = read_run_files([written(tmp_path / "other.jsonl", *cues)], TRUTHS, BadLines())
    assert run.label == "other" and run.videos["videos/other.mp4"].covered == {3, 4, 5}
    assert run.videos["videos/other.mp4"].utterances[0] == Utterance(3, 4, "Goal for Reds!")
    with pytest.raises(InputError, match="no truth of third"):
        read_run_files([written(tmp_path / "third.jsonl", *cues)], TRUTHS, BadLines())
    alone = {"videos/film.mp4": TRUTHS["videos/film.mp4"]}
    assert list(read_run_files([tmp_path / "third.jsonl"], alone, BadLines()).videos) == ["videos/film.mp4"]


def test_predictions_are_of_their_events(tmp_path):
    event = {"video_id": "film", "event_id": 0, "begin": 1.5, "end": 4, "pred": "Goal for Reds!"}
    items = [{"start_time": 6, "end_time": 7, "response": "So."}]
    later = {"video_id": "film", "event_id": 1, "begin": 6, "end": 8, "pred": "So.", "items": items}
    for order in ((event, later), (later, event)):
        assert read_run_files([written(tmp_path / "p.jsonl", *order)], TRUTHS, BadLines()).videos["videos/film.mp4"].covered
    said = read_run_files([written(tmp_path / "p.jsonl", event, later)], TRUTHS, BadLines()).videos["videos/film.mp4"]
    assert said.covered == {1, 2, 3, 6, 7}
    assert said.utterances == (Utterance(1.5, 4, "Goal for Reds!"), Utterance(6, 7, "So."))


def test_parts_of_a_run_are_one_and_no_second_comes_twice(tmp_path):
    early = written(tmp_path / "film.jsonl", {"start": 0, "end": 1, "text": "One"})
    shard = written(tmp_path / "result_1.jsonl", answers(5, 10))
    run = read_run_files([early, shard], TRUTHS, BadLines())
    assert run.videos["videos/film.mp4"].covered == {0, 5, 6, 7, 8, 9}
    with pytest.raises(InputError, match=r"second 5 .* again"):
        read_run_files([shard, shard], TRUTHS, BadLines())


@pytest.mark.parametrize("record", [{"start": 2, "end": 1, "text": "x"}, {"start": 0, "end": 1, "text": 3}])
def test_a_bad_line_is_named_or_left_out(tmp_path, record):
    file = written(tmp_path / "film.jsonl", record, {"start": 3, "end": 4, "text": "Goal for Reds!"})
    with pytest.raises(InputError, match=r"film\.jsonl:1"):
        read_run_files([file], TRUTHS, BadLines())
    with pytest.warns(UserWarning, match="left out"):
        assert read_run_files([file], TRUTHS, BadLines(1)).videos["videos/film.mp4"].covered == {3}


def test_another_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"film\.jsonl: got none of these keys"):
        read_run_files([written(tmp_path / "film.jsonl", {"question": "What?"})], TRUTHS, BadLines())


def test_a_line_nested_without_end_is_passed_over(tmp_path):
    (tmp_path / "film.jsonl").write_text("[" * 100_000)
    with pytest.raises(InputError, match="none of these keys"):
        read_run_files([tmp_path / "film.jsonl"], TRUTHS, BadLines())
