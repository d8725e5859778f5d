"""The live page in a headless Chromium: it comes alive, answers, is shared, comes back.

SVLM_SCREENSHOTS=docs keeps two pictures of `test_the_page`; SVLM_PAGE_MODEL names another model for them.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import ROOT, XLA_FLAGS
from tests.support.browser import Browser, Tab, chromium

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
        assert process.wait(timeout=30) == 0


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


def save_screenshot(tab: Tab, name: str) -> None:
    if folder := os.environ.get("SVLM_SCREENSHOTS"):
        path = Path(folder) / name
        tab.screenshot(path)
        assert path.stat().st_size < 250_000


def cache_picture(tab: Tab) -> str:
    return tab.run("document.querySelector('#cache').toDataURL()")


def frame_shown(tab: Tab) -> str:
    return tab.run("document.querySelector('#picture').toDataURL()")


def ask(tab: Tab, question: str) -> None:
    tab.run(f"document.querySelector('#question').value = {json.dumps(question)}")
    tab.run("document.querySelector('#ask').requestSubmit()")


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
            time.sleep(1.0)
            save_screenshot(second, "serve_mobile.png")
            assert second.complaints == []
        save_screenshot(tab, "serve.png")
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
        tab.wait("document.querySelector('#link')?.dataset.state === 'lost'", 5)
        tab.wait("document.querySelector('#link')?.dataset.state === 'open'", 15)
        count = tab.run("document.querySelectorAll('#log li').length")
        tab.wait(f"document.querySelectorAll('#log li').length >= {count + 3}")
        times = tab.run("[...document.querySelectorAll('#log li time')].map((item) => item.textContent)")
        assert times == [f"0:{second:02}" for second in range(len(times))] and tab.run("location.hash") == name
        assert tab.run("sockets.length") == 2 and tab.complaints == []
        tab.run("document.querySelector('#stop').click()")
        tab.wait("document.querySelector('#live').textContent === 'Ended'")


def test_a_camera_is_watched(server, browser):
    with browser.open(server) as tab:
        tab.wait("document.querySelector('#link')?.dataset.state === 'open'")
        tab.run("document.querySelector('#source').value = 'camera'")
        tab.run("document.querySelector('#start').requestSubmit()")
        tab.wait("document.querySelectorAll('#log li:not(.notice)').length >= 2")
        assert tab.run("document.querySelector('#camera').videoWidth") > 0 and not tab.run(
            "document.querySelector('#camera').hidden"
        )
        tab.run("document.querySelector('#stop').click()")
        tab.wait("document.querySelector('#camera').srcObject.getTracks().every((track) => track.readyState === 'ended')")
        assert tab.complaints == []
