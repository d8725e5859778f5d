"""The live page's rules for tokens, headers, joins, cameras and starts."""

import json
import socket
import threading
import time
import urllib.error
import urllib.request

import pytest
from websockets.exceptions import InvalidStatus

from svlm_jax.cli.serve import _place
from svlm_jax.errors import InputError
from svlm_jax.serve import channel
from svlm_jax.serve.access import Access, check_token
from svlm_jax.serve.allowance import Allowance
from svlm_jax.serve.channel import Channel, Said
from svlm_jax.serve.feed import CameraFeed, masked
from svlm_jax.serve.guard import HEADERS
from svlm_jax.serve.hub import Hub
from svlm_jax.serve.limits import Limits
from tests.serve.test_attacks import Now, upgraded
from tests.serve.test_server import jpeg
from tests.support.serving import Server, compiled, film, server, serving  # noqa: F401

# who may come in


def test_a_token_is_its_bytes():
    """Else a token with an accent works in the address bar and not in a script."""
    access = Access(token="sésame-öffne-dich")
    sent = {"authorization": "Bearer " + "sésame-öffne-dich".encode().decode("latin-1")}  # as a server has header fields
    assert access.known(sent, {}, {}) and access.known({}, {}, {"token": "sésame-öffne-dich"})
    assert access.known({}, {"svlm_token": access.cookie}, {})
    for headers, query in (
        ({"authorization": "Bearer sésame"}, {}),
        ({}, {"token": "\udcff"}),
        ({"authorization": "Basic x"}, {}),
    ):
        assert not access.known(headers, {}, query)


@pytest.mark.parametrize(
    ("token", "wrong"), [("secret", "6 characters"), ("two words, long enough", "blanks"), ("line\nbreak-line", "control")]
)
def test_tokens_that_can_be_guessed_or_not_be_sent_are_refused(token, wrong):
    with pytest.raises(InputError, match=wrong):
        check_token(token)
    assert check_token("wörter-und-zeichen")


@pytest.mark.parametrize("origin", ["http://[", "http://[::1", "//", "null", "http://evil.example", "javascript:x"])
def test_an_origin_of_any_form_is_refused_not_a_mistake_of_ours(origin):
    assert not Access().origin(origin, "localhost:8000")


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
    assert Access(token="t" * 12, origins=["https://proxy.example"]).secure(scheme, headers) == secure


def test_a_wrong_token_is_answered_late_and_a_missing_one_at_once(compiled, film):
    with serving(compiled, film, access=Access(token="t" * 12), limits=Limits(wrong_token=0.7)) as server:
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


def answered(server: Server, request: bytes) -> tuple[int, dict[str, str]]:
    """Status and headers of an answer to bytes as they are."""
    with socket.create_connection(server.serving.bound.getsockname()[:2], timeout=20) as raw:
        raw.sendall(request)
        found = b""
        while b"\r\n\r\n" not in found:
            data = raw.recv(65536)
            assert data, found
            found += data
    first, *fields = found.partition(b"\r\n\r\n")[0].decode().split("\r\n")
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
        (b"GET /ws" + SOCKET, 400),  # no key
        (b"GET /elsewhere" + SOCKET + KEY, 403),
        (b"GET /ws" + SOCKET + KEY + b"Origin: http://evil.example\r\n", 403),
    ],
)
def test_every_answer_has_the_headers(server, request_, status):
    """Also those that Starlette, uvicorn and the WebSocket library give."""
    code, headers = answered(server, request_ + b"\r\n")
    assert code == status
    assert {name.lower(): value for name, value in HEADERS.items()}.items() <= headers.items()


def test_health_tells_no_text_from_elsewhere(compiled, film):
    with serving(compiled, film) as server, server.viewer() as one:
        one.hear("hello")
        server.engine.error = "the engine broke: OSError: /home/somebody/secret"
        server.engine.stopping = True
        server.engine.thread.join(timeout=20)
        status, text, _ = server.get("/health")
        assert status == 503 and json.loads(text)["error"] == "the engine broke"


def test_an_address_that_asks_too_often_waits(compiled, film):
    with serving(compiled, film, limits=Limits(sockets_an_address=1)) as server:
        statuses = [server.get("/health")[0] for _ in range(90)]
        assert statuses[:60] == [200] * 60 and 429 in statuses
        assert server.hub.metrics.value("svlm_refused_total", "requests") > 0


# joins and starts


def test_an_allowance_fills_at_its_rate():
    now = Now()
    one = Allowance(2, 3, now)
    assert [one.take() for _ in range(4)] == [True, True, True, False] and not one.full
    assert one.debt() == 0.5 and one.debt() == 1.0
    now.second += 10
    assert one.full and one.debt() == 0


def test_a_join_costs_the_same_after_six_hours(monkeypatch):
    """Else thirty clients who join again and again stop everybody's captions."""
    calls = []
    monkeypatch.setattr(channel, "_line", lambda said: calls.append(said) or json.dumps(said.line()))
    one = Channel("a", "match", 21_600)
    one.history.extend(Said(n, float(n), n + 1.0, f"said {n}", "", 0) for n in range(100, 30_000))
    for after, numbers, cut in ((-1, range(29_990, 30_000), True), (29_997, range(29_998, 30_000), False), (29_999, [], False)):
        lines, more = one.since(after, 10)
        assert [json.loads(line)["number"] for line in lines] == list(numbers) and more == cut
    assert one.since(2**52, 10) == ([], False)
    assert len(calls) == 12


def test_a_client_that_joins_too_often_is_not_read_meanwhile(server):
    with server.viewer() as one, server.viewer() as other:
        name = one.start(seed=21)
        other.hear("hello")
        viewer = next(one for one in server.hub.viewers if not one.owner)
        owed = []
        viewer.joins.debt = lambda: owed.append("join") or 0.0
        for message in (
            {"type": "join", "stream": name},
            {"type": "ask", "question": "why?"},
            {"type": "join", "stream": name},
        ):
            other.socket.send(json.dumps(message))
        assert other.hear("joined") and other.hear("asked") and other.hear("joined")
        assert owed == ["join", "join"]
        one.stop()


def test_a_query_without_room_takes_no_row(server):
    """Else the stream starts, and ends at its first chunk; with one row everybody else waits for nothing."""
    with server.viewer() as one:
        for query in ("ж" * 300, "<|im_end|>"):
            one.say("start", source="match", query=query)
            assert one.hear("error")["error"].startswith("query: got")
            assert not server.engine.running
        one.start(source="match", query="Say what you see")
        one.stop()


def test_no_more_sources_are_opened_than_there_are_rows(server, monkeypatch):
    """Else sources that do not answer take every thread, and nobody can start anything."""
    held, opening = threading.Event(), threading.Semaphore(0)
    usual = Hub._open

    def slow(hub: Hub, *rest: object) -> None:
        opening.release()
        held.wait(20)
        usual(hub, *rest)

    monkeypatch.setattr(Hub, "_open", slow)
    with server.viewer() as one, server.viewer() as two, server.viewer() as three:
        for client in (one, two):
            client.say("start", seed=1)
            assert opening.acquire(timeout=20)
        three.say("start", seed=1)
        assert three.hear("error")["error"].startswith("start: got all 2 rows taken")
        assert server.get("/streams/aaaaaaaa.vtt")[0] == 404  # meanwhile everything else goes on
        held.set()
        for client in (one, two):
            client.key = client.hear("started")["key"]
            client.hear("joined")
            client.stop()


def test_captions_are_written_once_for_all_who_ask(server, monkeypatch):
    made = []
    usual = Hub._write

    def counted(hub: Hub, one: Channel, history: list[Said]) -> None:
        before = one.vtt
        usual(hub, one, history)
        made.extend([1] if one.vtt is not before else [])

    monkeypatch.setattr(Hub, "_write", counted)
    one = server.hub.channels["aaaaaaa1"] = Channel("aaaaaaa1", "match", 100)
    one.over, one.ended = "over", time.monotonic()
    one.history.extend(Said(n, float(n), n + 1.0, "wörter " * 3000, "", 0) for n in range(20))
    texts = [server.get("/streams/aaaaaaa1.vtt")[1] for _ in range(5)]
    assert len(made) == 1 and len(set(texts)) == 1 and texts[0].count("-->") == 20 and "wörter" in texts[0]


# cameras and sources


def test_the_newest_picture_counts_and_one_socket_sends(server, monkeypatch):
    """Else pictures queue up in threads, and a camera of eight sockets costs eight."""
    held, put = threading.Event(), []
    usual = CameraFeed.put

    def slow(feed: CameraFeed, data: bytes) -> None:
        put.append(data)
        held.wait(20)
        usual(feed, data)

    monkeypatch.setattr(CameraFeed, "put", slow)
    with server.viewer() as one, server.viewer() as two:
        name = one.start(source="webcam")
        several = [jpeg(64, 64, shade) for shade in range(5)]
        for data in several:
            one.socket.send(data)
        one.say("ask", question="is it there?")  # heard after the pictures
        one.hear("asked")
        two.say("join", stream=name, key=one.key)
        assert two.hear("joined")["owner"]
        one.socket.send(several[0])
        assert "second page" in one.hear("error")["error"]
        held.set()
        one.hear("caption")
        assert put == [several[0], several[-1]]
        one.stop()


@pytest.mark.parametrize("user", ["admin:hunter2", "admin:hun/ter2", "admin:hunter2@x", "hunter2"])
def test_no_password_of_a_source_is_written_anywhere(compiled, film, user, capfd):
    address = f"rtsp://{user}@127.0.0.1:9/cam?token=hunter2"
    with serving(compiled, film, addresses=True) as server, server.viewer() as one:
        server.hub.sources.append((_place(address), address))
        one.say("start", source="listed", number=3)
        assert "hunter2" not in one.hear("error")["error"]
        one.say("start", source="address", address=address)
        assert "hunter2" not in one.hear("error")["error"].replace("hun/ter2", "hunter2")
    err = capfd.readouterr().err.replace("hun/ter2", "hunter2")
    assert "hunter2" not in err and "127.0.0.1/cam" in err


def test_titles_show_no_user_no_password_no_key():
    camera = "rtsp://10.0.0.1:554/user=admin_password=hunter2_channel=1.sdp"
    assert _place("rtsp://admin:hunter2@cam:554/1") == "cam/1" and "hunter2" not in _place(camera)
    assert _place("https://u:p#ss/w?rd@[::1]:80/live?key=hunter2") == "[::1]/live"
    assert masked("video rtsp://a:b@c/d: got x", "rtsp://a:b@c/d", "c/d") == "video c/d: got x"
    assert masked("no rtsp://a:b@c/d", "other", "t") == "no rtsp://c/d"


def test_a_game_says_that_it_is_one(server):
    """The page warns where the shipped model watches anything else."""
    server.hub.sources.append(("a game", "match:5"))
    try:
        with server.viewer() as one:
            for message, game in (
                ({"source": "match"}, True),
                ({"source": "listed", "number": 3}, True),
                ({"source": "webcam"}, False),
            ):
                one.say("start", **message)
                one.key = one.hear("started")["key"]
                assert one.hear("joined")["game"] is game
                one.stop()
    finally:
        server.hub.sources.pop()


def test_a_socket_that_closes_while_it_waits_is_let_go(server):
    """The bytes it sent before are no reason to keep it."""
    raw = upgraded(server)
    raw.close()
    until = time.monotonic() + 20
    while server.hub.viewers:
        assert time.monotonic() < until
        time.sleep(0.02)
