"""Conversations of Qwen3-VL as the library writes them: tokens of videos with a time stamp before each temporal patch, and
their positions.

Its processor is used as far as it runs without torchvision, which no test has: `replace_video_token` writes stamps, marks and
pads. What it stands in for is where versions differ. Until 5.9 that is the whole of <|vision_start|><|video_pad|><|vision_end|>
in the text of the chat template, as the authors of the model wrote it. From 5.10 on it is <|video_pad|> alone, and a second
pair of marks stays around the video. We follow the authors; if the last test fails, upstream has changed its rule: read it.
"""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from svlm_jax.config import ModelConfig
from svlm_jax.errors import InputError
from svlm_jax.families import chat, config_json
from svlm_jax.families.chat import Turn
from svlm_jax.inputs import Clip, Sample, patch_times
from svlm_jax.spans import Kind, Span, positions, vision_span
from tests.support import FIXTURES

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from transformers import AutoTokenizer, Qwen3VLProcessor  # noqa: E402
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel  # noqa: E402

MARKS = ("<|vision_start|>", "<|vision_end|>")
# What the published template makes of messages without tools: a system turn where there is one, and none of its own.
TEMPLATE = """
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\n' }}
    {%- for item in message.content %}
        {%- if item.type == 'text' %}{{- item.text }}
        {%- else %}{{- '<|vision_start|><|' + item.type + '_pad|><|vision_end|>' }}
        {%- endif %}
    {%- endfor %}
    {{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}
"""


@pytest.fixture(scope="module")
def config() -> ModelConfig:
    """The ids of the small tokenizer, the chat format of Qwen3-VL."""
    return replace(config_json.read(FIXTURES / "models" / "tiny"), model_type="qwen3_vl")


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(FIXTURES / "processor")


@pytest.fixture(scope="module")
def processor(tokenizer):
    made = object.__new__(Qwen3VLProcessor)
    made.image_processor = SimpleNamespace(merge_size=2)
    made.video_processor = SimpleNamespace(merge_size=2, temporal_patch_size=2)
    made.image_token, made.video_token = "<|image_pad|>", "<|video_pad|>"
    made.vision_start_token, made.vision_end_token = MARKS
    made.tokenizer = tokenizer
    return made


def film(seconds: list[float], h: int, w: int) -> Clip:
    times = patch_times(np.array(seconds, float), 2)
    return Clip(np.zeros((len(times) * h * w, 1536), np.uint8), (len(times), h, w), 1.0, video=True, times=times)


def picture(h: int, w: int) -> Clip:
    return Clip(np.zeros((h * w, 1536), np.uint8), (1, h, w))


def expansions(processor, turns: list[Turn], fps: float) -> tuple[list[str], list[str]]:
    """What the processor writes for each image and each video. Frames of a video are numbered from its first second on."""
    clips = [item for turn in turns for item in turn.content if isinstance(item, Clip)]
    images, videos = ([clip for clip in clips if clip.video == video] for video in (False, True))
    frames = [np.arange(2 * clip.grid[0]) + round(clip.times[0] * fps - 0.5) for clip in videos]
    metadata = [SimpleNamespace(fps=fps, frames_indices=indices) for indices in frames]
    image_inputs = {"image_grid_thw": torch.tensor([clip.grid for clip in images])}
    video_inputs = {"video_grid_thw": torch.tensor([clip.grid for clip in videos]), "video_metadata": metadata}
    return (
        [processor.replace_image_token(image_inputs, index) for index in range(len(images))],
        [processor.replace_video_token(video_inputs, index) for index in range(len(videos))],
    )


def rendered(tokenizer, turns: list[Turn]) -> str:
    messages = [
        {
            "role": turn.role,
            "content": [
                {"type": "text", "text": item} if isinstance(item, str) else {"type": "video" if item.video else "image"}
                for item in turn.content
            ],
        }
        for turn in turns
    ]
    return tokenizer.apply_chat_template(messages, chat_template=TEMPLATE, tokenize=False, add_generation_prompt=True)


def published_text(processor, turns: list[Turn], fps: float) -> str:
    """The prompt as the authors' processor writes it."""
    text = rendered(processor.tokenizer, turns)
    images, videos = expansions(processor, turns, fps)
    for token, texts, around in (("<|image_pad|>", images, ("", "")), ("<|video_pad|>", videos, MARKS)):
        parts = text.split(f"{around[0]}{token}{around[1]}")
        text = "".join(part + expansion for part, expansion in zip(parts, [*texts, ""], strict=True))
    return text


def conversations(fps: float) -> list[list[Turn]]:
    first, long = film([0, 1 / fps, 2 / fps, 3 / fps], 2, 4), film([3600 + frame / fps for frame in range(10)], 4, 2)
    return [
        [Turn("user", (first, "What happens?"))],
        [Turn("user", ("Watch this.", first, "and this", long, "!"))],
        [
            Turn("system", ("Be brief.",)),
            Turn("user", (picture(4, 6), long)),
            Turn("assistant", ("A goal.",)),
            Turn("user", ("?",)),
        ],
        [Turn("user", ("No video.",))],
    ]


@pytest.mark.parametrize("fps", [1.0, 2.0, 4.0, 3.0])
def test_a_conversation_has_the_tokens_of_the_library(processor, tokenizer, config, fps):
    for turns in conversations(fps):
        text = published_text(processor, turns, fps)
        ours = chat.encode(turns, tokenizer, config)
        assert tokenizer.decode(ours.ids.tolist(), skip_special_tokens=False) == text
        np.testing.assert_array_equal(ours.ids, tokenizer(text)["input_ids"])


def test_seconds_are_rounded_as_the_library_rounds_them(processor, tokenizer, config):
    """Halves of a tenth, which two frames a second give every time, go where the float lies."""
    for start in (0, 7, 59, 3599, 9999):
        turns = [Turn("user", (film([start + frame / 2 for frame in range(40)], 2, 2),))]
        assert published_text(processor, turns, 2.0) in tokenizer.decode(chat.encode(turns, tokenizer, config).ids.tolist())


def test_a_turn_of_a_stream_has_the_tokens_of_the_conversation(processor, tokenizer, config):
    """Else what is asked offline and what is streamed are two kinds of prompt."""
    for start, frames in ((0, 2), (12, 4), (9999, 8)):
        clip = film([start + frame / frames for frame in range(frames)], 4, 6)
        turns = [Turn("user", (clip, "Commentate"))]
        streamed = chat.user_turn(start, start + 1, clip.grid, 1.0, tokenizer, config, query="Commentate")
        np.testing.assert_array_equal(streamed.ids, chat.encode(turns, tokenizer, config).ids)
        text = tokenizer.decode(streamed.ids.tolist(), skip_special_tokens=False)
        assert text == published_text(processor, turns, float(frames))


def test_a_clip_without_its_times_is_refused(tokenizer, config):
    with pytest.raises(InputError, match=r"^times of a clip: got none, expected 2, one a temporal patch; "):
        chat.encode([Turn("user", (film([0.0, 0.5, 1.0, 1.5], 2, 2)._replace(times=()),))], tokenizer, config)


def library_positions(sample: Sample, config: ModelConfig) -> np.ndarray:
    """[3, n] from `get_rope_index`, which takes nothing of a model but its config."""
    model: Any = SimpleNamespace(config=SimpleNamespace(vision_config=SimpleNamespace(spatial_merge_size=2)))
    model.get_vision_position_ids = lambda *args, **options: Qwen3VLModel.get_vision_position_ids(model, *args, **options)
    kinds = np.where(sample.ids == config.video_token_id, 2, np.where(sample.ids == config.image_token_id, 1, 0))
    grids = {
        name: torch.tensor(found) if (found := [clip.grid for clip in sample.clips if clip.video == video]) else None
        for name, video in (("image_grid_thw", False), ("video_grid_thw", True))
    }
    ids, types = (torch.from_numpy(array).long()[None] for array in (sample.ids, kinds))
    return Qwen3VLModel.get_rope_index(model, ids, types, **grids)[0][:, 0].numpy()


def test_positions_are_those_of_the_library(tokenizer, config):
    for turns in conversations(2.0):
        sample = chat.encode(turns, tokenizer, config)
        np.testing.assert_array_equal(positions(sample.spans), library_positions(sample, config))


def test_text_after_a_frame_goes_on_from_its_larger_side():
    text = [Span(Kind.USER_TEXT, length) for length in (3, 2, 1)]
    t, h, w = positions((text[0], vision_span((1, 4, 10)), text[1], vision_span((1, 6, 4)), text[2]))
    assert t.tolist() == [0, 1, 2, *[3] * 10, 8, 9, *[10] * 6, 13]
    assert h[[3, 12, 13, 20, 21]].tolist() == [3, 4, 8, 12, 13] and w[[3, 12, 20]].tolist() == [3, 7, 11]


def test_the_library_leaves_a_second_pair_of_marks_around_a_video(processor, tokenizer):
    turns = conversations(2.0)[0]
    (text,), _ = processor.get_text_with_replacements([rendered(tokenizer, turns)], *expansions(processor, turns, 2.0))
    ours = published_text(processor, turns, 2.0)
    assert text == ours.replace("user\n<", f"user\n{MARKS[0]}<").replace("What", f"{MARKS[1]}What") != ours
