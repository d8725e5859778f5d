"""What the page does with events of the server, in a headless Chromium whose socket is the test: no model, no server.

Another origin than the server's never matters here: the files come from the server's own folder.
"""

from pathlib import Path

import pytest

from tests.support.browser import chromium
from tests.support.page import (
    ENDED,
    JOINED,
    QUESTION,
    STARTED,
    ask,
    choose,
    chunk,
    lines,
    refuse,
    response,
    send,
    sent,
    session,
    visible,
    wait_sent,
    words,
)

pytestmark = pytest.mark.skipif(chromium() is None, reason="needs chromium on the PATH")


def test_the_shipped_model_says_what_it_knows(tab):
    """Else a newcomer's own first video looks like a broken program."""
    send(tab, **JOINED)
    assert not visible(tab, "#gameonly")
    send(tab, **{**JOINED, "stream": "bcdefghi", "is_game": False, "title": "film.mp4", "source": "listed"})
    assert visible(tab, "#gameonly") and "knows only the generated game; start with --model" in words(tab, "#gameonly")
    send(tab, **session(server={"is_game_model": False}))
    send(tab, **{**JOINED, "is_game": False, "source": "listed"})
    assert not visible(tab, "#gameonly")


def test_words_appear_as_they_are_chosen(tab):
    """Else a viewer waits for the whole comment, and sees it twice when its chunk is done."""
    send(tab, **JOINED)
    response(tab, 3, "created")
    assert lines(tab) == []
    response(tab, 3, "delta", delta="Red ")
    assert lines(tab, ".writing") == ["Red"] and words(tab, "#overlay") == "Red" and words(tab, "#spoken") == ""
    response(tab, 3, "delta", delta="has it.")
    assert lines(tab, ".writing") == ["Red has it."]
    response(tab, 3, "done")
    chunk(tab, 3, "Red has it.")
    assert lines(tab) == ["Red has it."] and lines(tab, ".writing") == [] and words(tab, "#spoken") == "Red has it."


def test_a_question_is_answered_and_marked_as_answered(tab):
    send(tab, **JOINED)
    ask(tab, "Who scored?")
    create = wait_sent(tab, "response.create")
    assert sent(tab, "conversation.item.create")[0]["item"]["content"] == [{"type": "input_text", "text": "Who scored?"}]
    assert lines(tab, ".pending") == ["asked: Who scored?"] and visible(tab, "#cancel")
    response(tab, 1, "created", metadata=create["response"]["metadata"], **QUESTION)
    assert lines(tab, ".pending") == [] and lines(tab, ".question") == ["Who scored?"] and visible(tab, "#cancel")
    response(tab, 1, "delta", delta="Reds.", **QUESTION)
    response(tab, 1, "done", metadata=create["response"]["metadata"], **QUESTION)
    chunk(tab, 1, "Reds. They lead.", question="Who scored?", answer="Reds.")
    assert lines(tab) == ["Who scored?", "Reds.", "They lead."] and lines(tab, ".answer") == ["Reds."]
    assert not visible(tab, "#cancel")


def test_a_question_that_is_answered_with_silence_has_an_answer(tab):
    send(tab, **JOINED)
    response(tab, 1, "created", **QUESTION)
    response(tab, 1, "done", **QUESTION)
    chunk(tab, 1, question="Who scored?")
    assert lines(tab, ".answer") == ["(nothing)"]
    chunk(tab, 2, question="And now?")  # of a viewer who joined after it was asked
    assert lines(tab, ".answer") == ["(nothing)", "(nothing)"] and lines(tab, ".question") == ["Who scored?", "And now?"]


def test_a_question_can_be_taken_back_and_one_that_is_refused_says_why(tab):
    send(tab, **JOINED)
    ask(tab, "Who scored?")
    tab.run("document.querySelector('#cancel').click()")
    assert wait_sent(tab, "response.cancel") and lines(tab, ".pending") == [] and not visible(tab, "#cancel")
    response(tab, 4, "created")
    response(tab, 4, "delta", delta="Reds attack")
    response(tab, 4, "done", status="cancelled")
    chunk(tab, 4, "Reds attack")
    assert lines(tab, ".cut") == ["Reds attack"]
    ask(tab, "Tell me all of it")
    metadata = wait_sent(tab, "response.create", 2)["response"]["metadata"]
    error = {"type": "invalid_request_error", "code": "refused", "message": "question: got 90 tokens, expected at most 40"}
    body = {"id": "resp_x", "status": "failed", "output": [], "metadata": metadata, "status_details": {"error": error}}
    send(tab, type="response.done", response=body)
    assert "at most 40" in lines(tab)[-1] and lines(tab, ".pending") == []


@pytest.mark.parametrize(
    ("factor", "value", "verdict"), [(0.5, "0.5", "slow"), (0.99, "1.0", "keeps up"), (12.4, "12", "keeps up")]
)
def test_the_verdict_on_real_time_is_true(tab, factor, value, verdict):
    send(tab, **JOINED)
    chunk(tab, 0, factor=factor)
    assert words(tab, "#speed") == value and verdict in words(tab, "#pace") and "faster" not in words(tab, "#pace")


def test_after_a_stop_everything_can_be_started_again(tab):
    """Else who stops a camera sits before a black picture that says "watching, yours"."""
    tab.run("document.querySelector('#quickcamera').click()")
    assert wait_sent(tab, "svlm.stream.start")["source"] == {"type": "push"}
    send(tab, **STARTED)
    send(tab, **{**JOINED, "source": "push", "title": "camera", "is_game": False})
    wait_sent(tab, "image")
    assert visible(tab, "#camera") and words(tab, "#title") == "My camera" and "yours" in words(tab, "#subtitle")
    send(tab, **ENDED)
    assert not visible(tab, "#camera") and visible(tab, "#quickcamera") and visible(tab, "#start")
    assert "yours" not in words(tab, "#subtitle") and "watching" not in words(tab, "#subtitle")
    assert not visible(tab, "#gameonly") and not visible(tab, "#stop")
    assert tab.run("document.querySelector('#camera').srcObject.getTracks()[0].readyState") == "ended"
    tab.run("document.querySelector('#quickcamera').click()")
    wait_sent(tab, "svlm.stream.start", 2)


def test_a_video_file_is_played_and_only_pictures_of_it_are_sent(tab, film_file):
    choose(tab, "#source", "file")
    root = tab.call("DOM.getDocument")["root"]["nodeId"]
    node = tab.call("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]
    tab.run("document.querySelector('#starter').open = true")
    assert visible(tab, "#file")
    tab.call("DOM.setFileInputFiles", files=[str(film_file)], nodeId=node)
    tab.run("document.querySelector('#start').requestSubmit()")
    wait_sent(tab, "svlm.stream.start")
    assert not sent(tab, "image")  # it waits until the stream has started
    send(tab, **STARTED)
    send(tab, **{**JOINED, "source": "push", "title": "camera"})
    wait_sent(tab, "image")
    assert words(tab, "#title") == film_file.name and not tab.run(
        "document.querySelector('#camera').classList.contains('mirror')"
    )
    wait_sent(tab, "svlm.stream.stop")
    send(tab, **ENDED)
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
    chunk(tab, 0, retained=620)
    tab.run("document.querySelector('#cache').dispatchEvent(new PointerEvent('pointermove', "
            "{ clientX: document.querySelector('#cache').getBoundingClientRect().left + 300 }))")  # fmt: skip
    assert "pictures: 610 tokens" in tab.run("document.querySelector('#cache').title")


def test_words_are_plain_and_settings_shown(tab):
    summary = {"stream": "zzzzzzzz", "title": "match 2", "seconds": 1, "num_viewers": 1}
    send(tab, type="svlm.streams", streams=[summary], num_streams=1, num_viewers=2)
    tab.run("document.querySelector('#quick').click()")
    start = wait_sent(tab, "svlm.stream.start")
    line = "start: got all 1 streams in use, expected a free one; join a running stream"
    refuse(tab, start, "refused", line)
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
    chunk(tab, 0, "Not yet.")
    tab.run("document.querySelector('#speak').click()")
    chunk(tab, 1, "Goal!")
    tab.run("document.querySelector('#speak').click()")
    chunk(tab, 2, "Not any more.")
    assert tab.run("window.spoken") == ["Goal!"]


def test_a_page_that_watches_nothing_says_so(tab):
    """The server closes a socket that sends no first message."""
    update = tab.run("window.sent[0]")
    assert update["type"] == "session.update" and update["session"]["svlm"] == {"subscribe": ["streams", "video", "chunks"]}


def test_a_connection_that_drops_comes_back_to_its_stream(tab):
    """With its key and the number of its last chunk: nothing is missed, nothing comes twice, the owner stays the owner."""
    tab.run("document.querySelector('#quick').click()")
    wait_sent(tab, "svlm.stream.start")
    send(tab, **STARTED)
    send(tab, **JOINED)
    chunk(tab, 0, "Welcome.")
    response(tab, 1, "created")
    response(tab, 1, "delta", delta="Kick-")
    tab.run("window.sockets[0].close()")
    assert tab.run("document.querySelector('#link').dataset.state") == "lost"
    tab.run("dispatchEvent(new Event('online'))")  # does not wait for the delay
    tab.wait("window.sockets.length === 2")
    send(tab, **session())
    join = wait_sent(tab, "svlm.stream.join")
    assert (join["stream"], join["key"], join["after"]) == ("abcdefgh", "k", 0)
    missed = [{"kind": "commentary", "number": n, "start": n, "end": n + 1, "text": f"Words {n}."} for n in (1, 2)]
    dropped = {"kind": "dropped", "number": 3, "start": 3, "end": 5, "chunks": 2}
    send(tab, **{**JOINED, "missed": [*missed, dropped]})
    chunk(tab, 2, "Words 2.")
    chunk(tab, 4, "Goal!")
    assert lines(tab) == ["Welcome.", "Words 1.", "Words 2.", "2 s skipped: too late to be watched", "Goal!"]
