"""What the page does with messages of the server, in a headless Chromium whose socket is the test: no model, no server.

Another origin than the server's never matters here: the three files come from the server's own folder.
"""

import functools
import http.server
import json
import threading
from importlib import resources
from pathlib import Path

import pytest

from svlm_jax.serve.middleware import HEADERS
from tests.support.browser import Browser, Tab, chromium

pytestmark = pytest.mark.skipif(chromium() is None, reason="needs chromium on the PATH")
SOCKET = """window.sockets = []; window.sent = [];
window.WebSocket = class { constructor() { this.readyState = 1; window.sockets.push(this); }
  send(data) { window.sent.push(typeof data === "string" ? JSON.parse(data) : { type: "image" }); } close() {} };
window.spoken = []; speechSynthesis.speak = (words) => window.spoken.push(words.text);"""
HELLO = {
    "type": "hello",
    "cache_kinds": ["system", "sink", "window", "user", "vision", "reply"],
    "sources": ["film.mp4"],
    "allow_addresses": False,
    "chunk_seconds": 1,
    "camera": {"fps": 4, "max_bytes": 250_000, "width": 160, "height": 120},
    "max_question_chars": 300,
    "default_query": "Say what you see",
    "model": "touchline",
    "is_game_model": True,
    "settings": [["temperature", "0"]],
}
JOINED = {
    "type": "joined",
    "stream": "abcdefgh",
    "title": "match 1",
    "num_viewers": 1,
    "seconds": 0,
    "end_reason": "",
    "is_game": True,
}
JOINED |= {"source": "match", "is_owner": True, "missed": [], "is_truncated": False, "last_caption": None}


class Files(http.server.SimpleHTTPRequestHandler):
    def end_headers(self) -> None:
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def address():
    with resources.as_file(resources.files("svlm_jax.serve") / "page") as folder:
        handler = functools.partial(Files, directory=str(folder))
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield f"http://127.0.0.1:{server.server_port}/"
            server.shutdown()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def tab(address, browser):
    with browser.open("about:blank") as tab:
        tab.call("Page.addScriptToEvaluateOnNewDocument", source=SOCKET)
        tab.size(390, 844, mobile=True)
        tab.call("Page.navigate", url=address)
        tab.wait("window.sockets?.length && window.sockets[0].onmessage")
        send(tab, **HELLO)
        send(tab, type="streams", streams=[], num_streams=1, num_viewers=1)
        yield tab
        assert tab.complaints == []


def send(tab: Tab, **message) -> None:
    tab.run(f"window.sockets[0].onmessage({{ data: {json.dumps(json.dumps(message))} }})")


def caption(tab: Tab, number: int, text: str = "", question: str = "", factor: float = 2.0, retained: int = 100) -> None:
    cache = {"retained": [[0, 10, None], [4, retained - 10, float(number)]], "evicted": []}
    measurements = {"latency_seconds": 0.1, "realtime_factor": factor, "stage_ms": {"vision": 1, "prefill": 2, "decode": 3}}
    entry = {"number": number, "start": float(number), "end": number + 1.0, "text": text, "question": question, "note": ""}
    counts = {"dropped_total": 0, "used_slots": retained, "capacity": 2048}
    send(tab, type="caption", stream="abcdefgh", cache=cache, **entry, **measurements, **counts)


def words(tab: Tab, selector: str) -> str:
    return tab.run(f"document.querySelector({json.dumps(selector)}).textContent")


def visible(tab: Tab, selector: str) -> bool:
    return tab.run(f"document.querySelector({json.dumps(selector)}).getClientRects().length > 0")


def test_the_shipped_model_says_what_it_knows(tab):
    """Else a newcomer's own first video looks like a broken program."""
    send(tab, **JOINED)
    assert not visible(tab, "#gameonly")
    send(tab, **{**JOINED, "stream": "bcdefghi", "is_game": False, "title": "film.mp4", "source": "listed"})
    assert visible(tab, "#gameonly") and "knows only the generated game; start with --model" in words(tab, "#gameonly")
    send(tab, **{**HELLO, "is_game_model": False})
    send(tab, **{**JOINED, "is_game": False, "source": "listed"})
    assert not visible(tab, "#gameonly")


def test_a_question_that_is_answered_with_silence_has_an_answer(tab):
    send(tab, **JOINED)
    caption(tab, 0, "Welcome.")
    caption(tab, 1, "", "Who scored?")
    assert tab.run("document.querySelectorAll('#log li.answer').length") == 0  # it may come with the next second
    caption(tab, 2)
    assert words(tab, "#log li.answer p") == "(nothing)"
    caption(tab, 3, "Reds.", "And now?")
    caption(tab, 4, "Goal!")
    assert tab.run("[...document.querySelectorAll('#log li.answer p')].map((item) => item.textContent)") == [
        "(nothing)",
        "Reds.",
    ]
    caption(tab, 5, "", "First?")
    caption(tab, 6, "", "Second?")
    send(tab, type="ended", stream="abcdefgh", reason="over")
    assert tab.run("document.querySelectorAll('#log li.silent').length") == 3


@pytest.mark.parametrize(
    ("factor", "value", "verdict"), [(0.5, "0.5", "slow"), (0.99, "1.0", "keeps up"), (12.4, "12", "keeps up")]
)
def test_the_verdict_on_real_time_is_true(tab, factor, value, verdict):
    send(tab, **JOINED)
    caption(tab, 0, factor=factor)
    assert words(tab, "#speed") == value and verdict in words(tab, "#pace") and "faster" not in words(tab, "#pace")


def test_after_a_stop_everything_can_be_started_again(tab):
    """Else who stops a camera sits before a black picture that says "watching, yours"."""
    tab.run("document.querySelector('#quickcamera').click()")
    tab.wait("window.sent.some((message) => message.type === 'start' && message.source === 'camera')")
    send(tab, type="started", stream="abcdefgh", key="k")
    send(tab, **{**JOINED, "source": "camera", "title": "camera", "is_game": False})
    tab.wait("window.sent.some((message) => message.type === 'image')")
    assert visible(tab, "#camera") and words(tab, "#title") == "My camera" and "yours" in words(tab, "#subtitle")
    send(tab, type="ended", stream="abcdefgh", reason="stopped by its viewer")
    assert not visible(tab, "#camera") and visible(tab, "#quickcamera") and visible(tab, "#start")
    assert "yours" not in words(tab, "#subtitle") and "watching" not in words(tab, "#subtitle")
    assert not visible(tab, "#gameonly") and not visible(tab, "#stop")
    assert tab.run("document.querySelector('#camera').srcObject.getTracks()[0].readyState") == "ended"
    tab.run("document.querySelector('#quickcamera').click()")
    tab.wait("window.sent.filter((message) => message.type === 'start').length === 2")


def test_a_video_file_is_played_and_only_pictures_of_it_are_sent(tab, film_file):
    tab.run("document.querySelector('#source').value = 'file'")
    tab.run("document.querySelector('#source').dispatchEvent(new Event('change'))")
    root = tab.call("DOM.getDocument")["root"]["nodeId"]
    node = tab.call("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]
    tab.run("document.querySelector('#starter').open = true")
    assert visible(tab, "#file")
    tab.call("DOM.setFileInputFiles", files=[str(film_file)], nodeId=node)
    tab.run("document.querySelector('#start').requestSubmit()")
    tab.wait("window.sent.some((message) => message.type === 'start' && message.source === 'camera')")
    assert not tab.run("window.sent.some((message) => message.type === 'image')")  # it waits until the stream has started
    send(tab, type="started", stream="abcdefgh", key="k")
    send(tab, **{**JOINED, "source": "camera", "title": "camera"})
    tab.wait("window.sent.some((message) => message.type === 'image')")
    assert words(tab, "#title") == film_file.name and not tab.run(
        "document.querySelector('#camera').classList.contains('mirror')"
    )
    tab.wait("window.sent.some((message) => message.type === 'stop')")
    send(tab, type="ended", stream="abcdefgh", reason="stopped by its viewer")
    assert "the video is over" in words(tab, "#log li.notice")


@pytest.fixture(scope="module")
def film_file(tmp_path_factory) -> Path:
    """Two seconds of WebM, which every Chromium plays."""
    import av
    import numpy as np

    path = tmp_path_factory.mktemp("film") / "holiday.webm"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx", rate=10)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        for shade in range(0, 200, 10):
            picture = av.VideoFrame.from_ndarray(np.full((120, 160, 3), shade, np.uint8))
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


def test_the_bar_is_as_long_as_what_was_ever_used(tab):
    """Else two thirds of the picture of the cache are empty for ever."""
    send(tab, **JOINED)
    caption(tab, 0, retained=620)
    tab.run("document.querySelector('#cache').dispatchEvent(new PointerEvent('pointermove', "
            "{ clientX: document.querySelector('#cache').getBoundingClientRect().left + 300 }))")  # fmt: skip
    assert "pictures: 610 tokens" in tab.run("document.querySelector('#cache').title")


def test_words_are_plain_and_settings_shown(tab):
    send(
        tab,
        type="streams",
        streams=[{"stream": "zzzzzzzz", "title": "match 2", "seconds": 1, "num_viewers": 1}],
        num_streams=1,
        num_viewers=2,
    )
    tab.run("document.querySelector('#quick').click()")
    tab.wait("window.sent.some((message) => message.type === 'start')")
    send(tab, type="error", error="start: got all 1 streams in use, expected a free one; join a running stream")
    assert words(tab, "#toast").startswith("There is no room for another stream")
    page = tab.run("document.body.innerText + document.querySelector('#starter').textContent")
    assert not [word for word in ("rows", "chunks", "slots", "num_streams", "evicted", "prefill") if word in page]
    assert words(tab, "#settings") == "temperature0" and words(tab, "#model") == "touchline"


def test_a_phone_has_the_way_to_its_camera_first(tab):
    top = "document.querySelector({}).getBoundingClientRect().top"
    assert tab.run(top.format("'#quickcamera'")) < 844 / 2
    assert tab.run(top.format("'#starter'")) < tab.run(top.format("'#log'"))
    assert tab.run("document.documentElement.scrollWidth") <= 390


def test_light_where_the_system_is_light(tab):
    ground = "getComputedStyle(document.body).backgroundColor"
    shades = {}
    for theme in ("dark", "light"):
        tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
        shades[theme] = sum(int(part) for part in tab.run(ground).strip("rgb()").split(","))
    assert shades["dark"] < 150 < 600 < shades["light"]


def test_comments_are_read_aloud_when_asked_for(tab):
    send(tab, **JOINED)
    caption(tab, 0, "Not yet.")
    tab.run("document.querySelector('#speak').click()")
    caption(tab, 1, "Goal!")
    tab.run("document.querySelector('#speak').click()")
    caption(tab, 2, "Not any more.")
    assert tab.run("window.spoken") == ["Goal!"]


def test_a_page_that_watches_nothing_says_so(tab):
    """The server closes a socket that sends no first message."""
    assert tab.run("window.sent") == [{"type": "leave"}]
