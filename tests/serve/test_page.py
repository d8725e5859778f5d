"""The live page in a headless Chromium: it comes alive, answers, is shared, comes back.

SVLM_SCREENSHOTS=docs keeps two pictures of `test_the_page`; SVLM_PAGE_MODEL names another model for them.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import HANG, ROOT, XLA_FLAGS
from tests.support.browser import Tab, chromium, save_small
from tests.support.page import ask, choose, point

pytestmark = [pytest.mark.slow, pytest.mark.skipif(chromium() is None, reason="needs chromium on the PATH")]
SMALL = ("--vision-window", 8, "--text-rounds", 8, "--sink", 32, "--text-window", 64)


@pytest.fixture(scope="module")
def server(shallow_dir, processor_dir):
    """The address of a server that runs as a process; it must end with 0."""
    model_name = os.environ.get("SVLM_PAGE_MODEL")
    model = ("--model", model_name) if model_name else ("--model", shallow_dir, "--processor", processor_dir)
    command = [sys.executable, "-m", "launch.serve", *model, *(() if model_name else SMALL), "--port", 0, "--num-streams", 3]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": XLA_FLAGS}
    with subprocess.Popen([*map(str, command)], stderr=subprocess.PIPE, text=True, env=env, cwd=ROOT) as process:
        assert process.stderr is not None
        address = next(line.split()[0] for line in process.stderr if line.startswith("http"))
        yield address
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=HANG) == 0


def save_screenshots(tabs: dict[str, Tab]) -> None:
    """All are taken before the first is made small: the server runs on the same machine."""
    if folder := os.environ.get("SVLM_SCREENSHOTS"):
        for name, png in [(name, tab.screenshot()) for name, tab in tabs.items()]:
            save_small(png, Path(folder) / name)
            assert (Path(folder) / name).stat().st_size < 250_000


def cache_picture(tab: Tab) -> str:
    return tab.run("document.querySelector('#cache').toDataURL()")


def frame_shown(tab: Tab) -> str:
    return tab.run("document.querySelector('#picture').toDataURL()")


def test_the_page(server, browser):
    with browser.open(server) as tab:
        tab.size(1440, 900)
        tab.wait("document.querySelector('#link')?.dataset.state === 'open'")
        tab.run("document.querySelector('#quick').click()")
        tab.wait("document.querySelectorAll('#log li').length >= 3")
        before, picture = cache_picture(tab), frame_shown(tab)
        tab.wait("document.querySelector('#evicted').classList.contains('active')")
        assert cache_picture(tab) != before and frame_shown(tab) != picture
        ask(tab, "What is the score?")
        tab.wait("document.querySelector('#log li.question')")
        tab.wait("document.querySelector('#log li.answer')")
        with browser.open(tab.run("location.href")) as second:
            second.size(390, 844, 2, mobile=True)
            second.wait("document.querySelectorAll('#log li:not(.notice)').length >= 8")
            tab.wait("document.querySelector('#subtitle').textContent.startsWith('2 watching')")
            assert second.run("document.documentElement.scrollWidth") <= 390
            minutes, seconds = tab.run("document.querySelector('#log li.answer time').textContent").split(":")
            assert "What is the score?" in point(tab, 60 * int(minutes) + int(seconds) + 0.5)[1]
            tab.wait("document.querySelector('#tip img').complete")
            save_screenshots({"serve.png": tab, "serve_mobile.png": second})
            assert second.complaints == []
        assert tab.complaints == []


def test_a_socket_that_drops_comes_back_to_its_stream_and_misses_nothing(server, browser):
    with browser.open("about:blank") as tab:
        script = "window.sockets = []; const Original = WebSocket; WebSocket = class extends Original "
        script += "{ constructor(...args) { super(...args); window.sockets.push(this); } }"
        tab.call("Page.addScriptToEvaluateOnNewDocument", source=script)
        tab.call("Page.navigate", url=server)
        tab.wait("document.querySelector('#link')?.dataset.state === 'open'")
        tab.run("document.querySelector('#quick').click()")
        tab.wait("document.querySelectorAll('#log li').length >= 2")
        name = tab.run("location.hash")
        tab.run("sockets[0].close()")
        tab.wait("document.querySelector('#link')?.dataset.state === 'lost'")
        tab.wait("document.querySelector('#link')?.dataset.state === 'open'")
        count = tab.run("document.querySelectorAll('#log li').length")
        tab.wait(f"document.querySelectorAll('#log li').length >= {count + 3}")
        times = tab.run("[...document.querySelectorAll('#log li time')].map((item) => item.textContent)")
        assert times == [f"0:{second:02}" for second in range(len(times))] and tab.run("location.hash") == name
        assert tab.run("sockets.length") == 2 and tab.complaints == []
        tab.run("document.querySelector('#stop').click()")
        tab.wait("document.querySelector('#live').textContent === 'Ended'")


def test_how_it_speaks_and_what_it_remembers_change_while_it_plays(server, browser):
    with browser.open(server) as tab:
        tab.wait("document.querySelector('#link')?.dataset.state === 'open'")
        tab.run("document.querySelector('#quick').click()")
        tab.wait("document.querySelectorAll('#log li').length >= 2")
        pictures = "Number(document.querySelector('#legend [data-kind=vision] b').textContent)"
        tab.wait("document.querySelector('#evicted').classList.contains('active')", 60)  # the window is full
        before = tab.run(pictures)
        choose(tab, "[name=vision_window]", 2)
        tab.wait(f"{pictures} < {before}")
        choose(tab, "#silence", -100)  # quiet: silent in every second
        tab.wait("document.querySelector('#level').textContent === '0 %'")
        silent = "document.querySelector('#timeline').getAttribute('aria-valuetext').endsWith('nothing said')"
        tab.wait(silent)
        lines = "document.querySelectorAll('#log li').length"
        said, second = tab.run(lines), tab.run("document.querySelector('#clock').textContent")
        tab.wait(f"document.querySelector('#clock').textContent !== {json.dumps(second)}")
        assert tab.run(lines) == said
        choose(tab, "#silence", 100)  # talkative: words in every second
        tab.wait(f"{lines} >= {said + 3}")
        choose(tab, "[name=vision_window]", 4096)
        tab.wait("document.querySelector('#settingserror').textContent.includes('vision_window')")
        assert tab.run("document.querySelector('[name=vision_window]').value") == "2" and tab.complaints == []
        tab.run("document.querySelector('#stop').click()")
        tab.wait("document.querySelector('#live').textContent === 'Ended'")


def test_a_camera_is_watched(server, browser):
    with browser.open(server) as tab:
        tab.wait("document.querySelector('#link')?.dataset.state === 'open'")
        choose(tab, "#source", "camera")
        tab.run("document.querySelector('#start').requestSubmit()")
        tab.wait("document.querySelectorAll('#log li:not(.notice)').length >= 2")
        assert tab.run("document.querySelector('#camera').videoWidth") > 0 and not tab.run(
            "document.querySelector('#camera').hidden"
        )
        tab.run("document.querySelector('#stop').click()")
        tab.wait("document.querySelector('#camera').srcObject.getTracks().every((track) => track.readyState === 'ended')")
        assert tab.complaints == []
