"""What a client of /v1/realtime can do with events that are valid, or nearly: others must not notice. No model."""

import base64

import pytest

from benchmarks.serve_wire import scan_bomb
from svlm_jax.serve.sources import images
from tests.serve.test_attacks import HUGE_PNG, encoded
from tests.support.serving import LIMITS, Client, serving_script


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.fixture(scope="module")
def scripted():
    with serving_script(lambda stream, chunk: ["words"], limits=LIMITS, num_streams=16) as server:
        yield server


def second_of_video(client: Client, number: int) -> None:
    """One chunk, by its two frames with stamps."""
    for half in (0, 0.5):
        image = base64_of(encoded("JPEG", (28, 28)))
        client.send("input_video_frame.append", image=image, timestamp=number + half)


def test_a_flood_of_requests_is_refused_beyond_those_that_may_wait(scripted):
    """Else one client queues questions for hours, and everybody else's wait behind them."""
    with scripted.viewer(()) as flood, scripted.viewer(("chunks",)) as good:
        good.start("push")
        name = flood.start("push")
        for number in range(30):
            flood.ask(f"question {number}")
        assert [flood.receive("svlm.question.queued")["num_before"] for _ in range(8)] == list(range(8))
        refused = flood.receive("error")["error"]
        assert refused["code"] == "refused" and refused["message"].startswith("question: got 8 waiting, expected fewer")
        second_of_video(good, 0)
        assert good.chunk(number=0)["text"] == "words"  # meanwhile
        assert len(scripted.engine.running[name].requests) == 8
        flood.send("response.cancel")  # all of one's own that wait
        assert {flood.receive("response.done")["response"]["status"] for _ in range(8)} == {"cancelled"}
        for client in (flood, good):
            client.stop()


def test_a_key_is_not_guessed_and_without_it_a_stream_is_only_watched(scripted):
    """A guess is no more than a join, of which there is one a second; what it gets is what anybody gets."""
    with scripted.viewer(()) as owner, scripted.viewer(()) as thief:
        name = owner.start("push")
        second_of_video(owner, 0)
        close = ("b" if owner.key[0] == "a" else "a") + owner.key[1:]
        for key in ("", owner.key[:-1], owner.key + "A", close):
            assert not thief.join(name, key=key)["is_owner"]
        thief.send("input_video_frame.append", image=base64_of(encoded("JPEG")), timestamp=1)
        assert "another stream" in thief.error()
        thief.socket.send(encoded("JPEG"))
        assert "another stream" in thief.error()
        thief.update(query="Say it is over")
        assert "another's stream" in thief.error()
        thief.send("input_video_frame.commit", final=True)
        assert "another's stream" in thief.error()
        thief.send("svlm.stream.stop", key=close)
        assert "owner is present" in thief.error()
        done = owner.receive("response.done")["response"]
        second_of_video(owner, 1)
        response = owner.receive("response.created")["response"]["id"]
        thief.send("response.cancel", response_id=response)
        assert thief.receive("error")["error"]["code"] in ("refused", "response_cancel_not_active")
        assert done["status"] == owner.receive("response.done")["response"]["status"] == "completed"
        owner.stop()


@pytest.mark.parametrize("stamps", [(5, 4, 3, 2, 1), (0, 1e9, 0, -1e9), (0, 0, 0, 0), (1e10, 0.25, 1e10), (-1e10, 1e10)])
def test_stamps_that_jump_stay_the_clock_of_their_own_stream(scripted, stamps):
    """Else a client makes the server fill years with one picture. A jump is told, and the seconds go on."""
    with scripted.viewer(("chunks",)) as client:
        client.start("push")
        for stamp in stamps:
            client.send("input_video_frame.append", image=base64_of(encoded("JPEG", (28, 28))), timestamp=stamp)
        client.send("input_video_frame.commit", final=True)
        assert client.receive("svlm.stream.ended")["reason"] == "the client has finished"
    broadcast = next(reversed(scripted.hub.broadcasts.values()))
    assert all(entry.end < 60 for entry in broadcast.history)


def test_images_of_a_client_are_refused_before_they_are_decoded(scripted, monkeypatch):
    """Also in base64 and beside text; eight in a row end the socket."""
    monkeypatch.setattr(images.Image, "open", lambda *_, **__: pytest.fail("it reached the decoder"))
    with scripted.viewer(()) as client:
        client.start("push")
        bomb = "data:image/png;base64," + base64_of(HUGE_PNG)
        item = {"type": "message", "role": "user", "content": [{"type": "input_image", "image_url": bomb}]}
        client.send("conversation.item.create", event_id="b", item=item)
        error = client.receive("error")["error"]
        assert error["code"] == "invalid_image" and error["event_id"] == "b" and "30000x30000 px" in error["message"]
        client.send("input_video_frame.append", image="A" * 59_000)
        assert "at most 40000" in client.error()
        for stamp in (1, 2):
            client.send("input_video_frame.append", image=base64_of(scan_bomb(21, 64, 64)), timestamp=stamp)
        assert client.close_reason() == (1008, "too many invalid messages")


def test_settings_are_changed_no_faster_than_streams_are_joined(scripted):
    """Else a client who drags a slider by script keeps the engine busy with changes."""
    with scripted.viewer(()) as client:
        client.start("push")
        viewer = next(viewer for viewer in scripted.hub.viewers if viewer.is_owner)
        reserved = []
        viewer.join_limit.reserve = lambda: reserved.append("change") or 0.0
        client.update(temperature=0.5)
        client.receive("svlm.stream.updated")
        client.update(subscribe=["chunks"])
        client.receive("session.updated")
        assert reserved == ["change"]
        client.stop()


def test_large_messages_come_no_faster_than_their_bytes_may(scripted):
    """Else fifty clients who send nothing but a megabyte keep the event loop busy with JSON."""
    with scripted.viewer(()) as client:
        client.receive("session.created")
        (viewer,) = scripted.hub.viewers
        reserved = []
        viewer.byte_limit.reserve = lambda size: reserved.append(size) or 0.0
        client.send("input_video_frame.append", image="A" * 50_000)
        client.error()
        assert reserved[-1] > 50_000
