"""Claims about what a processor makes of a checkpoint's files: the size of an image, of a frame of a stream and of a long
video, and how words are chosen."""

import json
import shutil
import warnings
from dataclasses import replace

import numpy as np
import pytest

from svlm_jax.config import StreamConfig
from svlm_jax.data.batch import collate
from svlm_jax.decode.sampling import COMMENTARY, Sampling
from svlm_jax.errors import InputError
from svlm_jax.families import FAMILIES, config_json, preset
from svlm_jax.inputs import PATCH_BUCKETS, TOKEN_BUCKETS, patch_times
from svlm_jax.media.pixels import CLIP_MEAN, CLIP_STD, PixelConfig, smart_resize
from svlm_jax.media.processor import Processor, frame_bounds, frame_share
from svlm_jax.media.video import write_video
from svlm_jax.settings import read_generation_config, read_streaming_config
from tests.support.families import tiny_config
from tests.support.pixels import STREAM_FRAME

VISION = preset("qwen2.5-vl-7b").vision
VIDEO_PIXELS = 115_200 * 784
LARGE = 12_845_056  # pixels: what transformers writes into every video_preprocessor_config.json
HD = np.zeros((2, 720, 1280, 3), np.uint8)


def pixels(low: int, high: int, nested: bool = False) -> dict:
    shared = {"image_mean": CLIP_MEAN, "image_std": CLIP_STD, "patch_size": 14, "merge_size": 2, "temporal_patch_size": 2}
    size = {"size": {"shortest_edge": low, "longest_edge": high}}
    return shared | size | ({} if nested else {"min_pixels": low, "max_pixels": high})


@pytest.fixture
def directory(processor_dir, tmp_path):
    """A tokenizer and no pixel settings, as far as they are not written there."""
    for file in processor_dir.iterdir():
        if "preprocessor" not in file.name:
            shutil.copy(file, tmp_path)
    return tmp_path


@pytest.fixture
def opened(directory, tiny_dir):
    def open_(config=None, **files):
        for name, content in files.items():
            (directory / f"{name}.json").write_text(json.dumps(content))
        return Processor.from_directory(directory, config or config_json.read(tiny_dir))

    return open_


# --- frames ---


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"video_preprocessor_config": pixels(3136, LARGE)},
        {"video_preprocessor_config": pixels(4 * 28 * 28, 16384 * 28 * 28, nested=True)},
        {"processor_config": {"image_processor": pixels(3136, LARGE), "video_processor": pixels(3136, LARGE, nested=True)}},
        {"preprocessor_config": pixels(3136, LARGE)},
        {"processor_config": {"processor_class": "Qwen2_5_VLProcessor"}, "video_preprocessor_config": pixels(3136, LARGE)},
    ],
    ids=["published", "4.52", "size alone", "5", "images alone", "4.57"],
)
def test_a_frame_of_a_stream_has_the_size_of_the_paper_whoever_saved_the_checkpoint(opened, files):
    """1196 tokens a second instead of 720: a slower stream, of pictures that the model was never trained on."""
    processor = opened(**files)
    assert (processor.video_config.min_pixels, processor.video_config.max_pixels) == (100 * 28 * 28, 768 * 28 * 28)
    assert processor.video(HD).grid == (1, 40, 72)
    assert processor.video(np.zeros((2, 2160, 3840, 3), np.uint8)).grid[1] * 28 * 28 < 4 * 768 * 28 * 28


@pytest.mark.parametrize(
    ("low", "high", "bounds"),
    [
        (18816, 18816, (18816, 18816)),  # below the least of a stream: the file's own
        (784, 50176, (784, 50176)),
        (3136, 512 * 784, (100 * 784, 512 * 784)),  # smaller than a stream's largest: as much smaller
        (256 * 784, LARGE, (100 * 784, 768 * 784)),
    ],
)
def test_a_file_may_ask_for_smaller_frames_but_not_for_larger(low, high, bounds):
    got = frame_bounds(replace(STREAM_FRAME, min_pixels=low, max_pixels=high), VISION)
    assert (got.min_pixels, got.max_pixels) == bounds


def test_streaming_config_json_says_what_a_frame_is_and_leaves_the_rest(opened, directory):
    video = {"video_preprocessor_config": pixels(3136, LARGE)}
    own = opened(**video, streaming_config={"frame": {"max_pixels": LARGE}}).video_config
    assert (own.min_pixels, own.max_pixels, own.mean) == (100 * 28 * 28, LARGE, CLIP_MEAN)
    assert read_streaming_config(directory) == (StreamConfig(), COMMENTARY)
    own = opened(
        streaming_config={"frame": {"min_pixels": 784, "max_pixels": 784}, "stream": {"sink": None, "text_window": None}}
    )
    assert own.video_config.max_pixels == 784 and own.video(HD).grid[1:] == (2, 2)
    assert read_streaming_config(directory)[0].sink is None


@pytest.mark.parametrize(
    ("header", "thinks"),
    [("assistant\\n<think>\\n' }}", True), ("assistant\n<think>\n", True), ("assistant\\n<think>\\n\\n</think>\\n", False)],
    ids=["published", "plain", "a closed thought"],
)
def test_a_model_that_thinks_first_is_warned_of(opened, directory, header, thinks):
    """Its config.json is that of the -Instruct model; in a stream it would think aloud, or answer badly."""
    template = (directory / "chat_template.jinja").read_text()
    (directory / "chat_template.jinja").write_text(template.replace("assistant\n", header))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        opened()
    assert ["-Instruct" in str(warning.message) for warning in caught if "<think>" in str(warning.message)] == [True] * thinks


# --- Qwen3-VL: patches of 16 pixels, mean = std = 0.5, and a file that bounds all frames of a video together ---

QWEN3_FILES = {  # as published
    "preprocessor_config": {
        "size": {"longest_edge": 16777216, "shortest_edge": 65536},
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "processor_class": "Qwen3VLProcessor",
        "image_processor_type": "Qwen2VLImageProcessorFast",
    }
}
QWEN3_FILES["video_preprocessor_config"] = QWEN3_FILES["preprocessor_config"] | {
    "size": {"longest_edge": 25165824, "shortest_edge": 4096},
    "video_processor_type": "Qwen3VLVideoProcessor",
}
QWEN3_NESTED = {
    "processor_config": {
        "image_processor": QWEN3_FILES["preprocessor_config"],
        "video_processor": QWEN3_FILES["video_preprocessor_config"] | {"fps": 2, "min_frames": 4, "max_frames": 768},
    }
}


@pytest.fixture
def qwen3(opened):
    return lambda **files: opened(preset("qwen3-vl-8b"), **files)


@pytest.mark.parametrize("files", [{}, QWEN3_FILES, QWEN3_NESTED], ids=["no files", "published", "transformers 5"])
def test_frames_of_qwen3_vl_have_as_many_tokens_and_travel_as_bytes(qwen3, files):
    processor = qwen3(**files)
    assert (processor.image_config.min_pixels, processor.image_config.max_pixels) == (65536, 16777216)
    assert (processor.video_config.min_pixels, processor.video_config.max_pixels) == (100 * 32 * 32, 768 * 32 * 32)
    assert processor.video_pixels == 25165824 // 2
    clip = processor.video(HD, raw=True)
    assert clip.grid == (1, 40, 72) and clip.patches.dtype == np.uint8 and clip.patches.shape[1] == 1536
    assert processor.frames(HD).grid == clip.grid


@pytest.mark.parametrize("frames", [4, 32, 48, 120, 600, 768])
@pytest.mark.parametrize(("height", "width"), [(720, 1280), (1080, 1920), (360, 640), (1280, 720)])
def test_the_frames_of_a_video_of_qwen3_vl_have_the_librarys_size(qwen3, frames, height, width):
    """With its cap on a frame (768 tokens), which its authors' tools apply, and its bound on all frames."""
    library = pytest.importorskip("transformers.models.qwen3_vl.video_processing_qwen3_vl")
    processor = qwen3(**QWEN3_FILES)
    share = frame_share(processor.video_config, frames, processor.video_pixels)
    rows, columns = smart_resize(height, width, share)
    count = library.Qwen3VLVideoProcessor(size=QWEN3_FILES["video_preprocessor_config"]["size"]).get_num_of_video_patches
    assert count(frames, height, width, {"cap_pixels_per_frame": True}) == frames // 2 * (rows // 16) * (columns // 16)


@pytest.mark.parametrize("frames", [1, 2, 5, 6])
def test_the_times_of_a_video_are_those_of_its_patches(opened, frames):
    """Qwen3-VL reads them before each patch; the last frame of an odd number counts twice."""
    processor = opened()
    video = np.zeros((frames, 56, 56, 3), np.uint8)
    seconds = [7 + 0.5 * k for k in range(frames)]
    for clip in (processor.video(video, fps=2, start=7), processor.open(video, start=7), processor.frames(video, start=7)):
        assert len(clip.times) == clip.grid[0]
        assert clip.times == patch_times(np.array(seconds), 2)
    library = pytest.importorskip("transformers.models.qwen3_vl.processing_qwen3_vl")
    indices = [25 * 7 + k * 12 for k in range(frames)]
    want = library.Qwen3VLProcessor._calculate_timestamps(None, list(indices), 25.0, 2)
    assert list(patch_times(np.array(indices) / 25.0, 2)) == want


def test_the_times_of_a_file_begin_where_it_is_read(opened, tmp_path):
    write_video(tmp_path / "v.mp4", np.zeros((20, 56, 56, 3), np.uint8), 4)
    assert opened().video(tmp_path / "v.mp4", fps=2, start=1, duration=1.5).times == (1.25, 2.0)
    assert opened().image(np.zeros((56, 56, 3), np.uint8)).times == ()


# --- images ---


@pytest.mark.parametrize("files", ["preprocessor_config", "processor_config", "both"])
def test_an_image_has_the_size_that_the_file_of_any_version_says(opened, files):
    """12 x 20 patches, or twenty times the tokens of what the model was trained with."""
    small, large = pixels(784, 50176), pixels(3136, LARGE)
    written = {
        "preprocessor_config": {"preprocessor_config": small},
        "processor_config": {"processor_config": {"image_processor": small}},
        "both": {"processor_config": {"image_processor": small}, "preprocessor_config": large},  # as transformers 5 reads them
    }
    assert opened(**written[files]).image(np.zeros((1080, 1920, 3), np.uint8)).grid == (1, 12, 20)


# --- long videos ---


@pytest.mark.parametrize(("frames", "tokens"), [(2, 720), (120, 60 * 720), (300, 150 * 720)])
def test_a_short_video_is_not_made_smaller(frames, tokens):
    bounds = frame_share(STREAM_FRAME, frames, VIDEO_PIXELS)
    assert bounds == STREAM_FRAME
    assert tokens <= TOKEN_BUCKETS[-1]


@pytest.mark.parametrize("frames", [301, 400, 768, 5000, 10**6])
def test_the_frames_of_a_long_video_share_what_the_model_can_take(frames):
    """README's caption of a match would be refused after everything was decoded."""
    bounds = frame_share(STREAM_FRAME, frames, VIDEO_PIXELS)
    pairs = -(-frames // 2)
    assert bounds.min_pixels <= bounds.max_pixels <= max(VIDEO_PIXELS // pairs, 28 * 28)
    if frames <= 768:
        assert pairs * bounds.max_pixels / 784 <= TOKEN_BUCKETS[-1] - 4096  # room for words
        assert pairs * bounds.max_pixels / 196 <= PATCH_BUCKETS[-1]


def test_a_video_that_was_too_long_now_fits_a_batch(opened, tiny_dir):
    processor = opened(video_preprocessor_config=pixels(784, 50176))
    processor.video_pixels = 60 * 784  # so that few frames make a long video
    clip = processor.video(np.zeros((40, 200, 300, 3), np.uint8))
    assert clip.grid[0] == 20 and clip.grid[1] * clip.grid[2] // 4 <= 3
    inputs = collate([processor.prompt("What?", clip)], config_json.read(tiny_dir).vision, side="left")
    assert inputs.ids.shape[1] <= 256


def test_a_minute_of_720p_fits_a_bucket():
    assert 60 * 720 + 4096 <= TOKEN_BUCKETS[-1] == 131072
    assert PATCH_BUCKETS[-1] >= 4 * VIDEO_PIXELS // 784


# --- how words are chosen ---


@pytest.mark.parametrize(
    ("content", "sampling", "eos"),
    [
        (None, Sampling(), (435,)),
        ({}, Sampling(), (435,)),
        (
            {"do_sample": True, "temperature": 1e-6, "repetition_penalty": 1.05, "eos_token_id": [5, 6], "top_k": 1},
            Sampling(1e-6, 1, 1.0, 1.05),
            (5, 6),
        ),
        ({"repetition_penalty": 1.05, "temperature": 0.7, "top_p": 0.8}, Sampling(0.0, 50, 0.8, 1.05), (435,)),
        ({"do_sample": True}, Sampling(1.0, 50, 1.0, 1.0), (435,)),
        ({"suppress_tokens": [3, 4], "temperature": None, "eos_token_id": 7}, Sampling(suppressed=(3, 4)), (7,)),
        ({"do_sample": True, "temperature": 1e-6, "foo": float("nan")}, Sampling(1e-6, 50, 1.0, 1.0), (435,)),
        ({"eos_token_id": [151645, 435]}, Sampling(), (151645, 435)),
        ({"eos_token_id": []}, Sampling(), (435,)),
    ],
)
def test_generation_config_json_means_what_it_means_to_transformers(tmp_path, tiny_dir, content, sampling, eos):
    if content is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(content))
    assert read_generation_config(tmp_path, config_json.read(tiny_dir)) == (sampling, eos)


@pytest.mark.parametrize("content", [{"eos_token_id": [151645, 151643]}, {"suppress_tokens": [3, 448]}])
def test_a_generation_config_json_of_another_vocabulary_is_refused(tmp_path, tiny_dir, content):
    """No reply would ever end: the ids that end one do not exist."""
    (tmp_path / "generation_config.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="below vocab_size 448"):
        read_generation_config(tmp_path, config_json.read(tiny_dir))


@pytest.mark.parametrize(
    ("model_type", "patch", "image", "video"),
    [
        ("qwen2_vl", 14, (3136, LARGE), (3136, LARGE)),
        ("qwen3_vl", 16, (65536, 16_777_216), (4096, 25_165_824)),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_what_transformers_writes_for_videos_leaves_the_stream_of_every_family(
    processor_dir, tmp_path, model_type, patch, image, video, nested
):
    """720p is 720 tokens a frame in training, whichever version saved the model."""
    for path in processor_dir.iterdir():
        if "preprocessor" not in path.name:
            shutil.copy(path, tmp_path)
    family = FAMILIES[model_type]
    vision = next(iter(family.presets.values())).vision
    own = {"patch_size": patch, "image_mean": vision.image_mean, "image_std": vision.image_std}
    files = [pixels(*bounds, nested=True) | own for bounds in (image, video)]
    if nested:
        content = dict(zip(("image_processor", "video_processor"), files, strict=True))
        (tmp_path / "processor_config.json").write_text(json.dumps(content))
    else:
        for name, content in zip(("preprocessor_config.json", "video_preprocessor_config.json"), files, strict=True):
            (tmp_path / name).write_text(json.dumps(content))
    processor = Processor.from_directory(tmp_path, tiny_config(family))
    rows, columns = smart_resize(720, 1280, processor.video_config)
    assert rows * columns // (2 * patch) ** 2 == 720
    assert (processor.image_config.min_pixels, processor.image_config.max_pixels) == image


def test_settings_of_generation_config_json_that_are_not_supported_are_a_warning(tmp_path, tiny_dir):
    (tmp_path / "generation_config.json").write_text(json.dumps({"num_beams": 4, "min_length": 0, "min_p": None}))
    with pytest.warns(UserWarning, match="num_beams is not supported"):
        read_generation_config(tmp_path, config_json.read(tiny_dir))


def test_generate_follows_the_file_unless_told_otherwise_and_a_stream_does_not(tiny_dir, processor_dir, tmp_path):
    """Qwen's files ask for a repetition penalty of 1.05: without it captions of some images never stop repeating."""
    import svlm_jax

    for source in (processor_dir, tiny_dir):
        shutil.copytree(source, tmp_path, dirs_exist_ok=True)
    (tmp_path / "generation_config.json").write_text(json.dumps({"repetition_penalty": 4.0, "eos_token_id": 435}))
    vlm = svlm_jax.from_pretrained(tmp_path)
    assert vlm.generation == Sampling(repetition_penalty=4.0) and vlm.sampling == COMMENTARY
    sample = vlm.processor.prompt("Hello", vlm.processor.image(np.zeros((60, 90, 3), np.uint8)))
    by_file = vlm.generate([sample], max_new_tokens=16)
    assert by_file == vlm.generate([sample], max_new_tokens=16, sampling=Sampling(repetition_penalty=4.0))
    assert by_file != vlm.generate([sample], max_new_tokens=16, sampling=Sampling())


def test_settings_survive_the_way_through_a_dictionary():
    assert PixelConfig.from_dict(STREAM_FRAME.to_dict(), "x") == STREAM_FRAME
