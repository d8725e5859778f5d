"""Words that other programs wrote: each video has its own, whichever form they have."""

import json

import pytest

from svlm_jax.curate.outcome import SetAside
from svlm_jax.curate.transcribing.words_files import WordsTranscriber, parse_words, read_words_files
from svlm_jax.curate.transcript import TimedWord
from svlm_jax.errors import InputError
from svlm_jax.json_lines import BadLines

WHISPER = {"language": "en", "segments": [{"words": [{"word": " Goal", "start": 1.0, "end": 1.4, "probability": 0.9}]}]}


def lines(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def words(transcriber, video, language=None):
    return [tuple(word) for word in transcriber.words(video, language).words]


@pytest.mark.parametrize("name", ["a.json", "a.words.json", "a.mp4.json"])
def test_a_file_beside_the_video(tmp_path, name):
    (tmp_path / name).write_text(json.dumps(WHISPER, indent=1))
    assert words(WordsTranscriber(), tmp_path / "a.mp4") == [(1.0, 1.4, "Goal", 0.9)]


def test_lines_of_livecc_with_the_offsets_that_it_appends(tmp_path):
    path = lines(
        tmp_path / "live.jsonl",
        {"video": "x/a.mp4", "content": [[1.0, 1.5, " Goal "], [2.0, 2.5, ""]], "title": "Reds"},
        {"video": "y/a.mp4", "content": [[3.0, 3.5, "Miss"]], "preasr": []},
        [0, 95, 180],
    )
    transcriber = WordsTranscriber(read_words_files([path], BadLines()))
    assert words(transcriber, tmp_path / "x/a.mp4") == [(1.0, 1.5, "Goal", None)]
    assert words(transcriber, tmp_path / "y/a.mp4") == [(3.0, 3.5, "Miss", None)]
    for other in ("z/a.mp4", "b.mp4"):  # two have the name a.mp4: nobody guesses
        with pytest.raises(SetAside, match="no words of it in the files of --words"):
            transcriber.words(tmp_path / other, None)


def test_our_own_lines_keep_probabilities_silence_and_language(tmp_path):
    record = {"video": "a.mp4", "duration": 9.0, "language": "de", "content": [[None, 1.5, "Tor"]]}
    record |= {"probabilities": [0.5], "no_speech": [[2, 3, 0.9]]}
    transcriber = WordsTranscriber(read_words_files([lines(tmp_path / "w.jsonl", record)], BadLines()))
    transcription = transcriber.words(tmp_path / "a.mp4", "en")
    assert (transcription.words, transcription.language, transcription.duration) == (
        (TimedWord(None, 1.5, "Tor", 0.5),),
        "de",
        9.0,
    )
    assert transcription.no_speech[0][:3] == (2.0, 3.0, 0.9)


def test_files_of_one_video_are_found_by_its_name(tmp_path):
    (tmp_path / "asr").mkdir()
    (tmp_path / "asr/a.json").write_text(json.dumps(WHISPER["segments"]))
    transcriber = WordsTranscriber(read_words_files([tmp_path / "asr/a.json"], BadLines()))
    assert words(transcriber, tmp_path / "a.mkv") == [(1.0, 1.4, "Goal", 0.9)]


def test_the_digest_of_a_video_is_that_of_its_own_line(tmp_path):
    first, second = ({"video": f"{name}.mp4", "content": [[1, 2, name]]} for name in "ab")
    path = lines(tmp_path / "w.jsonl", first, second)
    before = WordsTranscriber(read_words_files([path], BadLines()))
    lines(path, {"video": "0.mp4", "content": []}, first, second | {"content": [[1, 2, "new"]]})
    after = WordsTranscriber(read_words_files([path], BadLines()))
    assert before.digest(tmp_path / "a.mp4", None) == after.digest(tmp_path / "a.mp4", None)
    assert before.digest(tmp_path / "b.mp4", None) != after.digest(tmp_path / "b.mp4", None)


def test_bad_lines_are_told_and_may_be_left_out(tmp_path):
    path = lines(tmp_path / "w.jsonl", {"video": "a.mp4", "content": [[1, 2, "Goal"]]}, {"content": []})
    with pytest.raises(InputError, match=r"w\.jsonl:2 video"):
        read_words_files([path], BadLines())
    with pytest.warns(UserWarning, match="left out"):
        assert "a.mp4" in read_words_files([path], BadLines(1))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"{}", "an empty object"),
        (b"{", "broken JSON"),
        (b'{"content": [[1, 2]]}', r"content\[0\]"),
        (b'{"segments": [{"words": [{"start": 1}]}]}', r"segments\[0\] words\[0\] word"),
        (b"\xff", "broken JSON"),
    ],
)
def test_words_that_cannot_be_read_set_the_video_aside(tmp_path, data, reason):
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(SetAside, match=f"words that cannot be read.*{reason}"):
        WordsTranscriber().words(tmp_path / "a.mp4", None)


def test_no_words_at_all(tmp_path):
    with pytest.raises(SetAside, match="no words beside it"):
        WordsTranscriber().words(tmp_path / "a.mp4", None)
    with pytest.raises(InputError, match="no such file"):
        read_words_files([tmp_path / "none.jsonl"], BadLines())
    assert parse_words(b'{"video": "a", "content": null, "duration": null}', "a.json").words == ()
