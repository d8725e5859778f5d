"""Claims about svlm_jax.media.pixels: the size rule, and parity with the image and the video processor."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svlm_jax.errors import InputError
from svlm_jax.media.pixels import PixelConfig, normalise, patchify, preprocess, resize, smart_resize
from tests.support import FIXTURES
from tests.support.pixels import STREAM_FRAME

QWEN_IMAGE = PixelConfig(min_pixels=56 * 56, max_pixels=28 * 28 * 1280)
SMALL = PixelConfig(min_pixels=56 * 56, max_pixels=168 * 168)


def patches_of_16(low: int, high: int) -> PixelConfig:
    """What Qwen3-VL's processors are given."""
    return PixelConfig(low, high, patch_size=16, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


QWEN3_IMAGE = patches_of_16(65536, 16777216)  # its published preprocessor_config.json


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def scene(height: int, width: int) -> np.ndarray:
    """A picture with gradients, hard edges, fine texture and a little noise, uint8 [H, W, 3]."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    texture = 40 * np.sin(x / 3) * np.cos(y / 5)
    planes = [255 * x / width, 255 * y / height, 255 * ((x // 40 + y // 40) % 2)]
    levels = np.stack([0.7 * plane + texture + 30 for plane in planes], axis=2)
    return np.clip(levels + np.random.default_rng(0).normal(0, 4, levels.shape), 0, 255).astype(np.uint8)


def one_line(error: pytest.ExceptionInfo[InputError], *parts: str) -> None:
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


# --- size rule ---


@settings(max_examples=300, deadline=None)
@given(
    height=st.integers(1, 5000),
    width=st.integers(1, 5000),
    config=st.sampled_from([QWEN_IMAGE, STREAM_FRAME, SMALL, QWEN3_IMAGE]),
)
def test_smart_resize_gives_the_library_sizes_and_refuses_what_it_refuses(height, width, config):
    library = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    try:
        want = library.smart_resize(height, width, config.factor, config.min_pixels, config.max_pixels)
    except ValueError:
        with pytest.raises(InputError):
            smart_resize(height, width, config)
    else:
        assert smart_resize(height, width, config) == want


def test_720p_becomes_560_by_1008_and_one_pixel_becomes_four_tokens():
    assert smart_resize(720, 1280, STREAM_FRAME) == (560, 1008)
    assert smart_resize(1, 1, QWEN_IMAGE) == (56, 56)


def test_a_strip_of_20000_by_10_pixels_is_refused_with_its_ratio_and_a_remedy():
    with pytest.raises(InputError) as error:
        preprocess(np.zeros((1, 10, 20000, 3), np.uint8), QWEN_IMAGE)
    one_line(error, "20000x10", "2000", "at most 200", "crop or pad")


def test_a_picture_without_pixels_is_refused():
    with pytest.raises(InputError) as error:
        smart_resize(0, 10, QWEN_IMAGE)
    one_line(error, "10x0", "leave this frame out")


# --- parity with the image processor ---


# Not of sizes for which PIL 13 takes rows first: there its own resize differs from ours, and from PIL 12's.
@pytest.mark.parametrize("height, width", [(37, 91), (56, 84), (300, 173), (20, 20), (1, 1), (601, 400), (84, 1200)])
@pytest.mark.parametrize("config", [QWEN_IMAGE, SMALL], ids=["qwen", "small"])
def test_image_patches_are_bit_equal_to_the_library_processor(height, width, config):
    pil = pytest.importorskip("PIL.Image")
    library = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    image = noise(height, width, 3, seed=height)
    processor = library.Qwen2VLImageProcessorPil(min_pixels=config.min_pixels, max_pixels=config.max_pixels)
    want = processor(images=pil.fromarray(image), return_tensors="np")
    patches, grid = preprocess(image[None], config)
    assert patches.dtype == want["pixel_values"].dtype == np.float32
    np.testing.assert_array_equal(patches, want["pixel_values"])
    assert [list(grid)] == want["image_grid_thw"].tolist()


@pytest.mark.parametrize("height, width", [(37, 91), (300, 173), (20, 20), (601, 400), (64, 96)])
@pytest.mark.parametrize("config", [QWEN3_IMAGE, patches_of_16(4096, 32768)], ids=["published", "small"])
def test_images_of_qwen3_vl_are_bit_equal_to_the_library_processor(height, width, config):
    pil = pytest.importorskip("PIL.Image")
    library = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    image = noise(height, width, 3, seed=height)
    size = {"shortest_edge": config.min_pixels, "longest_edge": config.max_pixels}
    processor = library.Qwen2VLImageProcessorPil(size=size, patch_size=16, image_mean=config.mean, image_std=config.std)
    want = processor(images=pil.fromarray(image), return_tensors="np")
    patches, grid = preprocess(image[None], config)
    assert patches.shape[1] == 1536
    np.testing.assert_array_equal(patches, want["pixel_values"])
    assert [list(grid)] == want["image_grid_thw"].tolist()


# --- parity with the video processor ---


@pytest.mark.parametrize("frames", [4, 5], ids=["even", "odd"])
def test_patches_of_a_video_of_qwen3_vl_are_cut_as_the_library_does(frames):
    """Its normalisation needs torchvision, its patches only torch: 5 frames make three pairs, the last of one frame twice."""
    torch = pytest.importorskip("torch")
    library = pytest.importorskip("transformers.models.qwen3_vl.video_processing_qwen3_vl")
    config = patches_of_16(1024, 1 << 20)
    video = noise(frames, 64, 96, 3)
    fused = (torch.from_numpy(video.transpose(0, 3, 1, 2)[None].copy()).float() - 0.5 * 255) / (0.5 * 255)
    want, *grid = library.Qwen3VLVideoProcessor().patchify(fused, patch_size=16, merge_size=2, temporal_patch_size=2)
    patches, same = preprocess(video, config)
    assert list(same) == grid == [-(-frames // 2), 4, 6]
    np.testing.assert_allclose(patches, want[0].numpy(), rtol=0, atol=1e-6)  # which folds 1/255 into the mean


@pytest.mark.parametrize("chunk", [0, 1])
def test_golden_video_patches_are_reproduced_within_float32_rounding(chunk):
    trace = json.loads((FIXTURES / "streams/full_attention.json").read_text())
    config, numbers = trace["config"], trace["rounds"][chunk]["frames"]
    shape = (3, config["frame_height"], config["frame_width"])
    frames = [np.random.default_rng(1000 + config["seed"] * 7919 + k).integers(0, 256, shape) for k in numbers]
    levels = np.stack(frames).astype(np.uint8).transpose(0, 2, 3, 1)
    pixels = PixelConfig.from_dict(json.loads((FIXTURES / "processor/video_preprocessor_config.json").read_text()), "video")
    patches, grid = preprocess(levels, pixels)
    want = np.load(FIXTURES / "streams/full_attention.npz")[f"pixels_{chunk}"]
    assert [list(grid)] == trace["rounds"][chunk]["grid_thw"]
    assert np.abs(patches - want).max() <= 1e-6 * np.abs(want).max()


def test_fused_rescaling_of_the_torch_processors_differs_by_rounding_only():
    torch = pytest.importorskip("torch")
    levels = np.repeat(np.arange(256, dtype=np.uint8)[None, None, :, None], 3, axis=3)
    mean, std = (torch.tensor(v) * (1.0 / QWEN_IMAGE.rescale) for v in (QWEN_IMAGE.mean, QWEN_IMAGE.std))
    fused = ((torch.from_numpy(levels).float() - mean) / std).numpy()
    normalised = normalise(levels, QWEN_IMAGE)
    assert np.abs(normalised - fused).max() < 1e-6
    assert (normalised != fused).any()


@pytest.mark.parametrize("height, width", [(140, 252), (360, 640)], ids=["down", "up"])
def test_resize_is_within_a_level_of_torch_antialiased_bicubic_and_mostly_equal(height, width):
    torch = pytest.importorskip("torch")
    image = scene(270, 480)
    planes = torch.from_numpy(image.transpose(2, 0, 1)[None].copy())
    want = torch.nn.functional.interpolate(planes, (height, width), mode="bicubic", antialias=True)
    gap = np.abs(resize(image, height, width).astype(int) - want[0].permute(1, 2, 0).numpy().astype(int))
    assert gap.max() <= 1
    assert (gap > 0).mean() < 0.01


def taps(length: int, size: int) -> list[tuple[int, np.ndarray]]:
    """For each place of a resized line: where its antialiased bicubic window begins, and the weights in it, 22 bits."""
    scale = length / size
    support = 2 * max(scale, 1.0)
    tables = []
    for number in range(size):
        centre = (number + 0.5) * scale
        low, high = max(int(centre - support + 0.5), 0), min(int(centre + support + 0.5), length)
        x = np.abs((np.arange(low, high) - centre + 0.5) / max(scale, 1.0))
        inner, outer = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
        weights = np.where(x < 1, inner, np.where(x < 2, outer, 0.0))
        weights = weights / weights.cumsum()[-1]
        tables.append((low, np.trunc(weights * 2**22 + np.copysign(0.5, weights)).astype(np.int64)))
    return tables


def two_passes(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Columns, then rows, whole numbers alone: what every PIL has to give."""
    for axis, size in ((1, width), (0, height)):
        if image.shape[axis] == size:
            continue
        lines = np.moveaxis(image, axis, 0).astype(np.int64)
        sums = [np.tensordot(weights, lines[low : low + len(weights)], 1) for low, weights in taps(len(lines), size)]
        image = np.moveaxis(np.clip((np.stack(sums) + 2**21) >> 22, 0, 255).astype(np.uint8), 0, axis)
    return image


@pytest.mark.parametrize("width, height", [(640, 480), (585, 1266), (1024, 768), (360, 640), (300, 170), (31, 900), (28, 57)])
def test_a_resized_picture_is_the_same_with_every_pil(width, height):
    """PIL 13 takes rows first for 640x480 (a webcam) and portrait phones, earlier ones do not: a third of the levels would
    differ between two installs, and with them saved streams and prepared data."""
    config = STREAM_FRAME if max(width, height) > 500 else SMALL
    rows, columns = smart_resize(height, width, config)
    for image in (scene(height, width), noise(height, width, 3)):
        np.testing.assert_array_equal(resize(image, rows, columns), two_passes(image, rows, columns))


# --- the steps ---


def test_resize_returns_the_same_array_when_the_size_is_right():
    frame = noise(28, 56, 3)
    assert resize(frame, 28, 56) is frame


def test_preprocess_equals_resize_then_normalise_then_patchify():
    frames = noise(4, 90, 130, 3)
    height, width = smart_resize(90, 130, SMALL)
    want, grid = patchify(normalise(np.stack([resize(f, height, width) for f in frames]), SMALL), SMALL)
    patches, same = preprocess(frames, SMALL)
    np.testing.assert_array_equal(patches, want)
    assert grid == same == (2, height // 14, width // 14)


def test_patches_go_by_token_then_quadrant_and_inside_by_channel_frame_row_column():
    frames = noise(4, 56, 84, 3)
    patches, grid = patchify(frames, SMALL)
    assert grid == (2, 4, 6) and patches.shape == (48, 1176) and patches.dtype == np.uint8
    # pair 1, token row 1, token column 2, lower left quadrant: 24 + (1 * 3 + 2) * 4 + 2
    block = frames[2:4, 28 + 14 : 28 + 28, 56 : 56 + 14]  # [frame, row, column, channel]
    np.testing.assert_array_equal(patches[24 + 20 + 2], block.transpose(3, 0, 1, 2).reshape(-1))


def test_an_odd_last_frame_is_repeated():
    frames = noise(3, 28, 28, 3)
    patches, grid = patchify(frames, SMALL)
    doubled, _ = patchify(np.concatenate([frames, frames[2:]]), SMALL)
    np.testing.assert_array_equal(patches, doubled)
    assert grid == (2, 2, 2)


def test_no_frames_are_refused():
    for step in (patchify, preprocess):
        with pytest.raises(InputError) as error:
            step(np.zeros((0, 28, 28, 3), np.uint8), SMALL)
        one_line(error, "frames", "; ")


def test_frames_of_the_wrong_kind_are_refused():
    for frames in (
        np.zeros((1, 28, 28, 3), np.float32),
        np.zeros((1, 28, 28), np.uint8),
        np.zeros((1, 3, 28, 28), np.uint8),
    ):
        with pytest.raises(InputError) as error:
            preprocess(frames, SMALL)
        one_line(error, str(frames.dtype), "uint8 [F, H, W, 3]", "svlm_jax.media.video")


def test_a_side_that_is_no_multiple_of_28_is_the_callers_mistake():
    with pytest.raises(ValueError, match="multiples of 28"):
        patchify(noise(1, 30, 28, 3), SMALL)


# --- configuration ---


@pytest.mark.parametrize("name", ["preprocessor_config.json", "video_preprocessor_config.json"])
def test_processor_files_are_read(name):
    config = PixelConfig.from_dict(json.loads((FIXTURES / "processor" / name).read_text()), name)
    assert config == PixelConfig(min_pixels=784, max_pixels=50176)
    assert hash(config) == hash(PixelConfig(min_pixels=784, max_pixels=50176))


def good(**changes: object) -> dict:
    return {"min_pixels": 784, "max_pixels": 50176, "image_mean": [0.5] * 3, "image_std": [0.2] * 3} | changes


def test_bounds_are_named_either_way_and_min_pixels_wins():
    size = {"shortest_edge": 100, "longest_edge": 200}
    read = PixelConfig.from_dict(good(min_pixels=None, max_pixels=None, size=size), "f")
    assert (read.min_pixels, read.max_pixels) == (100, 200)
    assert PixelConfig.from_dict(good(size=size), "f").max_pixels == 50176


@pytest.mark.parametrize(
    "changes, key",
    [
        ({"min_pixels": None}, "min_pixels (or size.shortest_edge)"),
        ({"max_pixels": "many"}, "max_pixels"),
        ({"min_pixels": 60000}, "min_pixels"),
        ({"min_pixels": 0}, "min_pixels"),
        ({"min_pixels": True}, "min_pixels"),
        ({"patch_size": 14.0}, "patch_size"),
        ({"image_mean": None}, "image_mean"),
        ({"image_mean": [0.5, 0.5]}, "image_mean"),
        ({"image_std": [0.2, 0.2, 0]}, "image_std"),
        ({"rescale_factor": float("nan")}, "rescale_factor"),
        ({"do_normalize": False}, "do_normalize"),
        ({"resample": 2}, "resample"),
    ],
)
def test_a_wrong_or_missing_value_is_named_with_its_file_and_key(changes, key):
    with pytest.raises(InputError) as error:
        PixelConfig.from_dict(good(**changes), "model/preprocessor_config.json")
    one_line(error, f"model/preprocessor_config.json: {key}: got ", "expected", "; ")


def test_a_file_that_holds_no_object_is_refused():
    with pytest.raises(InputError) as error:
        PixelConfig.from_dict([1], "preprocessor_config.json")
    one_line(error, "preprocessor_config.json", "list", "a JSON object", "copy the file")


def test_a_config_made_by_hand_is_checked_too():
    with pytest.raises(InputError) as error:
        PixelConfig(min_pixels=784, max_pixels=50176, std=(0.2, 0.2, 0.0))
    one_line(error, "PixelConfig: std")
