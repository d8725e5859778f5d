"""Claims about config.json as the versions of transformers write it (tests/fixtures/configs: what save_pretrained of each
makes of the four published sizes, written by the libraries themselves) and about the defaults that they leave out."""

import copy
import json
from dataclasses import replace

import pytest

from svlm_jax.errors import InputError
from svlm_jax.families import config_json, preset
from tests.support import FIXTURES

CONFIGS = FIXTURES / "configs"
VERSIONS = sorted(path.stem for path in CONFIGS.glob("*.json"))
SIZES = ("3b", "7b", "32b", "72b")
GONE = object()


def saved(version: str, size: str) -> dict:
    return json.loads((CONFIGS / f"{version}.json").read_text())[size]


def bare(config):
    return replace(config, hf_extra="{}")


def test_six_versions_are_there():
    assert VERSIONS == ["4.49.0", "4.51.3", "4.52.4", "4.57.1", "5.0.0", "5.24.0"]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("size", SIZES)
def test_a_checkpoint_that_any_version_saved_is_the_published_model(version, size):
    """A model that was fine-tuned and saved with transformers would otherwise not load, or load as another."""
    raw = saved(version, size)
    config = config_json.parse(raw)
    assert bare(config) == bare(preset(f"qwen2.5-vl-{size}"))
    assert config.eos_token_ids == (151645,)
    written = config_json.dump(config)
    assert bare(config_json.parse(written)) == bare(config) and config_json.dump(config_json.parse(written)) == written
    assert "hidden_size" not in written and "torch_dtype" not in written["text_config"]


def test_what_4_49_leaves_out_are_its_defaults_and_not_the_published_values():
    """tokens_per_second is 4 there: taking the 2 of the published models would put frames at wrong times without a word."""
    raw = saved("4.49.0", "7b")
    assert "depth" not in raw["vision_config"] and raw["vision_config"]["tokens_per_second"] == 2
    raw["vision_config"] = {"model_type": "qwen2_5_vl"}
    vision = config_json.parse(raw).vision
    assert (vision.depth, vision.hidden_size, vision.intermediate_size, vision.num_heads) == (32, 3584, 3420, 16)
    assert (vision.out_hidden_size, vision.fullatt_block_indexes, vision.tokens_per_second) == (3584, (7, 15, 23, 31), 4)
    assert (vision.in_channels, vision.patch_size, vision.temporal_patch_size) == (3, 14, 2)
    assert (vision.spatial_merge_size, vision.window_size) == (2, 112)


def test_text_settings_that_are_left_out_are_those_of_transformers():
    raw = saved("4.49.0", "7b")
    for name in ("rms_norm_eps", "rope_theta", "max_position_embeddings", "tie_word_embeddings", "torch_dtype"):
        del raw[name]
    config = config_json.parse(raw)
    assert (config.text.rms_norm_eps, config.text.rope_theta, config.text.max_position_embeddings) == (1e-5, 1e6, 32768)
    assert not config.tie_word_embeddings


@pytest.mark.parametrize("name", ["depth", "hidden_size", "fullatt_block_indexes", "window_size"])
def test_a_default_that_does_not_fit_the_model_is_still_refused(name):
    raw = saved("4.49.0", "3b")
    raw["vision_config"] |= {"out_hidden_size": None}
    with pytest.raises(InputError, match="out_hidden_size"):
        config_json.parse(raw)
    raw["vision_config"] |= {"out_hidden_size": 2048, name: -1}
    with pytest.raises(InputError, match=name):
        config_json.parse(raw)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_text_half_has_the_last_word_where_a_version_repeats_it(version):
    """4.52 and later repeat the text model at the root; after an edit of one of the two transformers reads the inner one."""
    raw = saved(version, "7b")
    if "text_config" not in raw:
        return
    raw["text_config"]["num_hidden_layers"], raw["num_hidden_layers"] = 3, 28
    raw["text_config"]["layer_types"] = ["full_attention"] * 3
    config = config_json.parse(raw)
    assert config.text.num_hidden_layers == 3 and "num_hidden_layers" not in config_json.dump(config)


@pytest.mark.parametrize("where", ["torch_dtype", "dtype"])
@pytest.mark.parametrize("asked", ["bfloat16", "float32"])
def test_float16_is_read_when_another_precision_is_asked_for_and_refused_otherwise(where, asked):
    raw = {key: value for key, value in saved("4.51.3", "3b").items() if key != "torch_dtype"} | {where: "float16"}
    config = config_json.parse(raw, dtype=asked)
    assert (config.dtype, config.param_dtype, config_json.dump(config)["dtype"]) == (asked, asked, asked)
    with pytest.raises(InputError, match=r"'float16'.*--dtype"):
        config_json.parse(raw)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("vision_config", "rope_parameters", {"rope_theta": 500.0, "rope_type": "axial"}),
        ("vision_config", "rope_parameters", "axial"),
        ("text_config", "layer_types", ["full_attention", "sliding_attention"]),
        ("text_config", "layer_types", 5),
        ("vision_config", "in_channels", 1),
    ],
)
def test_what_transformers_5_can_ask_for_and_is_not_computed_here_is_refused(section, key, value):
    raw = copy.deepcopy(saved("5.24.0", "7b"))
    raw[section][key] = value
    with pytest.raises(InputError, match="not supported"):
        config_json.parse(raw)


def test_the_directory_of_a_training_run_is_named_as_one(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model": "x", "run_dir": "y"}))
    with pytest.raises(InputError, match=r"training run.*svlm convert"):
        config_json.read(tmp_path)
