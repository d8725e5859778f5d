"""The sound of a video, second for second: a word that is heard at 7.5 s of the film is at 7.5 s of the samples."""

import io

import numpy as np
import pytest

from svlm_jax.curate.outcome import SetAside
from svlm_jax.curate.transcribing.audio import RATE, encode, read_sound, sound_seconds
from svlm_jax.errors import InputError
from svlm_jax.media.video import sample_video
from tests.support.films import film, plain
from tests.support.speech import Track, onsets, say, sounding_film

av = pytest.importorskip("av")

SOUND, SPOKEN = say(["goal", "red", "blue"], [0.5, 2.0, 4.5], 6.0)


def locate_sound(path, **options) -> tuple[list[tuple[float, float]], list[str]]:
    """Where it is loud, and what was noted."""
    notes: list[str] = []
    blocks = list(read_sound(path, on_note=lambda second, text: notes.append(text), **options))
    assert all(block.dtype == np.int16 and block.ndim == 1 for block in blocks)
    return onsets(np.concatenate(blocks)), notes


def late_by(path, **options) -> float:
    """Seconds by which words are heard later than they were put into the track, at most."""
    places, _ = locate_sound(path, **options)
    assert len(places) == len(SPOKEN)
    offsets = [start - spoken.start for (start, _), spoken in zip(places, SPOKEN, strict=True)]
    assert max(offsets) - min(offsets) < 0.03
    return max(offsets)


@pytest.mark.parametrize(
    ("form", "codec", "rate", "sound_start", "picture_start"),
    [
        ("mp4", "aac", 44_100, 2.5, 0.0),
        ("matroska", "aac", 48_000, 0.0, 1.0),
        ("matroska", "libopus", 48_000, 2.5, 0.0),
        ("mpegts", "mp2", 44_100, 2.5, 0.0),
    ],
)
def test_a_word_is_at_its_second_of_the_video_wherever_its_track_begins(
    tmp_path, form, codec, rate, sound_start, picture_start
):
    """Counted from what begins first, as the pictures are counted (`media.container`): else all words of a recording whose
    microphone came on late would be told too early."""
    track = Track(SOUND, sound_start, rate, codec=codec)
    path = sounding_film(tmp_path / "film", track, seconds=8, picture_start=picture_start, form=form)
    assert late_by(path) == pytest.approx(sound_start, abs=0.05)


def test_a_file_of_sound_alone_is_heard_too(tmp_path):
    path = tmp_path / "talk.flac"
    path.write_bytes(encode(SOUND, "flac"))
    assert late_by(path) == pytest.approx(0.0, abs=0.02)
    assert sound_seconds(path) == pytest.approx(6.0)


def test_a_gap_in_a_track_is_silence_and_what_follows_keeps_its_time(tmp_path):
    path = sounding_film(tmp_path / "film.mkv", Track(SOUND, gap=(2.6, 4.2)), seconds=6)
    places, notes = locate_sound(path)
    assert [start for start, _ in places] == pytest.approx([0.5, 2.0, 4.5], abs=0.03)
    assert len(notes) == 1
    assert notes[0].startswith("no sound for 1.6")


def test_of_several_tracks_one_is_heard_and_it_is_told_which(tmp_path):
    silent, talking = Track(SOUND * 0, language="fra"), Track(SOUND, rate=22_050, layout="mono", language="eng")
    path = sounding_film(tmp_path / "film.mkv", silent, talking, seconds=6)
    places, notes = locate_sound(path)
    assert (places, notes) == ([], ["2 tracks of sound: 1 (fra) is heard, not 2 (eng)"])
    assert late_by(path, language="en") == pytest.approx(0.0, abs=0.03)
    assert late_by(path, track=2) == pytest.approx(0.0, abs=0.03)
    with pytest.raises(SetAside, match="no track 3 of sound: there are 2"):
        locate_sound(path, track=3)


def test_a_track_whose_sound_changes_its_kind_goes_on(tmp_path):
    """Broadcasts change from stereo to mono between programmes."""
    content = b""
    for layout, rate in (("stereo", 44_100), ("mono", 32_000)):
        path = sounding_film(tmp_path / "part", Track(SOUND, rate=rate, layout=layout, codec="mp2"), seconds=6, form="mpegts")
        content += path.read_bytes()
    path.write_bytes(content)
    places, notes = locate_sound(path)
    assert [start for start, _ in places] == pytest.approx([0.5, 2.0, 4.5, 6.5, 8.0, 10.5], abs=0.1)
    assert any("time stamps jump back" in note for note in notes)


@pytest.mark.parametrize("seconds", [3, 6, 8])
@pytest.mark.parametrize("form", ["mpegts", "mpeg"])
def test_recordings_one_behind_the_other_are_joined_where_their_pictures_are(tmp_path, seconds, form):
    """Whichever goes on for longer: joined each for itself, words would be told seconds beside what they are about."""
    path = sounding_film(tmp_path / "film", Track(SOUND, codec="mp2"), seconds=seconds, form=form)
    path.write_bytes(path.read_bytes() * 3)
    picture: list[float] = []
    for _ in sample_video(path, on_note=lambda second, text: picture.append(second) if "jump back" in text else None):
        pass
    sound: list[float] = []
    for _ in read_sound(path, on_note=lambda second, text: sound.append(second) if "jump back" in text else None):
        pass
    part = max(seconds, 6)
    assert sound == pytest.approx(picture) and sound == pytest.approx([part, 2 * part], abs=0.1)
    assert [start for start, _ in locate_sound(path)[0]][::3] == pytest.approx([0.5, part + 0.5, 2 * part + 0.5], abs=0.15)


def test_damage_is_silence_and_what_follows_keeps_its_time(tmp_path):
    path = sounding_film(tmp_path / "film.ts", Track(SOUND, codec="mp2"), seconds=6, form="mpegts")
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 188 * 20] = bytes(188 * 20)
    path.write_bytes(data)
    places, _ = locate_sound(path)
    assert places[0][0] == pytest.approx(0.5, abs=0.05)
    assert places[-1][0] == pytest.approx(4.5, abs=0.05)


def test_what_cannot_be_heard_is_set_aside_with_its_reason(tmp_path):
    silent = film(tmp_path / "silent.mp4", [plain((90, 90, 90))] * 3)
    with pytest.raises(SetAside, match="no track of sound"):
        list(read_sound(silent))
    assert sound_seconds(silent) == 0.0
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no film at all" * 100)
    with pytest.raises(SetAside, match="cannot be read"):
        list(read_sound(broken))
    unfinished = sounding_film(tmp_path / "cut.mp4", Track(SOUND), seconds=6)
    data = unfinished.read_bytes()
    unfinished.write_bytes(data[: data.index(b"moov") - 4])
    with pytest.raises(SetAside, match="without its index"):
        list(read_sound(unfinished))
    with pytest.raises(InputError, match="no such file"):
        list(read_sound(tmp_path / "gone.mp4"))


@pytest.mark.parametrize("encoding", ["flac", "wav"])
def test_what_is_sent_is_what_was_heard(encoding):
    """Lossy encoders put silence in front, which would move every word."""
    noise = np.random.default_rng(0).integers(-32768, 32768, 50_001).astype(np.int16)
    with av.open(io.BytesIO(encode(noise, encoding))) as container:
        assert container.streams.audio[0].rate == RATE
        decoded = np.concatenate([frame.to_ndarray().reshape(-1) for frame in container.decode(audio=0)])
    np.testing.assert_array_equal(decoded, noise)
