"""Why an MP4 cannot be opened, and what of it is passed over."""

import warnings

import pytest

from svlm_jax.media.mp4 import boxes, has_second_film, lacks_index
from svlm_jax.media.video import read_video
from svlm_jax.media.video_bytes import read_video_bytes
from tests.media.test_video import refused
from tests.support.films import BLUE, GREEN, RED, colours, film, plain


@pytest.mark.parametrize("share", [0.05, 0.6])
def test_a_copy_that_is_cut_off_in_its_index_says_so_to_files_and_to_chats(tmp_path, share):
    """It was called audio only."""
    path = film(tmp_path / "v.mp4", [plain(RED)] * 15)
    data, index = path.read_bytes(), path.read_bytes().rfind(b"moov") - 4
    path.write_bytes(data[: round(index + share * (len(data) - index))])
    assert lacks_index(path)
    refused(lambda: read_video(path), "an MP4 without its index", "repair it")
    refused(lambda: read_video_bytes(path.read_bytes()), "an MP4 without its index")


def test_a_second_film_in_one_file_is_told(tmp_path):
    """Of `cat a.mp4 b.mp4` players show the first, and FFmpeg passes over the rest without a word."""
    data = film(tmp_path / "v.mp4", [plain(RED)] * 10).read_bytes() + film(tmp_path / "w.mp4", [plain(GREEN)] * 10).read_bytes()
    (tmp_path / "v.mp4").write_bytes(data)
    assert has_second_film(tmp_path / "v.mp4") and not has_second_film(tmp_path / "w.mp4")
    with pytest.warns(UserWarning, match=r"at 2\.000 s: another MP4 follows .* is not watched"):
        assert colours(read_video(tmp_path / "v.mp4")[0]) == "RRRR"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_video(tmp_path / "v.mp4", duration=1)  # whoever stops before it has lost nothing


def test_fragments_before_one_that_is_cut_off_are_watched(tmp_path):
    """A recorder that lost its power while it wrote the index of a fragment: FFmpeg opened nothing of the file."""
    pictures = [plain(colour) for colour in (RED, GREEN, BLUE) for _ in range(5)]
    fragments = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
    path = film(tmp_path / "v.mp4", pictures, options={"g": "5", "bf": "0"}, form_options=fragments)
    data = path.read_bytes()
    with path.open("rb") as file:
        last = [box.start for box in boxes(file) if box.kind == b"moof"][-1]
    for length in range(8, int.from_bytes(data[last : last + 4], "big"), 23):
        path.write_bytes(data[: last + length])
        with pytest.warns(UserWarning, match=r"ends at 2\.000 s, within the index of its next fragment"):
            assert colours(read_video(path)[0]) == "RRGG"
    assert len(read_video_bytes(path.read_bytes()).frames) == 4
