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

import pytest
from PIL import Image

from svlm_jax.cli.stream import main
from svlm_jax.media.sources import FileSource, Source
from svlm_jax.media.video import write_video
from svlm_jax.stream.session import Session
from svlm_jax.stream.state_io import peek
from svlm_jax.touchline.film import Film
from tests.cli.test_commands import ROOT, command, refusal

HANG = 300  # seconds after which a test has hung; none waits for them
SMALL = ("--vision-window", 3, "--text-rounds", 3, "--sink", 6, "--text-window", 6, "--query", "Commentate on this match")


@pytest.fixture(scope="module", autouse=True)
def programs(tmp_path_factory):
    """Compiled once for all the processes below: it is most of what they do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("programs")))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        yield


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    write_video(path, islice(Film(1, size=(168, 112)).pictures(10), 90), 10)
    return path


@pytest.fixture(scope="module")
def beside(tiny_dir, processor_dir) -> tuple:
    return ("--model", tiny_dir, "--processor", processor_dir)


@pytest.fixture(scope="module")
def whole(film, beside, tmp_path_factory):
    """An uninterrupted run: its result and its captions."""
    place = tmp_path_factory.mktemp("whole")
    files = [word for kind in ("vtt", "srt", "jsonl") for word in (f"--{kind}", place / f"a.{kind}")]
    return command("stream", film, *beside, *SMALL, "--ask", "4:who scored?", *files), place


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def without_ms(path: Path) -> list[dict]:
    return [{key: value for key, value in line.items() if key != "ms"} for line in lines(path)]


# A child whose source gives a chunk for each byte that comes through a pipe, and all the rest when the pipe is closed.
HELD = """
import os, runpy, sys
from svlm_jax.media import sources
gate, chunks = int(sys.argv.pop(1)), sources.Source.__iter__
def held(self):
    for chunk in chunks(self):
        os.read(gate, 1)
        yield chunk
sources.Source.__iter__ = held
runpy.run_module("launch.stream", run_name="__main__", alter_sys=True)
"""


class Held:
    """A running command whose source waits for `let`."""

    def __init__(self, *args: object, **pipes: object) -> None:
        gate, self.gate = os.pipe()
        env = {**os.environ, "PYTHONWARNINGS": "ignore", "PYTHONPATH": str(ROOT)}
        line = [sys.executable, "-c", HELD, str(gate), *map(str, args)]
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE) | pipes
        self.child = subprocess.Popen(line, text=True, env=env, cwd=ROOT, pass_fds=[gate], **pipes)
        os.close(gate)
        # `check_source` looks at the first frames of a file: does it play?
        os.write(self.gate, b"" if str(args[0]).startswith("match:") else b".")

    def let(self, chunks: int) -> "Held":
        os.write(self.gate, b"." * chunks)
        return self

    def end(self) -> tuple[str, str]:
        """Let all come, and wait for the end."""
        if self.gate:
            os.close(self.gate)
            self.gate = 0
        return self.child.communicate(timeout=HANG)

    def kill(self) -> None:
        self.child.kill()
        self.end()


def wait_until(true: Callable[[], bool], child: subprocess.Popen[str]) -> None:
    until = time.monotonic() + HANG
    while not true():
        assert child.poll() is None, child.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.05)


def wait_for_lines(path: Path, count: int, child: subprocess.Popen[str]) -> None:
    wait_until(lambda: path.exists() and path.read_bytes().count(b"\n") >= count, child)


def wait_for_state(path: Path, second: int, child: subprocess.Popen[str]) -> None:
    """Until a state of that second or a later one is saved: how far behind the captions it is depends on the disk."""
    wait_until(lambda: path.exists() and peek(path)["next"] >= second, child)


def wait_for(path: Path, child: subprocess.Popen[str]) -> None:
    wait_until(path.exists, child)


def test_words_and_captions_of_a_whole_film(whole):
    result, place = whole
    assert result.returncode == 0, result.stderr
    told = lines(place / "a.jsonl")
    assert [(line["start"], line["end"]) for line in told] == [(n, n + 1) for n in range(9)]
    assert all(0 < len(line["tokens"]) <= 20 and line["slots"] > 0 and line["ms"]["decode"] > 0 for line in told)
    assert [line.get("question") for line in told] == [None] * 4 + ["who scored?"] + [None] * 4
    spoken = [line for line in told if line["text"]]
    assert len(result.stdout.splitlines()) == len(spoken)
    assert result.stdout.startswith("[00:00:00.0] ")
    for kind in ("vtt", "srt"):
        assert (place / f"a.{kind}").read_text().count("\nQ: who scored?\n") == 1
    assert (place / "a.vtt").read_text().count(" --> ") == (place / "a.srt").read_text().count(" --> ") == len(spoken)
    for said in ("9 chunks of 1 s at 2 fps, as fast as possible", "asked: who scored?", "x real time", "watched 9 chunks"):
        assert said in result.stderr


def outputs(place: Path) -> list[object]:
    return [word for kind in ("vtt", "srt", "jsonl") for word in (f"--{kind}", place / f"a.{kind}")]


def assert_the_same(place: Path, whole: Path) -> None:
    for kind in ("vtt", "srt"):
        assert (place / f"a.{kind}").read_bytes() == (whole / f"a.{kind}").read_bytes()
    assert without_ms(place / "a.jsonl") == without_ms(whole / "a.jsonl")


def test_killed_and_resumed_it_says_what_it_would_have_said(film, beside, whole, tmp_path):
    """Twice, in the middle of saving perhaps; the captions are named by another path each time."""
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "real").mkdir()
    asked = ("--ask", "4:who scored?", "--save-state", tmp_path / "a.state", "--save-every", 1)
    one = Held(film, *beside, *SMALL, *asked, *outputs(tmp_path)).let(4)
    wait_for_state(tmp_path / "a.state", 3, one.child)
    one.kill()
    again = (film, *beside, *SMALL[:-2], *asked, "--resume", tmp_path / "a.state")  # the query is in the state
    two = Held(*again, *outputs(tmp_path / "link")).let(4)  # and not to the end
    wait_for_lines(tmp_path / "a.jsonl", 7, two.child)
    two.kill()
    last = command("stream", *again, *outputs(tmp_path / "real" / ".."))
    assert last.returncode == 0, last.stderr
    assert_the_same(tmp_path, whole[1])


@pytest.mark.slow
def test_killed_twenty_times_it_says_what_it_would_have_said(beside, tmp_path):
    place, whole = tmp_path / "killed", tmp_path / "whole"
    place.mkdir()
    whole.mkdir()
    asked = ("match:3", *beside, *SMALL[:-2], "--save-every", 1, "--ask", "4:who scored?", "--ask", "4:and who is playing?")
    uninterrupted = command("stream", *asked, "--query", "Commentate", "--duration", 60, *outputs(whole))
    assert uninterrupted.returncode == 0, uninterrupted.stderr
    state, stood = place / "a.state", 0.0
    for number in range(20):
        begin = ("--resume", state) if number else ("--query", "Commentate")
        one = Held(*asked, *begin, "--save-state", state, "--duration", 60 - stood, *outputs(place)).let(3 + number % 2)
        wait_for_lines(place / "a.jsonl", int(stood) + 2, one.child)
        wait_for(state, one.child)
        if number % 2:  # half of them with some part of a save behind them
            time.sleep(0.002 * number)
        one.kill()
        stood = peek(state)["next"]
    last = command("stream", *asked, "--resume", state, "--save-state", state, "--duration", 60 - stood, *outputs(place))
    assert last.returncode == 0, last.stderr
    assert_the_same(place, whole)


def test_a_signal_finishes_the_chunk_and_a_typed_line_is_asked(beside, tmp_path):
    args = ("match:3", *beside, *SMALL, "--jsonl", tmp_path / "a.jsonl", "--save-state", tmp_path / "a.state")
    one = Held(*args).let(1)
    wait_for_lines(tmp_path / "a.jsonl", 1, one.child)
    one.child.stdin.write("who has the ball?\n")
    one.child.stdin.flush()
    seen = 1
    while not any("question" in line for line in lines(tmp_path / "a.jsonl")):  # it is read by a thread, some time
        seen += 1
        one.let(1)
        wait_for_lines(tmp_path / "a.jsonl", seen, one.child)
    one.child.send_signal(signal.SIGTERM)
    _, told = one.child.communicate(timeout=HANG)  # its source is still held
    assert one.child.returncode == 0
    assert "SIGTERM: stopping after this chunk" in told and "asked: who has the ball?" in told
    assert peek(tmp_path / "a.state")["next"] == seen == len(lines(tmp_path / "a.jsonl"))


def test_a_closed_stdout_is_no_accident(film, beside):
    one = Held(film, *beside, *SMALL, "--tokens").let(1)
    assert one.child.stdout.readline().startswith("[00:00:00.0]")
    one.child.stdout.close()
    one.child.stdout = None
    _, told = one.end()
    assert one.child.returncode == 0 and "Traceback" not in told and "Exception" not in told


def test_a_terminal_that_goes_away_takes_no_stream_with_it(film, beside, tmp_path):
    """`2>&1 | head`: nobody reads any more, and the state is still kept."""
    reader, writer = os.pipe()
    state = ("--save-state", tmp_path / "a.state", "--save-every", 2)
    one = Held(film, *beside, *SMALL, "--tokens", *state, stdout=writer, stderr=writer).let(2)
    os.close(writer)
    wait_for(tmp_path / "a.state", one.child)
    os.close(reader)
    one.end()
    assert one.child.returncode == 0 and peek(tmp_path / "a.state")["next"] == 9


def test_a_source_that_breaks_takes_nothing_with_it_that_was_watched(beside, tmp_path):
    (tmp_path / "frames").mkdir()
    for number in range(9):
        side = 112 if number < 7 else 140  # the fourth second cannot be watched
        Image.new("RGB", (168, side), (9 * number, 60, 90)).save(tmp_path / "frames" / f"{number}.png")
    args = (tmp_path / "frames", *beside, *SMALL, "--save-state", tmp_path / "a.state", "--jsonl", tmp_path / "a.jsonl")
    assert "7.png: got 168x140 px" in refusal(command("stream", *args))
    assert peek(tmp_path / "a.state")["next"] == len(lines(tmp_path / "a.jsonl")) == 3


def test_tokens_are_shown_as_they_come_and_make_the_lines_of_whole_replies(film, beside, whole):
    """No empty line for a silent second, no half character, no dots at the end."""
    result = command("stream", film, *beside, *SMALL, "--ask", "4:who scored?", "--tokens")
    assert result.returncode == 0, result.stderr
    assert [squeezed(line) for line in result.stdout.splitlines()] == [squeezed(line) for line in whole[0].stdout.splitlines()]


def squeezed(line: str) -> str:
    return line.rstrip("\ufffd ")


def test_a_full_disk_is_one_line_and_what_is_written_is_whole(film, beside, tmp_path):
    result = command("stream", film, *beside, *SMALL, "--jsonl", tmp_path / "a.jsonl", limit=1500)
    assert "a.jsonl: got a failed write" in refusal(result)
    assert 1 <= len(lines(tmp_path / "a.jsonl")) < 9


def test_bad_input_is_one_line_and_makes_no_file(film, beside, tmp_path):
    (tmp_path / "there.vtt").write_text("WEBVTT\n\n")
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
        assert expected in refusal(command("stream", film, *beside, *args)), args
    assert "no such file" in refusal(command("stream", tmp_path / "none.mp4", *beside, *new))
    assert [path.name for path in tmp_path.iterdir()] == ["there.vtt"]


def test_what_a_device_that_stands_still_loses_is_said_and_the_newest_seconds_are_watched(
    film, beside, tmp_path, monkeypatch, capfd
):
    """All of a live source comes while the device is busy: the clock has no say in it."""
    come, chunks, warm = threading.Event(), Source.__iter__, Session.warm

    def source(self):
        yield from chunks(self)
        come.set()

    def busy(*args, **options):
        assert come.wait(HANG)
        return warm(*args, **options)

    monkeypatch.setattr(Source, "__iter__", source)
    monkeypatch.setattr(Session, "warm", busy)
    monkeypatch.setattr(FileSource, "live", True)
    args = (film, *beside, *SMALL, "--max-delay", 3, "--jsonl", tmp_path / "a.jsonl")
    monkeypatch.setattr(sys, "argv", ["stream", *map(str, args)])
    main()
    told = [(line["start"], line["end"], line.get("dropped")) for line in lines(tmp_path / "a.jsonl")]
    assert told == [(0, 1, None), (1, 6, 5), (6, 7, None), (7, 8, None), (8, 9, None)]
    shown = capfd.readouterr().err
    for line in ("live; when more than 3 s wait, the oldest are dropped", "dropped 00:00:01.0 to 00:00:06.0 (5 chunks)"):
        assert line in shown
    assert "watched 4 chunks to 00:00:09.0, 5 dropped" in shown


def test_a_source_without_a_frame_is_one_line(film, beside):
    assert "shorter than one frame" in refusal(command("stream", "match:5", "--duration", 0.1, *beside))
