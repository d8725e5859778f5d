"""`svlm curate anneal`, as a user runs it: by cues, by a model, and what a model will cost."""

import json
import sys
from pathlib import Path

import pytest

from svlm_jax.cli.curate import anneal
from svlm_jax.curate.transcript import TimedWord, Transcript, to_record
from svlm_jax.data.annotation import parse_line
from svlm_jax.data.records import Records
from svlm_jax.errors import InputError
from tests.support.judge_server import BROKEN, KEY, MODEL, judge_server, prompt_text

LIVE = "Here's Costa down the left. He cuts inside, shoots, and it's saved by the keeper! "  # 15 words
TALK = "He signed a new contract last summer after two whole years on loan in another country. "  # 16 words


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.fixture
def edited(tmp_path) -> Path:
    """Three videos of two clips each, with a pause between: live and talk, talk alone, live alone."""
    lines = []
    for number, texts in enumerate(((LIVE, TALK), (TALK, TALK), (LIVE, LIVE))):
        words = []
        for clip, text in enumerate(texts):
            for index, word in enumerate((text * 3).split()):
                start = 40.0 * clip + 0.4 * index
                words.append(TimedWord(round(start, 2), round(start + 0.35, 2), word))
        game = Transcript(f"game{number}.mp4", 90.0, tuple(words), "en", "Reds - Blues", steps=("clean", "edit"))
        lines.append(json.dumps(to_record(game)) + "\n")
    (tmp_path / "edited.jsonl").write_text("".join(lines))
    return tmp_path / "edited.jsonl"


def call(monkeypatch, edited: Path, *args: str) -> int:
    """The exit code."""
    files = [f"--in={edited}", f"--out={edited.with_name('anneal.jsonl')}", "--jobs=1"]
    monkeypatch.setattr(sys, "argv", ["svlm curate anneal", *files, *args])
    try:
        anneal.main()
    except SystemExit as error:
        return error.code  # type: ignore[return-value]
    return 0


def model(server) -> list[str]:
    return [f"--judge-url={server.url}", f"--judge-model={MODEL}"]


def kept(edited: Path) -> list[tuple]:
    """As training reads them."""
    records = Records([edited.with_name("anneal.jsonl")])
    clips = [parse_line(records[index].line, "record") for index in range(len(records))]
    return [(clip.video, clip.start, clip.end) for clip in clips]


KEPT = [("game0.mp4", 0, 18), ("game2.mp4", 0, 18), ("game2.mp4", 40, 58)]


def test_by_cues_clips_of_live_commentary_are_kept(edited, monkeypatch, capsys):
    assert call(monkeypatch, edited) == 0
    assert kept(edited) == KEPT
    printed = capsys.readouterr()
    assert "3 of 6 clips are kept, 50% (the paper: 28%)" in printed.out and "know no meaning" in printed.err
    (aside,) = map(json.loads, edited.with_name("anneal.set_aside.jsonl").read_text().splitlines())
    assert (aside["video"], aside["reason"]) == ("game1.mp4", "no clip has more than 80% live commentary")


def test_by_a_model_which_is_asked_once_for_each_clip(edited, monkeypatch, capsys):
    def respond(body, _):
        return json.dumps({"share": 0.9 if "saved" in prompt_text(body).partition("<passage>")[2] else 0.1, "reason": "so"})

    with judge_server(respond) as server:
        assert call(monkeypatch, edited, *model(server), "--dry-run", "--price-in=1", "--price-out=2") == 0
        assert not server.requests and "3 videos: 6 requests" in capsys.readouterr().out
        assert call(monkeypatch, edited, *model(server)) == 0
        # clips of the same words are the same question; two may be asked before the first is answered
        asked = len(server.requests)
        assert asked <= 6 and kept(edited) == KEPT
        edited.with_name("anneal.jsonl").unlink()
        assert call(monkeypatch, edited, *model(server), "--min-share=0.89") == 0
        assert len(server.requests) == asked and kept(edited) == KEPT


def test_a_server_that_does_not_answer_leaves_the_videos_for_later(edited, monkeypatch, capsys):
    monkeypatch.setattr("svlm_jax.remote.connection.RETRIES", 0)
    with judge_server(BROKEN) as server:
        assert call(monkeypatch, edited, *model(server), "--concurrency=1") == 1
    assert "3 of 3 videos are not done" in capsys.readouterr().err and not edited.with_name("anneal.jsonl").exists()


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["--min-seconds=70"], "--max-seconds"),
        (["--dry-run"], "--judge-url"),
        (["--judge-url=http://127.0.0.1:9/v1"], "--judge-model"),
        (["--judge=rules", "--judge-url=http://127.0.0.1:9/v1", "--judge-model=m"], "rules or a model"),
        (["--cues=nowhere.toml"], "nowhere.toml"),
        (["--prompt-file=mine.txt"], "--judge-url"),
    ],
)
def test_flags_that_cannot_be_are_one_line(edited, monkeypatch, flags, part):
    with pytest.raises(InputError, match=part) as error:
        call(monkeypatch, edited, *flags)
    assert len(str(error.value)) < 300
