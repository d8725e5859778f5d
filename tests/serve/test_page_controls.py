"""What a viewer can do on the page beside watching: look seconds up, change settings, take captions away. No server."""

import json

import pytest

from tests.support.browser import chromium
from tests.support.page import (
    JOINED,
    SETTINGS,
    STARTED,
    alert,
    choose,
    chunk,
    lines,
    point,
    press,
    refuse,
    send,
    sent,
    session,
    visible,
    wait_sent,
    words,
)

pytestmark = pytest.mark.skipif(chromium() is None, reason="needs chromium on the PATH")


def test_another_camera_can_be_picked_while_it_plays(tab):
    """Phones have two; the wrong one would have to be stopped, and the stream with it."""
    tab.run("document.querySelector('#quickcamera').click()")
    wait_sent(tab, "svlm.stream.start")
    send(tab, **STARTED)
    send(tab, **{**JOINED, "source": "push", "title": "camera"})
    tab.wait("document.querySelector('#switchdevice').options.length === 2")
    assert visible(tab, "#switchdevice")
    track = "document.querySelector('#camera').srcObject.getVideoTracks()[0].getSettings().deviceId"
    before = tab.run(track)
    other = tab.run(
        f"[...document.querySelector('#switchdevice').options].find((option) => option.value !== {json.dumps(before)}).value"
    )
    choose(tab, "#switchdevice", other)
    tab.wait(f"{track} === {json.dumps(other)} && document.querySelector('#switchdevice').value === {json.dumps(other)}")
    assert not sent(tab, "svlm.stream.stop") and len(sent(tab, "svlm.stream.start")) == 1


def test_every_second_can_be_looked_up(tab):
    """By pointer, finger and arrow keys: what was said, what was skipped, when an alert came; a click leads to its caption."""
    send(tab, **JOINED)
    for number in range(60):
        if number == 7:
            span = {"number": 7, "start": 7.0, "end": 8.0}
            send(tab, type="svlm.chunk.dropped", stream="abcdefgh", chunks=1, dropped_total=1, **span)
        else:
            chunk(tab, number, f"Words {number}." if number % 2 else "")
    alert(tab, True, 0.93, 20.0)
    assert point(tab, 31.5) == ["0:31", "Words 31."]
    assert point(tab, 7.5) == ["0:07", "1 s skipped: too late to be watched"]
    assert point(tab, 30.5) == ["0:30", "nothing said"]
    assert point(tab, 20.5) == ["0:20", "Reds have the ball (93\u202f%)"]
    canvas = "document.querySelector('#timeline')"
    press(tab, "ArrowLeft")
    press(tab, "ArrowLeft")
    assert tab.run(f"{canvas}.getAttribute('aria-valuetext')") == "0:19: Words 19."
    press(tab, "Home")
    press(tab, "ArrowRight")
    press(tab, "Enter")
    assert lines(tab, ".found") == ["Words 1."]
    log = "document.querySelector('#log')"
    assert tab.run(f"{log}.scrollTop + {log}.clientHeight < {log}.scrollHeight - 48") and visible(tab, "#newest")


def test_hours_can_be_looked_up_too(tab):
    """The page keeps them; only a few hundred lines of them are in the document."""
    send(tab, **JOINED)
    tab.run("""(() => { for (let n = 0; n < 1800; n++) {
      const chunk = { type: "svlm.chunk.done", stream: "abcdefgh", number: n, start: n, end: n + 1 };
      const text = n === 900 ? "Goal!" : n % 2 ? "" : `Words ${n}.`;
      window.sockets[0].onmessage({ data: JSON.stringify({ ...chunk, text, kind: text ? "commentary" : "silent" }) });
    } })()""")
    assert len(lines(tab)) <= 400 and lines(tab)[-1] == "Words 1798."
    time, said = point(tab, 900.5)
    assert time.startswith(("14:", "15:")) and said.startswith(("Words", "Goal"))
    tab.run("document.querySelector('#timeline').click()")
    assert len(lines(tab, ".found")) == 1 and lines(tab)[-1] != "Words 1798." and "Goal!" in lines(tab)
    tab.run("document.querySelector('#newest').click()")
    assert lines(tab)[-1] == "Words 1798." and visible(tab, "#recent")
    tab.run("document.querySelector('#recent').click()")
    assert point(tab, 1798.5, start=1500, end=1800) == ["29:58", "Words 1798."]


def test_who_joins_late_can_look_up_what_was_said_before(tab):
    """The server tells the last captions; the subtitles have the others."""
    vtt = "WEBVTT\\n\\nNOTE cut\\n\\n00:00:05.000 --> 00:00:06.000\\nQ: Who &amp; where?\\nReds.\\n\\n"
    vtt += "00:00:09.000 --> 00:00:10.000\\nPass.\\n\\n01:00:00.000 --> 01:00:01.000\\nKnown already.\\n\\n"
    tab.run(f'window.fetch = async (path) => (window.fetched = path, new Response("{vtt}"))')
    missed = [{"kind": "commentary", "number": 900, "start": 3600.0, "end": 3601.0, "text": "Known already."}]
    send(tab, **{**JOINED, "is_truncated": True, "missed": missed})
    tab.wait("document.querySelectorAll('#log li').length === 4")
    assert lines(tab) == ["Who & where?", "Reds.", "Pass.", "Known already."]
    assert tab.run("window.fetched") == "/streams/abcdefgh.vtt"
    assert point(tab, 9.5, start=5, end=3601) == ["0:05", "Q Who & where?\nA Reds."]


def test_alerts_and_lost_sources_are_told(tab):
    send(tab, **JOINED)
    chunk(tab, 0, "Welcome.")
    alert(tab, True, 0.93, 0.0, number=1)
    assert visible(tab, "#alert") and lines(tab, ".alert") == ["Reds have the ball (93\u202f%)"]
    assert words(tab, "#spoken").startswith("Alert. Reds have the ball")
    alert(tab, True, 0.93, 1.0, number=2, data={"team": "red"})
    assert lines(tab, ".data") == ['{"team":"red"}']
    alert(tab, False, 0.1, 2.0, number=3)
    assert not visible(tab, "#alert") and lines(tab)[-1] == "no longer: Reds have the ball (10\u202f%)"
    send(tab, type="svlm.source.lost", stream="abcdefgh", start=2.0, reason="no picture for 5 s")
    assert words(tab, "#live") == "Source lost" and "no picture for 5 s" in lines(tab)[-1]
    send(tab, type="svlm.source.back", stream="abcdefgh", start=2.0, end=10.0, chunks=8, seconds=8.2)
    assert words(tab, "#live") == "Live"
    assert lines(tab)[-2:] == ["the source is back after 8 s", "8 s without a picture: the source was gone"]
    assert point(tab, 5.5) == ["0:02", "8 s without a picture: the source was gone"]


def test_how_it_speaks_can_be_changed_while_it_plays(tab):
    send(tab, **JOINED)
    assert tab.run("document.querySelector('#ownsilence').ariaPressed") == "true"
    choose(tab, "#silence", 50)
    update = wait_sent(tab, "session.update", 2)
    assert update["session"]["svlm"] == {"silence": 0.99005}  # to the right: speaks unless silence is that probable
    send(tab, **session("session.updated", silence=0.99005))
    assert words(tab, "#level") == "99 %" and tab.run("document.querySelector('#silence').value") == "50"
    tab.run("document.querySelector('#ownsilence').click()")
    assert sent(tab, "session.update")[-1]["session"]["svlm"] == {"silence": None}
    send(tab, **session("session.updated"))
    assert words(tab, "#level") == ""
    choose(tab, "[name=vision_window]", 8)
    choose(tab, "[name=sink]", "")
    choose(tab, "[name=max_new_tokens]", 9)
    changes = [event["session"]["svlm"] for event in sent(tab, "session.update")[-3:]]
    assert changes == [{"vision_window": 8}, {"sink": None}, {"max_new_tokens": 9}]
    choose(tab, "[name=vision_window]", 99)
    refuse(tab, sent(tab, "session.update")[-1], "invalid_value", "session.svlm.vision_window: got 99, expected at most 16")
    assert words(tab, "#settingserror") == "vision_window: got 99, expected at most 16"
    assert tab.run("document.querySelector('[name=vision_window]').value") == "16"
    count = len(sent(tab, "session.update"))
    choose(tab, "[name=top_p]", 7)
    assert len(sent(tab, "session.update")) == count and words(tab, "#settingserror")
    assert tab.run("document.querySelector('[name=fps]').disabled")  # of the next stream only


def test_a_condition_is_watched(tab):
    send(tab, **JOINED)
    for name, value in {"question": "Who has the ball?", "yes": "Red.", "no": "Blue., Nobody."}.items():
        tab.run(f"document.querySelector('#watch').elements.{name}.value = {json.dumps(value)}")
    tab.run("document.querySelector('#watch').requestSubmit()")
    rule = {"question": "Who has the ball?", "yes": ["Red."], "no": ["Blue.", "Nobody."], "name": "Who has the ball? Red."}
    assert sent(tab, "session.update")[-1]["session"]["svlm"] == {"alert": rule}
    send(tab, **session("session.updated", alert=rule))
    tab.run("document.querySelector('#unwatch').click()")
    assert sent(tab, "session.update")[-1]["session"]["svlm"] == {"alert": None}
    tab.run("document.querySelector('#watch').reset(); document.querySelector('#watch').elements.question.value = 'a goal'")
    tab.run("document.querySelector('#watch').requestSubmit()")
    condition = {"condition": "a goal", "name": "a goal"}
    assert sent(tab, "session.update")[-1]["session"]["svlm"] == {"alert": condition}


def test_a_viewer_sees_the_settings_of_another_and_cannot_change_them(tab):
    send(tab, **{**JOINED, "is_owner": False, "settings": {**SETTINGS, "vision_window": 4}})
    field = "document.querySelector('[name=vision_window]')"
    assert tab.run(f"[{field}.value, {field}.disabled, document.querySelector('#silence').disabled]") == ["4", True, True]
    send(tab, type="svlm.stream.updated", stream="abcdefgh", settings={**SETTINGS, "vision_window": 6})
    assert tab.run(f"{field}.value") == "6"


def test_captions_can_be_taken_away(tab, tmp_path):
    """Copied, or saved for people, players and programs."""
    tab.run("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    tab.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    send(tab, **JOINED)
    chunk(tab, 0, "Welcome.")
    chunk(tab, 1)
    chunk(tab, 2, "Reds.", question="Who scored?", answer="Reds.")
    assert tab.run("document.querySelector('#vtt').getAttribute('href')") == "/streams/abcdefgh.vtt"
    tab.run("document.querySelector('#copy').click()")
    tab.wait("window.copied")
    assert tab.run("window.copied") == "0:00  Welcome.\n0:02  Q: Who scored?\n0:02  A: Reds.\n"
    path = tmp_path / "abcdefgh.json"
    tab.run("document.querySelector('#json').click()")
    while not path.is_file():
        tab.run("1")  # until it is saved, or the test has hung
    assert [entry["kind"] for entry in json.loads(path.read_text())["entries"]] == ["spoken", "silent", "answer"]


def test_the_client_is_of_use_without_the_page(tab):
    """Others build their pages on it: events in order, frames skipped on a slow line, no event of another stream."""
    missed = {"kind": "commentary", "number": 0, "start": 0, "end": 1, "text": "Welcome."}
    joined = {"type": "svlm.stream.joined", "stream": "mine", "is_owner": True, "missed": [missed]}
    tab.run(f"window.joined = {json.dumps(joined)}")
    script = """(async () => {
      const { RealtimeClient } = await import("/client.js");
      const client = new RealtimeClient("ws://host/v1/realtime"), seen = [];
      client.on("*", (event) => seen.push(event.text ?? event.state ?? event.type));
      client.connect();
      const socket = client.socket, receive = (event) => socket.onmessage({ data: JSON.stringify(event) });
      receive({ type: "session.created", session: { svlm: {} } });
      client.startStream({ type: "push" }, { silence: 0.5 });
      receive({ type: "svlm.stream.started", stream: "mine", key: "k" });
      receive(window.joined);
      socket.bufferedAmount = 0;
      const sent = [client.sendFrame(new Blob(["jpeg"]))];
      socket.bufferedAmount = 1e6;
      sent.push(client.sendFrame(new Blob(["jpeg"])));
      receive({ type: "response.created", response: { id: "r", svlm: { stream: "mine", number: 1 } } });
      for (const delta of ["Red ", "has it."]) receive({ type: "response.output_text.delta", response_id: "r", delta });
      receive({ type: "svlm.chunk.done", stream: "another", number: 5, text: "not mine" });
      receive({ type: "response.created", response: { id: "s", svlm: { stream: "another", number: 5 } } });
      client.stopStream();
      client.close();
      return [seen, sent, client.stream.name, window.sent.at(-1).key];
    })()"""
    seen, frames, name, key = tab.run(script)
    assert seen[:4] == ["connecting", "open", "session.created", "svlm.stream.started"]
    assert seen[4:] == ["svlm.stream.joined", "Welcome.", "response.created", "Red ", "Red has it."]
    assert frames == [True, False] and (name, key) == ("mine", "k")
