"""Checkpoints go to JAX and back without a changed bit, and what is written loads in transformers."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from svlm_jax.checkpoint import huggingface
from svlm_jax.checkpoint.tensor_files import table_name
from svlm_jax.data.batch import collate
from svlm_jax.decode.generate import generate
from svlm_jax.families import config_json, family_of
from svlm_jax.settings import read_generation_config
from tests.parity import reference as ref
from tests.parity.reference import image, torch, transformers, video

from safetensors.torch import load_file, save_file  # isort: skip  (needs torch)

SOURCES = ("tiny", "tiny_tied", "tiny in bfloat16", "tiny in the layout of memory", "seven_to_one", "tied_wide_heads")
OTHER_FAMILIES = ("qwen2_vl", "qwen2_vl_tied", "qwen3_vl", "qwen3_vl_tied")
SOURCES += ("qwen2_vl_tied", "qwen2_vl in the layout of memory", "qwen3_vl", "qwen3_vl_tied")


@pytest.fixture(scope="session")
def source(checkpoint, tmp_path_factory):
    """Directory of a checkpoint by name: as recorded or written by transformers, or a variant of it."""

    def find(name: str) -> Path:
        original, _, variant = name.partition(" in ")
        if not variant:
            return checkpoint(original)
        directory = tmp_path_factory.mktemp("variant")
        config = json.loads((checkpoint(original) / "config.json").read_text())
        tensors = load_file(checkpoint(original) / huggingface.SINGLE)
        if variant == "bfloat16":
            tensors = {key: value.bfloat16() for key, value in tensors.items()}
            config["torch_dtype"] = "bfloat16"
        else:
            tensors = {in_memory(key): value for key, value in tensors.items()}
        (directory / "config.json").write_text(json.dumps(config))
        save_file(tensors, directory / huggingface.SINGLE, metadata={"format": "pt"})
        return directory

    return find


def in_memory(key: str) -> str:
    """A classic key as the modules of transformers 5 are called."""
    if key.startswith("visual."):
        return f"model.{key}"
    return key.replace("model.", "model.language_model.", 1) if key.startswith("model.") else key


def tensors(directory: Path) -> dict:
    """Every tensor of a directory, by its name in the weight table."""
    aliases = family_of(config_json.read(directory)).weights.aliases
    shards = [load_file(file) for file in sorted(directory.glob("*.safetensors"))]
    return {table_name(key, aliases): value for shard in shards for key, value in shard.items()}


def assert_same_bits(ours: dict, theirs: dict) -> None:
    assert set(ours) == set(theirs)
    for key, value in theirs.items():
        assert ours[key].dtype == value.dtype, key
        assert torch.equal(ours[key].view(torch.uint8), value.contiguous().view(torch.uint8)), key


def export(source: Path, target: Path, *, scan_layers: bool = False, **options) -> None:
    config = replace(config_json.read(source), scan_layers=scan_layers)
    huggingface.write(target, config, huggingface.load(source, config), **options)


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("scan_layers", [False, True], ids=["one array a layer", "stacked"])
def test_every_tensor_comes_back_bit_for_bit(source, tmp_path, name, scan_layers):
    directory = source(name)
    export(directory, tmp_path, scan_layers=scan_layers)
    assert_same_bits(tensors(tmp_path), tensors(directory))


@pytest.mark.parametrize("name", SOURCES)
def test_export_loads_in_transformers_and_computes_the_same(source, tmp_path, name):
    directory = source(name)
    export(directory, tmp_path, max_shard_bytes=100_000)
    options = {"attn_implementation": "eager", "local_files_only": True, "dtype": "auto"}
    read = ref.library_class(config_json.read(directory).model_type).from_pretrained
    ours, info = read(tmp_path, output_loading_info=True, **options)
    assert {key: list(value) for key, value in info.items() if value} == {}
    original = read(directory, **options)
    assert ours.dtype == original.dtype == getattr(torch, config_json.read(directory).param_dtype)
    assert_same_bits(ours.state_dict(), original.state_dict())
    config = config_json.read(directory)
    samples = ref.make_samples([(5, image(6, 10), 4, video(2, 8, 6), 3)], config)
    with torch.no_grad():
        first, second = (model.eval()(**ref.torch_inputs(samples, config)).logits for model in (ours, original))
    assert torch.equal(first, second)


@pytest.mark.parametrize("limit", [1, 30_000, 200_000])
def test_shards_hold_what_the_index_says(checkpoint, tmp_path, limit):
    export(checkpoint("tiny"), tmp_path, max_shard_bytes=limit)
    index = json.loads((tmp_path / huggingface.INDEX).read_text())
    shards = {file.name: load_file(file) for file in tmp_path.glob("*.safetensors")}
    assert len(shards) > 1
    assert sorted(shards) == [f"model-{n + 1:05}-of-{len(shards):05}.safetensors" for n in range(len(shards))]
    assert index["weight_map"] == {key: file for file, held in shards.items() for key in held}
    sizes = {file: sum(value.nbytes for value in held.values()) for file, held in shards.items()}
    assert index["metadata"]["total_size"] == sum(sizes.values())
    assert all(size <= limit or len(shards[file]) == 1 for file, size in sizes.items())
    assert_same_bits(tensors(tmp_path), tensors(checkpoint("tiny")))


def test_shards_are_read_back(checkpoint, tmp_path):
    export(checkpoint("tiny_tied"), tmp_path, max_shard_bytes=50_000)
    config = config_json.read(tmp_path)
    ours, first = huggingface.load(tmp_path, config), huggingface.load(checkpoint("tiny_tied"), config)
    assert set(ours) == set(first)
    assert all(np.array_equal(ours[path], first[path]) for path in first)


def test_transformers_shards_are_read(checkpoint, tmp_path):
    ref.read_torch(checkpoint("tiny")).save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    config = config_json.read(tmp_path)
    ours, first = huggingface.load(tmp_path, config), huggingface.load(checkpoint("tiny"), config)
    assert all(np.array_equal(ours[path], first[path]) for path in first)


def test_tied_model_has_one_leaf_and_writes_no_head(checkpoint, tmp_path):
    export(checkpoint("tiny_tied"), tmp_path)
    assert "lm_head.weight" not in tensors(tmp_path)
    config = config_json.read(tmp_path)
    assert "text.head.kernel" not in huggingface.load(tmp_path, config)


@pytest.mark.parametrize("name", ["tiny", "tiny_tied", "seven_to_one", "tied_wide_heads", *OTHER_FAMILIES])
def test_nested_config_comes_back_key_by_key(checkpoint, tmp_path, name):
    ref.read_torch(checkpoint(name)).save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    assert "text_config" in raw
    ours = json.loads(json.dumps(config_json.dump(config_json.parse(raw))))
    assert ours == raw


@pytest.mark.parametrize("name", ["tiny", "tiny_tied"])
def test_flat_config_means_the_same_to_transformers(checkpoint, name):
    raw = json.loads((checkpoint(name) / "config.json").read_text())
    assert "text_config" not in raw

    def seen(config: dict) -> dict:
        found = transformers.Qwen2_5_VLConfig.from_dict(json.loads(json.dumps(config))).to_dict()
        found["vision_config"].pop("dtype", None)  # the library leaves it empty; we say it
        found["text_config"].pop("tie_word_embeddings", None)  # for transformers 4; 5 reads the one of the root
        return found

    assert seen(config_json.dump(config_json.parse(raw))) == seen(raw)


@pytest.mark.parametrize("name", ["tiny", "tiny_tied", "seven_to_one"])
def test_both_forms_of_config_give_one_model(checkpoint, tmp_path, name):
    ref.read_torch(checkpoint(name)).config.save_pretrained(tmp_path)
    first, second = config_json.read(checkpoint(name)), config_json.read(tmp_path)
    assert replace(first, hf_extra="{}") == replace(second, hf_extra="{}")
    assert first.eos_token_ids == second.eos_token_ids


@pytest.mark.parametrize(
    "settings",
    [
        {"do_sample": False, "repetition_penalty": 1.4, "eos_token_id": 435},
        {"do_sample": True, "temperature": 1e-6, "repetition_penalty": 1.05, "eos_token_id": [435, 433]},  # as Qwen publishes
    ],
    ids=["greedy", "published"],
)
def test_generation_config_json_gives_the_tokens_of_transformers(checkpoint, tmp_path, settings):
    shutil.copytree(checkpoint("tiny"), tmp_path, dirs_exist_ok=True)
    (tmp_path / huggingface.GENERATION).write_text(json.dumps(settings | {"pad_token_id": 0}))
    model, config = ref.read_jax(tmp_path)
    samples = ref.make_samples([(7, image(6, 10), 5)], config)
    inputs = collate(samples, config.vision, side="left", token_buckets=(64, 128), patch_buckets=(128,))
    sampling, eos = read_generation_config(tmp_path, config)
    ours = generate(model, inputs, max_new_tokens=48, sampling=sampling, eos=eos)[0].tolist()
    theirs = ref.read_torch(tmp_path)
    theirs.generation_config = transformers.GenerationConfig.from_pretrained(tmp_path)
    given = ref.torch_inputs(samples, config, "left")
    with torch.no_grad():
        row = theirs.generate(**given, max_new_tokens=48)[0, given["input_ids"].shape[1] :].tolist()
    assert ours == row[: len(ours)] and len(ours) > 4
