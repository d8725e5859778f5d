"""A new family is a file, a line in `FAMILIES` and tests: a toy family with keys, tensor names and a chat format of its own
goes through config.json, a checkpoint and the chat, and nothing else in the library knows it."""

import json
from dataclasses import replace

import numpy as np
import pytest
from flax import nnx

from svlm_jax.checkpoint import huggingface
from svlm_jax.errors import InputError
from svlm_jax.families import FAMILIES, QWEN2_5_VL, chat, config_json, family_of
from svlm_jax.families.family import Family
from svlm_jax.media.processor import image_bounds, load_tokenizer
from svlm_jax.model.parameters import parameters
from svlm_jax.model.vlm import QwenVL
from tests.support import FIXTURES

MEAN = (0.5, 0.5, 0.5)


def parse_sections(text, vision, source):
    text["hidden_size"] = text.pop("width")
    text_config, vision_config = QWEN2_5_VL.parse_sections(text, vision, source)
    return text_config, replace(vision_config, image_mean=MEAN, image_std=MEAN)


def dump_sections(config):
    text, vision = QWEN2_5_VL.dump_sections(config)
    text["width"] = text.pop("hidden_size")
    return text, vision


def toy_family() -> Family:
    rows = tuple((f"toy.{name}", path, pattern) for name, path, pattern in QWEN2_5_VL.weights.rows)
    return replace(
        QWEN2_5_VL,
        model_type="toy_vl",
        name="Toy-VL",
        architecture="ToyForConditionalGeneration",
        parse_sections=parse_sections,
        dump_sections=dump_sections,
        weights=replace(QWEN2_5_VL.weights, rows=rows, aliases=(("model.toy.", "toy."),)),
        chat=replace(QWEN2_5_VL.chat, time_text=lambda start, end: f"<{(start + end) / 2:.1f} seconds>"),
        image_pixels=(28 * 28, 28 * 28 * 4),
        presets={},
    )


@pytest.fixture
def raw(monkeypatch) -> dict:
    """The config.json of a toy model."""
    monkeypatch.setitem(FAMILIES, "toy_vl", toy_family())
    tiny = config_json.read(FIXTURES / "models" / "tiny").compute("float32")
    return json.loads(json.dumps(config_json.dump(replace(tiny, model_type="toy_vl"))))


def test_its_config_survives(raw):
    config = config_json.parse(raw)
    assert raw["model_type"] == "toy_vl"
    assert "width" in raw["text_config"] and "hidden_size" not in raw["text_config"]
    assert family_of(config).name == "Toy-VL" and config.vision.image_mean == MEAN
    assert config_json.dump(config) == raw


@pytest.mark.parametrize("prefix", ["", "model."], ids=["as written", "alias"])
def test_its_weights_survive(raw, tmp_path, prefix):
    from safetensors.numpy import load_file, save_file

    config = config_json.parse(raw)
    values = parameters(QwenVL(config, nnx.Rngs(0)))
    huggingface.write(tmp_path, config, values)
    tensors = load_file(tmp_path / huggingface.SINGLE)
    assert all(name.startswith("toy.") for name in tensors)
    save_file({prefix + name: tensor for name, tensor in tensors.items()}, tmp_path / huggingface.SINGLE)
    loaded = huggingface.load(tmp_path, config_json.read(tmp_path))
    assert loaded.keys() == values.keys()
    for path, value in values.items():
        np.testing.assert_array_equal(loaded[path], value, err_msg=path)


def test_its_chat_format_and_its_pixels_are_used(raw):
    config, tokenizer = config_json.parse(raw), load_tokenizer(FIXTURES / "processor")
    turn = chat.user_turn(12.0, 13.0, (1, 2, 2), 1.0, tokenizer, config)
    assert "<12.5 seconds>" in tokenizer.decode(turn.ids.tolist(), skip_special_tokens=False)
    bounds = image_bounds(config)
    assert (bounds.mean, bounds.std, bounds.max_pixels) == (MEAN, MEAN, 28 * 28 * 4)


def test_an_unknown_family_is_refused_with_the_names_of_all(raw):
    with pytest.raises(
        InputError, match=r"got 'other', expected 'qwen2_5_vl' or .*'toy_vl'; use a Qwen2\.5-VL or .*Toy-VL check"
    ):
        config_json.parse(raw | {"model_type": "other"})
