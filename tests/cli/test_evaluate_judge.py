"""`svlm evaluate infstreams judge` with a judge over HTTP, as a user runs it, kills it and runs it again."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from svlm_jax.cli.evaluate import infstreams
from tests.support import HANG, ROOT, wait_until
from tests.support.judge_server import BROKEN, KEY, MODEL, judge_server, prefers, prompt_text, slow

SEGMENTS = 8
# Whoever runs the tests in the background of a script ignores SIGINT, and so would the command.
RUN = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from svlm_jax.cli import main; main()"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.001)
    monkeypatch.setattr("svlm_jax.remote.connection.BODY_PAUSE", 0.001)


@pytest.fixture
def data(tmp_path) -> Path:
    """One game of eight segments, and what two models said: A speaks of goals, B of grass."""
    words = [[[100 * n + 1, 100 * n + 2, f"goal {n}"], [100 * n + 98, 100 * n + 99, "yes"]] for n in range(SEGMENTS)]
    clips = [{"video": "game.mp4", "title": "", "preasr": "", "content": content} for content in words]
    (tmp_path / "clips.jsonl").write_text("".join(json.dumps(clip) + "\n" for clip in clips))
    for name, text in (("a", "what a goal in segment {}"), ("b", "grass is green in segment {}")):
        starts = range(0, 100 * SEGMENTS, 50)
        items = [{"response": text.format(t // 100), "start_time": t, "end_time": t + 50} for t in starts]
        row = {"video": "game.mp4", "chunk_start": 0, "chunk_end": 100 * SEGMENTS, "items": items}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    return tmp_path


def arguments(server, data: Path, out: str = "scores") -> list[str]:
    files = [f"--{name}={data / file}" for name, file in (("clips", "clips.jsonl"), ("a", "a.jsonl"), ("b", "b.jsonl"))]
    return ["judge", *files, f"--out={data / out}", f"--judge-url={server.url}", f"--judge-model={MODEL}", "--concurrency=3"]


def call(monkeypatch, *args: str) -> None:
    monkeypatch.setattr(sys, "argv", ["svlm evaluate infstreams", *args])
    infstreams.main()


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def count(votes: Path) -> int:
    return votes.read_bytes().count(b"\n") if votes.exists() else 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_is_ended_in_the_middle_goes_on_and_its_files_are_the_same(number, data, monkeypatch):
    """Nothing that was answered is asked again, and Ctrl-C does not wait for what is under way."""
    hangs = [True]

    def respond(body, times):
        answer = prefers("goal")(body, times)
        return slow(answer, 600.0) if hangs[0] and "segment 5" in prompt_text(body) else answer

    votes = data / "scores" / "votes.jsonl"
    with judge_server(respond) as server:
        command = [sys.executable, "-c", RUN, "evaluate", "infstreams", *arguments(server, data)]
        env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
        with subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True) as process:
            try:
                wait_until(lambda: process.poll() is not None or (count(votes) == 14 and len(server.requests) == 16))
                process.send_signal(number)
                stderr = process.communicate(timeout=HANG)[1]
            finally:
                process.kill()
        assert process.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL), stderr
        assert "16 of 16 votes are not there yet: 16 requests, about" in stderr
        assert not (data / "scores" / "score_results.json").exists()
        hangs[0] = False
        votes.write_bytes(b"".join(votes.read_bytes().splitlines(keepends=True)[:-3]) + b'{"key": "game')  # what a disk lost
        call(monkeypatch, *arguments(server, data))
        assert len(server.requests) == 18  # both orders of segment 5; the three that were lost are in the cache
        call(monkeypatch, *arguments(server, data, "at once"))
    assert files(data / "scores") == files(data / "at once")
    assert json.loads((data / "scores" / "score_results.json").read_text())["global"]["win_rate_A"] == 1.0


def test_segments_without_a_vote_are_listed_give_exit_code_1_and_are_asked_for_by_the_next_run(data, monkeypatch, capsys):
    with (
        judge_server(lambda body, _: BROKEN if "segment 5" in prompt_text(body) else "A") as server,
        pytest.raises(SystemExit) as end,
    ):
        call(monkeypatch, *arguments(server, data))
    assert end.value.code == 1
    assert "1 of 8 segments were not judged (500: our fault)" in capsys.readouterr().err
    listed = (data / "scores" / "unresolved.jsonl").read_text().splitlines()
    assert len(listed) == 1
    assert not (data / "scores" / "score_results.json").exists()  # a rate of seven would pass for one of eight
    with judge_server("A") as server:
        call(monkeypatch, *arguments(server, data))
        assert len(server.requests) == 2
    found = json.loads((data / "scores" / "score_results.json").read_text())["global"]
    assert (found["segments"], found["win_rate_A"], found["inconsistent"]) == (8, 0.5, 1.0)
    written = b"".join(path.read_bytes() for path in (data / "scores").rglob("*") if path.is_file())
    assert KEY.encode() not in written
