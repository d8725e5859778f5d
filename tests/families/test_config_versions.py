"""Claims about config.json as the versions of transformers write it (tests/fixtures/configs: what save_pretrained of each
makes of the published sizes of a family, written by the libraries themselves) and about the defaults that they leave out."""

import copy
import json
from dataclasses import replace

import pytest

from svlm_jax.errors import InputError
from svlm_jax.families import FAMILIES, config_json, preset
from svlm_jax.train.dry_run import read_shape
from tests.support import FIXTURES

CONFIGS = FIXTURES / "configs"
# Family: (beginning of the names of its presets, versions of transformers; "published" is the file of the hub).
PUBLISHED = {
    "qwen2_5_vl": ("qwen2.5-vl", ["4.49.0", "4.51.3", "4.52.4", "4.57.1", "5.0.0", "5.24.0"]),
    "qwen2_vl": ("qwen2-vl", ["4.45.2", "4.49.0", "4.52.4", "4.57.1", "5.0.0", "5.24.0", "published"]),
    "qwen3_vl": ("qwen3-vl", ["4.57.1", "5.0.0", "5.10.1", "5.24.0", "published"]),
}
VERSIONS = PUBLISHED["qwen2_5_vl"][1]
FILES = [
    pytest.param(family, version, size, id=f"{family} {size} {version}")
    for family, (_, versions) in PUBLISHED.items()
    for version in versions
    for size in json.loads((CONFIGS / family / f"{version}.json").read_text())
]
GONE = object()


def saved(version: str, size: str, family: str = "qwen2_5_vl") -> dict:
    return json.loads((CONFIGS / family / f"{version}.json").read_text())[size]


def bare(config):
    return replace(config, hf_extra="{}")


@pytest.mark.parametrize(("family", "version", "size"), FILES)
def test_a_checkpoint_that_any_version_saved_is_the_published_model(family, version, size):
    """A model that was fine-tuned and saved with transformers would otherwise not load, or load as another."""
    raw = saved(version, size, family)
    config, published = config_json.parse(raw), preset(f"{PUBLISHED[family][0]}-{size}")
    assert bare(config) == bare(published)
    assert config.eos_token_ids == (151645,)
    written = config_json.dump(config)
    assert bare(config_json.parse(written)) == bare(config) and config_json.dump(config_json.parse(written)) == written
    assert "hidden_size" not in written and "torch_dtype" not in written["text_config"]


@pytest.mark.parametrize("family", PUBLISHED)
def test_the_newest_version_is_written_again_key_by_key(family):
    """What only this library adds or leaves out would confuse other readers of the file."""
    for raw in json.loads((CONFIGS / family / "5.24.0.json").read_text()).values():
        written = json.loads(json.dumps(config_json.dump(config_json.parse(raw))))
        assert written["vision_config"].pop("dtype") == written["dtype"]  # the library leaves it out; we say it
        raw["vision_config"].pop("dtype", None)
        assert written == raw


@pytest.mark.parametrize(("family", "version"), [("qwen2_5_vl", "4.57.1"), ("qwen2_vl", "4.49.0"), ("qwen3_vl", "4.57.1")])
def test_what_transformers_4_saved_is_written_so_that_it_and_5_read_it(family, version):
    """4 knows no `rope_parameters`: an export of a published checkpoint would stop there at its first forward pass."""
    from transformers import AutoConfig

    for size, raw in json.loads((CONFIGS / family / f"{version}.json").read_text()).items():
        config = config_json.parse(raw)
        written = config_json.dump(replace(config, text=replace(config.text, rope_theta=123.0)))
        text, ours = written["text_config"], config.text
        assert text["rope_scaling"]["mrope_section"] == list(ours.mrope_section) and text["rope_theta"] == 123.0
        assert text["tie_word_embeddings"] == config.tie_word_embeddings, size
        rope = AutoConfig.for_model(**json.loads(json.dumps(written))).text_config.rope_parameters
        assert (list(rope["mrope_section"]), rope["rope_theta"]) == (list(ours.mrope_section), 123.0)


def test_livecc_has_the_shape_of_qwen2_vl_7b():
    """Its file is what 4.45 to 4.51 write, without the tower (`hidden_size` is the default); a dry run knows it by its name."""
    assert bare(read_shape("chenjoya/LiveCC-7B-Instruct")) == bare(preset("qwen2-vl-7b"))
    assert set(saved("4.49.0", "7b", "qwen2_vl")["vision_config"]) == {"in_chans", "model_type", "spatial_patch_size"}


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


def test_a_qwen2_vl_tower_that_the_file_does_not_describe_is_that_of_transformers():
    """The ViT is `embed_dim` wide; `hidden_size` is what it gives the decoder: mixed up, no published file would load."""
    raw = saved("4.49.0", "7b", "qwen2_vl")
    del raw["rms_norm_eps"]
    config = config_json.parse(raw | {"vision_config": {}})
    vision = config.vision
    assert (vision.depth, vision.hidden_size, vision.intermediate_size, vision.num_heads) == (32, 1280, 5120, 16)
    assert (vision.out_hidden_size, vision.window_size, vision.tokens_per_second) == (3584, 0, None)
    assert (vision.norm, vision.hidden_act, vision.patch_bias) == ("layer_norm", "quick_gelu", False)
    assert vision.fullatt_block_indexes == tuple(range(32)) and config.text.rms_norm_eps == 1e-5
    assert [vision.temporal_step(fps) for fps in (1, 2, 8)] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("hidden_size", 1280, "hidden_size: got 1280, expected text hidden_size 3584"),
        ("embed_dim", 0, "embed_dim"),
        ("mlp_ratio", 4.5, "mlp_ratio"),
        ("depth", 10**9, "depth"),
        ("hidden_act", "gelu", "hidden_act"),
        ("in_channels", 1, "in_channels"),
        ("patch_size", [14, 14], "patch_size"),
        ("rope_parameters", {"rope_theta": 500.0}, "rope_theta"),
    ],
)
def test_a_wrong_value_of_qwen2_vl_is_named_as_the_file_names_it(key, value, said):
    raw = saved("4.57.1", "7b", "qwen2_vl")
    raw["vision_config"][key] = value
    with pytest.raises(InputError, match=said) as error:
        config_json.parse(raw)
    assert len(str(error.value)) < 300 and "\n" not in str(error.value)


def test_a_qwen3_vl_that_the_file_does_not_describe_is_that_of_transformers():
    raw = saved("5.0.0", "8b", "qwen3_vl")
    raw["text_config"] = {"rope_parameters": {"rope_theta": 5000000, "rope_type": "default"}}
    config = config_json.parse(raw | {"vision_config": {"out_hidden_size": 4096}})
    text, vision = config.text, config.vision
    assert (text.vocab_size, text.hidden_size, text.intermediate_size, text.num_hidden_layers) == (151936, 4096, 22016, 32)
    assert (text.num_attention_heads, text.num_key_value_heads, text.head_dim, text.rms_norm_eps) == (32, 32, 128, 1e-6)
    assert (text.mrope_section, text.mrope_interleaved, text.qkv_bias, text.qk_norm) == ((24, 20, 20), True, False, True)
    assert (vision.depth, vision.hidden_size, vision.intermediate_size, vision.num_heads) == (27, 1152, 4304, 16)
    assert (vision.patch_size, vision.num_position_embeddings, vision.deepstack_visual_indexes) == (16, 2304, (8, 16, 24))
    assert vision.fullatt_block_indexes == tuple(range(27))


def test_a_qwen3_vl_without_rope_theta_is_refused():
    """transformers 4.57 would take 5e6 and transformers 5 5e5: a guess would be a model that talks nonsense in silence."""
    raw = saved("5.0.0", "4b", "qwen3_vl")
    del raw["text_config"]["rope_parameters"]["rope_theta"]
    with pytest.raises(InputError, match=r"text_config\.rope_theta: got None"):
        config_json.parse(raw)


def test_a_tied_qwen3_vl_says_so_in_both_sections():
    """As in the published files: vLLM looks into the text section, and would miss the weights of a head."""
    for size, tied in (("2b", True), ("8b", False)):
        written = config_json.dump(config_json.parse(saved("4.57.1", size, "qwen3_vl")))
        assert written["tie_word_embeddings"] == written["text_config"].get("tie_word_embeddings", False) == tied


@pytest.mark.parametrize(
    ("section", "key", "value", "said"),
    [
        ("text_config", "attention_bias", True, "attention_bias: got True, expected False"),
        ("text_config", "rope_scaling", {"rope_type": "yarn", "factor": 3.0, "mrope_section": [24, 20, 20]}, "'yarn'"),
        ("text_config", "rope_scaling", {"mrope_interleaved": False}, "mrope_interleaved"),
        ("text_config", "rope_scaling", {"mrope_section": [16, 24, 20]}, "head_dim/2 = 64"),
        ("text_config", "hidden_act", "gelu", "text hidden_act"),
        ("text_config", "head_dim", "128", "head_dim"),
        ("vision_config", "hidden_act", "gelu", "vision hidden_act"),
        ("vision_config", "deepstack_visual_indexes", [17, 5, 11], "rising"),
        ("vision_config", "deepstack_visual_indexes", [5, 5], "rising"),
        ("vision_config", "deepstack_visual_indexes", [5, 11, 24], "below depth 24"),
        ("vision_config", "num_position_embeddings", 2300, "the square"),
        ("vision_config", "out_hidden_size", 2560, "text hidden_size 2048"),
        ("vision_config", "patch_size", [16, 16], "patch_size"),
        ("vision_config", "rope_parameters", {"rope_theta": 500.0}, "rope_theta"),
    ],
)
def test_a_qwen3_vl_that_would_be_computed_differently_is_refused(section, key, value, said):
    raw = saved("4.57.1", "2b", "qwen3_vl")
    raw[section][key] = value
    with pytest.raises(InputError, match=said) as error:
        config_json.parse(raw)
    assert len(str(error.value)) < 300 and "\n" not in str(error.value)


def test_a_tower_that_a_file_of_qwen2_vl_cannot_say_is_not_written():
    config = preset("qwen2-vl-2b")
    with pytest.raises(InputError, match=r"intermediate_size: got 5000, expected a multiple of hidden_size = 1280"):
        config_json.dump(replace(config, vision=replace(config.vision, intermediate_size=5000)))


@pytest.mark.parametrize("model_type", config_json._OTHER_MODELS)
def test_a_model_that_is_easily_mistaken_is_named_with_what_to_use_instead(model_type):
    with pytest.raises(InputError, match="use ") as error:
        config_json.parse({"model_type": model_type}, source="/models/a-directory-with-a-rather-long-name/config.json")
    assert len(str(error.value)) < 300 and model_type not in FAMILIES
