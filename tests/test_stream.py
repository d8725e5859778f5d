"""`python -m launch.stream` as a user runs it."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import pytest

from launch.stream import Screen, Stopping
from svlm_jax.data.video import write_video
from svlm_jax.world.film import Film
from tests.test_launch import ROOT, command, refusal

SMALL = ("--vision-window", 3, "--text-rounds", 3, "--sink", 6, "--slide", 6, "--query", "Commentate on this match")


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


def running(*args: object) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONWARNINGS": "ignore", "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-m", "launch.stream", *map(str, args)]
    pipe = subprocess.PIPE
    return subprocess.Popen(line, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=env, cwd=ROOT)


def wait_for_lines(path: Path, count: int, child: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 120
    while not (path.exists() and path.read_bytes().count(b"\n") >= count):
        assert child.poll() is None and time.monotonic() < until
        time.sleep(0.05)


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
    assert (place / "a.vtt").read_text().count(" --> ") == (place / "a.srt").read_text().count(" --> ") == len(spoken)
    for said in ("9 chunks of 1 s at 2 fps, as fast as possible", "asked: who scored?", "x real time", "watched 9 chunks"):
        assert said in result.stderr


def test_killed_and_resumed_it_says_what_it_would_have_said(film, beside, whole, tmp_path):
    files = [word for kind in ("vtt", "srt", "jsonl") for word in (f"--{kind}", tmp_path / f"a.{kind}")]
    asked = ("--ask", "4:who scored?", *files, "--save-state", tmp_path / "a.state", "--save-every", 2)
    child = running(film, *beside, *SMALL, *asked, "--pace")
    wait_for_lines(tmp_path / "a.jsonl", 6, child)
    child.kill()
    child.communicate()
    small = SMALL[:-2]  # the query is in the state
    again = command("stream", film, *beside, *small, *asked, "--resume", tmp_path / "a.state")
    assert again.returncode == 0, again.stderr
    for kind in ("vtt", "srt"):
        assert (tmp_path / f"a.{kind}").read_bytes() == (whole[1] / f"a.{kind}").read_bytes()
    assert without_ms(tmp_path / "a.jsonl") == without_ms(whole[1] / "a.jsonl")


def test_a_signal_finishes_the_chunk_and_a_typed_line_is_asked(film, beside, tmp_path):
    child = running(film, *beside, *SMALL, "--pace", "--jsonl", tmp_path / "a.jsonl", "--save-state", tmp_path / "a.state")
    wait_for_lines(tmp_path / "a.jsonl", 1, child)
    child.stdin.write("who has the ball?\n")
    child.stdin.flush()
    wait_for_lines(tmp_path / "a.jsonl", 4, child)
    child.send_signal(signal.SIGTERM)
    _, told = child.communicate(timeout=60)
    assert child.returncode == 0
    for said in (
        "at its own speed; when more than 2 chunks wait",
        "SIGTERM: stopping after this chunk",
        "asked: who has the ball?",
    ):
        assert said in told
    assert (tmp_path / "a.state").is_file() and 4 <= len(lines(tmp_path / "a.jsonl")) < 9


def test_a_signal_in_the_middle_of_a_print_harms_nothing(monkeypatch, capfd):
    class Interrupted(io.RawIOBase):
        def writable(self):
            return True

        def write(self, data):
            if not stopping.asked:
                signal.raise_signal(signal.SIGTERM)
            return len(data)

    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BufferedWriter(Interrupted())))
    with Stopping(Screen()) as stopping:
        stopping.screen.say("00:00:01.0")
    assert stopping.asked and capfd.readouterr().err == "SIGTERM: stopping after this chunk\n"


def test_a_closed_stdout_is_no_accident(film, beside):
    child = running(film, *beside, *SMALL, "--tokens")
    assert child.stdout.readline().startswith("[00:00:00.0]")
    child.stdout.close()
    child.stdout = None
    _, told = child.communicate(timeout=60)
    assert child.returncode == 0 and "Traceback" not in told and "Exception" not in told


def test_a_full_disk_is_one_line_and_what_is_written_is_whole(film, beside, tmp_path):
    result = command("stream", film, *beside, *SMALL, "--jsonl", tmp_path / "a.jsonl", limit=1500)
    assert "a.jsonl: got a failed write" in refusal(result)
    assert 1 <= len(lines(tmp_path / "a.jsonl")) < 9


def test_bad_input_is_one_line_and_makes_no_file(film, beside, tmp_path):
    (tmp_path / "there.vtt").write_text("WEBVTT\n\n")
    new = ("--jsonl", tmp_path / "new.jsonl")
    cases = {
        ("--fps", 3, *new): "fps: got 3 fps in chunks of 1 s",
        ("--sink", "none", *new): "sink and slide: got None and 512",
        ("--positions", "append", "--moved", "computed", *new): "--moved: got 'computed', but --positions 'append'",
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
