"""What a decoded frame looks like: as a player shows it, whatever way it is stored."""

import sys

import numpy as np
import pytest
from PIL import Image

from svlm_jax.media.display import orientation
from svlm_jax.media.image import load_image
from svlm_jax.media.sources import open_source
from svlm_jax.media.video import read_video
from tests.support.films import BLUE, GREEN, RED, av, colours, film, plain, turned

CORNERS = plain(RED)
CORNERS[:24, 32:], CORNERS[24:, :32], CORNERS[24:, 32:] = GREEN, BLUE, 255  # R G / B W

# (a b c d): shown x = a x + c y, shown y = b x + d y; what is then to be seen top left, top right, bottom left, bottom right
EIGHT = {
    (1, 0, 0, 1): "RGBW",
    (-1, 0, 0, 1): "GRWB",  # a selfie
    (1, 0, 0, -1): "BWRG",
    (-1, 0, 0, -1): "WBGR",
    (0, 1, -1, 0): "BRWG",  # a phone held upright
    (0, -1, 1, 0): "GWRB",
    (0, 1, 1, 0): "RBGW",
    (0, -1, -1, 0): "WGBR",
}


def corners(frame):
    h, w = frame.shape[:2]
    return colours(np.stack([frame[y * h // 4, x * w // 4][None, None] for y in (1, 3) for x in (1, 3)]))


@pytest.mark.parametrize("matrix", EIGHT)
def test_each_of_the_eight_orientations_is_shown_as_players_do(tmp_path, matrix):
    """A mirrored matrix read as "180 degrees" stands the picture on its head."""
    path = turned(film(tmp_path / "v.mp4", [CORNERS] * 2, 2), matrix)
    frames, _, _ = read_video(path)
    assert corners(frames[0]) == EIGHT[matrix]
    assert frames.shape[1:3] == ((64, 48) if matrix[1] else (48, 64)) and frames.flags.c_contiguous
    with open_source(path) as source:
        assert corners(next(iter(source)).frames[0]) == EIGHT[matrix]


@pytest.mark.parametrize("tag", range(1, 9))
def test_a_photo_that_is_named_as_a_film_is_upright(tmp_path, tag):
    """FFmpeg hangs its EXIF on the frame, a kind of data that PyAV does not know: it was a traceback."""
    exif = Image.Exif()
    exif[0x0112] = tag
    Image.fromarray(CORNERS).save(tmp_path / "v.jpg", exif=exif, quality=95)
    frames, _, _ = read_video(tmp_path / "v.jpg")
    want = load_image(tmp_path / "v.jpg")
    assert frames[0].shape == want.shape and corners(frames[0]) == corners(want)


@pytest.mark.parametrize("angle, like", [(10, (1, 0, 0, 1)), (100, (0, 1, -1, 0)), (-80, (0, -1, 1, 0)), (170, (-1, 0, 0, -1))])
def test_an_angle_that_is_no_quarter_goes_to_the_nearest(tmp_path, angle, like):
    c, s = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    frames, _, _ = read_video(turned(film(tmp_path / "v.mp4", [CORNERS] * 2, 2), (c, s, -s, c)))
    assert corners(frames[0]) == EIGHT[like]


def test_a_matrix_of_zeros_and_one_that_only_scales_turn_nothing(tmp_path):
    for matrix in ((0, 0, 0, 0), (2, 0, 0, 2)):
        frames, _, _ = read_video(turned(film(tmp_path / "v.mp4", [CORNERS] * 2, 2), matrix))
        assert corners(frames[0]) == "RGBW"


CARD = np.zeros((48, 64, 4), np.uint8)  # clear, the hidden colour black
CARD[20:28, 8:56, 3] = 255  # a black bar
GLASS = plain((255, 0, 0, 128))


@pytest.mark.parametrize(
    "name, codec, pix",
    [
        ("v.mov", "qtrle", "argb"),
        ("v.mov", "png", "rgba"),
        ("v.mov", "png", "rgba64be"),
        ("v.mov", "prores_ks", "yuva444p10le"),
        ("v.mkv", "ffv1", "yuva420p"),
        ("v.apng", "apng", "rgba"),
        ("v.webm", "libvpx-vp9", "yuva420p"),
    ],
)
def test_what_is_transparent_in_a_film_lies_on_white_as_in_its_pictures(tmp_path, name, codec, pix):
    """Scoreboards and lower thirds: dropping the channel shows what was hidden behind them."""
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV cannot write {codec}")
    for picture in (CARD, GLASS):
        want = load_image(Image.fromarray(picture)).astype(int)
        frames, _, _ = read_video(film(tmp_path / name, [picture] * 2, 2, codec, pix, metadata={"alpha_mode": "1"}))
        assert np.abs(frames[0] - want).max() <= 3


def test_a_clear_colour_of_a_palette_lies_on_white(tmp_path):
    image = Image.new("P", (64, 48), 3)
    image.putpalette(range(48))
    image.save(tmp_path / "v.gif", save_all=True, append_images=[image] * 2, transparency=3, duration=500)
    assert set(colours(read_video(tmp_path / "v.gif")[0])) == {"W"}


def comb(frame):
    """How much neighbouring rows differ: the teeth of two fields in one picture."""
    levels = frame[..., 1].astype(int)
    return np.abs(2 * levels[1:-1] - levels[:-2] - levels[2:]).mean()


def moving(count):
    """A bar that goes on between the two fields of each picture."""
    frames = np.zeros((count, 48, 64, 3), np.uint8)
    for number in range(count):
        for field in (0, 1):
            column = 4 * (2 * number + field) % 56
            frames[number, field::2, column : column + 8] = 255
    return list(frames)


@pytest.mark.parametrize("name, codec", [("v.mp4", "libx264"), ("v.mpg", "mpeg2video"), ("v.ts", "mpeg2video")])
def test_interlaced_material_has_no_comb_and_progressive_is_left_alone(tmp_path, name, codec):
    """Broadcast and DV: a ball that moves is two half balls otherwise."""
    flags = {"flags": "+ildct+ilme"} | (
        {"x264-params": "tff=1", "qp": "4"} if codec == "libx264" else {"qmin": "1", "qmax": "1"}
    )
    frames, times, _ = read_video(film(tmp_path / name, moving(26), 25, codec, options=flags), fps=5)
    assert len(times) == 6 and max(map(comb, frames[1:])) < 1 < 50 < comb(moving(1)[0])
    quality = {"qp": "4"} if codec == "libx264" else {"qmin": "1", "qmax": "1"}
    frames, _, _ = read_video(film(tmp_path / name, moving(26), 25, codec, options=quality), fps=5)
    assert min(map(comb, frames)) > 50


def test_a_size_that_changes_is_scaled_to_the_first_as_shown(tmp_path):
    """A phone that is turned while it streams."""
    wide = film(tmp_path / "a.ts", [plain(RED)] * 10, 10, form="mpegts").read_bytes()
    tall = film(tmp_path / "b.ts", [plain(GREEN, (48, 64))] * 10, 10, form="mpegts", shift=1).read_bytes()
    (tmp_path / "v.ts").write_bytes(wide + tall)
    frames, _, _ = read_video(tmp_path / "v.ts")
    assert frames.shape[1:3] == (48, 64) and colours(frames) == "RRGG"


@pytest.mark.parametrize("size", [(1, 1), (2, 50), (63, 47)])
def test_odd_sizes_come_as_they_are(tmp_path, size):
    frames, _, _ = read_video(film(tmp_path / "v.mkv", [plain(RED, size)] * 2, 2, "ffv1", "bgr0"))
    assert frames.shape == (2, size[1], size[0], 3) and colours(frames) == "RR"


def test_a_frame_does_not_hold_itself_once_its_orientation_is_known():
    """Else pictures and decoders stay in memory until Python looks for cycles: gigabytes of 4K video."""
    frame = av.VideoFrame(64, 48, "rgb24")
    before = sys.getrefcount(frame)
    orientation(frame)
    assert sys.getrefcount(frame) == before
