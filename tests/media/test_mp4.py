"""Why an MP4 cannot be opened, and what of it is passed over."""

import warnings

import pytest

from svlm_jax.media.mp4 import has_second_film, lacks_index
from svlm_jax.media.video import read_video
from svlm_jax.media.video_bytes import read_video_bytes
from tests.media.test_video import refused
from tests.support.films import GREEN, RED, colours, film, plain


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
