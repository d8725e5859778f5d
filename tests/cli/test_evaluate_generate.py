"""`svlm evaluate infstreams generate` as a user runs it: videos that are missing or break, flags that do not fit, a captioner,
and kill -9."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from svlm_jax import pretrained
from svlm_jax.cli.evaluate import infstreams, infstreams_generate
from svlm_jax.cli.evaluate.commentator_flags import stopping
from svlm_jax.errors import InputError
from svlm_jax.media.video import write_video
from tests.support import ROOT
from tests.support.commentators import FakeCommentator
from tests.support.judge_server import KEY, failure, judge_server


def game(video: str, seconds: int = 12) -> dict:
    return {"video": video, "content": [[second, second + 1, f"word{second}"] for second in range(seconds)]}


class Commentator(FakeCommentator):
    num_streams, stopped = 2, False


@pytest.fixture
def set_up(tmp_path, monkeypatch):
    """Two games in the folder; the video of one is there."""
    monkeypatch.chdir(tmp_path)
    write_video("there.mp4", (np.full((56, 56, 3), 8 * number, np.uint8) for number in range(24)), 2)
    Path("games.jsonl").write_text("\n".join(json.dumps(game(name)) for name in ("there.mp4", "gone.mp4")))
    Path("one.jsonl").write_text(json.dumps(game("there.mp4")))
    return monkeypatch


@pytest.fixture
def generate(set_up):
    def run(*args, commentator=None):
        def make(*_, **__):
            assert commentator is not None, "a model is loaded"
            return commentator

        set_up.setattr(infstreams_generate, "make_commentator", make)
        set_up.setattr(sys, "argv", ["svlm evaluate infstreams", "generate", "--videos", ".", "--out", "run", *map(str, args)])
        infstreams.main()

    return run


ONE = ("--games", "one.jsonl", "--start", 2)
BOTH = ("--games", "games.jsonl", "--start", 2)


def rows(pattern: str) -> list[dict]:
    (path,) = Path("run").glob(f"result_{pattern}_*.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_missing_video_is_named_before_a_model_is_loaded(generate):
    with pytest.raises(InputError, match=r"gone\.mp4"):
        generate(*BOTH, "--mode", "infinite")
    assert not Path("run").exists()


def test_the_shipped_model_says_what_it_knows_before_it_watches_a_benchmark(set_up, capsys):
    """Else: a benchmark of films is answered with a generated game, and a score comes out."""
    set_up.setattr(pretrained, "from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    set_up.setattr(sys, "argv", ["svlm evaluate infstreams", "generate", "--videos", ".", "--out", "run", "--mode", "infinite"])
    sys.argv += map(str, ONE)
    with pytest.raises(pytest.fail.Exception, match="loaded"):
        infstreams.main()
    assert "touchline knows only the generated game" in capsys.readouterr().err


def test_an_allowed_one_costs_the_others_nothing_and_has_a_row_that_says_why(generate, capsys):
    gone = {"gone.mp4:2-7": "no such file", "gone.mp4:7-12": "no such file"}
    commentator = Commentator(lambda job, second: f"{second:g}", errors=gone, watched=dict.fromkeys(gone, 0))
    with pytest.warns(UserWarning, match="gone.mp4"):
        generate(*BOTH, "--mode", "chunk", "--chunk", 5, "--bad", 1, commentator=commentator)
    assert [(row["chunk_start"], row["chunk_end"], row.get("error")) for row in rows("there")] == [(2, 7, None), (7, 12, None)]
    assert [(row["chunk_end"], row["error"]) for row in rows("gone")] == [(2, "no such file"), (7, "no such file")]
    told = capsys.readouterr()
    assert "2 of 2 games" in told.out and "4 streams, 20 s of video, 2 at a time: 10 s" in told.err
    assert json.loads(Path("run/run.json").read_text())["mode"] == "chunk"


def test_a_video_that_breaks_is_an_error_after_all_others_are_done_and_again_until_it_is_allowed(generate):
    broken = Commentator(errors={"there.mp4:2-12": "ends at 5 s"}, watched={"there.mp4:2-12": 3})
    with pytest.raises(InputError, match="ends at 5 s"):
        generate(*ONE, "--mode", "infinite", commentator=broken)
    (row,) = rows("there")
    assert (row["chunk_end"], row["error"]) == (5, "ends at 5 s")
    with pytest.raises(InputError, match="ends at 5 s"):
        generate(*ONE, "--mode", "infinite", commentator=Commentator())
    with pytest.warns(UserWarning, match="kept as far as it goes"):
        generate(*ONE, "--mode", "infinite", "--bad", 1, commentator=Commentator())


def test_a_run_goes_on_with_its_own_settings_alone(generate):
    generate(*ONE, "--mode", "infinite", commentator=Commentator())
    generate(*ONE, "--mode", "infinite", commentator=Commentator())
    for different in (("--mode", "recent"), ("--mode", "infinite", "--seed", 1), ("--mode", "infinite", "--query", "Else")):
        with pytest.raises(InputError, match="was begun"):
            generate(*ONE, *different, commentator=Commentator())


@pytest.mark.parametrize(
    ("args", "field"),
    [
        (ONE, "--mode"),
        (("--mode", "infinite"), "--games"),
        ((*ONE, "--mode", "infinite", "--chunk", 50), "--chunk"),
        ((*ONE, "--mode", "chunk", "--frames", 4), "--frames"),
        ((*ONE, "--mode", "infinite", "--clips", "c.jsonl"), "--clips"),
        ((*ONE, "--mode", "infinite", "--shard", "3/2"), "--shard"),
        (("--games", "one.jsonl", "--mode", "infinite"), "--start"),  # 1000 by default
        ((*ONE, "--mode", "infinite", "--query", "a", "--query-file", "one.jsonl"), "--query-file"),
        (("--captioner-url", "http://127.0.0.1:1/v1", "--captioner-model", "m"), "--clips"),
        (("--captioner-url", "http://127.0.0.1:1/v1", "--mode", "infinite", "--clips", "c.jsonl"), "--mode"),
    ],
)
def test_flags_that_do_not_fit_are_refused_in_a_line_that_names_one(generate, args, field):
    with pytest.raises(InputError, match=f"^{field}:"):
        generate(*args)
    assert not Path("run").exists()


def test_a_captioner_is_shown_segments_and_asked_again_for_those_that_failed(generate, set_up):
    set_up.setenv("NO_PROXY", "127.0.0.1")
    set_up.setenv("OPENAI_API_KEY", KEY)
    set_up.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.001)
    clips = [
        {"video": "there.mp4", "content": [[start, start + 0.5, "a"], [start + 4, start + 5, "b"]], "preasr": ""}
        for start in (0, 6)
    ]
    Path("clips.jsonl").write_text("\n".join(map(json.dumps, clips)))
    asked = []

    def respond(body, times):
        text = json.dumps(body)
        asked.append(text)
        return failure(400, "too dark") if "second 6 to 11" in text and not healthy else "A goal."

    healthy = False
    with judge_server(respond) as server:
        args = ("--clips", "clips.jsonl", "--captioner-url", server.url, "--captioner-model", "m")
        with pytest.raises(InputError, match="too dark"):
            generate(*args)
        (row,) = rows("there")
        assert row["items"] == [{"response": "A goal.", "end_time": 5}]
        healthy = True
        before = len(asked)
        generate(*args)
    assert len(asked) == before + 1
    (row,) = rows("there")
    assert [(item["response"], item["end_time"]) for item in row["items"]] == [("A goal.", 5), ("A goal.", 11)]


def test_the_first_interrupt_ends_the_run_after_the_chunk_and_says_how_to_go_on(capsys):
    class Stoppable:
        stopped = False

        def stop(self):
            self.stopped = True

    commentator = Stoppable()
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as end, stopping(commentator):  # pyright: ignore[reportArgumentType]
        os.kill(os.getpid(), signal.SIGTERM)
        assert commentator.stopped
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert end.value.code == 130 and "goes on from here" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.slow
def test_killed_at_any_moment_the_answers_are_those_of_a_run_that_was_not(shallow_dir, processor_dir, tmp_path):
    """kill -9 after the streams were saved, twice; and a run that was never killed."""
    names = ("one", "two", "three")
    for number, name in enumerate(names):
        rng = np.random.default_rng(number)
        write_video(tmp_path / f"{name}.mp4", (rng.integers(0, 256, (56, 84, 3), np.uint8) for _ in range(80 + 20 * number)), 2)
    games = [game(f"{name}.mp4", 40 + 10 * number) for number, name in enumerate(names)]
    (tmp_path / "games.jsonl").write_text("\n".join(map(json.dumps, games)))
    line = [sys.executable, "-m", "svlm_jax.cli", "evaluate", "infstreams", "generate", "--mode", "infinite", "--start", "2"]
    line += ["--games", "games.jsonl", "--videos", ".", "--streams", "2", "--save-every-minutes", "0"]
    line += ["--model", str(shallow_dir), "--processor", str(processor_dir), "--vision-window", "3", "--text-rounds", "3"]
    line += ["--sink", "6", "--text-window", "6", "--query", "Commentate"]
    env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "programs")}

    def start(out: str, **options) -> subprocess.Popen:
        return subprocess.Popen([*line, "--out", out], cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True, **options)

    with start("whole") as whole:
        assert whole.communicate()[1].count("watched") > 0 and whole.returncode == 0
    state = tmp_path / "killed" / "state" / "streams_1_of_1.state"
    for _ in range(2):
        before = state.stat().st_ino if state.exists() else 0
        with start("killed") as killed:
            while killed.poll() is None and not (state.exists() and state.stat().st_ino != before):
                time.sleep(0.02)
            killed.send_signal(signal.SIGKILL)
            killed.communicate()
        assert state.exists()
    with start("killed") as last:
        last.communicate()
        assert last.returncode == 0
    answers = {path.name: path.read_bytes() for path in (tmp_path / "whole").glob("*.jsonl")}
    assert len(answers) == 3
    assert {path.name: path.read_bytes() for path in (tmp_path / "killed").glob("*.jsonl")} == answers
    assert not state.exists()
