"""Images, videos and words to a Sample: the tokenizer and pixel settings of a checkpoint directory. Host side, never jax."""

import mimetypes
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from svlm_jax.config import ModelConfig
from svlm_jax.data.batch import Clip, Sample
from svlm_jax.data.chat import Tokenizer, Turn, encode
from svlm_jax.data.image import as_frames, load_image
from svlm_jax.data.pixels import QWEN_IMAGE, STREAM_FRAME, PixelConfig, preprocess
from svlm_jax.data.video import read_video
from svlm_jax.errors import InputError
from svlm_jax.hf_config import read_json
from svlm_jax.spans import temporal_step

# What travels with the weights: copied on conversion, looked for on loading.
FILES = (
    "generation_config.json",
    "streaming_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "chat_template.jinja",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
)


class Processor:
    """Turns what a user has into what the model takes."""

    def __init__(self, config: ModelConfig, tokenizer: Tokenizer, image: PixelConfig, video: PixelConfig) -> None:
        self.config, self.tokenizer, self.image_config, self.video_config = config, tokenizer, image, video

    @classmethod
    def from_directory(cls, directory: str | Path, config: ModelConfig) -> "Processor":
        """Read the tokenizer and preprocessor_config.json of a checkpoint; a video_preprocessor_config.json if there is one
        (its bounds hold for a frame), StreamingVLM's bounds otherwise."""
        directory = Path(directory)
        return cls(
            config,
            load_tokenizer(directory),
            _pixels(directory / "preprocessor_config.json", QWEN_IMAGE),
            _pixels(directory / "video_preprocessor_config.json", STREAM_FRAME),
        )

    def image(self, source: Any) -> Clip:
        """An image (path, PIL image or uint8 array [H, W, 3]) as patches."""
        return Clip(*preprocess(load_image(source)[None], self.image_config))

    def video(
        self,
        source: Any,
        *,
        fps: float | int = 2.0,
        start: float | int = 0.0,
        duration: float | int | None = None,
        levels: bool = False,
    ) -> Clip:
        """A video file, or a sequence of frames already taken at `fps`, as patches; `levels`: see `preprocess`."""
        if isinstance(source, str | Path):
            frames, _, fps = read_video(source, fps=fps, start=start, duration=duration)
        else:
            frames = as_frames(source)
        patches, grid = preprocess(frames, self.video_config, levels=levels)
        vision = self.config.vision
        return Clip(patches, grid, temporal_step(vision.tokens_per_second, vision.temporal_patch_size, fps), video=True)

    def open(self, source: Any, **video: Any) -> Clip:
        """An image or a video, whichever `source` is: a sequence is a video, a file goes by its name (images are those that
        mimetypes calls so, animated GIF apart)."""
        if isinstance(source, str | Path):
            kind = mimetypes.guess_type(str(source))[0] or ""
            still = kind.startswith("image/") and kind != "image/gif"
        else:
            still = not isinstance(source, Sequence) and getattr(source, "ndim", 3) == 3
        return self.image(source) if still else self.video(source, **video)

    def prompt(self, text: str, *clips: Clip, system: str | None = None) -> Sample:
        """One user turn, clips first, ready to be replied to."""
        turns = [Turn("user", (*clips, text))]
        if system is not None:
            turns.insert(0, Turn("system", (system,)))
        return encode(turns, self.tokenizer, self.config)


def load_tokenizer(directory: str | Path) -> Tokenizer:
    """The tokenizer of a checkpoint directory, through transformers."""
    if not any((Path(directory) / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise InputError(str(directory), "no tokenizer.json or vocab.json", "a tokenizer", "copy the tokenizer files there")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it would advise to install torch
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError) as error:
        raise InputError(
            str(directory), f"a tokenizer that does not load ({error})", "Qwen's files", "copy them again"
        ) from None


def _pixels(path: Path, default: PixelConfig) -> PixelConfig:
    if not path.is_file():
        return default
    return PixelConfig.from_dict(read_json(path, "a preprocessor config"), source=str(path))
