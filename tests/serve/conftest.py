"""A browser for the tests of the page, and the page in it without a server: started once for all of them."""

import functools
import http.server
import threading
from importlib import resources

import pytest

from tests.support.browser import Browser
from tests.support.page import SOCKET, Files, send, session


@pytest.fixture(scope="session")
def address():
    with resources.as_file(resources.files("svlm_jax.serve") / "page") as folder:
        handler = functools.partial(Files, directory=str(folder))
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield f"http://127.0.0.1:{server.server_port}/"
            server.shutdown()


@pytest.fixture(scope="session")
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
        send(tab, **session())
        send(tab, type="svlm.streams", streams=[], num_streams=1, num_viewers=1)
        yield tab
        assert tab.complaints == []
