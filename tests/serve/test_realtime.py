"""Claims about /v1/realtime, as the official openai client sees them. Real sockets on a free port; the engine has no model, but
for the last tests."""

import base64
import io
import json
import re
import threading
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import openai
import pytest
from openai.types.realtime import RealtimeConversationItemAssistantMessage, RealtimeServerEvent
from PIL import Image

from svlm_jax.serve.engine.reports import ReplyDelta, ReplyStarted, Unanswered
from svlm_jax.serve.realtime.responses import Responses
from svlm_jax.stream.cache_view import KINDS
from svlm_jax.stream.sequence import Chunk
from svlm_jax.touchline.film import Film
from tests.support import HANG
from tests.support.serving import LIMITS, ServerThread, compiled, film, server, serving_script  # noqa: F401

# pydantic class of each type of event of the SDK
SDK_EVENTS: dict[str, Any] = {
    get_args(event.model_fields["type"].annotation)[0]: event for event in get_args(get_args(RealtimeServerEvent)[0])
}


def script(stream: str, chunk: Chunk) -> list[str]:
    """Silence in the odd seconds, unless something was asked."""
    if chunk.question:
        return [] if chunk.question == "Anything?" else ["Blue ", "did: ", chunk.question]
    return ["Red ", "has ", "it."] if chunk.start % 2 == 0 else [""]


@pytest.fixture(scope="module")
def scripted():
    # more streams than tests leave behind before nobody has watched them for long enough
    with serving_script(script, limits=LIMITS, num_streams=16) as server:
        yield server


def api(server: ServerThread, api_key: str = "any") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.http}/v1", api_key=api_key, max_retries=0)


def jpeg(shade: int = 90, size: tuple[int, int] = (28, 28)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, (shade, shade, shade)).save(out, "JPEG")
    return out.getvalue()


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def push(connection, seconds: int, start: int = 0) -> None:
    """Whole seconds of video, with stamps: two frames each, and none is lost however slow the machine is."""
    for number in range(2 * start, 2 * (start + seconds)):
        frame = {"type": "input_video_frame.append", "image": base64_of(jpeg(number)), "timestamp": number / 2}
        connection.send(frame)


def until(connection, kind: str, **fields) -> list[Any]:
    """Events up to one of a type whose fields are these; an `error` on the way fails the test."""
    events = []
    for event in connection:
        events.append(event)
        assert kind == "error" or event.type != "error", event
        if event.type == kind and all(getattr(event, name) == value for name, value in fields.items()):
            return events
    raise AssertionError(f"the connection was closed before {kind}")


def until_done(connection, **svlm) -> list[Any]:
    """Events up to the end of a response whose `svlm` has these fields."""
    events = []
    while True:
        events += until(connection, "response.done")
        if svlm.items() <= events[-1].response.svlm.items():
            return events


def said(event: Any) -> str:
    return "".join(part.text for item in event.response.output for part in item.content)


def test_the_official_client_gets_commentary_asks_cancels_and_comes_back(scripted):
    """Else nobody can use the server with the client that they have."""
    with api(scripted).realtime.connect(model="svlm") as connection:
        session = until(connection, "session.created")[-1].session
        assert session.type == "realtime" and session.model == "svlm" and session.output_modalities == ["text"]
        connection.session.update(
            session={"type": "realtime", "instructions": "Commentate", "output_modalities": ["text"], "tools": []}
        )
        assert until(connection, "session.updated")[-1].session.instructions == "Commentate"
        push(connection, 1)
        started = until(connection, "svlm.stream.started")[-1]
        assert until(connection, "svlm.stream.joined")[-1].settings["query"] == "Commentate"
        push(connection, 3, start=1)
        events = until_done(connection, number=2)
        assert said(events[-1]) == "Red has it."
        assert [event.delta for event in events if event.type == "response.output_text.delta"] == ["Red ", "has ", "it."] * 2
        assert [event.response.svlm["number"] for event in events if event.type == "response.done"] == [0, 2]  # 1 was silent
        assert events[-1].response.usage.output_tokens == 3
        connection.conversation.item.create(
            item={"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Who scored?"}]}
        )
        connection.response.create(response={"metadata": {"mine": "1"}})
        until(connection, "svlm.question.queued")
        push(connection, 2, start=4)
        answer = until_done(connection, kind="answer")[-1]
        assert answer.response.svlm["question"] == "Who scored?" and answer.response.metadata == {"mine": "1"}
        assert said(answer) == "Blue did: Who scored?"
        last = answer.response.svlm["number"]
    query = {"stream": started.stream, "key": started.key, "after": str(last - 1)}
    with api(scripted).realtime.connect(model="svlm", extra_query=query) as connection:
        joined = until(connection, "svlm.stream.joined")[-1]
        assert joined.is_owner and joined.missed[0]["number"] == last and joined.missed[0]["text"] == "Blue did: Who scored?"
        connection.response.create(response={"instructions": "Later?"})
        queued = until(connection, "svlm.question.queued")[-1]
        connection.response.cancel()
        events = until_done(connection, request_id=queued.request_id)
        assert events[-1].response.status == "cancelled" and events[-1].response.output == []
        connection.response.cancel()
        error = until(connection, "error")[-1].error
        assert error.code == "response_cancel_not_active"
        connection.send({"type": "svlm.stream.stop", "key": started.key})
        until(connection, "svlm.stream.ended", reason="stopped by its viewer")


def test_a_reply_that_is_being_written_ends_when_it_is_cancelled():
    going_on, may_end = threading.Event(), threading.Event()

    def endless(stream: str, chunk: Chunk):
        yield "On "
        going_on.set()
        may_end.wait(HANG)
        yield "and on."

    with serving_script(endless, limits=LIMITS) as server, api(server).realtime.connect(model="svlm") as connection:
        push(connection, 1)
        response = until(connection, "response.created")[-1].response
        until(connection, "response.output_text.delta")
        assert going_on.wait(HANG)
        connection.response.cancel(response_id=response.id)
        connection.session.update(session={"type": "realtime"})
        until(connection, "session.updated")  # the server has read the one before
        may_end.set()
        done = until_done(connection)[-1].response
        assert done.id == response.id and done.status == "cancelled" and done.status_details.reason == "client_cancelled"
        assert done.output[0].status == "incomplete" and done.output[0].content[0].text.startswith("On ")


def test_a_frame_as_an_image_of_the_conversation_is_a_frame_of_the_video(scripted):
    """The only way that OpenAI's own client has; without stamps the newest image is watched at the pace of the clock."""
    with api(scripted).realtime.connect(model="svlm") as connection:
        url = f"data:image/jpeg;base64,{base64_of(jpeg())}"
        content = [{"type": "input_image", "image_url": url}, {"type": "input_text", "text": "Is it red?"}]
        connection.conversation.item.create(item={"id": "mine", "type": "message", "role": "user", "content": content})
        item = until(connection, "conversation.item.done")[-1].item
        assert item.id == "mine" and [part.type for part in item.content] == ["input_image", "input_text"]
        assert item.content[0].image_url is None  # a megabyte that the client has
        connection.response.create()
        assert said(until_done(connection, kind="answer")[-1]) == "Blue did: Is it red?"


def test_a_question_answered_with_silence_and_one_that_no_chunk_comes_for_are_told(scripted):
    """Else a client waits for its response for ever."""
    with api(scripted).realtime.connect(model="svlm") as connection:
        push(connection, 1)
        until_done(connection, number=0)
        connection.response.create(response={"instructions": "Anything?"})
        push(connection, 1, start=1)
        silent = until_done(connection, kind="answer")[-1].response
        assert silent.status == "completed" and silent.output == []
        connection.response.create(response={"instructions": "Too late?"})
        connection.send({"type": "input_video_frame.commit", "final": True})
        unanswered = until_done(connection, question="Too late?")[-1].response
        assert unanswered.status == "failed" and unanswered.status_details.error.code == "stream_ended"
        assert until(connection, "svlm.stream.ended")[-1].reason == "the client has finished"


def test_a_text_that_comes_before_the_first_frame_waits_for_it(scripted):
    """Clients of a conversation send the text first."""
    with api(scripted).realtime.connect(model="svlm") as connection:
        text = {"type": "input_text", "text": "Who is it?"}
        connection.conversation.item.create(item={"type": "message", "role": "user", "content": [text]})
        connection.response.create()
        assert until(connection, "error")[-1].error.code == "refused"  # there is nothing to look at
        connection.send({"type": "svlm.stream.start", "source": {"type": "push"}})
        connection.response.create()
        push(connection, 1)
        assert said(until_done(connection, number=0)[-1]) == "Blue did: Who is it?"


def test_a_response_without_a_question_is_the_next_reply_with_words(scripted):
    with api(scripted).realtime.connect(model="svlm") as connection:
        push(connection, 1)
        until_done(connection, number=0)
        connection.response.create(response={"metadata": {"mine": "2"}})
        queued = until(connection, "svlm.question.queued")[-1]
        push(connection, 2, start=1)
        done = until_done(connection, request_id=queued.request_id)[-1].response
        assert done.svlm["number"] == 2 and done.svlm["kind"] == "commentary" and done.metadata == {"mine": "2"}


def test_every_event_is_what_the_sdk_says_it_is(scripted):
    """Strictly: clients in languages with types refuse what is another."""
    seen, parsed = set(), []
    with scripted.viewer(()) as viewer:
        viewer.send("session.update", session={"type": "realtime", "max_output_tokens": "inf"})
        item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Who?"}]}
        viewer.send("input_video_frame.append", image=base64_of(jpeg()), timestamp=0)
        viewer.send("conversation.item.create", item=item)
        viewer.send("response.create")
        viewer.send("input_video_frame.append", image=base64_of(jpeg()), timestamp=0.5)
        viewer.send("fly", event_id="e9")
        viewer.send("input_video_frame.commit", final=True)
        while "svlm.stream.ended" not in seen:
            text = viewer.socket.recv(timeout=HANG)
            event = json.loads(text)
            seen.add(event["type"])
            assert event["event_id"].startswith("event_")
            if event["type"].startswith("svlm."):
                continue
            parsed.append(SDK_EVENTS[event["type"]].model_validate_json(text, strict=True))
            items = [event.get("item"), *event.get("response", {}).get("output", [])]
            for item in (item for item in items if item and item["role"] == "assistant"):
                RealtimeConversationItemAssistantMessage.model_validate(item, strict=True)
    error = next(event for event in parsed if event.type == "error").error
    assert error.event_id == "e9" and error.code == "invalid_event" and error.message.startswith('type: got "fly"')
    assert {"session.created", "session.updated", "conversation.item.added", "conversation.item.done"} <= seen
    names = ("created", "output_item.added", "content_part.added", "output_text.delta", "output_text.done")
    assert {f"response.{name}" for name in (*names, "content_part.done", "output_item.done", "done")} <= seen


def test_events_of_a_reply_come_in_the_order_of_the_api_and_are_encoded_once(scripted, monkeypatch):
    """Clients build items from them one after the other; fifty viewers cost one encoding."""
    with scripted.viewer(()) as owner, scripted.viewer(()) as other:
        owner.send("svlm.stream.start", source={"type": "push"})
        name = owner.receive("svlm.stream.joined")["stream"]
        other.join(name)
        for second in (0, 0.5):
            owner.send("input_video_frame.append", image=base64_of(jpeg()), timestamp=second)
        texts = [[], []]
        for viewer, received in zip((owner, other), texts, strict=True):
            while not received or json.loads(received[-1])["type"] != "response.done":
                received.append(viewer.socket.recv(timeout=HANG))
        assert texts[0] == texts[1]
        kinds = [json.loads(text)["type"] for text in texts[0]]
        assert kinds == [
            *("response.created", "response.output_item.added", "conversation.item.added", "response.content_part.added"),
            *["response.output_text.delta"] * 3,
            *("response.output_text.done", "response.content_part.done", "response.output_item.done"),
            *("conversation.item.done", "response.done"),
        ]
        assert len({json.loads(text)["event_id"] for text in texts[0]}) == len(kinds)
        owner.send("svlm.stream.stop")  # without the key: not even on the owner's own connection
        assert owner.error().startswith("stop: got a stream whose owner is present")


def test_a_stream_that_ends_in_the_middle_of_a_reply_ends_its_response_once():
    """Else a client counts two responses for one request, or waits for ever."""
    responses = Responses("a")
    responses.metadata["r"] = {"mine": "1"}
    started = ReplyStarted(stream="a", number=0, start=0, end=1, question="Who?", request_id="r")
    events = responses.on_report(started)
    events += responses.on_report(ReplyDelta(stream="a", number=0, text="Red", chosen_at=0))
    events += responses.on_report(Unanswered(stream="a", request_id="r", question="Who?", reason="ended"))
    events += responses.on_ended()
    done = [json.loads(event)["response"] for event in events if '"response.done"' in event]
    assert len(done) == 1 and done[0]["status"] == "failed" and done[0]["metadata"] == {"mine": "1"}
    assert done[0]["status_details"]["error"]["code"] == "stream_ended" and done[0]["output"][0]["status"] == "incomplete"
    assert not responses.metadata and responses.open is None


def test_settings_change_while_a_stream_plays_and_only_for_its_owner(scripted):
    with scripted.viewer(()) as owner, scripted.viewer(()) as other:
        owner.update(temperature=0.5, min_gap=2, alert={"question": "Who?", "yes": ["Red."], "no": ["Blue."]})
        name = owner.start("push")
        assert other.join(name)["settings"]["alert"]["yes"] == ["Red."]
        owner.update(temperature=0, silence=0.25, alert=None)
        changed = other.receive("svlm.stream.updated")["settings"]
        assert changed["temperature"] == 0 and changed["silence"] == 0.25 and changed["alert"] is None
        assert changed["min_gap"] == 2
        assert owner.receive("session.updated", seconds=HANG)
        owner.update(fps=4)
        assert owner.error().startswith("fps: got 4")
        owner.update(seed=5)
        assert owner.error().startswith("seed: got 5")
        other.update(temperature=1)
        assert "another's stream" in other.error()
        other.update(subscribe=["chunks"])  # is no setting of the stream
        other.receive("session.updated")
        owner.send("svlm.stream.leave")
        owner.receive("svlm.stream.left")
        other.send("svlm.stream.stop")  # nobody owns it any more
        other.receive("svlm.stream.ended")


def test_openrealtime_is_spoken_with_those_who_ask_for_it(scripted):
    with scripted.viewer(()) as viewer:
        assert "openrealtime" not in viewer.receive("session.created")["session"]
        wanted = {"version": 1, "supports": ["video.input", "audio.input"]}
        viewer.send("session.update", session={"type": "realtime", "openrealtime": wanted})
        assert viewer.receive("session.updated")["session"]["openrealtime"]["enabled"] == ["video.input"]
        source = {"source": "camera", "width": 28, "height": 28}
        viewer.send("openrealtime.input_video_source.update", state="active", **source)
        viewer.send("openrealtime.input_video_frame.append", source="camera", frame=base64_of(jpeg()), timestamp_ms=5)
        viewer.receive("response.done")
        viewer.send("openrealtime.input_video_source.update", state="closed", **source)
        assert viewer.receive("svlm.stream.ended")["reason"] == "the client has finished"


def test_a_token_is_the_api_key(scripted):
    scripted.server.site.access.token = "a-long-secret"
    try:
        with pytest.raises(Exception, match="401"), api(scripted).realtime.connect(model="svlm"):
            pass
        with api(scripted, "a-long-secret").realtime.connect(model="svlm") as connection:
            until(connection, "session.created")
        for key, is_let_in in (("a-long-secret", True), ("a-long-guess", False)):  # as a browser sends it
            protocols = ["realtime", f"openai-insecure-api-key.{key}"]
            if is_let_in:
                with scripted.viewer((), subprotocols=protocols) as viewer:
                    assert viewer.socket.subprotocol == "realtime" and viewer.receive("session.created")
            else:
                with pytest.raises(Exception, match="401"):
                    scripted.viewer((), subprotocols=protocols)
    finally:
        scripted.server.site.access.token = ""


def test_the_example_of_the_documentation_runs_as_typed(capsys):
    text = (Path(__file__).parents[2] / "docs" / "realtime.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    limits = replace(LIMITS, max_message_bytes=1_400_000, max_image_bytes=1_000_000)
    with serving_script(script, limits=limits) as server:
        assert "http://127.0.0.1:8000" in example
        exec(compile(example.replace("http://127.0.0.1:8000", server.http), "docs/realtime.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    answers = [line for line in lines if line == "Blue did: Who has the ball?   (answer)"]
    commentary = [line for line in lines if line == "Red has it.   (commentary)"]
    # five chunks have words; the one that the question reaches is one of them, or one of the silent ones
    assert len(answers) == 1 and len(commentary) in (4, 5) and len(lines) == 1 + len(commentary)


# with a model


def test_two_clients_have_settings_of_their_own_in_one_batch(server):
    """One may be talkative and the other silent; each gets its own longest reply."""
    frames = [base64_of(encoded(frame)) for frame in islice(Film(3, size=(168, 112)).frames(4), 12)]
    with server.viewer(("chunks",)) as talks, server.viewer(("chunks",)) as rests:
        talks.update(silence=1, max_new_tokens=4, vision_window=2)
        rests.update(silence=0, max_new_tokens=2, temperature=0)
        for number, frame in enumerate(frames):  # a generated match, sent by both
            for client in (talks, rests):
                client.send("input_video_frame.append", image=frame, timestamp=number / 4)
        chunks = {client: [client.chunk(number=number) for number in range(5)] for client in (talks, rests)}
        assert all(chunk["text"] for chunk in chunks[talks]) and not any(chunk["text"] for chunk in chunks[rests])
        kinds = [KINDS[kind] for kind, _, _ in chunks[talks][-1]["cache"]["retained"]]
        assert kinds.count("vision") == 2
        for client in (talks, rests):
            client.send("input_video_frame.commit", final=True)
            client.receive("svlm.stream.ended")


def encoded(frame: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(frame).save(out, "JPEG", quality=90)
    return out.getvalue()
