"""`svlm curate transcribe` as users type it."""

import json

import pytest

from svlm_jax.cli.curate.transcribe import main
from svlm_jax.errors import InputError
from tests.curate.transcribing.test_videos import make_video
from tests.support.commands import command

VTT = "WEBVTT\n\n00:00.500 --> 00:01.500\nWhat a goal [Music]\n"


@pytest.fixture
def games(tmp_path):
    for number, name in enumerate(("a", "league/b", "league/c")):
        make_video(tmp_path / f"games/{name}.mp4", shade=number * 50)
    (tmp_path / "games/a.en.vtt").write_text(VTT)
    (tmp_path / "games/league/b.srt").write_text(VTT.removeprefix("WEBVTT\n\n").replace("00:0", "00:00:0"))
    return tmp_path / "games"


def transcribe(games, *flags):
    return command("curate", "transcribe", games, "--root", games, "--out", games.parent / "words.jsonl", *flags)


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_folder_of_videos_with_subtitles(games):
    (games / "titles.csv").write_text("video,title,source,language\nb.mp4,Reds - Blues,cup,de\n")
    done = transcribe(games, "--titles", games / "titles.csv")
    assert done.returncode == 0, done.stderr
    assert "2 of 3 videos" in done.stdout
    assert "1 x no subtitles beside it" in done.stdout
    assert "Windows-1252" not in done.stdout
    first, second = read(games.parent / "words.jsonl")
    assert first == {
        "video": "a.mp4", "duration": 2.0, "language": "en", "title": "a", "source": "games", "asr": "subtitles",
        "steps": ["transcribe"], "content": [[0.5, 0.833, "What"], [0.833, 1.167, "a"], [1.167, 1.5, "goal"]],
    }  # fmt: skip
    assert (second["video"], second["title"], second["source"], second["language"]) == (
        "league/b.mp4", "Reds - Blues", "cup", "de",
    )  # fmt: skip


def test_what_is_done_is_not_done_again(games, monkeypatch, capsys):
    out = games.parent / "words.jsonl"
    monkeypatch.setattr("sys.argv", ["svlm curate transcribe", str(games), "--root", str(games), "--out", str(out)])
    main()
    before = out.read_bytes()
    main()
    assert "nothing to do" in capsys.readouterr().err
    # the subtitles that were missing: one video is new, two are taken over
    (games / "league/c.vtt").write_text(VTT.replace("goal", "Agüero"), encoding="cp1252")
    main()
    printed = capsys.readouterr().out
    assert "3 of 3 videos" in printed and "1 files are neither UTF-8 nor UTF-16, and were read as Windows-1252" in printed
    assert out.read_bytes().startswith(before)


def test_words_that_whisper_wrote(games, monkeypatch):
    result = {"language": "en", "segments": [{"words": [{"word": " Goal", "start": 0.5, "end": 0.9, "probability": 0.75}]}]}
    (games / "league/b.json").write_text(json.dumps(result))
    out = games.parent / "words.jsonl"
    monkeypatch.setattr("sys.argv", ["svlm curate transcribe", str(games), "--out", str(out), "--asr", "words"])
    main()
    assert [line["content"] for line in read(out)] == [[[0.5, 0.9, "Goal"]]]


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--asr", "whisperx"], "--asr: got whisperx, which is not installed, expected an engine that is; run whisperx"),
        (["--asr", "http"], "--asr-url: got nothing"),
        (["--asr-url", "http://user:secret@host/v1"], "--asr-url: got http://***@host/v1, with --asr left out"),
        (["--asr", "words", "--encoding", "cp1251"], "--encoding: got cp1251, with --asr words"),
        (["--language", "klingon"], "--language: got klingon"),
        (["--shard", "3/2"], "--shard"),
        (["--words", "a.jsonl"], "--words: got files, with --asr left out, expected --asr words with it"),
    ],
)
def test_what_is_wrong_with_the_flags_is_told_before_anything_is_done(games, flags, line, monkeypatch):
    out = games.parent / "words.jsonl"
    monkeypatch.setattr("sys.argv", ["svlm curate transcribe", str(games), "--out", str(out), *flags])
    with pytest.raises(InputError) as error:
        main()
    assert str(error.value).startswith(line)
    assert not list(games.parent.glob("words*"))


def test_without_subtitles_an_engine_is_asked_for(tmp_path, monkeypatch):
    make_video(tmp_path / "a.mp4")
    monkeypatch.setattr("sys.argv", ["svlm curate transcribe", str(tmp_path), "--out", str(tmp_path / "words.jsonl")])
    with pytest.raises(InputError, match="--asr: got nothing, and no subtitles"):
        main()
