"""Which subtitles are those of a video, and what becomes of those that are none."""

import pytest

from svlm_jax.curate.outcome import SetAside
from svlm_jax.curate.transcribing import subtitle_files
from svlm_jax.curate.transcribing.subtitle_files import SubtitleTranscriber, check_encoding, choose
from svlm_jax.errors import InputError

CUE = "1\n00:00:01,000 --> 00:00:02,000\n{}\n"


def write(folder, *names):
    for name in names:
        (folder / name).write_text(CUE.format(name))


@pytest.mark.parametrize(
    ("names", "language", "chosen"),
    [
        (["a.srt", "a.vtt"], None, "a.vtt"),
        (["a.en.vtt"], None, "a.en.vtt"),
        (["a.mp4.srt"], None, "a.mp4.srt"),
        (["a.EN-us.VTT"], None, "a.EN-us.VTT"),
        (["a.de.vtt", "a.en.srt"], "en", "a.en.srt"),
        (["a.de.vtt", "a.en.vtt", "a.vtt"], None, "a.vtt"),
        (["a.de.vtt", "a.en-orig.vtt", "a.en.vtt"], None, "a.en-orig.vtt"),
        (["a.en.vtt", "a.en-GB.vtt", "a.eng.srt"], None, "a.en-GB.vtt"),
        (["a.en.sdh.srt"], None, "a.en.sdh.srt"),
        (["a.vtt"], "en", "a.vtt"),
        (["a.One.vtt", "ab.vtt", "a.en.forced.srt", ".a.vtt"], None, "no subtitles beside it"),
        (["a.de.vtt", "a.fr.vtt"], None, "subtitles in several languages"),
        (["a.de.vtt"], "en", "no subtitles in the language"),
        ([], None, "no subtitles beside it"),
    ],
)
def test_the_subtitles_of_a_video(tmp_path, names, language, chosen):
    write(tmp_path, *names)
    subtitle_files._names.cache_clear()
    try:
        assert choose(tmp_path / "a.mp4", language).path.name == chosen
    except SetAside as error:
        assert str(error).startswith(chosen)


def test_the_language_is_that_of_the_name_then_of_the_file_then_the_users(tmp_path):
    (tmp_path / "a.de-AT.vtt").write_text("WEBVTT\nLanguage: en\n\n00:01.000 --> 00:02.000\nTor\n")
    (tmp_path / "b.vtt").write_text("WEBVTT\nLanguage: en-GB\n\n00:01.000 --> 00:02.000\nGoal\n")
    (tmp_path / "c.srt").write_text(CUE.format("Goal"))
    languages = zip("abc", [None, "fr", "fr"], strict=True)
    transcriptions = [SubtitleTranscriber().words(tmp_path / f"{name}.mp4", language) for name, language in languages]
    assert [each.language for each in transcriptions] == ["de", "en", "fr"]


def test_an_encoding_that_is_guessed_is_told_and_one_that_is_given_is_used(tmp_path):
    (tmp_path / "a.srt").write_bytes(CUE.format("Гол").encode("cp1251"))
    guessed = SubtitleTranscriber().words(tmp_path / "a.mp4", None)
    assert guessed.words[0].text == "Ãîë"
    assert guessed.changes[0][:4] == ("encoding", 0.0, "a.srt is not UTF-8", "read as Windows-1252")
    as_cyrillic = SubtitleTranscriber("cp1251").words(tmp_path / "a.mp4", None)
    assert (as_cyrillic.words[0].text, as_cyrillic.changes) == ("Гол", ())
    with pytest.raises(SetAside, match="subtitles that are not ascii"):
        SubtitleTranscriber("ascii").words(tmp_path / "a.mp4", None)
    with pytest.raises(InputError, match="--encoding: got klingon"):
        check_encoding("klingon")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "subtitles that are an empty file"),
        (b"<html>Not found</html>", "subtitles that are a web page"),
        (b"no cue", "subtitles without a cue"),
        (bytes(range(256)) * 9, "subtitles without a cue"),
    ],
)
def test_what_is_no_subtitles_sets_the_video_aside(tmp_path, data, reason):
    (tmp_path / "a.vtt").write_bytes(data)
    with pytest.raises(SetAside, match=reason):
        SubtitleTranscriber().words(tmp_path / "a.mp4", None)


def test_other_subtitles_have_another_digest(tmp_path):
    write(tmp_path, "a.vtt")
    before = SubtitleTranscriber().digest(tmp_path / "a.mp4", None)
    (tmp_path / "a.vtt").write_text(CUE.format("others"))
    after = SubtitleTranscriber().digest(tmp_path / "a.mp4", None)
    assert before["subtitles"] == after["subtitles"] == "a.vtt"
    assert before != after
    assert SubtitleTranscriber().digest(tmp_path / "b.mp4", None) == {}
