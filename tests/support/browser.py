"""A headless Chromium for tests of the page, controlled by its own protocol (CDP) over a WebSocket.

Chromium must be on the PATH; no driver and no package but `websockets` is needed. Units: seconds, CSS pixels.
"""

import base64
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.request
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tests.support import HANG

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless=new",
    "--remote-debugging-port=0",
    "--no-first-run",
    "--disable-gpu",
    "--mute-audio",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--use-fake-device-for-media-stream=device-count=2",
    "--use-fake-ui-for-media-stream",
)


def chromium() -> str | None:
    """The path of the browser, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Tab(AbstractContextManager):
    """One page. Errors and warnings of its console are recorded in `complaints`."""

    def __init__(self, address: str) -> None:
        from websockets.sync.client import connect

        self.connection = connect(address, max_size=None, ping_interval=None).__enter__()
        self.ids, self.complaints = itertools.count(1), []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command of the protocol and its result."""
        message_id = next(self.ids)
        self.connection.send(json.dumps({"id": message_id, "method": method, "params": parameters}))
        while True:
            response = json.loads(self.connection.recv(timeout=HANG))
            if response.get("id") == message_id:
                assert "error" not in response, response
                return response["result"]
            self._record_complaint(response)

    def _record_complaint(self, event: dict[str, Any]) -> None:
        parameters = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(parameters["exceptionDetails"])[:500])
        if event.get("method") == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.complaints.append(parameters["entry"]["text"])

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, script: str, seconds: float = HANG) -> None:
        """Until the expression is true."""
        deadline = time.monotonic() + seconds
        while not self.run(f"!!({script})"):
            assert time.monotonic() < deadline, f"never true: {script}; {self.complaints}"
            time.sleep(0.1)

    def size(self, width: int, height: int, scale: float = 1.0, mobile: bool = False) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=mobile)

    def screenshot(self) -> bytes:
        """A screenshot as PNG; `save_small` makes it small, which takes seconds."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    def __exit__(self, *_: object) -> None:
        self.connection.send(json.dumps({"id": next(self.ids), "method": "Page.close"}))  # no answer is certain to come
        self.connection.close()


def save_small(png: bytes, path: Path, *, colours: int = 255) -> None:
    """Write a screenshot as a PNG with a palette."""
    import io

    from PIL import Image

    image = Image.open(io.BytesIO(png)).convert("RGB")
    image.quantize(colours, Image.Quantize.MEDIANCUT, kmeans=4, dither=Image.Dither.NONE).save(path, optimize=True)


class Browser(AbstractContextManager):
    """A process of Chromium with a profile in `folder`. What it leaves elsewhere, in the home and among temporary files, goes
    with it: the path of its socket there may not be as long as that of `folder`."""

    def __init__(self, folder: Path) -> None:
        name = chromium()
        assert name is not None
        root = ("--no-sandbox",) if os.geteuid() == 0 else ()
        command = [name, *FLAGS, *root, f"--user-data-dir={folder}", "about:blank"]
        self.home = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        env = os.environ | dict.fromkeys(("HOME", "TMPDIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"), self.home.name)
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env)
        port_file, deadline = folder / "DevToolsActivePort", time.monotonic() + HANG
        while not port_file.is_file() or not port_file.read_text().strip():
            assert self.process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        self.address = f"http://127.0.0.1:{port_file.read_text().split()[0]}"

    def open(self, url: str) -> Tab:
        request = urllib.request.Request(f"{self.address}/json/new?{quote(url)}", method="PUT")
        with urllib.request.urlopen(request, timeout=HANG) as response:
            return Tab(json.load(response)["webSocketDebuggerUrl"])

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.home.cleanup()
