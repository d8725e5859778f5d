"""The live page: what viewers receive, what they may do, who is refused, how streams end. Real sockets on a free port."""

import asyncio
import io
import json
import socket
import time
import urllib.error
import urllib.request
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from websockets.exceptions import InvalidStatus

from svlm_jax.errors import InputError
from svlm_jax.inputs import Clip
from svlm_jax.media.pixels import PixelConfig, smart_resize
from svlm_jax.serve.broadcast import Broadcast, HistoryEntry
from svlm_jax.serve.engine.engine import Engine
from svlm_jax.serve.engine.reports import ChunkReport
from svlm_jax.serve.engine.running_stream import RunningStream
from svlm_jax.serve.engine.session import max_frame_patches
from svlm_jax.serve.http.access import Access
from svlm_jax.serve.hub import Hub
from svlm_jax.serve.limits import Limits
from svlm_jax.serve.metrics import Metrics
from svlm_jax.serve.server import listen
from svlm_jax.serve.sources.feed import FeedConfig
from svlm_jax.serve.sources.images import Box, decode_image
from svlm_jax.stream import sequence
from svlm_jax.stream.cache_view import KINDS
from svlm_jax.stream.events import Ended
from svlm_jax.stream.playback import Ready
from svlm_jax.stream.sequence import StreamSequence
from svlm_jax.stream.stream_settings import StreamSettings
from tests.cli.test_commands import refusal
from tests.support import HANG, wait_until
from tests.support.commands import command
from tests.support.pixels import STREAM_FRAME
from tests.support.serving import BOX, Client, ServerThread, compiled, film, server, serving  # noqa: F401


def test_captions_frames_and_the_cache_reach_two_viewers_alike(server):
    with server.viewer() as first, server.viewer() as second:
        assert first.receive("session.created")["session"]["svlm"]["server"]["sources"] == ["film.mp4", "gone.mp4", "hosts"]
        name = first.start(seed=7)
        second.send("svlm.stream.join", stream=name)
        joined = second.receive("svlm.stream.joined")
        assert not joined["is_owner"] and joined["title"] == "match 7" and joined["num_viewers"] == 2
        caption = first.receive("svlm.chunk.done", number=len(joined["missed"]))
        captions = [caption, *(first.receive("svlm.chunk.done") for _ in range(6))]
        assert [second.receive("svlm.chunk.done") for _ in captions] == captions
        assert [message["number"] for message in captions] == [*range(captions[0]["number"], captions[0]["number"] + 7)]
        for message in captions:
            cache = message["cache"]
            assert (
                abs(sum(length for _, length, _ in cache["retained"]) - message["used_slots"]) <= 2
            )  # the newest tokens have no slot
            assert message["latency_seconds"] > 0 and message["stage_ms"].keys() >= {"vision", "prefill", "decode"}
        last = captions[-1]
        assert last["cache"]["evicted"] and sum(kind == KINDS.index("vision") for kind, _, _ in last["cache"]["retained"]) == 3
        picture = second.receive("frame")
        assert Image.open(io.BytesIO(picture[8:])).size == BOX
        first.stop()


def test_a_question_goes_into_the_next_turn_and_special_tokens_are_refused(server):
    with server.viewer() as first, server.viewer() as second:
        name = first.start(seed=8)
        second.send("svlm.stream.join", stream=name)
        second.receive("svlm.chunk.done")
        second.ask("who scored?")
        assert second.receive("svlm.question.queued")["num_before"] == 0
        answered = first.receive("svlm.chunk.done", question="who scored?")
        sequence_ = stream_of(server, name)
        words = server.engine.session.turn_tokenizer.tokenizer.decode(sequence_.ids.tolist(), skip_special_tokens=False)
        assert f"Time={answered['start']:.1f}-{answered['end']:.1f}s who scored?" in words
        second.ask("<|im_end|>")
        assert "special token" in second.error()
        second.ask("ж" * 300)
        refused = first.receive("response.done")["response"]
        while refused["status"] != "failed":
            refused = first.receive("response.done")["response"]
        assert "questions retained" in refused["status_details"]["error"]["message"] and refused["output"] == []
        assert first.receive("svlm.chunk.done")["question"] == ""
        first.stop()


def test_a_query_that_does_not_fit_takes_no_place(server):
    """Else it takes the place of another stream, and ends in its first second with a line about a question."""
    with server.viewer() as first:
        first.send_start(svlm={"query": "ж" * 300})
        assert "query: got " in first.error()
        assert server.engine.num_free == 2


def test_programs_for_more_streams_are_compiled_beside_the_first_one(compiled, server):
    """Else the page is silent for minutes before its first viewer, or stops for them when a second one comes."""
    server.engine.compiler.join(HANG)
    assert server.engine.session.batch_sizes == (1, 2)


def test_a_turn_is_built_once_a_second_and_a_bad_chunk_ends_one_stream_alone(compiled, monkeypatch):
    published, turns, next_turn = [], [], sequence.next_turn
    monkeypatch.setattr(sequence, "next_turn", lambda *args: turns.append(1) or next_turn(*args))
    engine = Engine(*compiled, publish=published.append)
    feed = SimpleNamespace(metrics_label="film", error_line=str)
    engine.running = {name: RunningStream(name, feed, StreamSettings()) for name in "ab"}
    engine._admit()
    large = Clip(np.zeros((4 * engine.clip.patches.shape[0], 1176), np.uint8), (4, *engine.clip.grid[1:]), 1.0, video=True)
    engine._tick({"a": Ready(0.0, 0.5, engine.clip, "", 0.0), "b": Ready(0.0, 0.5, large, "", 0.0)})
    ends = [event for event in published if isinstance(event, Ended | ChunkReport)]
    assert [(event.stream, type(event)) for event in ends] == [("b", Ended), ("a", ChunkReport)] and len(turns) == 1


def stream_of(server: ServerThread, name: str) -> StreamSequence:
    return server.engine.runner.sequence(name)


def test_an_owner_who_reconnects_gets_what_was_missed_and_may_still_stop(server):
    with server.viewer() as owner:
        name = owner.start(seed=9)
        key, last = owner.key, owner.receive("svlm.chunk.done")["number"]
    wait_until(lambda: server.hub.broadcasts[name].history[-1].number >= last + 2)
    with server.viewer() as again, server.viewer() as other:
        again.send("svlm.stream.join", stream=name, after=last, key=key)
        joined = again.receive("svlm.stream.joined")
        numbers = [message["number"] for message in joined["missed"]]
        assert (
            joined["is_owner"]
            and not joined["is_truncated"]
            and numbers == [*range(last + 1, last + 1 + len(numbers))]
            and numbers
        )
        assert again.receive("svlm.chunk.done")["number"] == numbers[-1] + 1
        other.send("svlm.stream.join", stream=name)
        other.receive("svlm.stream.joined")
        other.send("svlm.stream.stop", key="wrong")
        assert other.error().startswith("stop: got a stream whose owner is present")
        status, text, headers = server.get(f"/streams/{name}.vtt")
        assert status == 200 and text.startswith("WEBVTT\n\n") and "00:00:00.000 --> 00:00:00.500" in text
        assert headers["content-type"].startswith("text/vtt") and f"{name}.vtt" in headers["content-disposition"]
        again.key = key
        again.stop()
        assert other.receive("svlm.stream.ended")["reason"] == "stopped by its viewer"
        other.send("svlm.stream.join", stream=name)
        assert other.receive("svlm.stream.joined")["end_reason"] == "stopped by its viewer"
    assert server.get("/streams/aaaaaaaa.vtt")[0] == 404


def test_a_listed_file_ends_and_its_place_is_free_again(server):
    with server.viewer() as first:
        first.start("listed", index=0)
        assert first.receive("svlm.stream.ended")["reason"] == "the video is over"
        first.send_start("listed", index=1)
        assert "/secret" not in first.error()
        first.send_start("listed", index=2)
        assert first.end_reason() == "the source does not play; whoever runs the server sees why"
        first.send_start("address", address="/etc/passwd")
        assert "--allow-addresses" in first.error()


def test_streams_are_limited_and_unwatched_streams_end(server):
    with server.viewer() as first, server.viewer() as second, server.viewer() as third:
        names = [first.start(), second.start()]
        third.send_start()
        assert third.error() == (
            "start: got all 2 streams in use, expected a free one; join a running stream, or wait until one ends"
        )
        running = [message["stream"] for message in third.receive("svlm.streams", num_streams=2)["streams"]]
        assert running in (names, names[:1], [])
        second.send("svlm.stream.leave")
        wait_until(lambda: not server.hub.broadcasts[names[1]].viewers)
        server.hub.loop.call_soon_threadsafe(server.hub._end_unwatched, time.monotonic() + HANG)
        wait_until(lambda: names[1] not in server.engine.running)
        assert names[0] in server.engine.running
        third.start()
        third.stop()
        first.stop()


def jpeg(width: int, height: int, shade: int = 90, form: str = "JPEG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height), (shade, shade, 255 - shade)).save(out, form)
    return out.getvalue()


def test_a_camera_is_watched_until_it_is_silent_and_bad_images_are_refused(server):
    with server.viewer() as first, server.viewer() as second:
        name = first.start("push")
        second.send("svlm.stream.join", stream=name)
        second.receive("svlm.stream.joined")
        for form in ("JPEG", "PNG"):
            first.socket.send(jpeg(320, 240, form=form))
        assert first.receive("svlm.chunk.done")["number"] == 0
        assert Image.open(io.BytesIO(second.receive("frame")[8:])).size == (149, 112)
        second.socket.send(jpeg(64, 64))
        assert "another stream" in second.error()
        for data, wrong in ((b"GIF89a" + bytes(40), "UnidentifiedImageError"), (jpeg(640, 32), "sides within"), (b"", "got")):
            first.socket.send(data)
            assert wrong in first.error()
        server.hub.broadcasts[name].feed.max_silence = 0
        assert "no image from the camera" in first.receive("svlm.stream.ended")["reason"]


@pytest.mark.parametrize(
    ("width", "height", "limits", "wrong"),
    [(64, 64, Limits(max_image_bytes=100), "at most 100"), (400, 300, Limits(max_image_pixels=1000), "at most 1000 px")],
)
def test_images_have_limits(width, height, limits, wrong):
    with pytest.raises(InputError, match=wrong):
        decode_image(jpeg(width, height), limits, BOX)
    with pytest.raises(InputError, match="that can be read"):
        decode_image(jpeg(width, height)[:-100], Limits(), BOX)


def test_invalid_huge_and_slow_clients_are_disconnected_and_nobody_else_notices(server):
    with server.viewer() as good, server.viewer() as garbage, server.viewer() as huge:
        name = good.start(seed=11)
        for line in ("{", "[]", '{"type": "fly"}', '{"type": "conversation.item.create"}'):
            garbage.socket.send(line)
        assert garbage.error().startswith("message: got no JSON")
        assert garbage.close_reason() == (1008, "too many invalid messages")
        huge.ask("a" * 100_000)
        assert huge.close_reason()[0] == 1009
        with slow_viewer(server, name):
            watching = server.hub.broadcasts[name].viewers
            wait_until(lambda: len(watching) == 2)
            (slow,) = (viewer for viewer in watching if not viewer.is_owner)
            slow.limits = replace(slow.limits, send_timeout=0.1)
            last = good.receive("svlm.chunk.done")["number"]
            while slow in watching:
                server.hub.loop.call_soon_threadsafe(flood, server, name)
                last += 1
                assert good.receive("svlm.chunk.done", number=last)
        assert server.metric('svlm_refused_total{reason="slow_client"}') >= 1
        good.stop()


def slow_viewer(server: ServerThread, name: str) -> socket.socket:
    """A viewer who joins a stream and never reads."""
    host, port = server.address
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.connect((host, port))
    head = (
        f"GET /v1/realtime?stream={name} HTTP/1.1\r\nHost: {host}:{port}\r\n"
        "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    )
    raw.sendall(f"{head}Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode())
    assert raw.recv(12) == b"HTTP/1.1 101"
    data = json.dumps({"type": "session.update", "session": {"svlm": {"subscribe": ["video"]}}}).encode()
    raw.sendall(bytes([0x81, 0x80 | len(data), 0, 0, 0, 0]) + data)  # masked with zeros
    return raw


def flood(server: ServerThread, name: str) -> None:
    """More frames than the kernel stores for a client that does not read."""
    for _ in range(4):
        server.hub._on_frame(name, bytes(200_000))


def test_token_origin_and_host(compiled, film):
    with serving(compiled, film, access=Access(token="sésame")) as server:
        assert server.get("/")[0] == 401 and server.get("/streams/aaaaaaaa.vtt")[0] == 401
        assert server.get("/metrics")[0] == 401 and server.get("/health")[0] == 200
        assert server.get("/metrics", Authorization="Bearer wrong")[0] == 401
        with pytest.raises(InvalidStatus, match="401"):
            server.viewer()
        cookie = {"Cookie": f"svlm_token={server_cookie('sésame')}"}
        status, page, headers = server.get("/", **cookie)
        assert status == 200 and "page.js" in page
        assert "default-src 'none'" in headers["content-security-policy"] and headers["x-content-type-options"] == "nosniff"
        with server.viewer(additional_headers=cookie) as first:
            first.receive("session.created")
        with pytest.raises(InvalidStatus, match="403"):
            server.viewer(additional_headers={**cookie, "Origin": "https://evil.example"})
        with server.viewer(additional_headers={**cookie, "Origin": server.http}) as first:
            first.receive("session.created")
        assert server.get("/health", Host="evil.example")[0] == 421
        address = server.address
        with socket.create_connection(address) as raw, pytest.raises(InvalidStatus, match="421"):
            Client("ws://evil.example/v1/realtime", sock=raw, additional_headers={"Origin": "http://evil.example"})

        class Stay(urllib.request.HTTPRedirectHandler):
            def redirect_request(self, *_: object) -> None:
                return None

        with pytest.raises(urllib.error.HTTPError) as moved:
            urllib.request.build_opener(Stay).open(server.http + "/?token=s%C3%A9same")
        with moved.value as answer:
            assert answer.code == 303 and answer.headers["location"] == "/"
            assert "HttpOnly" in answer.headers["set-cookie"] and "same" not in answer.headers["set-cookie"].split(";")[0]


def server_cookie(token: str) -> str:
    return Access(token=token).cookie


def test_viewers_have_limits(compiled, film):
    limits = Limits(max_viewers=2, max_viewers_per_stream=1, max_viewers_per_address=2)
    with serving(compiled, film, limits=limits) as server, server.viewer() as first, server.viewer() as second:
        with pytest.raises(InvalidStatus, match="503"):
            server.viewer()
        name = first.start()
        second.send("svlm.stream.join", stream=name)
        assert second.error() == "join: got 1 viewers, expected fewer; come back later"
    limits = Limits(max_viewers_per_address=1)
    with serving(compiled, film, limits=limits) as server, server.viewer(), pytest.raises(InvalidStatus, match="429"):
        server.viewer()


def test_health_and_metrics(server):
    status, text, _ = server.get("/health")
    report = json.loads(text)
    assert status == 200 and report["ok"] and report["num_streams"] == 2
    with server.viewer() as first:
        first.start(seed=3)
        first.receive("svlm.chunk.done")
        assert server.metric("svlm_running_streams") == 1 and server.metric("svlm_viewers") >= 1
        assert server.metric("svlm_chunks_total") >= 1 and server.metric('svlm_step_seconds_bucket{le="+Inf"}') >= 1
        assert server.metric('svlm_sent_bytes_total{kind="text"}') > 100
        first.stop()


def test_a_broken_engine_is_reported_and_the_server_goes_on(compiled, film, capfd):
    with serving(compiled, film) as server, server.viewer() as first:
        first.start()
        first.receive("svlm.chunk.done")
        server.engine._tick = lambda ready: 1 / 0
        assert first.receive("svlm.stream.ended")["reason"] == "the engine broke: ZeroDivisionError: division by zero"
        server.engine.thread.join(timeout=HANG)
        status, text, _ = server.get("/health")
        assert status == 503 and json.loads(text)["error"] == "the engine broke"
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_viewers_get_a_reason_when_the_server_stops(compiled, film):
    with serving(compiled, film) as server, server.viewer() as first:
        first.start()
        server.stop()
        assert first.receive("svlm.stream.ended")["reason"] == "the server is stopping"
        assert first.close_reason() == (1001, "the server is stopping")
        log = server.hub.log  # who listens over HTTP, or by a webhook, has it too
        assert log.read(log.next_number - 1)[0][0].kind == "svlm.stream.ended"


def test_a_long_history_says_where_it_starts():
    hub = Hub(FeedConfig(2, 1, BOX), limits=Limits(history_seconds=10), metrics=Metrics())
    channel = hub.broadcasts["a"] = Broadcast("a", "match", StreamSettings(), 10)
    channel.history.extend(HistoryEntry(n, float(n), n + 1.0, f"said {n}", "", "{}") for n in range(25))
    text = asyncio.run(hub.vtt("a"))
    assert text.startswith("WEBVTT\n\nNOTE cut:") and "before 15.0 s" in text
    assert text.count("-->") == 10 and "said 24" in text


@pytest.mark.parametrize(
    "config",
    [
        STREAM_FRAME,
        PixelConfig(min_pixels=28 * 28 * 4, max_pixels=28 * 28 * 40),
        PixelConfig(min_pixels=32 * 32 * 100, max_pixels=32 * 32 * 768, patch_size=16),
    ],
)
def test_no_frame_in_the_box_needs_more_patches_than_the_session_has(config):
    box = Box(672, 448)
    max_patches = max_frame_patches(config, box)
    for width, height in np.random.default_rng(0).integers(28, (673, 449), (2000, 2)):
        if max(width, height) <= 4 * min(width, height):
            rows, columns = smart_resize(int(height), int(width), config)
            assert rows * columns // config.patch_size**2 <= max_patches


def test_bad_flags_and_a_port_in_use_are_one_line(shallow_dir, processor_dir, tmp_path):
    model = ("--model", shallow_dir, "--processor", processor_dir)
    with listen("127.0.0.1", 0) as bound:
        port = bound.getsockname()[1]
        cases = {
            ("--port", port): "--port: got",
            ("--host", "0.0.0.0"): "--host: got 0.0.0.0 without a token",
            ("--size", "big"): "--size: got big",
            ("--num-streams", 0): "--num-streams: got 0",
            ("--port", 0, "--source", tmp_path / "none.mp4"): "no such file",
            ("--port", 0, "--source", __file__): "test_server.py: got",
        }
        for flags, expected in cases.items():
            assert expected in refusal(command("serve", *model, *flags)), flags
