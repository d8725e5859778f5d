"""`svlm curate transcribe --asr http`: what a user types, sees and pays."""

import json

import pytest

from svlm_jax.cli.curate.transcribe import main
from tests.support.asr_server import asr_server, sound_of, transcribes
from tests.support.judge_server import KEY, failure
from tests.support.speech import Ear, Track, say, sounding_film

WORDS = ["and", "red", "scores", "what", "a", "goal"]


@pytest.fixture
def games(tmp_path, monkeypatch):
    """Two films, in the second of which nobody speaks before 4 s."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    (tmp_path / "games").mkdir()
    for name, first in (("a", 0.5), ("b", 4.0)):
        sound, _ = say(WORDS, [first + 0.5 * index for index in range(len(WORDS))], first + 4.0)
        sounding_film(tmp_path / "games" / f"{name}.mkv", Track(sound, layout="mono", codec="flac"))
    return tmp_path / "games"


def test_a_video_that_the_server_refuses_waits_and_is_asked_for_alone_by_the_same_command(games, tmp_path, monkeypatch, capsys):
    out = tmp_path / "words.jsonl"

    def transcribe(server):
        flags = ("--asr", "http", "--asr-url", server.url, "--asr-model", "whisper-1", "--asr-price", "0.006", "--root", games)
        monkeypatch.setattr("sys.argv", ["svlm curate transcribe", *map(str, (games, "--out", out, *flags))])
        main()

    def respond(body, times):
        is_second = not sound_of(body)[: 3 * 16_000].any()
        return failure(400, "cannot be decoded") if is_second else transcribes(Ear(WORDS))(body, times)

    with asr_server(respond) as server, pytest.raises(SystemExit, match="1"):
        transcribe(server)
    printed = capsys.readouterr()
    assert "0.2 minutes of sound in 2 videos, 0.00 at 0.006 a minute" in printed.err
    assert "400: cannot be decoded" in printed.err
    assert KEY not in printed.err + printed.out
    assert not out.exists()

    with asr_server(transcribes(Ear(WORDS))) as server:
        transcribe(server)
        assert len(server.requests) == 1
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(line["video"], line["asr"], line["language"]) for line in lines] == [
        ("a.mkv", "http whisper-1", "en"),
        ("b.mkv", "http whisper-1", "en"),
    ]
    for line, first in zip(lines, (0.5, 4.0), strict=True):
        assert [word for _, _, word in line["content"]] == WORDS
        assert line["content"][0][0] == pytest.approx(first, abs=0.05)
