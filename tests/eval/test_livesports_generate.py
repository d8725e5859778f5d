"""LiveSports-3K CC: what a model is given, what stands in its predictions, and a run that is killed."""

import json
from pathlib import Path

import numpy as np
import pytest

from svlm_jax.errors import InputError
from svlm_jax.eval import asking
from svlm_jax.eval.asking import View
from svlm_jax.eval.commentary import Utterance
from svlm_jax.eval.frames import FrameSet
from svlm_jax.eval.livesports_cc import Event, prediction_record
from svlm_jax.eval.livesports_generate import STYLES, captioned, find_videos, join, predict, stream_jobs, streamed
from svlm_jax.json_lines import BadLines
from tests.support.commentators import FakeCommentator

STREAMINGVLM, LIVECC = STYLES["streamingvlm"], STYLES["livecc"]
TEMPLATE = "Comment.\n---\nOn {title}.\n---\nBefore: {previous}"
EVENTS = [
    Event("w", 10, 5.5, 8.0, "Final", "judo", "they bow", "ref"),
    Event("v", 2, 1.0, 3.0, "", "judo", "", "ref"),
    Event("v", "1", 0.0, 2.0, "Heat", "judo", "", "ref"),
]
VIDEOS = {"w_10": Path("w.mp4"), "v_2": Path("v.mp4"), "v_1": Path("v.mp4")}


def run(folder, commentator, style=STREAMINGVLM, allowed=0, events=EVENTS):
    jobs = stream_jobs(events, VIDEOS, TEMPLATE, style, seed=3)

    def said(done):
        return streamed(events, jobs, commentator, style, done)

    target = folder / "predictions.jsonl"
    assert predict(target, events, said, BadLines(allowed)) == target
    return [json.loads(line) for line in target.read_text().splitlines()]


def test_streamingvlm_has_the_time_of_the_video_and_the_words_before_as_previous_text():
    job = stream_jobs(EVENTS, VIDEOS, TEMPLATE, STREAMINGVLM)[0]
    assert (job.start, job.end, job.clock) == (5.5, 8.0, "video")
    assert (job.query, job.previous) == ("Comment.\nOn Final.", "they bow")


def test_livecc_has_the_time_of_the_clip_and_the_words_before_in_its_query():
    job = stream_jobs(EVENTS, VIDEOS, TEMPLATE, LIVECC)[0]
    assert (job.start, job.end, job.clock) == (5.5, 8.0, "clip")
    assert (job.query, job.previous) == ("Comment.\nOn Final.\nBefore: they bow", "")


def test_a_model_without_instructions_gets_the_words_before_or_the_title():
    queries = [job.query for job in stream_jobs(EVENTS, VIDEOS, "{context}", STREAMINGVLM)]
    assert queries == ["they bow", "", "Heat"]


def test_the_seed_of_an_event_does_not_depend_on_the_others():
    alone, among = (stream_jobs(events, VIDEOS, TEMPLATE, LIVECC, seed=3) for events in (EVENTS[1:2], EVENTS))
    assert alone == among[1:2] and len({job.seed for job in among}) == 3


def test_predictions_are_in_the_order_of_their_keys_and_silence_is_empty(tmp_path):
    records = run(tmp_path, FakeCommentator(lambda job, second: f" {second:g}\n" if job.key != "v_2" else " "))
    assert [(each["video_id"], each["event_id"], each["pred"]) for each in records] == [
        ("v", "1", "0 1"),
        ("v", 2, ""),
        ("w", 10, "5.5 6.5 7.5"),
    ]
    assert records[2]["items"][0] == {"response": " 5.5\n", "start_time": 5.5, "end_time": 6.5}


def test_livecc_ends_as_its_published_captions_do():
    said = [Utterance(0, 3, "He runs"), Utterance(3, 4, ""), Utterance(4, 5, "and scores")]
    assert join(said, LIVECC) == "He runs and scores..." and join(said, STREAMINGVLM) == "He runs and scores"
    assert join([Utterance(0, 3, " ...")], LIVECC) == ""


class Killed(BaseException):
    pass


def test_a_killed_run_watches_nothing_twice_and_leaves_the_same_file(tmp_path):
    (tmp_path / "whole").mkdir()
    run(tmp_path / "whole", FakeCommentator(lambda job, second: job.key))

    def say(job, second):
        if job.key == "v_2":
            raise Killed
        return job.key

    with pytest.raises(Killed):
        run(tmp_path, FakeCommentator(say))
    assert not (tmp_path / "predictions.jsonl").exists()
    again = FakeCommentator(lambda job, second: job.key)
    run(tmp_path, again)
    assert [job.key for job in again.watched] == ["v_2", "v_1"]
    assert (tmp_path / "predictions.jsonl").read_bytes() == (tmp_path / "whole" / "predictions.jsonl").read_bytes()
    assert [path.name for path in tmp_path.glob("*.jsonl")] == ["predictions.jsonl"]
    last = FakeCommentator()
    run(tmp_path, last)
    assert not last.watched


@pytest.mark.filterwarnings("ignore:left out")
def test_events_that_failed_are_told_after_the_others_and_tried_again(tmp_path):
    broken = FakeCommentator(lambda job, second: "words", errors={"w_10": "a video that breaks off"})
    with pytest.raises(InputError, match="event w_10: got a video that breaks off"):
        run(tmp_path, broken)
    again = FakeCommentator(lambda job, second: "words", errors={"w_10": "a video that breaks off"})
    assert [record["video_id"] for record in run(tmp_path, again, allowed=1)] == ["v", "v"]
    assert [job.key for job in again.watched] == ["w_10"]


@pytest.mark.filterwarnings("ignore:left out")
def test_missing_videos_are_known_before_a_model_is_loaded(tmp_path):
    (tmp_path / "v.mp4").write_bytes(b"video")
    with pytest.raises(InputError, match="event w_10 video"):
        find_videos(EVENTS, tmp_path, BadLines())
    assert set(find_videos(EVENTS, tmp_path, BadLines(1))) == {"v_2", "v_1"}


class Captioner:
    def __init__(self):
        self.requests = []

    def settings(self):
        return {}

    def answer(self, request):
        self.requests.append(request)
        return "A caption." if len(self.requests) > 1 else " ... "


def test_offline_captioners_see_the_event_and_not_the_whole_video(monkeypatch):
    asked = []

    def prefix(path, end, **options):
        asked.append((path.name, end, options))
        if path.name == "broken":
            raise InputError("video broken", "nothing", "a video", "mend it")
        return FrameSet(np.zeros((1, 2, 2, 3), np.uint8), 2.0, options["start"])

    monkeypatch.setattr(asking, "prefix", prefix)
    captioner, view = Captioner(), View("prefix", 8)
    videos = VIDEOS | {"v_1": Path("broken")}
    said = dict(captioned(EVENTS, videos, captioner, TEMPLATE, view, ()))
    assert asked[0] == ("w.mp4", 8.0, {"max_frames": 8, "fps": 2.0, "start": 5.5})
    assert captioner.requests[0].text == "Comment.\nOn Final.\nBefore: they bow"
    assert said[EVENTS[0]] == prediction_record(EVENTS[0], "") and said[EVENTS[1]] == prediction_record(EVENTS[1], "A caption.")
    assert isinstance(said[EVENTS[2]], InputError) and "event v_1" in str(said[EVENTS[2]])
    assert not list(captioned(EVENTS, VIDEOS, captioner, TEMPLATE, view, set(VIDEOS)))


def test_a_stopped_run_is_not_taken_for_a_whole_one(tmp_path):
    def said(done):
        yield EVENTS[0], prediction_record(EVENTS[0], "words")

    assert predict(tmp_path / "p.jsonl", EVENTS, said, BadLines()).name == "p.partial.jsonl"
    assert not (tmp_path / "p.jsonl").exists()
