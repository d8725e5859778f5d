"""Images, videos and words to a Sample: the tokenizer and pixel settings of a checkpoint directory. Host side, never jax."""

import math
import mimetypes
import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from svlm_jax.config import ModelConfig, VisionConfig
from svlm_jax.errors import InputError
from svlm_jax.families import family_of
from svlm_jax.families.chat import Tokenizer, Turn, encode
from svlm_jax.files import read_json, refuse_other_kinds_of_file
from svlm_jax.inputs import Clip, Frames, Sample, patch_times
from svlm_jax.media.image import as_frames, load_image
from svlm_jax.media.pixels import PixelConfig, preprocess, smart_resize, stream_frame
from svlm_jax.media.video import read_video
from svlm_jax.presets import Preset, preset_of

STREAMING = "streaming_config.json"
PREPROCESSOR, VIDEO_PREPROCESSOR = "preprocessor_config.json", "video_preprocessor_config.json"
NESTED = "processor_config.json"  # of transformers 5, holds both
TOKENIZER = ("tokenizer.json", "vocab.json")  # one of them makes a tokenizer
TOKENIZER_BYTES = 1 << 25  # of a file; the largest in use has 11 MB
# In the chat template of a model that was trained to think first: the header of a reply opens a thought, and does not close it.
_THOUGHT = re.compile(r"assistant(\\n|\s)<think>(?!(\\n|\s)*</think>)")
# Files that belong to the weights: copied on conversion, looked for on loading.
PROCESSOR_FILES = (
    "generation_config.json",
    STREAMING,
    *TOKENIZER,
    "tokenizer_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "chat_template.jinja",
    PREPROCESSOR,
    VIDEO_PREPROCESSOR,
    NESTED,
)


class Processor:
    """Images, videos and prompts -> Clips and Samples."""

    def __init__(
        self,
        config: ModelConfig,
        tokenizer: Tokenizer,
        image: PixelConfig | None = None,
        video: PixelConfig | None = None,
        video_pixels: int | None = None,
    ) -> None:
        """Args:
        image, video: bounds on an image, and on a frame of a video; by default the family's, and StreamingVLM's.
        video_pixels: of all temporal patches of a video that is not streamed; by default the family's.
        """
        self.config, self.tokenizer = config, tokenizer
        self.image_config, self.video_config = image or image_bounds(config), video or stream_frame(config.vision)
        self.video_pixels = video_pixels or family_of(config).video_tokens * self.video_config.factor**2

    @classmethod
    def from_directory(cls, directory: str | Path, config: ModelConfig) -> "Processor":
        """Read the tokenizer and the pixel settings of a checkpoint.

        Images follow its processor_config.json (transformers 5), else its preprocessor_config.json, else the family. Frames of
        video have StreamingVLM's bounds, whatever transformers wrote for them, unless they are smaller there (`frame_bounds`)
        or `frame` of streaming_config.json says otherwise.

        Raises:
            InputError: a file that is missing or wrong, or is another model's.
        """
        directory = Path(directory)
        tokenizer = load_tokenizer(directory)
        _check_tokenizer(tokenizer, config, directory)
        if _THOUGHT.search(str(getattr(tokenizer, "chat_template", None))):
            text = (
                "a model that thinks (<think>) before it replies, in no turn here: replies may be poor; use the -Instruct model"
            )
            warnings.warn(f"{directory} chat_template: {text}", stacklevel=2)
        image, video = _pixels(directory, PREPROCESSOR), _pixels(directory, VIDEO_PREPROCESSOR)
        for pixels, file_name in ((image, PREPROCESSOR), (video, VIDEO_PREPROCESSOR)):
            _check_patches(pixels, config, str(directory / file_name))
        video_pixels = None
        if video is not None and family_of(config).video_size == "video":
            video, video_pixels = _frame_of_video(video)
        return cls(config, tokenizer, image, _frame(directory, frame_bounds(video, config.vision)), video_pixels)

    @property
    def tower_normalises(self) -> bool:
        """Whether frames can travel as raw pixels, for the vision tower to normalise."""
        return self.video_config.has_norm_of(self.config.vision)

    def with_preset(self, preset: Preset) -> "Processor":
        """The same with no more vision tokens a frame than the preset takes."""
        video = limited(self.video_config, preset.max_frame_tokens)
        return Processor(self.config, self.tokenizer, self.image_config, video, self.video_pixels)

    def image(self, source: Any, *, raw: bool = False) -> Clip:
        """An image (path, PIL image or uint8 array [H, W, 3]) as patches. raw: as of `video`."""
        raw = raw and self.image_config.has_norm_of(self.config.vision)
        return Clip(*preprocess(load_image(source)[None], self.image_config, raw=raw))

    def video(
        self,
        source: Any,
        *,
        fps: float | int = 2.0,
        start: float | int = 0.0,
        duration: float | int | None = None,
        raw: bool = False,
    ) -> Clip:
        """A video file, or a sequence of frames sampled at `fps` before, as patches. Frames of a long one (more than 300 of
        720p, or 32 in Qwen3-VL) are made smaller, so that all of them fit (`video_pixels`).

        Args:
            start: the second of the first frame.
            raw: as uint8 pixels, where the vision tower normalises them as the checkpoint's files say.
        """
        if isinstance(source, str | Path):
            frames, seconds, fps = read_video(source, fps=fps, start=start, duration=duration)
        else:
            frames = as_frames(source)
            seconds = start + np.arange(len(frames)) / fps
        share = frame_share(self.video_config, len(frames), self.video_pixels)
        patches, grid = preprocess(frames, share, raw=raw and self.tower_normalises)
        vision = self.config.vision
        times = patch_times(seconds, vision.temporal_patch_size)
        return Clip(patches, grid, vision.temporal_step(fps), video=True, times=times)

    def frames(self, source: Any, *, fps: float | int = 2.0, start: float | int = 0.0) -> Clip:
        """`video` of frames that were sampled before, without its patches: they are made on the device, pixel for pixel."""
        pixels, vision = as_frames(source), self.config.vision
        height, width = pixels.shape[1:3]
        rows, columns = smart_resize(height, width, frame_share(self.video_config, len(pixels), self.video_pixels))
        seconds = start + np.arange(len(pixels)) / fps
        if missing := -len(pixels) % vision.temporal_patch_size:  # as `patchify` does
            pixels = np.concatenate([pixels, np.repeat(pixels[-1:], missing, axis=0)])
        grid = (len(pixels) // vision.temporal_patch_size, rows // vision.patch_size, columns // vision.patch_size)
        step, times = vision.temporal_step(fps), patch_times(seconds, vision.temporal_patch_size)
        none = np.zeros((0, vision.patch_dim), np.uint8)
        return Clip(none, grid, step, video=True, frames=Frames(pixels, height, width), times=times)

    def open(self, source: Any, **video: Any) -> Clip:
        """An image or a video, whichever `source` is: a sequence is a video, a file goes by the type that mimetypes has for its
        name (a GIF is a video)."""
        if isinstance(source, str | Path):
            kind = mimetypes.guess_type(str(source))[0] or ""
            is_image = kind.startswith("image/") and kind != "image/gif"
        else:
            is_image = not isinstance(source, Sequence) and getattr(source, "ndim", 3) == 3
        return self.image(source) if is_image else self.video(source, **video)

    def prompt(self, text: str, *clips: Clip, system: str | None = None) -> Sample:
        """One user turn, clips first, and the header of the reply."""
        turns = [Turn("user", (*clips, text))]
        if system is not None:
            turns.insert(0, Turn("system", (system,)))
        return encode(turns, self.tokenizer, self.config)


def load_tokenizer(directory: str | Path) -> Tokenizer:
    """The tokenizer of a checkpoint directory, through transformers.

    Raises:
        InputError: no tokenizer, or one that does not load.
    """
    directory = Path(directory)
    if not any((directory / name).is_file() for name in TOKENIZER):
        raise InputError(str(directory), "no tokenizer.json or vocab.json", "a tokenizer", "copy the tokenizer files there")
    for path in (directory / name for name in PROCESSOR_FILES):
        if os.path.lexists(path) and not path.is_file():  # transformers would go on without it, and with another tokenizer
            got = "no file (a directory, or a broken link)"
            raise InputError(str(path), got, "a tokenizer or processor file", "download it, or remove it")
        if path.is_file():
            refuse_other_kinds_of_file(path, "a tokenizer or processor file")
            if path.stat().st_size > TOKENIZER_BYTES:
                expected = f"at most {TOKENIZER_BYTES} bytes"
                raise InputError(str(path), f"{path.stat().st_size} bytes", expected, "copy the model's own file again")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it would advise to install torch
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        tokenizer.decode(tokenizer.encode("a", add_special_tokens=False), skip_special_tokens=True)
        return tokenizer
    except BaseException as error:  # whatever is wrong in the files; the Rust part panics, which is no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
        got = f"a tokenizer that does not load ({reason})"
        raise InputError(str(directory), got, "the model's own files", "copy them again") from None


def image_bounds(config: ModelConfig) -> PixelConfig:
    """Bounds on the pixels of an image, and their normalisation, where the checkpoint has no preprocessor_config.json."""
    return PixelConfig.of(config.vision, *family_of(config).image_pixels)


def frame_bounds(file: PixelConfig | None, vision: VisionConfig) -> PixelConfig:
    """Of a video's frame: StreamingVLM's bounds on pixels, because the original resizes to them before the processor does, and
    no more than the file says. A file with less than StreamingVLM's minimum is of a small model: its bounds hold."""
    stream = stream_frame(vision)
    if file is None:
        return stream
    max_pixels = min(file.max_pixels, stream.max_pixels)
    min_pixels = stream.min_pixels if stream.min_pixels <= max_pixels else file.min_pixels
    return replace(file, min_pixels=min_pixels, max_pixels=max_pixels)


def limited(config: PixelConfig, max_tokens: int) -> PixelConfig:
    """The same bounds, with at most so many vision tokens a frame."""
    max_pixels = min(config.max_pixels, max_tokens * config.factor**2)
    return replace(config, min_pixels=min(config.min_pixels, max_pixels), max_pixels=max_pixels)


def frame_share(config: PixelConfig, num_frames: int, video_pixels: int) -> PixelConfig:
    """The bounds of each frame of a video of so many, whose temporal patches share `video_pixels`; one spans
    `temporal_patch_size` frames."""
    # at least one vision token a frame remains, however long the video
    pairs = math.ceil(num_frames / config.temporal_patch_size)
    max_pixels = max(video_pixels // max(pairs, 1), config.factor**2)
    # A share below min_pixels: frames that are smaller yet stay so, for nothing makes room for larger ones.
    min_pixels = config.min_pixels if config.min_pixels <= max_pixels else config.factor**2
    return replace(config, min_pixels=min_pixels, max_pixels=min(config.max_pixels, max_pixels))


def _frame_of_video(file: PixelConfig) -> tuple[PixelConfig, int]:
    """The bounds on a frame, and on all temporal patches of a video, of a file with bounds on all frames of a video. A frame
    may be as large as in the shortest video, which is one temporal patch."""
    frames = file.temporal_patch_size
    low, high = (max(pixels // frames, 1) for pixels in (file.min_pixels, file.max_pixels))
    return replace(file, min_pixels=low, max_pixels=high), high


def _frame(directory: Path, config: PixelConfig) -> PixelConfig:
    """The bounds of a frame, `preset` and `frame` of streaming_config.json applied."""
    path = directory / STREAMING
    settings = read_json(path, "streaming settings") if path.is_file() else {}
    if "preset" in settings:
        config = limited(config, preset_of(settings["preset"], f"{path} preset").max_frame_tokens)
    bounds = settings.get("frame", {})
    if not isinstance(bounds, dict) or (bounds.keys() - {"min_pixels", "max_pixels"}):
        raise InputError(f"{path} frame", repr(bounds), "min_pixels and max_pixels", "mend the file")
    return PixelConfig.from_dict(config.to_dict() | bounds, source=f"{path} frame") if bounds else config


def _pixels(directory: Path, name: str) -> PixelConfig | None:
    """The settings of images or videos: of transformers 5's one file, else of the file called `name`; None: neither exists."""
    kind = "image_processor" if name == PREPROCESSOR else "video_processor"
    for path, key in ((directory / NESTED, kind), (directory / name, None)):
        if path.exists() or path.is_symlink():
            settings: Any = read_json(path, "a preprocessor config")
            if key is None or settings.get(key) is not None:
                source = f"{path} {key}" if key else str(path)
                return PixelConfig.from_dict(settings[key] if key else settings, source=source)
    return None


def _check_patches(pixels: PixelConfig | None, config: ModelConfig, source: str) -> None:
    """Refuse patches of another shape than the model's config.json says."""
    vision = config.vision
    expected = {
        "patch_size": vision.patch_size,
        "merge_size": vision.spatial_merge_size,
        "temporal_patch_size": vision.temporal_patch_size,
    }
    for name, value in expected.items() if pixels else ():
        if getattr(pixels, name) != value:
            raise InputError(
                f"{source} {name}", getattr(pixels, name), f"{value}, as in config.json", "use the model's own file"
            )


def _check_tokenizer(tokenizer: Tokenizer, config: ModelConfig, directory: Path) -> None:
    """Refuse a tokenizer of another model: one without the family's marks, or with ids that the model has no embedding for."""
    family = family_of(config)
    marks = [mark for mark in family.chat.marks if len(tokenizer.encode(mark, add_special_tokens=False)) != 1]
    if marks:
        raise InputError(
            str(directory), f"a tokenizer without {marks[0]}", f"that of {family.name}", "use the model's own tokenizer"
        )
    largest = max(len(tokenizer) - 1, *tokenizer.get_added_vocab().values(), 0)
    if largest >= config.text.vocab_size:
        expected = f"ids below vocab_size {config.text.vocab_size}"
        raise InputError(str(directory), f"a tokenizer with ids up to {largest}", expected, "use the model's own tokenizer")
