"""`svlm curate edit`, as a user runs it: by rules, by a model that fails in the middle, killed and run again."""

import json
import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from svlm_jax.cli.curate import edit
from svlm_jax.curate.transcript import Transcript, to_record
from svlm_jax.errors import InputError
from tests.curate.test_sentences import said
from tests.support import HANG, ROOT, wait_until
from tests.support.judge_server import BROKEN, KEY, MODEL, failure, judge_server, prompt_text, slow

RUN = "from svlm_jax.cli import main; main('curate')"
VIDEOS, SEGMENTS = 3, 4
NUMBERED = re.compile(r"^\[(\d+)\] (.*)$", re.MULTILINE)


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.001)
    monkeypatch.setattr("svlm_jax.remote.connection.BODY_PAUSE", 0.001)


@pytest.fixture
def clean(tmp_path) -> Path:
    """Games of four segments, each with a name that was misheard, an advert and a sentence that is right."""
    lines = []
    for video in range(VIDEOS):
        words = [
            word
            for number in range(SEGMENTS)
            for word in said(f"Redz{video}{number} shoot. Subscribe to our channel now! Saved by Blues.", 120.0 * number + 1)
        ]
        game = Transcript(f"game{video}.mp4", 480.0, tuple(words), "en", "Reds - Blues", steps=("clean",))
        lines.append(json.dumps(to_record(game)) + "\n")
    (tmp_path / "clean.jsonl").write_text("".join(lines))
    return tmp_path / "clean.jsonl"


def decide(body: dict, _: int = 0) -> str:
    """A model that knows what is right."""
    items = []
    for number, text in NUMBERED.findall(prompt_text(body)):
        if text.startswith("Redz"):
            items.append({"i": int(number), "do": "edit", "text": "Reds shoot."})
        else:
            items.append({"i": int(number), "do": "delete" if "Subscribe" in text else "keep", "text": ""})
    return json.dumps({"decisions": items})


def flags(clean: Path, server=None, *, out: str = "edited.jsonl") -> list[str]:
    asked = [f"--editor-url={server.url}", f"--editor-model={MODEL}", "--concurrency=2", "--jobs=2"] if server else []
    return [f"--in={clean}", f"--out={clean.with_name(out)}", *asked]


def call(monkeypatch, *args: str) -> int:
    """The exit code."""
    monkeypatch.setattr(sys, "argv", ["svlm curate edit", *args])
    try:
        edit.main()
    except SystemExit as error:
        return error.code  # type: ignore[return-value]
    return 0


def results(folder: Path, stem: str = "edited") -> dict[str, bytes]:
    names = ("jsonl", "changes.jsonl", "set_aside.jsonl", "report.json")
    return {name: (folder / f"{stem}.{name}").read_bytes() for name in names}


def said_in(path: Path) -> list[str]:
    return [" ".join(word for *_, word in json.loads(line)["content"]) for line in path.read_text().splitlines()]


def test_a_model_edits_all_videos_and_its_shares_stand_beside_the_papers(clean, monkeypatch, capsys):
    with judge_server(decide) as server:
        assert call(monkeypatch, *flags(clean, server)) == 0
        assert len(server.requests) == VIDEOS * SEGMENTS
    assert said_in(clean.with_name("edited.jsonl")) == [" ".join(["Reds shoot. Saved by Blues."] * SEGMENTS)] * VIDEOS
    out = capsys.readouterr().out
    assert "sentences  33.3% kept, 33.3% edited, 33.3% deleted" in out
    assert "words      30.0% kept, 20.0% edited, 50.0% deleted" in out
    assert "segments   0.0% kept, 100.0% edited, 0.0% deleted" in out
    assert "the paper  46.3% kept, 37.9% edited, 15.8% deleted" in out


def test_edited_again_nothing_changes_and_nobody_is_asked(clean, monkeypatch, capsys):
    with judge_server(decide) as server:
        assert call(monkeypatch, *flags(clean, server)) == 0
        asked = len(server.requests)
        again = [f"--in={clean.with_name('edited.jsonl')}", *flags(clean, server, out="again.jsonl")[1:]]
        assert call(monkeypatch, *again) == 0
        assert call(monkeypatch, *flags(clean, server)) == 0  # nothing to do
        assert len(server.requests) == asked
    assert clean.with_name("again.jsonl").read_bytes() == clean.with_name("edited.jsonl").read_bytes()
    assert f"{VIDEOS} videos were edited before, and passed as they are" in capsys.readouterr().out


def test_a_video_without_an_answer_waits_others_are_done_and_the_next_run_asks_for_it_alone(clean, monkeypatch, capsys):
    monkeypatch.setattr("svlm_jax.remote.connection.RETRIES", 0)
    broken = lambda body, times: BROKEN if "Redz12" in prompt_text(body) else decide(body)  # noqa: E731
    with judge_server(broken) as server:
        assert call(monkeypatch, *flags(clean, server)) == 1
    assert not clean.with_name("edited.jsonl").exists()
    assert "1 of 3 videos are not done" in capsys.readouterr().err
    with judge_server(decide) as server:
        assert call(monkeypatch, *flags(clean, server)) == 0
        names = [re.findall(r"Redz\d+", prompt_text(body))[-1] for body in server.requests]
    assert "Redz12" in names and set(names) <= {"Redz12", "Redz13"}
    assert len(said_in(clean.with_name("edited.jsonl"))) == VIDEOS


def test_a_refused_key_is_one_line_and_ends_the_run(clean, monkeypatch):
    with judge_server(failure(401, "bad key")) as server, pytest.raises(InputError, match=r"--editor-url .*401"):
        call(monkeypatch, *flags(clean, server))
    assert len(server.requests) <= 4  # those that were under way


def test_a_dry_run_asks_and_writes_nothing(clean, monkeypatch, capsys):
    before = sorted(clean.parent.iterdir())
    with judge_server(decide) as server:
        assert call(monkeypatch, *flags(clean, server), "--dry-run", "--price-in=0.15", "--price-out=0.6", "--shard=1/3") == 0
        assert server.requests == []
    assert sorted(clean.parent.iterdir()) == before
    out = capsys.readouterr().out
    assert f"1 videos: {SEGMENTS} requests" in out and re.search(r"about [\d,]+ tokens in and [\d,]+ out", out)
    assert "about 0.00 at these prices" in out


def test_without_a_model_rules_edit(clean, monkeypatch, capsys):
    glossary = clean.with_name("names.json")
    glossary.write_text(json.dumps({"Reds": [f"Redz{video}{number}" for video in range(VIDEOS) for number in range(SEGMENTS)]}))
    assert call(monkeypatch, *flags(clean), f"--glossary={glossary}", "--jobs=1") == 0
    assert said_in(clean.with_name("edited.jsonl")) == [" ".join(["Reds shoot. Saved by Blues."] * SEGMENTS)] * VIDEOS


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (["--editor-url=http://127.0.0.1:1/v1"], "--editor-model: got nothing"),
        (["--editor-model=x"], "--editor-url: got nothing"),
        (["--editor-url=ftp://x", "--editor-model=x"], "--editor-url: got ftp://x"),
        (
            ["--editor=rules", "--editor-url=http://127.0.0.1:1/v1", "--editor-model=x"],
            "--editor: got together with --editor-url",
        ),
        (["--glossary=x", "--editor-url=http://127.0.0.1:1/v1", "--editor-model=x"], "--glossary: got together"),
        (["--prompt-file=x"], "--prompt-file: got without --editor-url"),
        (["--dry-run"], "--dry-run: got without --editor-url"),
    ],
)
def test_flags_that_do_not_go_together_are_one_line(args, error, clean, monkeypatch):
    with pytest.raises(InputError, match=re.escape(error)):
        call(monkeypatch, *flags(clean), *args)


def kill_when(clean: Path, requests: int, server) -> None:
    """Start the command and kill it when it has asked so many times."""
    process = subprocess.Popen([sys.executable, "-c", RUN, "edit", *flags(clean, server)], env=dict(os.environ), cwd=ROOT)
    wait_until(lambda: len(server.requests) >= requests or process.poll() is not None)
    process.send_signal(signal.SIGKILL)
    process.wait(HANG)


def test_killed_and_run_again_it_writes_the_same_bytes_and_asks_for_no_answer_twice(clean, monkeypatch):
    with judge_server(decide) as server:
        assert call(monkeypatch, *flags(clean, server, out="whole.jsonl")) == 0
    hanging = lambda body, times: slow(decide(body), 600.0) if len(server.requests) > 5 else decide(body)  # noqa: E731
    with judge_server(hanging) as server:
        kill_when(clean, 7, server)
        answered = {prompt_text(body) for body in server.requests[:5]}
    with judge_server(decide) as server:
        assert call(monkeypatch, *flags(clean, server)) == 0
        asked = [prompt_text(body) for body in server.requests]
    assert not answered & set(asked) and len(asked) == VIDEOS * SEGMENTS - 5
    whole, again = results(clean.parent, "whole"), results(clean.parent)
    assert again["jsonl"] == whole["jsonl"] and again["changes.jsonl"] == whole["changes.jsonl"]


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_with_the_same_bytes(clean, monkeypatch):
    with judge_server(decide) as server:
        assert call(monkeypatch, *flags(clean, server, out="whole.jsonl")) == 0
        draws = random.Random(0)
        for _ in range(8):
            before = len(server.requests)
            kill_when(clean, before + draws.randrange(1, 4), server)
        assert call(monkeypatch, *flags(clean, server)) == 0
    assert results(clean.parent)["jsonl"] == results(clean.parent, "whole")["jsonl"]
