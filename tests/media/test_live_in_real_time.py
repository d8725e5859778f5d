"""Live clocks over real connections, sent as fast as they show. `pytest -s -m slow` of this file prints the table. Without
waiting: `test_timestamps.py`, `test_live.py`."""

import itertools
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from svlm_jax.media.sources import open_source
from tests.media.test_film_clock import hls
from tests.media.test_sources import serving
from tests.support.cameras import serving_camera
from tests.support.films import BLUE, GREEN, RED, camera, colours, recording, slowly

pytestmark = pytest.mark.slow

DAY, WRAP = 86_400, 2**33 / 90_000
CLOCKS = {  # seconds at which the clock of each part starts; seconds of a part; jumps
    "+1 day": ((0, DAY), 4, 1),
    "-1 day": ((DAY, 0), 4, 1),
    "-40 s": ((100, 64), 4, 1),
    "+76 min": ((0, 4564), 4, 1),
    "wrap at 2^33": ((WRAP - 6, WRAP - 2, WRAP + 2), 4, 0),
    "20 restarts": ((0,) * 21, 1, 20),
    "two clocks 8 s apart": (tuple(number + 8 * (number % 2) for number in range(20)), 1, 18),
    "two clocks 40 s apart": (tuple(number + 40 * (number % 2) for number in range(20)), 1, 19),
}
TRANSPORTS = ("tcp", "http", "rtsp", "udp")


def open_live(transport: str, data: bytes, seconds: float, stack: ExitStack):
    if transport in ("http", "rtsp"):
        url = stack.enter_context(serving_camera(data, scheme=transport, seconds=seconds)).url
        return stack.enter_context(open_source(url))
    if transport == "tcp":
        port = stack.enter_context(camera(data, seconds=seconds))
        return stack.enter_context(open_source(f"tcp://127.0.0.1:{port}"))
    datagrams = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        address = free.getsockname()

    def send():
        time.sleep(1)  # until FFmpeg listens: of UDP it cannot be waited for
        slowly(lambda part: datagrams.sendto(part, address), data, seconds)

    thread = threading.Thread(target=send)
    thread.start()
    stack.callback(thread.join)
    return stack.enter_context(open_source(f"udp://127.0.0.1:{address[1]}"))


def row(folder: Path, clock: str, transport: str) -> tuple[str, str, int, int, int, int, str]:
    """(jump, transport, seconds in, chunks out, jumps, told, letters)."""
    starts, seconds, jumps = CLOCKS[clock]
    folder.mkdir()
    parts = [(colour, seconds, start) for colour, start in zip(itertools.cycle((RED, GREEN, BLUE)), starts)]
    data = recording(folder, *parts)
    with ExitStack() as stack:
        chunks = list(open_live(transport, data, seconds * len(starts), stack))
    told = sum(chunk.note.count("its time stamps jump") for chunk in chunks)
    assert [chunk.start for chunk in chunks] == list(range(len(chunks)))
    letters = colours(np.concatenate([chunk.frames for chunk in chunks]))
    return clock, transport, seconds * len(starts), len(chunks), jumps, told, letters


def test_chunks_out_are_seconds_of_pictures_in_and_each_jump_is_told(tmp_path):
    cells = list(itertools.product(CLOCKS, TRANSPORTS))
    with ThreadPoolExecutor(len(cells)) as pool:
        rows = list(pool.map(lambda cell: row(tmp_path / f"{cells.index(cell)}", *cell), cells))
    print("\n| jump | over | seconds of pictures in | chunks out | jumps | told |\n|---|---|---|---|---|---|")
    for cell in rows:
        print("|", *" | ".join(map(str, cell[:6])), "|", sep="")
    for clock, transport, seconds, chunks, jumps, told, letters in rows:
        extra = 8 if clock == "two clocks 8 s apart" else 1  # its first jump may be a pause
        assert seconds - 1 <= chunks <= seconds + extra and told == jumps, (clock, transport, letters)


def test_a_live_playlist_with_advertisements_is_watched_for_all_it_showed(tmp_path):
    """A sliding window of three segments, a clock of its own in each part."""
    for name, colour in zip("abc", (RED, GREEN, BLUE), strict=True):
        hls(tmp_path, name, colour, (64, 48))
    segments = [(f"{name}{number}.ts", not number) for name in "abc" for number in range(4)]

    def write(count: int) -> None:
        first = max(0, count - 3)
        lines = ["#EXTM3U", "#EXT-X-VERSION:3", "#EXT-X-TARGETDURATION:1", f"#EXT-X-MEDIA-SEQUENCE:{first}"]
        for name, is_cut in segments[first:count]:
            lines += ["#EXT-X-DISCONTINUITY"] * is_cut + ["#EXTINF:1.0,", name]
        lines += ["#EXT-X-ENDLIST"] * (count == len(segments))
        (tmp_path / "new").write_text("\n".join(lines) + "\n")
        (tmp_path / "new").replace(tmp_path / "live.m3u8")

    def slide() -> None:
        for count in range(4, len(segments) + 1):
            time.sleep(1)
            write(count)

    write(3)
    thread = threading.Thread(target=slide)
    thread.start()  # FFmpeg looks at more than three segments before it opens a source
    with serving(tmp_path) as url, open_source(f"{url}/live.m3u8") as source:
        chunks = list(source)
        thread.join()
    letters = colours(np.concatenate([chunk.frames for chunk in chunks]))
    notes = [chunk.note for chunk in chunks if chunk.note]
    print(f"\nHLS, three parts of 4 s: {len(chunks)} chunks, {letters}, {notes}, {source.ending}")
    assert source.live and letters == "R" * 8 + "G" * 8 + "B" * 8
    assert sum("its time stamps jump" in chunk.note for chunk in chunks) == 2
