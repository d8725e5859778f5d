"""LiveSports-3K CC: published files are read as they are, and what a run leaves is read by published scripts."""

import json

import pytest

from svlm_jax.errors import InputError
from svlm_jax.eval.commentary import Utterance
from svlm_jax.eval.livesports_cc import (
    Prediction,
    default_prompt,
    fill_prompt,
    find_video,
    prediction_record,
    read_events,
    read_predictions,
)
from svlm_jax.json_lines import BadLines

EVENT = {
    "video_id": "AbC_1",
    "url": "https://example.org",
    "event_id": 4,
    "begin": 57.8,
    "end": 72.3,
    "event_title": "Race two",
}
EVENT |= {"event_type": 1, "class": "rowing", "video": "videos/AbC_1.mp4", "preasr_text": "they gather"}
EVENT |= {"event_asr_text": "and they are off"}
CAPTION = {"video_id": "AbC_1", "event_id": 4, "begin": 57.8, "end": 72.3, "pred": "Off they go!"}


def write(path, *records):
    path.write_text("\n".join(map(json.dumps, records)))
    return path


def events_of(tmp_path, *changes, allowed=0):
    bad = BadLines(allowed)
    return read_events(write(tmp_path / "events.jsonl", *(EVENT | change for change in changes)), bad), bad


def test_an_event_as_published(tmp_path):
    (tmp_path / "cc.json").write_text(json.dumps([EVENT, EVENT | {"event_id": "5", "preasr_text": None}]))
    first, second = read_events(tmp_path / "cc.json", BadLines())
    assert first == ("AbC_1", 4, 57.8, 72.3, "Race two", "rowing", "they gather", "and they are off", "videos/AbC_1.mp4")
    assert (first.key, second.key, second.previous) == ("AbC_1_4", "AbC_1_5", "")


@pytest.mark.filterwarnings("ignore:left out")
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"event_id": 4}, "a second time"),
        ({"event_id": "4"}, "a second time"),  # the same key in files
        ({"event_id": 5, "end": 57.8}, "begin < end"),
        ({"event_id": 5, "begin": -1.0}, "begin < end"),
        ({"event_id": 5, "begin": "57"}, "a number"),
        ({"event_id": 5, "event_asr_text": " ... "}, "no word"),
        ({"event_id": 5.5}, "whole number"),
        ({"event_id": 5, "video_id": None}, "a text"),
    ],
)
def test_bad_events_are_named_and_left_out_only_if_allowed(tmp_path, change, named):
    with pytest.raises(InputError, match=named):
        events_of(tmp_path, {}, change)
    events, bad = events_of(tmp_path, {}, change, allowed=1)
    assert [event.key for event in events] == ["AbC_1_4"] and len(bad.errors) == 1


def test_predictions_as_published(tmp_path):
    """event_id a number or a text; "" and "..." are silence; events of others are left out."""
    events, _ = events_of(tmp_path, {}, {"event_id": 5}, {"event_id": 6}, {"event_id": 7})
    captions = [CAPTION, CAPTION | {"event_id": "5", "pred": "..."}, CAPTION | {"event_id": 6, "pred": ""}]
    file = write(tmp_path / "GPT.jsonl", *captions, CAPTION | {"event_id": 99})
    texts = {key: each.text for key, each in read_predictions(file, events, BadLines()).items()}
    assert texts == {"AbC_1_4": "Off they go!", "AbC_1_5": "", "AbC_1_6": ""}


@pytest.mark.parametrize(
    ("change", "named"), [({}, "a second time"), ({"event_id": 5, "end": 73.0}, "57.8 to 72.3"), ({"pred": None}, "a text")]
)
def test_predictions_that_can_not_be_compared_are_errors(tmp_path, change, named):
    events, _ = events_of(tmp_path, {}, {"event_id": 5})
    with pytest.raises(InputError, match=named):
        read_predictions(write(tmp_path / "p.jsonl", CAPTION, CAPTION | change), events, BadLines())


def test_what_is_written_is_read_back_and_has_the_published_keys(tmp_path):
    (event,), _ = events_of(tmp_path, {})
    said = (Utterance(57.8, 58.8, "Off they"), Utterance(58.8, 59.8, ""), Utterance(59.8, 60.8, "go!"))
    record = prediction_record(event, "Off they go!", said)
    assert {key: record[key] for key in CAPTION} == CAPTION
    assert set(prediction_record(event, "x")) == set(CAPTION)
    write(tmp_path / "predictions.jsonl", record)
    assert read_predictions(tmp_path, [event], BadLines()) == {event.key: Prediction("Off they go!", said)}


def test_a_video_is_found_by_its_name_or_its_id(tmp_path):
    with pytest.raises(InputError, match=r"event x_1 video: got no file.*videos/x\.mp4"):
        find_video(tmp_path, "event x_1", "videos/x.mp4", "x")
    (tmp_path / "x.webm").write_bytes(b"webm")
    assert find_video(tmp_path, "", "videos/x.mp4", "x").name == "x.webm"
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "x.mp4").touch()
    with pytest.raises(InputError, match="an empty file"):
        find_video(tmp_path, "", "videos/x.mp4", "x")


def test_a_prompt_has_no_section_for_what_is_not_there():
    template = "Role.\n---\nTitle {title}\n---\nBefore: {previous}, {other}\n"
    assert (
        fill_prompt(template, {"title": "{previous}", "previous": "so far"})
        == "Role.\nTitle {previous}\nBefore: so far, {other}"
    )
    assert fill_prompt(template, {"title": "", "previous": ""}) == "Role."
    assert "Cup final" in fill_prompt(default_prompt(), {"title": "Cup final", "previous": ""})
