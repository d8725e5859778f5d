"""What clients of /v1/realtime send: each field that is wrong is one line with its path, and nothing costs more to read than it
is worth."""

import base64
import json
from dataclasses import replace
from typing import Any

import pytest

from svlm_jax.config import StreamConfig
from svlm_jax.decode.sampling import Sampling
from svlm_jax.errors import MAX_LINE
from svlm_jax.serve import json_fields
from svlm_jax.serve.json_fields import RequestError
from svlm_jax.serve.limits import Limits
from svlm_jax.serve.realtime.client_events import FrameAppend, ItemCreate, ResponseCreate, SessionUpdate, StreamStart, parse
from svlm_jax.serve.settings_json import read_settings, settings_json
from svlm_jax.stream.alerts import AlertRule
from svlm_jax.stream.stream_settings import StreamSettings

LIMITS = Limits(max_image_bytes=1000)
IMAGE = base64.b64encode(b"\xff\xd8 an image").decode()
BASE = StreamSettings(query="Commentate", config=StreamConfig(), sampling=Sampling(), max_new_tokens=20)


def event(kind: str, **fields: Any) -> str:
    return json.dumps({"type": kind, **fields})


def item(*content: dict[str, Any], **fields: Any) -> str:
    return event("conversation.item.create", item={"type": "message", "role": "user", "content": list(content), **fields})


def update(**session: Any) -> str:
    return event("session.update", session={"type": "realtime", **session})


@pytest.mark.parametrize(
    ("text", "code", "line"),
    [
        ("null", "invalid_value", "message: got null, expected a JSON object"),
        ("[" * 100_000, "invalid_event", "message: got more than 2000 values"),
        ("[" * 1500, "invalid_event", "message: got no JSON"),
        ('{"a":' * 1500, "invalid_event", "message: got no JSON"),
        ("[" + "0," * 400_000 + "0]", "invalid_event", "message: got more than 2000 values"),
        ('{"type": "response.create", "x": ' + "9" * 100_000 + "}", "invalid_event", "message: got no JSON"),
        ("{}", "invalid_event", "type: got null, expected one of session.update"),
        ('{"type": []}', "invalid_value", "type: got a list, expected text"),
        ('{"type": "svlm.stream.join"}', "missing_required_parameter", "stream: got nothing"),
        (event("svlm.stream.join", stream="../etc"), "invalid_value", 'stream: got "../etc", expected the name of a stream'),
        (event("svlm.stream.join", stream="aaaaaaaa", after=True), "invalid_value", "after: got true, expected a whole number"),
        (event("svlm.stream.join", stream="aaaaaaaa", key="se cret"), "invalid_value", "key: got another form"),
        (
            event("svlm.stream.start", source={"type": "match", "seed": 10_000_000}),
            "invalid_value",
            "source.seed: got 10000000",
        ),
        (event("svlm.stream.start", source={"path": "/"}), "unknown_parameter", "source.path: got a field that is not known"),
        (
            event("svlm.stream.start", source={"type": "disk"}),
            "invalid_value",
            'source.type: got "disk", expected one of match',
        ),
        (event("response.create", event_id="e" * 600), "invalid_value", "event_id: got 600 characters"),
        (event("response.create", event_id="a\ud800"), "invalid_value", "event_id: got control characters"),
        (event("response.create", response={"instructions": " "}), "invalid_value", "response.instructions: got nothing"),
        (event("response.create", response={"instructions": "a\nb"}), "invalid_value", "response.instructions: got control"),
        (event("response.create", response={"conversation": "none"}), "invalid_value", "response.conversation: got"),
        (
            event("response.create", response={"output_modalities": ["audio"]}),
            "invalid_value",
            "response.output_modalities: got",
        ),
        (
            event("response.create", response={"metadata": {"a": 1}}),
            "invalid_value",
            "response.metadata.a: got 1, expected text",
        ),
        (
            event("response.create", response={"metadata": {str(n): "" for n in range(17)}}),
            "invalid_value",
            "response.metadata",
        ),
        (event("response.create", response={"max_output_tokens": 0}), "invalid_value", "response.max_output_tokens: got 0"),
        (event("response.create", response={"tools": [{"type": "function"}]}), "invalid_value", "response.tools: got a list"),
        (item({"type": "input_audio", "audio": ""}), "invalid_value", 'item.content[0].type: got "input_audio"'),
        (item({"type": "input_image"}), "missing_required_parameter", "item.content[0].image_url: got nothing"),
        (
            item({"type": "input_image", "image_url": "https://e/a.jpg"}),
            "invalid_value",
            "item.content[0].image_url: got an addr",
        ),
        (
            item({"type": "input_image", "image_url": "data:text/html;base64,"}),
            "invalid_image",
            "item.content[0].image_url: got",
        ),
        (item(*[{"type": "input_text", "text": "a"}] * 17), "invalid_value", "item.content: got a list, expected a list of at"),
        (item(role="assistant"), "invalid_value", 'item.role: got "assistant", expected one of user'),
        (event("input_video_frame.append", image="%%%"), "invalid_image", "image: got no base64"),
        (event("input_video_frame.append", image="é" * 8), "invalid_image", "image: got no base64"),
        (event("input_video_frame.append", image="A" * 2000), "invalid_image", "image: got 1500 bytes, expected at most 1000"),
        ('{"type": "input_video_frame.append", "image": "", "timestamp": NaN}', "invalid_event", "message: got no JSON"),
        ('{"type": "input_video_frame.append", "image": "", "timestamp": 1e999}', "invalid_value", "timestamp: got Infinity"),
        (
            '{"type": "input_video_frame.append", "image": "", "timestamp": 1' + "0" * 400 + "}",
            "invalid_value",
            "timestamp: got 1000",
        ),
        (event("input_video_frame.append", image="", timestamp=1e300), "invalid_value", "timestamp: got 1e+300"),
        (event("input_video_frame.append", image="", timestamp="1"), "invalid_value", 'timestamp: got "1", expected a number'),
        (event("input_video_frame.commit", final="yes"), "invalid_value", "final: got"),
        (update(audio={"input": {"turn_detection": None}}, voices=1), "unknown_parameter", "session.voices: got a field"),
        (update(type="transcription"), "invalid_value", 'session.type: got "transcription"'),
        (update(svlm={"subscribe": ["all"]}), "invalid_value", "session.svlm.subscribe: got"),
        (update(openrealtime={"version": 2}), "invalid_value", "session.openrealtime.version: got 2"),
    ],
)
def test_what_is_wrong_with_an_event_is_one_line(text, code, line):
    with pytest.raises(RequestError) as error:
        parse(text, LIMITS)
    assert str(error.value).startswith(line) and error.value.code == code and len(str(error.value)) <= MAX_LINE


def test_json_that_is_large_for_nothing_is_not_parsed(monkeypatch):
    """Else 1.4 MB of brackets become a hundred megabytes of lists, thirty times a second."""
    monkeypatch.setattr(json_fields.json, "loads", lambda *_, **__: pytest.fail("it reached the parser"))
    for text in ("[" * 5000, "{" * 5000, '{"a": [' + "1," * 5000):
        with pytest.raises(RequestError, match="more than 2000 values"):
            parse(text, LIMITS)


def test_an_error_names_the_event_that_it_is_about():
    with pytest.raises(RequestError) as error:
        parse(event("response.cancel", event_id="mine", response_id=5), LIMITS)
    assert error.value.event_id == "mine"
    assert parse(event("response.cancel", event_id="mine"), LIMITS).event_id == "mine"


def test_events_as_openais_client_sends_them():
    """With everything that it may say of audio and tools without meaning it."""
    session = {"audio": {"input": {"turn_detection": None}}, "tools": [], "tool_choice": "auto", "truncation": "auto"}
    read = parse(update(model="m", instructions="Be brief", max_output_tokens="inf", **session), LIMITS)
    assert read == SessionUpdate(settings={"query": "Be brief", "max_output_tokens": None})
    image = {"type": "input_image", "image_url": f"data:image/jpeg;base64,{IMAGE}", "detail": "low"}
    read = parse(item(image, {"type": "input_text", "text": " Who? "}, id="i", status="completed"), LIMITS)
    assert isinstance(read, ItemCreate) and read.images == (base64.b64decode(IMAGE),) and read.texts == ("Who?",)
    assert read.content == ({"type": "input_image", "detail": "low"}, {"type": "input_text", "text": "Who?"})
    message = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Who?"}]}
    response = {"input": [message], "instructions": "Be brief.", "conversation": "auto", "metadata": {"a": "b"}}
    read = parse(event("response.create", response=response), LIMITS)
    assert read == ResponseCreate(texts=("Who?", "Be brief."), metadata={"a": "b"})
    assert parse(event("response.create"), LIMITS) == ResponseCreate()
    assert parse(event("input_video_frame.append", image=IMAGE, timestamp=3), LIMITS) == FrameAppend(
        image=base64.b64decode(IMAGE), timestamp=3.0
    )
    start = parse(event("svlm.stream.start", source={"type": "push"}, svlm={"sink": 4}), LIMITS)
    assert isinstance(start, StreamStart) and start.source.kind == "push" and start.settings == {"sink": 4}


# settings


def test_settings_come_back_as_they_were_sent():
    alert = {"question": "Who?", "yes": ["Red."], "no": ["Blue.", "Nobody."], "threshold": 0.25, "confirm": 2, "name": "red"}
    sent = {"mode": "full", "vision_window": 3, "text_rounds": 4, "sink": None, "text_window": None, "fps": 4, "seed": 9}
    sent |= {"temperature": 0, "top_k": 5, "top_p": 0.5, "repetition_penalty": 2, "silence": 0.25, "max_new_tokens": 7}
    sent |= {"min_gap": 3, "max_talk": 10, "query": "Who?", "alert": {**alert, "schema": {"type": "object"}}}
    settings = read_settings(sent, BASE, LIMITS)
    assert settings_json(settings) == sent and json.dumps(settings_json(settings))
    assert read_settings({}, settings, LIMITS) == settings
    off = read_settings({"silence": None, "max_talk": None, "alert": None, "max_new_tokens": None}, settings, LIMITS)
    assert off.sampling.silence is None and off.pacing.max_talk is None and off.alert is None and off.max_new_tokens == 20
    names = ("mode", "vision_window", "fps", "temperature", "top_k", "min_gap", "query")
    of_server = read_settings(dict.fromkeys(names), settings, LIMITS, own=BASE)  # null: whatever the stream has
    assert settings_json(of_server) == {**sent, **{name: settings_json(BASE)[name] for name in names}}
    livecc = replace(BASE, sampling=Sampling(silence_threshold=0.3))
    assert read_settings({"silence": 0.5}, livecc, LIMITS).sampling == Sampling(silence=0.5)  # one rule at a time
    condition = read_settings({"alert": {"condition": "it rains"}}, BASE, LIMITS).alert
    assert condition == AlertRule.of_condition("it rains")


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ([], "svlm: got a list, expected a JSON object"),
        ({"speed": 2}, "svlm.speed: got a field that is not known, expected one of query, seed, max_new"),
        ({"mode": "fast"}, 'svlm.mode: got "fast", expected one of streaming'),
        ({"vision_window": 0}, "svlm.vision_window: got 0, expected a whole number, 1 to"),
        ({"vision_window": True}, "svlm.vision_window: got true"),
        ({"vision_window": 1e9}, "svlm.vision_window: got 1000000000.0"),
        ({"sink": None}, "svlm.sink and text_window: got None and 512, expected two numbers, or neither"),
        ({"fps": 3}, "svlm.fps: got 3 fps in chunks of 1 s"),
        ({"temperature": float("inf")}, "svlm.temperature: got Infinity"),
        ({"top_p": 0}, "svlm.top_p: got 0"),
        ({"silence": 2}, "svlm.silence: got 2, expected a number, 0 to 1"),
        ({"min_gap": -1}, "svlm.min_gap: got -1"),
        ({"max_talk": 0}, "svlm.max_talk: got 0"),
        ({"query": "a" * 301}, "svlm.query: got 301 characters"),
        ({"alert": {}}, "svlm.alert.question: got null, expected a question or a condition"),
        ({"alert": {"question": "a", "condition": "b"}}, "svlm.alert.question: got"),
        ({"alert": {"question": "a", "yes": ["b"] * 9}}, "svlm.alert.yes: got a list, expected a list of at most 8"),
        ({"alert": {"question": "a", "no": [1]}}, "svlm.alert.no: got 1, expected text"),
        ({"alert": {"question": "a", "schema": {"type": "colour"}}}, "svlm.alert"),
    ],
)
def test_what_is_wrong_with_settings_is_one_line(settings, line):
    with pytest.raises(RequestError) as error:
        read_settings(settings, BASE, LIMITS)
    assert str(error.value).startswith(line) and len(str(error.value)) <= MAX_LINE
