"""Claims about svlm_jax.config: the published sizes, both forms of config.json, and one line for whatever is wrong in one."""

import copy
import json
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svlm_jax.config import ModelConfig, TextConfig, VisionConfig
from svlm_jax.errors import InputError
from svlm_jax.families import QWEN2_5_VL, config_json, preset
from svlm_jax.model.parameters import shapes

# The config.json published with the 7B weights, in the flat form of transformers 4.
PUBLISHED = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "vision_token_id": 151654,
    "image_token_id": 151655,
    "video_token_id": 151656,
    "hidden_act": "silu",
    "hidden_size": 3584,
    "initializer_range": 0.02,
    "intermediate_size": 18944,
    "max_position_embeddings": 128000,
    "max_window_layers": 28,
    "model_type": "qwen2_5_vl",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.41.2",
    "use_cache": True,
    "use_sliding_window": False,
    "vision_config": {
        "depth": 32,
        "hidden_act": "silu",
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "in_chans": 3,
        "out_hidden_size": 3584,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "tokens_per_second": 2,
        "temporal_patch_size": 2,
    },
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vocab_size": 152064,
}
COUNTS = {
    "qwen2.5-vl-3b": 3_754_622_976,
    "qwen2.5-vl-7b": 8_292_166_656,
    "qwen2.5-vl-32b": 33_452_718_336,
    "qwen2.5-vl-72b": 73_410_777_344,
    "qwen2-vl-2b": 2_208_985_600,
    "qwen2-vl-7b": 8_291_375_616,
    "qwen2-vl-72b": 73_405_560_320,
    "qwen3-vl-2b": 2_127_532_032,
    "qwen3-vl-4b": 4_437_815_808,
    "qwen3-vl-8b": 8_767_123_696,
    "qwen3-vl-32b": 33_357_390_064,
}
GONE = object()


def bare(config: ModelConfig) -> ModelConfig:
    """Without the keys that are only carried along."""
    return replace(config, hf_extra="{}")


def nested() -> dict:
    return config_json.dump(config_json.parse(PUBLISHED))


def edited(raw: dict, path: str, value: object) -> dict:
    """A copy of `raw` with the key at a dotted path set, or removed if the value is GONE."""
    raw = copy.deepcopy(raw)
    *parents, leaf = path.split(".")
    node = raw
    for parent in parents:
        node = node[parent]
    if value is GONE:
        del node[leaf]
    else:
        node[leaf] = value
    return raw


def refusal(raw: object) -> str:
    """The one line with which a dictionary is refused."""
    with pytest.raises(InputError) as error:
        config_json.parse(raw)
    message = str(error.value)
    assert "\n" not in message
    assert all(part in message for part in (": got ", ", expected ", "; "))
    return message


# --- presets ---


@pytest.mark.parametrize("name", COUNTS)
def test_a_preset_has_as_many_parameters_as_the_published_model(name):
    stacked = shapes(replace(preset(name), scan_layers=True))
    assert sum(math.prod(leaf.shape) for leaf in stacked.values()) == COUNTS[name]
    assert {str(leaf.dtype) for leaf in stacked.values()} == {"bfloat16"}


def test_one_array_a_layer_holds_as_many_parameters_as_the_stack():
    assert sum(math.prod(leaf.shape) for leaf in shapes(preset("qwen2.5-vl-7b")).values()) == COUNTS["qwen2.5-vl-7b"]


def test_the_7b_preset_is_the_published_config():
    assert bare(preset("qwen2.5-vl-7b")) == bare(config_json.parse(PUBLISHED))
    assert preset("qwen2.5-vl-7b").eos_token_ids == (151645,)


def test_only_the_smallest_presets_tie_their_embeddings():
    tied = {"qwen2.5-vl-3b", "qwen2-vl-2b", "qwen3-vl-2b", "qwen3-vl-4b"}
    assert {name for name in COUNTS if preset(name).tie_word_embeddings} == tied


@pytest.mark.parametrize("name", COUNTS)
def test_a_preset_survives_the_way_through_config_json(name):
    raw = json.loads(json.dumps(config_json.dump(preset(name))))
    back = config_json.parse(raw)
    assert bare(back) == bare(preset(name))
    assert back.eos_token_ids == preset(name).eos_token_ids
    assert config_json.dump(back) == raw


def test_an_unknown_preset_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match=r"preset: got '8b', expected one of qwen2.5-vl-3b, qwen2.5-vl-7b,"):
        preset("8b")


def test_derived_sizes_are_those_of_the_paper():
    config = preset("qwen2.5-vl-7b")
    assert (config.text.head_dim, config.vision.head_dim) == (128, 80)
    assert (config.vision.patch_dim, config.vision.merge_unit, config.vision.window_patches) == (1176, 4, 64)


def test_compute_sets_both_precisions_by_default():
    config = preset("qwen2.5-vl-7b")
    assert (config.dtype, config.param_dtype) == ("bfloat16", "bfloat16")
    single, mixed = config.compute("float32"), config.compute("bfloat16", "float32")
    assert (single.dtype, single.param_dtype) == ("float32", "float32")
    assert (mixed.dtype, mixed.param_dtype) == ("bfloat16", "float32")


# --- both forms ---


def test_the_flat_and_the_nested_form_read_the_same():
    assert "text_config" not in PUBLISHED and "hidden_size" not in nested()
    assert bare(config_json.parse(nested())) == bare(config_json.parse(PUBLISHED))


def test_the_nested_form_carries_what_transformers_5_reads():
    raw = nested()
    assert raw["text_config"]["rope_parameters"] == {
        "mrope_section": [16, 24, 24],
        "rope_theta": 1e6,
        "rope_type": "default",
        "type": "mrope",
    }
    assert raw["text_config"]["layer_types"] == ["full_attention"] * 28
    assert raw["model_type"] == "qwen2_5_vl" and raw["text_config"]["model_type"] == "qwen2_5_vl_text"
    assert raw["vision_config"]["model_type"] == "qwen2_5_vl_vision"


def test_a_resized_model_is_written_with_its_own_sizes():
    config = config_json.parse(nested())
    smaller = replace(config, text=replace(config.text, num_hidden_layers=3, rope_theta=5e5))
    raw = config_json.dump(smaller)
    assert raw["text_config"]["layer_types"] == ["full_attention"] * 3
    assert bare(config_json.parse(raw)) == bare(smaller)


@pytest.mark.parametrize("form", ["flat", "nested"])
def test_keys_that_nothing_reads_survive_in_their_section(form):
    raw = edited(PUBLISHED, "transformers_version", "4.41.2") if form == "flat" else nested()
    raw = edited(raw, "vision_config.spatial_patch_size", 15)
    raw = edited(raw, "attention_dropout" if form == "flat" else "text_config.attention_dropout", 0.25)
    raw = edited(raw, "vision_token_id", 7)
    written = config_json.dump(config_json.parse(raw))
    assert written["vision_config"]["spatial_patch_size"] == 15
    assert written["text_config"]["attention_dropout"] == 0.25
    assert written["vision_token_id"] == 7
    assert config_json.dump(config_json.parse(written)) == written


def test_reading_leaves_the_dictionary_as_it_was():
    raw = copy.deepcopy(PUBLISHED)
    config_json.parse(raw)
    assert raw == PUBLISHED


@pytest.mark.parametrize(("eos", "ids"), [(5, (5,)), ([5, 6], (5, 6)), (None, ()), (GONE, ())])
def test_eos_may_be_one_id_many_or_none(eos, ids):
    assert config_json.parse(edited(PUBLISHED, "eos_token_id", eos)).eos_token_ids == ids


def test_missing_kv_heads_mean_one_a_query_head():
    assert config_json.parse(edited(PUBLISHED, "num_key_value_heads", GONE)).text.num_key_value_heads == 28


def test_tied_embeddings_may_be_named_in_either_section():
    raw = edited(edited(nested(), "tie_word_embeddings", GONE), "text_config.tie_word_embeddings", True)
    assert config_json.parse(raw).tie_word_embeddings
    assert config_json.parse(edited(nested(), "tie_word_embeddings", True)).tie_word_embeddings


@pytest.mark.parametrize(("path", "value"), [("torch_dtype", "float32"), ("dtype", "float32")])
def test_the_precision_of_the_file_is_that_of_the_model(path, value):
    raw = edited(edited(PUBLISHED, "torch_dtype", GONE), path, value)
    config = config_json.parse(raw)
    assert (config.dtype, config.param_dtype) == ("float32", "float32")
    assert config_json.dump(config)["dtype"] == "float32" and "torch_dtype" not in config_json.dump(config)


@settings(max_examples=60, deadline=None)
@given(
    heads=st.integers(1, 6),
    groups=st.integers(1, 4),
    sections=st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(1, 9)),
    layers=st.integers(1, 90),
    vocab=st.integers(1, 200_000),
    eps=st.floats(0, 1e-2),
    theta=st.floats(1, 1e8),
    depth=st.integers(1, 40),
    tied=st.booleans(),
    dtype=st.sampled_from(["float32", "bfloat16"]),
    data=st.data(),
)
def test_every_legal_model_survives_config_json(heads, groups, sections, layers, vocab, eps, theta, depth, tied, dtype, data):
    width = heads * groups * 2 * sum(sections)
    full = data.draw(st.lists(st.integers(0, depth - 1), unique=True).map(sorted))
    text = TextConfig(vocab, width, 3 * width, layers, heads * groups, heads, eps, sections, theta)
    vision = VisionConfig(depth, 160, 7, 2, width, tuple(full), tokens_per_second=3, window_size=56)
    ids = QWEN2_5_VL.token_ids
    config = ModelConfig(text, vision, "qwen2_5_vl", **ids, tie_word_embeddings=tied, dtype=dtype, param_dtype=dtype)
    assert bare(config_json.parse(json.loads(json.dumps(config_json.dump(config))))) == config


# --- what is refused ---

FLAT_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
VISION_SIZES = ("depth", "hidden_size", "intermediate_size", "num_heads", "out_hidden_size", "tokens_per_second")


@pytest.mark.parametrize("name", FLAT_SIZES)
def test_a_missing_text_size_is_named(name):
    assert name in refusal(edited(PUBLISHED, name, GONE))
    assert name in refusal(edited(nested(), f"text_config.{name}", GONE))


def test_missing_sizes_are_listed_together():
    raw = {key: value for key, value in PUBLISHED.items() if key not in FLAT_SIZES}
    message = refusal(raw)
    assert all(name in message for name in FLAT_SIZES)


@pytest.mark.parametrize("value", [-1, 28.0, 28.5, "28", True, [28], {}])
@pytest.mark.parametrize("path", [*FLAT_SIZES, *(f"vision_config.{name}" for name in VISION_SIZES)])
def test_a_size_that_is_no_whole_number_is_named(path, value):
    assert path.split(".")[-1] in refusal(edited(PUBLISHED, path, value))


@pytest.mark.parametrize("value", [-1.0, "1e-6", True, math.nan])
@pytest.mark.parametrize("path", ["rms_norm_eps", "rope_theta"])
def test_a_real_number_that_is_none_is_named(path, value):
    assert path in refusal(edited(PUBLISHED, path, value))


@pytest.mark.parametrize("value", [-1, 1.5, "151655", True])
@pytest.mark.parametrize("name", ["image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"])
def test_a_token_id_that_is_no_whole_number_is_named(name, value):
    assert name in refusal(edited(PUBLISHED, name, value))


@pytest.mark.parametrize("value", ["false", "yes", 1.5])
def test_tied_embeddings_that_are_neither_true_nor_false_are_refused(value):
    assert "tie_word_embeddings" in refusal(edited(PUBLISHED, "tie_word_embeddings", value))


@pytest.mark.parametrize("model_type", ["qwen2_5_omni", "qwen3_5", None, GONE, 3])
def test_another_architecture_is_refused_by_its_model_type(model_type):
    assert "model_type" in refusal(edited(PUBLISHED, "model_type", model_type))


@pytest.mark.parametrize("raw", [[], "qwen2_5_vl", 3, None, True])
def test_what_is_no_object_is_refused(raw):
    assert "model_type" in refusal(raw)


@pytest.mark.parametrize("value", [GONE, [], None, "vision"])
def test_a_section_that_is_no_object_is_refused(value):
    assert "vision_config" in refusal(edited(PUBLISHED, "vision_config", value))
    if value is not GONE:
        assert "text_config" in refusal(edited(nested(), "text_config", value))


@pytest.mark.parametrize(
    ("path", "value", "parts"),
    [
        ("rope_scaling", {"type": "yarn", "factor": 4.0, "mrope_section": [16, 24, 24]}, ["rope type", "'yarn'"]),
        ("rope_scaling", {"rope_type": "linear", "mrope_section": [16, 24, 24]}, ["rope type", "'linear'"]),
        ("hidden_act", "gelu", ["text hidden_act", "'gelu'"]),
        ("vision_config.hidden_act", "gelu", ["vision hidden_act", "'gelu'"]),
        ("torch_dtype", "float16", ["dtype", "'float16'", "bfloat16"]),
    ],
)
def test_a_variant_that_would_be_computed_differently_is_refused(path, value, parts):
    message = refusal(edited(PUBLISHED, path, value))
    assert all(part in message for part in parts)


@pytest.mark.parametrize("first", [27, None, GONE])
def test_windows_of_text_are_refused_only_where_a_layer_has_one(first):
    """transformers gives windows to layers from `max_window_layers` on: with 28 of 28 all attend to everything."""
    windows = edited(PUBLISHED, "use_sliding_window", True)
    assert config_json.parse(windows).text == config_json.parse(PUBLISHED).text
    assert "use_sliding_window" in refusal(edited(windows, "max_window_layers", first))


@pytest.mark.parametrize(
    "section", [[16, 24, 23], [16, 24], [16, 24, 24, 0], [], 64, "16", [16, 24, "24"], [16, 24, 24.0], [-8, 48, 24]]
)
def test_an_mrope_section_that_does_not_add_up_is_refused(section):
    assert "mrope_section" in refusal(edited(PUBLISHED, "rope_scaling.mrope_section", section))


@pytest.mark.parametrize("rope", [GONE, None, {}, {"type": "mrope"}])
def test_a_missing_mrope_section_is_named(rope):
    assert "mrope_section" in refusal(edited(PUBLISHED, "rope_scaling", rope))


@pytest.mark.parametrize("rope", ["mrope", [16, 24, 24], 3])
def test_rope_parameters_that_are_no_object_are_refused(rope):
    assert "rope" in refusal(edited(PUBLISHED, "rope_scaling", rope))


@pytest.mark.parametrize("indexes", [[7, 32], [-1], ["7"], [7.0], 7, "7"])
def test_full_attention_blocks_that_do_not_exist_are_refused(indexes):
    assert "fullatt_block_indexes" in refusal(edited(PUBLISHED, "vision_config.fullatt_block_indexes", indexes))


@pytest.mark.parametrize(
    ("path", "value", "part"),
    [
        ("hidden_size", 3585, "text_config.hidden_size"),
        ("num_key_value_heads", 3, "text_config.num_attention_heads"),
        ("num_attention_heads", 0, "num_attention_heads"),
        ("vision_config.hidden_size", 1281, "vision_config.hidden_size"),
        ("vision_config.num_heads", 640, "vision_config.num_heads"),
        ("vision_config.window_size", 100, "vision_config.window_size"),
        ("vision_config.patch_size", 0, "vision_config.patch_size"),
        ("vision_config.out_hidden_size", 2048, "vision_config.out_hidden_size"),
    ],
)
def test_sizes_that_do_not_fit_together_are_refused(path, value, part):
    assert part in refusal(edited(PUBLISHED, path, value))
