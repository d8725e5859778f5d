"""`svlm stream` as a user runs it. A source that has to wait is held by the test, never by a clock."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from PIL import Image

from svlm_jax.cli.screen import Screen
from svlm_jax.cli.stream import StreamCommand, main
from svlm_jax.media.chunks import Source
from svlm_jax.media.sources import FileSource
from svlm_jax.media.video import write_video
from svlm_jax.stream.events import SourceBack, SourceLost
from svlm_jax.stream.runner import Runner
from svlm_jax.stream.state_io import peek
from svlm_jax.touchline.film import Film
from tests.cli.test_commands import refusal
from tests.support import HANG, ROOT
from tests.support.commands import command

SMALL = ("--vision-window", 3, "--text-rounds", 3, "--sink", 6, "--text-window", 6, "--query", "Commentate on this match")


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    write_video(path, islice(Film(1, size=(168, 112)).frames(10), 90), 10)
    return path


@pytest.fixture(scope="module")
def model_flags(shallow_dir, processor_dir) -> tuple:
    return ("--model", shallow_dir, "--processor", processor_dir)


@pytest.fixture(scope="module")
def uninterrupted(film, model_flags, tmp_path_factory):
    """An uninterrupted run: its result and its captions."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    files = [word for kind in ("vtt", "srt", "jsonl") for word in (f"--{kind}", folder / f"a.{kind}")]
    return command("stream", film, *model_flags, *SMALL, "--ask", "4:who scored?", *files), folder


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def without_ms(path: Path) -> list[dict]:
    return [{key: value for key, value in line.items() if key != "ms"} for line in lines(path)]


# A child process whose source gives a chunk for each byte that comes through a pipe, and all the rest when the pipe is closed.
GATED = """
import os, runpy, sys
from svlm_jax.media.chunks import Source
gate, chunks = int(sys.argv.pop(1)), Source.__iter__
def gated(self):
    for chunk in chunks(self):
        os.read(gate, 1)
        yield chunk
Source.__iter__ = gated
runpy.run_module("launch.stream", run_name="__main__", alter_sys=True)
"""


class GatedCommand:
    """A running command whose source waits for `release`."""

    def __init__(self, *args: object, **pipes: object) -> None:
        gate, self.gate = os.pipe()
        env = {**os.environ, "PYTHONWARNINGS": "ignore", "PYTHONPATH": str(ROOT)}
        line = [sys.executable, "-c", GATED, str(gate), *map(str, args)]
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE) | pipes
        self.child = subprocess.Popen(line, text=True, env=env, cwd=ROOT, pass_fds=[gate], **pipes)
        os.close(gate)
        # `check_source` looks at the first frames of a file: does it play?
        os.write(self.gate, b"" if str(args[0]).startswith("match:") else b".")

    def release(self, chunks: int) -> "GatedCommand":
        os.write(self.gate, b"." * chunks)
        return self

    def finish(self) -> tuple[str, str]:
        """Release all chunks, and wait for the end."""
        if self.gate:
            os.close(self.gate)
            self.gate = 0
        return self.child.communicate(timeout=HANG)

    def kill(self) -> None:
        self.child.kill()
        self.finish()


def wait_until(condition: Callable[[], bool], child: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + HANG
    while not condition():
        assert child.poll() is None, child.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def wait_for_lines(path: Path, count: int, child: subprocess.Popen[str]) -> None:
    wait_until(lambda: path.exists() and path.read_bytes().count(b"\n") >= count, child)


def wait_for_state(path: Path, second: int, child: subprocess.Popen[str]) -> None:
    """Until a state of that second or a later one is saved: how far behind the captions it is depends on the disk."""
    wait_until(lambda: path.exists() and peek(path)["next"] >= second, child)


def wait_for(path: Path, child: subprocess.Popen[str]) -> None:
    wait_until(path.exists, child)


def test_words_and_captions_of_a_complete_film(uninterrupted):
    result, folder = uninterrupted
    assert result.returncode == 0, result.stderr
    captions = lines(folder / "a.jsonl")
    assert [(line["start"], line["end"]) for line in captions] == [(n, n + 1) for n in range(9)]
    assert all(0 < len(line["tokens"]) <= 20 and line["slots"] > 0 and line["ms"]["decode"] > 0 for line in captions)
    assert [line.get("question") for line in captions] == [None] * 4 + ["who scored?"] + [None] * 4
    with_text = [line for line in captions if line["text"]]
    assert len(result.stdout.splitlines()) == len(with_text)
    assert result.stdout.startswith("[00:00:00.0] ")
    for kind in ("vtt", "srt"):
        assert (folder / f"a.{kind}").read_text().count("\nQ: who scored?\n") == 1
    assert (folder / "a.vtt").read_text().count(" --> ") == (folder / "a.srt").read_text().count(" --> ") == len(with_text)
    for message in ("9 chunks of 1 s at 2 fps, as fast as possible", "asked: who scored?", "x real time", "watched 9 chunks"):
        assert message in result.stderr


def outputs(folder: Path) -> list[object]:
    return [word for kind in ("vtt", "srt", "jsonl") for word in (f"--{kind}", folder / f"a.{kind}")]


def assert_the_same(folder: Path, expected: Path) -> None:
    for kind in ("vtt", "srt"):
        assert (folder / f"a.{kind}").read_bytes() == (expected / f"a.{kind}").read_bytes()
    assert without_ms(folder / "a.jsonl") == without_ms(expected / "a.jsonl")


def test_killed_and_resumed_it_says_what_it_would_have_said(film, model_flags, uninterrupted, tmp_path):
    """Twice, in the middle of saving perhaps; the captions are named by another path each time."""
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "real").mkdir()
    options = ("--ask", "4:who scored?", "--save-state", tmp_path / "a.state", "--save-every", 1)
    running = GatedCommand(film, *model_flags, *SMALL, *options, *outputs(tmp_path)).release(4)
    wait_for_state(tmp_path / "a.state", 3, running.child)
    running.kill()
    resumed = (film, *model_flags, *SMALL[:-2], *options, "--resume", tmp_path / "a.state")  # the query is in the state
    second = GatedCommand(*resumed, *outputs(tmp_path / "link")).release(4)  # and not to the end
    wait_for_lines(tmp_path / "a.jsonl", 7, second.child)
    second.kill()
    last = command("stream", *resumed, *outputs(tmp_path / "real" / ".."))
    assert last.returncode == 0, last.stderr
    assert_the_same(tmp_path, uninterrupted[1])


@pytest.mark.slow
def test_killed_twenty_times_it_says_what_it_would_have_said(model_flags, tmp_path):
    folder, expected = tmp_path / "killed", tmp_path / "uninterrupted"
    folder.mkdir()
    expected.mkdir()
    questions = ("--ask", "4:who scored?", "--ask", "4:and who is playing?")
    options = ("match:3", *model_flags, *SMALL[:-2], "--save-every", 1, *questions)
    result = command("stream", *options, "--query", "Commentate", "--duration", 60, *outputs(expected))
    assert result.returncode == 0, result.stderr
    state, resumed_at = folder / "a.state", 0.0
    for number in range(20):
        start = ("--resume", state) if number else ("--query", "Commentate")
        running = GatedCommand(
            *options, *start, "--save-state", state, "--duration", 60 - resumed_at, *outputs(folder)
        ).release(3 + number % 2)
        wait_for_lines(folder / "a.jsonl", int(resumed_at) + 2, running.child)
        wait_for(state, running.child)
        if number % 2:  # half of them with some part of a save behind them
            time.sleep(0.002 * number)
        running.kill()
        resumed_at = peek(state)["next"]
    last = command(
        "stream", *options, "--resume", state, "--save-state", state, "--duration", 60 - resumed_at, *outputs(folder)
    )
    assert last.returncode == 0, last.stderr
    assert_the_same(folder, expected)


def test_a_signal_finishes_the_chunk_and_a_typed_line_is_asked(model_flags, tmp_path):
    args = ("match:3", *model_flags, *SMALL, "--jsonl", tmp_path / "a.jsonl", "--save-state", tmp_path / "a.state")
    running = GatedCommand(*args).release(1)
    wait_for_lines(tmp_path / "a.jsonl", 1, running.child)
    running.child.stdin.write("who has the ball?\n")
    running.child.stdin.flush()
    watched = 1
    while not any("question" in line for line in lines(tmp_path / "a.jsonl")):  # it is read by a thread, some time
        watched += 1
        running.release(1)
        wait_for_lines(tmp_path / "a.jsonl", watched, running.child)
    running.child.send_signal(signal.SIGTERM)
    _, stderr = running.child.communicate(timeout=HANG)  # its source is still held
    assert running.child.returncode == 0
    assert "SIGTERM: stopping after this chunk" in stderr and "asked: who has the ball?" in stderr
    assert peek(tmp_path / "a.state")["next"] == watched == len(lines(tmp_path / "a.jsonl"))


def test_a_closed_stdout_is_no_accident(film, model_flags):
    running = GatedCommand(film, *model_flags, *SMALL, "--tokens").release(1)
    assert running.child.stdout.readline().startswith("[00:00:00.0]")
    running.child.stdout.close()
    running.child.stdout = None
    _, stderr = running.finish()
    assert running.child.returncode == 0 and "Traceback" not in stderr and "Exception" not in stderr


def test_a_terminal_that_goes_away_takes_no_stream_with_it(film, model_flags, tmp_path):
    """`2>&1 | head`: nobody reads any more, and the state is still kept."""
    reader, writer = os.pipe()
    state = ("--save-state", tmp_path / "a.state", "--save-every", 2)
    running = GatedCommand(film, *model_flags, *SMALL, "--tokens", *state, stdout=writer, stderr=writer).release(2)
    os.close(writer)
    wait_for(tmp_path / "a.state", running.child)
    os.close(reader)
    running.finish()
    assert running.child.returncode == 0 and peek(tmp_path / "a.state")["next"] == 9


def test_a_source_that_breaks_takes_nothing_with_it_that_was_watched(model_flags, tmp_path):
    (tmp_path / "frames").mkdir()
    for number in range(9):
        side = 112 if number < 7 else 140  # the fourth second cannot be watched
        Image.new("RGB", (168, side), (9 * number, 60, 90)).save(tmp_path / "frames" / f"{number}.png")
    args = (tmp_path / "frames", *model_flags, *SMALL, "--save-state", tmp_path / "a.state", "--jsonl", tmp_path / "a.jsonl")
    assert "7.png: got 168x140 px" in refusal(command("stream", *args))
    assert peek(tmp_path / "a.state")["next"] == len(lines(tmp_path / "a.jsonl")) == 3


def test_tokens_are_shown_as_they_come_and_make_the_lines_of_complete_replies(film, model_flags, uninterrupted):
    """No empty line for a silent second, no half character, no dots at the end."""
    result = command("stream", film, *model_flags, *SMALL, "--ask", "4:who scored?", "--tokens")
    assert result.returncode == 0, result.stderr
    assert [squeezed(line) for line in result.stdout.splitlines()] == [
        squeezed(line) for line in uninterrupted[0].stdout.splitlines()
    ]


def squeezed(line: str) -> str:
    return line.rstrip("\ufffd ")


def test_a_full_disk_is_one_line_and_leaves_complete_cues(film, model_flags, tmp_path):
    result = command("stream", film, *model_flags, *SMALL, "--jsonl", tmp_path / "a.jsonl", limit=1500)
    assert "a.jsonl: got a failed write" in refusal(result)
    assert 1 <= len(lines(tmp_path / "a.jsonl")) < 9


def test_bad_input_is_one_line_and_makes_no_file(film, model_flags, tmp_path):
    (tmp_path / "there.vtt").write_text("WEBVTT\n\n00:00:00.000 --> 00:00:01.000\nmine\n\n")
    new = ("--jsonl", tmp_path / "new.jsonl")
    cases = {
        ("--fps", 3, *new): "fps: got 3 fps in chunks of 1 s",
        ("--sink", "none", *new): "--sink and --text-window: got None and 512",
        ("--rope-positions", "native", "--moved-reply-kv", "recompute", *new): "expected --moved-reply-kv reuse with it",
        ("--query", "who? " * 200, *new): "query: got ",
        ("--ask", "who?", *new): "--ask: got 'who?', expected SECOND:QUESTION",
        ("--vtt", tmp_path / "there.vtt"): "a file that exists",
        ("--resume", tmp_path / "none.state", "--query", "x"): "--resume: got with --query",
        ("--start", 100, *new): "start: got 100 s, expected less than 9 s",
        ("--model", tmp_path / "nothing", *new): "nothing",
    }
    for args, expected in cases.items():
        assert expected in refusal(command("stream", film, *model_flags, *args)), args
    assert "no such file" in refusal(command("stream", tmp_path / "none.mp4", *model_flags, *new))
    assert [path.name for path in tmp_path.iterdir()] == ["there.vtt"]


def test_a_busy_device_reports_what_it_dropped_and_watches_the_newest_seconds(film, model_flags, tmp_path, monkeypatch, capfd):
    """All of a live source comes while the device is busy: the clock has no say in it."""
    compiling, all_read, chunks, compiled = threading.Event(), threading.Event(), Source.__iter__, Runner.compiled

    def source(self):
        for number, chunk in enumerate(chunks(self)):
            assert not number or compiling.wait(HANG)
            yield chunk
        all_read.set()

    def busy(*args, **options):
        compiling.set()
        assert all_read.wait(HANG)
        return compiled(*args, **options)

    monkeypatch.setattr(Source, "__iter__", source)
    monkeypatch.setattr(Runner, "compiled", busy)
    monkeypatch.setattr(FileSource, "live", True)
    args = (film, *model_flags, *SMALL, "--max-delay", 3, "--jsonl", tmp_path / "a.jsonl")
    monkeypatch.setattr(sys, "argv", ["stream", *map(str, args)])
    main()
    captions = [(line["start"], line["end"], line.get("dropped")) for line in lines(tmp_path / "a.jsonl")]
    assert captions == [(0, 1, None), (1, 6, 5), (6, 7, None), (7, 8, None), (8, 9, None)]
    stderr = capfd.readouterr().err
    for line in ("live; when more than 3 s wait, the oldest are dropped", "dropped 00:00:01.0 to 00:00:06.0 (5 chunks)"):
        assert line in stderr
    assert "watched 4 chunks to 00:00:09.0, 5 dropped" in stderr


def test_a_source_without_a_frame_is_one_line(film, model_flags):
    assert "shorter than one frame" in refusal(command("stream", "match:5", "--duration", 0.1, *model_flags))


def test_the_loss_and_the_return_of_a_camera_are_told(tmp_path, capsys):
    """Else a file of captions has a hole that nobody can explain."""
    run, written = cast("Any", object.__new__(StreamCommand)), []
    run.screen, run.source, run.missed = Screen(), SimpleNamespace(name="rtsp://***@camera/1"), 0
    run.captions = {"jsonl": SimpleNamespace(write=lambda *span, **extra: written.append((*span, extra)))}
    run._handle(SourceLost(stream="video", second=4, reason="nothing came for 10 s"))
    run._handle(SourceBack(stream="video", start=4, end=16, chunks=12, seconds=12.4, attempts=3))
    run._handle(SourceBack(stream="video", start=16, end=16, chunks=0, seconds=0.2, attempts=1))
    lost, back, at_once = capsys.readouterr().err.splitlines()
    assert lost == "00:00:04.0 rtsp://***@camera/1 is lost: nothing came for 10 s; it is tried again"
    assert back == "00:00:16.0 rtsp://***@camera/1 is back after 12.4 s: nobody saw 00:00:04.0 to 00:00:16.0"
    assert at_once.endswith("is back after 0.2 s: no chunk is missing")
    assert written == [(4, 16, "", {"missed": 12})] and run.missed == 12
