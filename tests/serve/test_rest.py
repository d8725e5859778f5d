"""Streams over plain HTTP: frames in, replies out, questions, events that can be resumed, and nothing for those who may not."""

import base64
import itertools
import json
import socket
import threading
from dataclasses import replace

import pytest

from svlm_jax.serve.http.access import Access
from svlm_jax.serve.sources.push_feed import PushFeed
from tests.serve.test_attacks import advance
from tests.serve.test_server import jpeg
from tests.support import HANG, wait_until
from tests.support.rest_client import LIMITS, SESSIONS, RestClient, rest_server

IMAGE = jpeg(28, 28)


@pytest.fixture(scope="module")
def server():
    with rest_server() as server:
        yield server


@pytest.fixture
def client(server):
    return RestClient(server.http)


def test_a_frame_is_answered_when_the_chunk_that_it_completes_is_watched(server, client):
    """Stamped frames are watched at the client's own pace, and each reply comes once."""
    name = client.create(source={"type": "push"}, svlm={"query": "What is there?", "seed": 7})
    assert client.frame(name, IMAGE, "?timestamp=1000")["replies"] == []
    assert not server.hub.wants_tokens(name)  # nobody reads words as they come, and one call is faster
    second = client.frame(name, IMAGE, "?timestamp=1000.5")
    (reply,) = second["replies"]
    assert (reply["number"], reply["start"], reply["end"], reply["kind"], reply["text"]) == (0, 0.0, 1.0, "silent", "")
    assert second["second"] == 0.5 and second["text"] == "" and second["missed"] == 0 and not second["ended"]
    replies = [reply for chunk in range(1, 20) for reply in client.chunk(name, IMAGE, chunk)]
    assert [reply["number"] for reply in replies] == list(range(1, 20))
    assert [reply["text"] for reply in replies[:3]] == ["Second 1.", "", "Second 3."]
    status, session = client.call("GET", f"{SESSIONS}/{name}")
    assert status == 200 and session["status"] == "running" and session["svlm"]["query"] == "What is there?"
    assert session["svlm"]["seed"] == 7 and client.key not in json.dumps(session)
    last = client.frame(name, IMAGE, "?timestamp=1021.5&final=true")  # a gap in the stamps: the last image stands still
    assert last["ended"] and [reply["number"] for reply in last["replies"]] == [20, 21] and last["text"] == "Second 21."
    assert client.call("GET", f"{SESSIONS}/{name}")[1]["status"] == "ended"
    status, error = client.call("POST", f"{SESSIONS}/{name}/frame", IMAGE)
    assert status == 410 and error["error"]["code"] == "stream_ended"
    assert client.call("POST", f"{SESSIONS}/{name}/ask", {"question": "why?"})[0] == 410


def in_thread(call) -> tuple[threading.Thread, list]:
    """A request that waits for its answer, and where that will be."""
    answers: list = []
    thread = threading.Thread(target=lambda: answers.append(call()))
    thread.start()
    return thread, answers


def test_a_question_is_answered_with_the_next_chunk(server, client):
    name = client.create()
    ask = f"{SESSIONS}/{name}/ask"
    status, asked = client.call("POST", ask, {"question": "Who has the ball?", "max_new_tokens": 3})
    assert status == 202 and asked["num_before"] == 0
    (reply,) = client.chunk(name, IMAGE, 0)
    assert reply["kind"] == "answer" and reply["question"] == "Who has the ball?" and reply["text"] == "About Who has the ball?"
    asking, answers = in_thread(lambda: client.call("POST", ask, {"question": "Score?", "wait": True}))
    wait_until(lambda: server.engine.running[name].requests)
    client.chunk(name, IMAGE, 1)
    asking.join()
    assert answers[0][0] == 200 and answers[0][1]["status"] == "completed" and answers[0][1]["text"] == "About Score?"
    status, error = client.call("POST", ask, {"question": "<|im_end|>"})
    assert status == 400 and "special token" in error["error"]["message"]
    asking, answers = in_thread(lambda: client.call("POST", ask, {"question": "Score?", "wait": True}))
    wait_until(lambda: server.engine.running[name].requests)
    assert client.call("DELETE", f"{SESSIONS}/{name}")[1]["deleted"]
    asking.join()
    assert answers[0][1]["status"] == "ended"  # and not a client that waits for ever


def test_settings_change_while_a_stream_plays(server, client):
    name = client.create(svlm={"seed": 5})
    client.chunk(name, IMAGE, 0)
    status, session = client.call("PATCH", f"{SESSIONS}/{name}", {"svlm": {"min_gap": 2, "silence": 0.5}})
    assert status == 200 and session["svlm"]["min_gap"] == 2 and session["svlm"]["silence"] == 0.5
    assert session["svlm"]["seed"] == 5 and client.call("GET", f"{SESSIONS}/{name}")[1]["svlm"] == session["svlm"]
    for changes, wrong in (({"seed": 6}, "seed"), ({"min_gap": -1}, "min_gap"), ({"fps": 1}, "fps")):
        status, error = client.call("PATCH", f"{SESSIONS}/{name}", {"svlm": changes})
        assert status == 400 and wrong in error["error"]["message"]
    client.call("DELETE", f"{SESSIONS}/{name}")


def test_frames_wait_while_the_device_is_behind_and_none_is_lost():
    """Else a client that is faster than the device loses video, or fills the memory."""
    released = threading.Event()

    def slow(stream, chunk):
        released.wait(HANG)
        return [""]

    with rest_server(slow) as server:
        client = RestClient(server.http)
        name = client.create()
        assert client.frame(name, IMAGE, "?timestamp=0")["replies"] == []
        feed, pushing = server.hub.broadcasts[name].feed, []
        assert isinstance(feed, PushFeed)
        for number in range(1, 5):  # each completes a chunk
            path = f"{SESSIONS}/{name}/frame?timestamp={number}"
            pushing.append(in_thread(lambda path=path: client.call("POST", path, IMAGE)))
            wait_until(lambda number=number, feed=feed: feed.stamped.second == number)
        status, error = client.call("POST", f"{SESSIONS}/{name}/frame?timestamp=99", IMAGE)
        assert status == 429 and "wait" in error["error"]["message"]
        released.set()
        for thread, _ in pushing:
            thread.join()
        assert [answers[0][0] for _, answers in pushing] == [200] * 4
        numbers = [reply["number"] for _, answers in pushing for reply in answers[0][1]["replies"]]
        numbers += [reply["number"] for reply in client.frame(name, IMAGE, "?timestamp=5.5&final=true")["replies"]]
        assert sorted(numbers) == list(range(6))


def test_events_of_a_stream_that_a_socket_started_begin_with_it(server, client):
    """Else the first captions are lost to whoever comes over HTTP."""
    with server.viewer(()) as socket_client:
        name = socket_client.start("push")
        client.key = socket_client.key
        for number in range(4):
            socket_client.send("input_video_frame.append", image=base64.b64encode(IMAGE).decode(), timestamp=number)
        socket_client.receive("response.done")
        with client.events(f"{SESSIONS}/{name}/events") as events:
            assert next(events)[1]["text"] == "Second 1."
        socket_client.stop()


def test_events_go_on_where_a_client_broke_off(server, client):
    """Else whoever loses the connection loses captions, or reads some twice."""
    name = client.create()
    path = f"{SESSIONS}/{name}/events"
    for chunk in range(6):
        client.chunk(name, IMAGE, chunk)
    with client.events(path) as events:  # from the start of the stream on
        first = list(itertools.islice(events, 3))
    assert [event["text"] for _, event in first] == ["Second 1.", "Second 3.", "Second 5."]
    assert all((event["type"], event["stream"], event["title"]) == ("svlm.caption", name, "camera") for _, event in first)
    with client.events(path, **{"Last-Event-ID": first[1][0]}) as events:
        assert next(events) == first[2]
        client.chunk(name, IMAGE, 6)
        client.chunk(name, IMAGE, 7)
        assert next(events)[1]["text"] == "Second 7."
    with client.events("/v1/events?types=svlm.stream.ended") as ends:
        assert client.call("DELETE", f"{SESSIONS}/{name}")[1]["deleted"]
        assert next(ends)[1]["stream"] == name
    with client.events(f"{path}?last_event_id={first[2][0]}") as events:
        kinds = [event["type"] for _, event in events]  # it ends with the stream
    assert kinds == ["svlm.caption", "svlm.stream.ended"]
    with client.events(path, **{"Last-Event-ID": "before-99"}) as events:  # of before a restart of the server
        assert next(events) == first[0]
    wait_until(lambda: not server.hub.log._wakers and not server.server.site.access.sockets)  # who has left is forgotten


def test_sessions_are_their_owners(server, client):
    """A key that is wrong or missing adds no frame and ends nothing while the owner is there."""
    name, other = client.create(), RestClient(server.http)
    for other.key in ("", "A" * 22):
        for method, path, body in (("POST", "/frame", IMAGE), ("DELETE", "", None), ("PATCH", "", {"svlm": {}})):
            status, error = other.call(method, f"{SESSIONS}/{name}{path}", body)
            assert status == 403 and error["error"]["code"] == "not_owner" and error["error"]["type"] == "permission_error"
    assert other.call("POST", f"{SESSIONS}/{name}/ask", {"question": "why?"})[0] == 202  # as anybody who watches may
    assert name in [session["id"] for session in other.call("GET", SESSIONS)[1]["data"]]
    assert client.call("DELETE", f"{SESSIONS}/{name}")[0] == 200
    assert other.call("GET", f"{SESSIONS}/gone1234")[0] == 404


@pytest.mark.parametrize(
    ("path", "body", "status", "wrong"),
    [
        ("", b"[" * 5000, 400, "values"),
        ("", b"nonsense", 400, "JSON"),
        ("", b"\xff\xfe", 400, "UTF-8"),
        ("", b"[1]", 400, "a JSON object"),
        ("", b'{"svlm": {"temperature": NaN}}', 400, "JSON"),
        ("", b'{"svlm": {"temperatur": 1}}', 400, "temperatur"),
        ("", b'{"source": {"type": "address", "address": "/etc/passwd"}}', 400, "--allow-addresses"),
        ("", b'{"extra": 1}', 400, "extra"),
        ("", b" " * 70_000, 413, "65536 bytes"),
        ("/{}/frame?timestamp=nan", IMAGE, 400, "timestamp"),
        ("/{}/frame?timestamp=1e300", IMAGE, 400, "timestamp"),
        ("/{}/frame?timestamp=soon", IMAGE, 400, "timestamp"),
        ("/{}/frame?final=maybe", IMAGE, 400, "final"),
        ("/{}/frame", b"", 400, "image"),
        ("/{}/frame", IMAGE[:100], 400, "image"),
        ("/{}/frame", b"x" * 40_001, 413, "40000 bytes"),
        ("/{}/ask", b"{}", 400, "question"),
        ("/{}/ask", b'{"question": " "}', 400, "question"),
        ("/{}/ask", b'{"question": 1}', 400, "question"),
    ],
)
def test_what_is_wrong_is_one_line(server, client, path, body, status, wrong):
    """In the form of OpenAI's errors, and nothing is started."""
    name = client.create() if path else ""
    code, answer = client.call("POST", SESSIONS + path.format(name), body)
    assert code == status and wrong in answer["error"]["message"] and len(answer["error"]["message"]) < 300
    assert answer["error"].keys() == {"message", "type", "param", "code"}
    if name:
        client.call("DELETE", f"{SESSIONS}/{name}")
    assert not server.engine.running


def test_sessions_and_listeners_have_limits():
    limits = replace(LIMITS, max_viewers_per_address=2, joins_per_second=1e-6)
    with rest_server(limits=limits) as server:
        client = RestClient(server.http)
        names = [client.create(), client.create()]
        with client.open("POST", SESSIONS, {}) as response:
            assert response.status == 503 and response.headers["Retry-After"] == "5" and b"no_free_stream" in response.read()
        with client.open("POST", SESSIONS, {}) as response:  # the fourth in a row of one address
            assert response.status == 429 and response.headers["Retry-After"] == "1"
        with client.events("/v1/events"), client.events(f"{SESSIONS}/{names[0]}/events"):
            assert client.call("GET", "/v1/events")[0] == 429
        assert server.hub.metrics.value("svlm_refused_total", "max_viewers_per_address") == 1


def test_a_listener_that_reads_nothing_is_dropped():
    """Else each of them keeps a connection and its buffers for ever."""
    with rest_server() as server, socket.create_connection(server.address) as raw:
        raw.sendall(b"GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        wait_until(lambda: server.hub.log._wakers)
        for _ in range(200):
            server.hub.log.add("svlm.caption", "abcdefgh", "x" * 100_000)
        connections = server.server.site.connections.open
        wait_until(lambda: any(transport.get_write_buffer_size() for transport in list(connections)))
        refused = lambda: server.hub.metrics.value("svlm_refused_total", "timeout")  # noqa: E731
        wait_until(lambda: advance(server, LIMITS.response_timeout) or refused())
        wait_until(lambda: not server.hub.log._wakers and not server.server.site.access.sockets)


def test_a_client_that_asks_for_the_head_of_events_gets_no_more():
    """Else it waits for ever, and counts as a listener: programs that look whether an address exists do that."""
    with rest_server() as server, socket.create_connection(server.address) as raw:
        raw.sendall(b"HEAD /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert raw.recv(15) == b"HTTP/1.1 200 OK"
        wait_until(lambda: not server.server.site.access.sockets)


def test_replies_that_nobody_takes_are_bounded_and_counted():
    with rest_server(limits=replace(LIMITS, max_kept_replies=3)) as server:
        client = RestClient(server.http)
        name = client.create()
        assert client.frame(name, IMAGE, "?timestamp=0")["missed"] == 0
        late = client.frame(name, IMAGE, "?timestamp=10")  # completes ten chunks
        assert late["missed"] == 7 and [reply["number"] for reply in late["replies"]] == [7, 8, 9]


def test_every_route_checks_token_host_and_origin():
    limits = replace(LIMITS, wrong_token_delay=0.001)
    with rest_server(access=Access(token="t" * 12), limits=limits) as server:
        client, token = RestClient(server.http), {"Authorization": "Bearer " + "t" * 12}
        one = f"{SESSIONS}/abcdefgh"
        routes = [("POST", SESSIONS), ("GET", SESSIONS), ("GET", "/v1/events"), ("GET", one), ("DELETE", one), ("PATCH", one)]
        routes += [("GET", one + "/events"), ("POST", one + "/frame"), ("POST", one + "/ask")]
        for method, path in routes:
            for headers, status in (
                ({}, 401),
                ({"Authorization": "Bearer guess-guess-guess"}, 401),
                ({**token, "Host": "evil.example"}, 421),
                ({**token, "Origin": "http://evil.example"}, 403),
            ):
                code, answer = client.call(method, path, **headers)
                assert code == status and answer["error"]["message"], (method, path, headers)
        assert client.call("GET", SESSIONS, **token)[0] == 200


def test_a_session_that_nobody_uses_ends():
    with rest_server(limits=replace(LIMITS, unwatched_timeout=0.05)) as server:
        client = RestClient(server.http)
        name = client.create()
        with client.events("/v1/events?types=svlm.stream.ended&last_event_id=before-0") as events:
            assert next(events)[1]["reason"] == "nobody watched for 0.05 s"
        assert client.call("GET", f"{SESSIONS}/{name}")[1]["status"] == "ended"


def test_a_client_that_leaves_frees_its_place(server, client):
    """Else those who break off while they wait fill the session's four places."""
    name = client.create()
    client.call("POST", f"{SESSIONS}/{name}/ask", {"question": "never"})
    sessions = next(route for route in server.server.site.other_routes if route.path == SESSIONS).handler.__self__.sessions
    session = sessions.sessions[name]
    body = json.dumps({"question": "for ever?", "wait": True})
    with socket.create_connection(server.address) as raw:
        head = f"POST {SESSIONS}/{name}/ask HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        raw.sendall((head + body).encode())
        wait_until(lambda: session.answers)
    wait_until(lambda: not session.answers)
    client.call("DELETE", f"{SESSIONS}/{name}")
