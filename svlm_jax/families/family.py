"""The contract of a model family: what its file must say so that the rest of the library can read, run and write its models.

Owns the types. Knows no family, and no jax: the vision tower is reached through a function that imports it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from svlm_jax.config import ModelConfig, TextConfig, VisionConfig
from svlm_jax.inputs import VisionInput

if TYPE_CHECKING:
    from flax import nnx

    from svlm_jax.model.vision import Features

Section = dict[str, Any]  # one section of a config.json


class VisionTower(Protocol):
    """A module of flax.nnx: patches in window order to one row of features for each merge unit, in the same order."""

    def __call__(self, vision: VisionInput) -> "Features": ...


@dataclass(frozen=True)
class ChatFormat:
    """The markup of a conversation. Each of the four marks is one special token of the family's tokenizer.

    Attributes:
        system_prompt: of a conversation without a system turn of its own; "": such a conversation has none.
        turn_start, turn_end: marks around a turn, which is written turn_start role newline text turn_end newline.
        vision_start, vision_end: marks around the pad tokens of an image or a clip.
        time_text: (start, end) of a chunk in seconds -> the text with which its user turn begins.
        frame_text: the second of a temporal patch of a video (the mean of its frames) -> the text before it. Each temporal
            patch is then a block of its own between the vision marks, and `time_text` is not used. None: a clip is one block.
    """

    system_prompt: str
    turn_start: str
    turn_end: str
    vision_start: str
    vision_end: str
    time_text: Callable[[float, float], str]
    frame_text: Callable[[float], str] | None = None

    @property
    def marks(self) -> tuple[str, ...]:
        return self.turn_start, self.turn_end, self.vision_start, self.vision_end

    @property
    def footer(self) -> str:
        """The end of every turn."""
        return f"{self.turn_end}\n"

    def header(self, role: str) -> str:
        """The beginning of a turn."""
        return f"{self.turn_start}{role}\n"


@dataclass(frozen=True)
class WeightTable:
    """Which tensor of a checkpoint is which parameter. One table serves reading and writing.

    Attributes:
        rows: (name in the file, path of the parameter, einops pattern from the file's axes to the parameter's). "{i}" stands
            for the number of a layer. Patterns regroup axes and transpose at most once: the file's first axis against the rest.
        axis_sizes: (config, path) -> the size of each axis that the pattern of that path names.
        aliases: (prefix, prefix of `rows`): other layouts of the names, which are read and not written. The first that fits
            is replaced.
    """

    rows: tuple[tuple[str, str, str], ...]
    axis_sizes: Callable[[ModelConfig, str], Mapping[str, int]]
    aliases: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Family:
    """All that one model family decides.

    Attributes:
        model_type: in config.json; the key of `FAMILIES`.
        name: for messages.
        architecture: the class name that config.json gives.
        token_ids: ids of the vision tokens where config.json leaves them out.
        parse_sections: (text section, vision section, file name) -> both configs. It takes the keys that it knows out of the
            sections, which are copies; what is left is carried along and written again. Raises InputError for a variant that
            would be computed differently here.
        dump_sections: config -> both sections, without what was carried along.
        weights: the tensors of a checkpoint.
        vision_tower: (config, rngs) -> the module that turns a VisionInput into `model.vision.Features`.
        chat: the markup of turns.
        image_pixels: (min_pixels, max_pixels) of an image where the checkpoint brings no preprocessor_config.json.
        video_tokens: that all frames of a video have together, if it is not streamed.
        video_size: what the bounds in the file of the video processor are on: a "frame", or all frames of a "video", where its
            largest size stands for `video_tokens`.
        processor_classes: names of transformers' classes in the processor files of a new model: "processor",
            "image_processor", "video_processor".
        presets: published models by lower-case name; a hub id contains the name of its preset.
    """

    model_type: str
    name: str
    architecture: str
    token_ids: Mapping[str, int]
    parse_sections: Callable[[Section, Section, str], tuple[TextConfig, VisionConfig]]
    dump_sections: Callable[[ModelConfig], tuple[Section, Section]]
    weights: WeightTable
    vision_tower: "Callable[[ModelConfig, nnx.Rngs | None], VisionTower]"
    chat: ChatFormat
    image_pixels: tuple[int, int]
    processor_classes: Mapping[str, str]
    presets: Mapping[str, ModelConfig]
    video_tokens: int = 115_200  # of qwen-vl-utils
    video_size: Literal["frame", "video"] = "frame"
