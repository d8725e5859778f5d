"""The live page's rules for tokens, headers, joins, cameras and starts."""

import json
import socket
import threading
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
from websockets.exceptions import InvalidStatus

from svlm_jax.cli.source_titles import url_title
from svlm_jax.errors import InputError
from svlm_jax.serve.broadcast import Broadcast, HistoryEntry
from svlm_jax.serve.caption_files import CaptionFiles
from svlm_jax.serve.http.access import Access, check_token
from svlm_jax.serve.http.middleware import HEADERS
from svlm_jax.serve.hub import Hub
from svlm_jax.serve.limits import Limits
from svlm_jax.serve.rate_limit import RateLimit
from svlm_jax.serve.sources.feed import mask_address
from svlm_jax.serve.sources.push_feed import PushFeed
from svlm_jax.stream.stream_settings import StreamSettings
from tests.serve.test_attacks import Now, upgraded
from tests.serve.test_server import jpeg
from tests.support import HANG, wait_until
from tests.support.serving import ServerThread, compiled, film, server, serving  # noqa: F401

# who may come in


def test_a_token_is_its_bytes():
    """Else a token with an accent works in the address bar and not in a script."""
    access = Access(token="sésame-öffne-dich")
    bearer = {"authorization": "Bearer " + "sésame-öffne-dich".encode().decode("latin-1")}  # as a server has header fields
    assert access.has_token(bearer, {}) and access.has_token({}, {"token": "sésame-öffne-dich"})
    assert access.has_token({"cookie": f"theme=dark; svlm_token={access.cookie}"}, {})
    for headers, query in (
        ({"authorization": "Bearer sésame"}, {}),
        ({}, {"token": "\udcff"}),
        ({"authorization": "Basic x"}, {}),
    ):
        assert not access.has_token(headers, query)


@pytest.mark.parametrize(
    ("token", "wrong"), [("secret", "6 characters"), ("two words, long enough", "blanks"), ("line\nbreak-line", "control")]
)
def test_tokens_that_can_be_guessed_or_not_be_sent_are_refused(token, wrong):
    with pytest.raises(InputError, match=wrong):
        check_token(token)
    assert check_token("wörter-und-zeichen")


@pytest.mark.parametrize("origin", ["http://[", "http://[::1", "//", "null", "http://evil.example", "javascript:x"])
def test_an_origin_of_any_form_is_refused_and_no_internal_error(origin):
    assert not Access().allows_origin(origin, "localhost:8000")


def test_malformed_origins_are_answered_and_counted(server):
    before = server.hub.metrics.value("svlm_refused_total", "origin")
    with pytest.raises(InvalidStatus, match="403"):
        server.viewer(additional_headers={"Origin": "http://["})
    assert server.hub.metrics.value("svlm_refused_total", "origin") == before + 1


@pytest.mark.parametrize(
    ("scheme", "headers", "secure"),
    [
        ("http", {"host": "localhost:8000"}, False),
        ("https", {"host": "localhost:8000"}, True),
        ("http", {"host": "proxy.example"}, True),
        ("http", {"host": "PROXY.example"}, True),
        ("http", {"host": "127.0.0.1:8000", "x-forwarded-proto": "https"}, True),
        ("http", {"host": "127.0.0.1:8000", "x-forwarded-proto": "https,http"}, True),
        ("http", {"host": "127.0.0.1:8000", "forwarded": 'for=192.0.2.1;proto="https"'}, True),
        ("http", {"host": "other.example", "x-forwarded-proto": "http"}, False),
    ],
)
def test_the_cookie_is_secure_where_the_browser_speaks_tls(scheme, headers, secure):
    """Else a browser that once was there over TLS sends it in the clear to whoever answers on port 80."""
    assert Access(token="t" * 12, origins=["https://proxy.example"]).is_secure(scheme, headers) == secure


def test_a_wrong_token_is_answered_late_and_a_missing_one_at_once(compiled, film):
    with serving(compiled, film, access=Access(token="t" * 12), limits=Limits(wrong_token_delay=0.7)) as server:
        began = time.monotonic()
        assert server.get("/metrics", Authorization="Bearer guess")[0] == 401
        assert time.monotonic() - began >= 0.7
        status, _, headers = server.get("/", Host="localhost", **{"X-Forwarded-Proto": "https"})
        assert status == 401 and headers["x-frame-options"] == "DENY"
        request = urllib.request.Request(server.http + "/?token=" + "t" * 12, headers={"X-Forwarded-Proto": "https"})

        class Stay(urllib.request.HTTPRedirectHandler):
            def redirect_request(self, *_: object) -> None:
                return None

        with pytest.raises(urllib.error.HTTPError) as moved:
            urllib.request.build_opener(Stay).open(request)
        with moved.value as answer:
            assert "Secure" in answer.headers["set-cookie"] and "HttpOnly" in answer.headers["set-cookie"]


def answered(server: ServerThread, request: bytes) -> tuple[int, dict[str, str]]:
    """Status and headers of an answer to bytes as they are."""
    with socket.create_connection(server.address, timeout=HANG) as raw:
        raw.sendall(request)
        received = b""
        while b"\r\n\r\n" not in received:
            data = raw.recv(65536)
            assert data, received
            received += data
    first, *fields = received.partition(b"\r\n\r\n")[0].decode().split("\r\n")
    return int(first.split()[1]), {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in fields)}


HOST = b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
SOCKET = b" HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
KEY = b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /" + HOST, 200),
        (b"HEAD /health" + HOST, 200),
        (b"GET /page.js" + HOST, 200),
        (b"GET /capture.js" + HOST, 200),
        (b"GET /a/b" + HOST, 404),
        (b"GET /health/" + HOST, 404),
        (b"POST /" + HOST + b"Content-Length: 0\r\n", 405),
        (b"GET /streams/aaaaaaaa.vtt" + HOST, 404),
        (b"GET /health HTTP/1.1\r\nHost: evil.example\r\n", 421),
        (b"nonsense\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 200_000 + b"\r\n", 400),
        (b"GET /v1/realtime" + SOCKET, 400),  # no key
        (b"GET /elsewhere" + SOCKET + KEY, 403),
        (b"GET /v1/realtime" + SOCKET + KEY + b"Origin: http://evil.example\r\n", 403),
    ],
)
def test_every_answer_has_the_headers(server, request_, status):
    """Also those that Starlette, uvicorn and the WebSocket library give."""
    code, headers = answered(server, request_ + b"\r\n")
    assert code == status
    assert {name.lower(): value for name, value in HEADERS.items()}.items() <= headers.items()


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "not_found"),
        ("GET", "/v1/streaming/sessions/a%2Fb", 404, "not_found"),
        ("DELETE", "/v1/events", 405, "method_not_allowed"),
        ("GET", "/v1/realtime", 426, "upgrade_required"),
    ],
)
def test_errors_of_the_api_have_the_form_of_openai_where_no_route_has_the_path_too(server, method, path, status, code):
    request = urllib.request.Request(server.http + path, method=method)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request)
    with refused.value as answer:
        error = json.loads(answer.read())["error"]
    assert (answer.code, error["code"]) == (status, code)
    assert set(error) == {"message", "type", "param", "code"}


def test_a_bug_of_a_route_ends_one_request_and_is_told_to_the_operator_alone(server, capfd, monkeypatch):
    monkeypatch.setattr(server.hub.metrics, "text", lambda gauges: 1 / 0)
    assert server.get("/metrics")[:2] == (500, "internal error of the server\n")
    assert "ZeroDivisionError" in capfd.readouterr().err
    assert server.get("/health")[0] == 200


def test_health_has_no_text_of_errors(compiled, film):
    with serving(compiled, film) as server, server.viewer() as first:
        first.receive("session.created")
        server.engine.error = "the engine broke: OSError: /home/somebody/secret"
        server.engine.playback.stop()
        server.engine.thread.join(timeout=HANG)
        status, text, _ = server.get("/health")
        assert status == 503 and json.loads(text)["error"] == "the engine broke"


def test_an_address_with_too_many_requests_waits(compiled, film):
    with serving(compiled, film, limits=Limits(max_viewers_per_address=1)) as server:
        server.server.site.connections.timer = Now()  # so that nothing is refilled
        statuses = [server.get("/health")[0] for _ in range(90)]
        assert statuses[:60] == [200] * 60 and 429 in statuses
        assert server.hub.metrics.value("svlm_refused_total", "rate_limit") > 0


# joins and starts


def test_a_rate_limit_refills_at_its_rate():
    clock = Now()
    limit = RateLimit(2, 3, clock)
    assert [limit.allow() for _ in range(4)] == [True, True, True, False] and not limit.is_full
    assert limit.reserve() == 0.5 and limit.reserve() == 1.0
    clock.second += 10
    assert limit.is_full and limit.reserve() == 0


def test_a_join_gets_the_last_entries_and_is_told_of_others():
    stream = Broadcast("a", "match", StreamSettings(), 21_600)
    said = (HistoryEntry.of("commentary", n, float(n), n + 1.0, text=f"said {n}", question="") for n in range(100, 30_000))
    stream.history.extend(said)
    for after, numbers, cut in ((-1, range(29_990, 30_000), True), (29_997, range(29_998, 30_000), False), (29_999, [], False)):
        lines, more = stream.missed_since(after, 10)
        assert [json.loads(line)["number"] for line in lines] == list(numbers) and more == cut
    assert stream.missed_since(2**52, 10) == ([], False)


def test_a_client_that_joins_too_often_is_not_read_meanwhile(server):
    with server.viewer() as owner, server.viewer() as other:
        name = owner.start(seed=21)
        other.receive("session.created")
        viewer = next(viewer for viewer in server.hub.viewers if not viewer.is_owner)
        reserved = []
        viewer.join_limit.reserve = lambda: reserved.append("join") or 0.0
        other.send("svlm.stream.join", stream=name)
        other.ask("why?")
        other.send("svlm.stream.join", stream=name)
        assert (
            other.receive("svlm.stream.joined")
            and other.receive("svlm.question.queued")
            and other.receive("svlm.stream.joined")
        )
        assert reserved == ["join", "join"]
        owner.stop()


def test_a_query_without_room_takes_no_place(server):
    """Else the stream starts, and ends at its first chunk; with one stream at a time everybody else waits for nothing."""
    with server.viewer() as first:
        for query in ("ж" * 300, "<|im_end|>"):
            first.send_start(svlm={"query": query})
            assert first.error().startswith("query: got")
            assert not server.engine.running
        first.start(svlm={"query": "Say what you see"})
        first.stop()


def test_no_more_sources_are_opened_than_can_run(server, monkeypatch):
    """Else sources that do not answer take every thread, and nobody can start anything."""
    released, opening = threading.Event(), threading.Semaphore(0)
    original = Hub._open

    def slow(hub: Hub, *rest: object) -> None:
        opening.release()
        released.wait(HANG)
        original(hub, *rest)

    monkeypatch.setattr(Hub, "_open", slow)
    with server.viewer() as first, server.viewer() as second, server.viewer() as third:
        for client in (first, second):
            client.send_start(seed=1)
            assert opening.acquire(timeout=HANG)
        third.send_start(seed=1)
        assert third.error().startswith("start: got all 2 streams in use")
        assert server.get("/streams/aaaaaaaa.vtt")[0] == 404  # meanwhile everything else goes on
        released.set()
        for client in (first, second):
            client.key = client.receive("svlm.stream.started")["key"]
            client.receive("svlm.stream.joined")
            client.stop()


def test_captions_are_written_once_for_all_requests(server, monkeypatch):
    written = []
    original = CaptionFiles._write

    def counted(files: CaptionFiles, stream: Broadcast, history: list[HistoryEntry]) -> None:
        before = stream.vtt
        original(files, stream, history)
        written.extend([1] if stream.vtt is not before else [])

    monkeypatch.setattr(CaptionFiles, "_write", counted)
    stream = server.hub.broadcasts["aaaaaaa1"] = Broadcast("aaaaaaa1", "match", StreamSettings(), 100)
    stream.end_reason, stream.end_time = "over", time.monotonic()
    stream.history.extend(HistoryEntry(n, float(n), n + 1.0, "wörter " * 3000, "", "{}") for n in range(20))
    texts = [server.get("/streams/aaaaaaa1.vtt")[1] for _ in range(5)]
    assert len(written) == 1 and len(set(texts)) == 1 and texts[0].count("-->") == 20 and "wörter" in texts[0]


# cameras and sources


def test_the_newest_image_counts_and_one_socket_sends(server, monkeypatch):
    """Else images queue up in threads, and a camera of eight sockets costs eight."""
    released, decoded = threading.Event(), []
    original = PushFeed._decode

    def slow(feed: PushFeed, data: bytes) -> np.ndarray:
        decoded.append(data)
        released.wait(HANG)
        return original(feed, data)

    monkeypatch.setattr(PushFeed, "_decode", slow)
    with server.viewer() as first, server.viewer() as second:
        name = first.start("push")
        several = [jpeg(64, 64, shade) for shade in range(5)]
        for data in several:
            first.socket.send(data)
        first.ask("what is it?")  # handled after the images
        first.receive("svlm.question.queued")
        second.send("svlm.stream.join", stream=name, key=first.key)
        assert second.receive("svlm.stream.joined")["is_owner"]
        first.socket.send(several[0])
        assert "second client" in first.error()
        released.set()
        first.receive("svlm.chunk.done")
        assert decoded == [several[0], several[-1]]
        first.stop()


@pytest.mark.parametrize("user", ["admin:hunter2", "admin:hun/ter2", "admin:hunter2@x", "hunter2"])
def test_no_password_of_a_source_is_written_anywhere(compiled, film, user, capfd):
    address = f"rtsp://{user}@127.0.0.1:9/cam?token=hunter2"
    with serving(compiled, film, allow_addresses=True) as server, server.viewer() as first:
        server.hub.catalog.listed.append((url_title(address), address))
        first.send_start("listed", index=3)
        assert "hunter2" not in first.error()
        first.send_start("address", address=address)
        assert "hunter2" not in first.error().replace("hun/ter2", "hunter2")
    err = capfd.readouterr().err.replace("hun/ter2", "hunter2")
    assert "hunter2" not in err and "127.0.0.1/cam" in err


def test_titles_show_no_user_no_password_no_key():
    camera = "rtsp://10.0.0.1:554/user=admin_password=hunter2_channel=1.sdp"
    assert url_title("rtsp://admin:hunter2@cam:554/1") == "cam/1" and "hunter2" not in url_title(camera)
    assert url_title("https://u:p#ss/w?rd@[::1]:80/live?key=hunter2") == "[::1]/live"
    assert mask_address("video rtsp://a:b@c/d: got x", "rtsp://a:b@c/d", "c/d") == "video c/d: got x"
    assert mask_address("no rtsp://a:b@c/d", "other", "t") == "no rtsp://c/d"


def test_a_stream_says_whether_it_is_a_game(server):
    """The page warns where the shipped model watches anything else."""
    server.hub.catalog.listed.append(("a game", "match:5"))
    try:
        with server.viewer() as viewer:
            for message, game in (
                ({"kind": "match"}, True),
                ({"kind": "listed", "index": 3}, True),
                ({"kind": "push"}, False),
            ):
                viewer.send_start(**message)
                viewer.key = viewer.receive("svlm.stream.started")["key"]
                assert viewer.receive("svlm.stream.joined")["is_game"] is game
                viewer.stop()
    finally:
        server.hub.catalog.listed.pop()


def test_a_socket_that_closes_while_it_waits_is_forgotten(server):
    """The bytes it sent before are no reason to keep it."""
    raw = upgraded(server)
    raw.close()
    wait_until(lambda: not server.hub.viewers)
