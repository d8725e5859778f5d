"""Claims about svlm_jax.checkpoint: what is wrong with files is said at once and in one line; Orbax gives back every bit."""

import gc
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import einops
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from svlm_jax.checkpoint import convert, huggingface, orbax
from svlm_jax.errors import InputError
from svlm_jax.families import config_json
from svlm_jax.model.parameters import shapes, stack, unstack
from svlm_jax.sharding import make_mesh
from tests.support import HANG


@pytest.fixture(scope="module")
def config(tiny_dir):
    return config_json.read(tiny_dir)


@pytest.fixture(scope="module")
def values(config, tiny_dir):
    return huggingface.load(tiny_dir, config)


@pytest.fixture(scope="module")
def stacked_values(values):
    return stack(values)


def changed(source, target, change):
    """A copy of a checkpoint whose tensors `change` has edited."""
    shutil.copy(source / "config.json", target)
    tensors = load_file(source / huggingface.SINGLE)
    change(tensors)
    save_file(tensors, target / huggingface.SINGLE)
    return target


def refusal(directory, config=None, mesh=None, load=huggingface.load):
    with pytest.raises(InputError) as error:
        load(directory, config or config_json.read(directory), mesh)
    message = str(error.value)
    assert "\n" not in message and str(directory) in message
    return message


def same(got, want):
    assert got.keys() == want.keys()
    for path, value in want.items():
        assert got[path].dtype == value.dtype
        np.testing.assert_array_equal(got[path], value, err_msg=path)


# --- Hugging Face ---


def test_every_parameter_is_loaded_and_nothing_else(config, values):
    assert {path: (leaf.shape, leaf.dtype) for path, leaf in shapes(config).items()} == {
        path: (value.shape, value.dtype) for path, value in values.items()
    }


def test_tensors_that_are_missing_unmatched_or_of_another_shape_are_one_error(tiny_dir, tmp_path, monkeypatch):
    def change(tensors):
        del tensors["model.norm.weight"], tensors["visual.blocks.2.attn.qkv.bias"]
        tensors["model.layers.9.mlp.up_proj.weight"] = np.zeros((2, 2), np.float32)
        tensors["visual.extra"] = np.zeros(3, np.float32)
        tensors["lm_head.weight"] = np.zeros((447, 64), np.float32)

    changed(tiny_dir, tmp_path, change)
    monkeypatch.chdir(tmp_path)  # a line has 300 characters, of which a long path would take some
    message = refusal(Path("."))
    for part in (
        "5 wrong tensors",
        "2 missing (model.norm.weight, ...)",
        "2 unmatched (model.layers.9.mlp.up_proj.weight, ...)",
        "1 of another shape (lm_head.weight [",
    ):
        assert part in message


def test_both_key_layouts_load_the_same(config, values, tiny_dir, tmp_path):
    def change(tensors):
        for name in list(tensors):
            new = name.replace("visual.", "model.visual.") if name.startswith("visual.") else name
            new = new.replace("model.", "model.language_model.") if name.startswith("model.") else new
            tensors[new] = tensors.pop(name)
        assert "model.visual.merger.ln_q.weight" in tensors and "model.language_model.norm.weight" in tensors

    same(huggingface.load(changed(tiny_dir, tmp_path, change), config), values)


def test_rotary_buffers_of_old_exports_are_ignored(config, values, tiny_dir, tmp_path):
    def change(tensors):
        tensors["visual.rotary_pos_emb.inv_freq"] = np.zeros(4, np.float32)
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(4, np.float32)

    same(huggingface.load(changed(tiny_dir, tmp_path, change), config), values)


@pytest.mark.parametrize("keep", [0, 4, 200, -1, -4096])
def test_a_truncated_file_is_one_line(config, tiny_dir, tmp_path, keep):
    content = (tiny_dir / huggingface.SINGLE).read_bytes()
    (tmp_path / huggingface.SINGLE).write_bytes(content[:keep])
    assert "download it again" in refusal(tmp_path, config)


def sharded(tiny_dir, tmp_path, **extra):
    """The checkpoint in two shards with an index."""
    tensors = load_file(tiny_dir / huggingface.SINGLE)
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, own in shards.items():
        save_file({name: tensors[name] for name in own}, tmp_path / file)
    weights = {name: file for file, own in shards.items() for name in own} | extra
    (tmp_path / huggingface.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weights}))
    return tmp_path


def test_shards_load_as_one_file_does(config, values, tiny_dir, tmp_path):
    same(huggingface.load(sharded(tiny_dir, tmp_path), config), values)


def test_shards_that_are_not_there_are_named(config, tiny_dir, tmp_path):
    directory = sharded(tiny_dir, tmp_path, more="c.safetensors")
    (directory / "b.safetensors").unlink()
    assert "no b.safetensors, c.safetensors" in refusal(directory, config)


def test_a_tensor_that_only_the_index_knows_is_named(config, tiny_dir, tmp_path):
    directory = sharded(tiny_dir, tmp_path, **{"model.norm.weight": "a.safetensors", "lm_head.weight": "b.safetensors"})
    message = refusal(directory, config)
    assert "model.norm.weight" in message or "lm_head.weight" in message


@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"weight_map": 3}'])
def test_a_broken_index_is_one_line(config, tiny_dir, tmp_path, content):
    shutil.copy(tiny_dir / huggingface.SINGLE, tmp_path)
    (tmp_path / huggingface.INDEX).write_text(content)
    assert "index" in refusal(tmp_path, config)


def test_a_directory_without_weights_is_one_line(config, tmp_path):
    assert "no safetensors" in refusal(tmp_path, config)
    assert "no safetensors" in refusal(tmp_path / "nowhere", config)


def test_a_tied_checkpoint_may_repeat_its_embedding_as_its_head(tiny_tied_dir, tmp_path):
    def change(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()

    config = config_json.read(tiny_tied_dir)
    assert "text.head.kernel" not in shapes(config)
    same(huggingface.load(changed(tiny_tied_dir, tmp_path, change), config), huggingface.load(tiny_tied_dir, config))


def test_a_tied_checkpoint_with_a_head_of_its_own_is_refused(tiny_tied_dir, tmp_path):
    def change(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
        tensors["lm_head.weight"][-1, -1] += 1e-3

    assert "tie_word_embeddings" in refusal(changed(tiny_tied_dir, tmp_path, change))


def test_loading_into_a_stack_is_stacking_what_was_loaded(config, values, stacked_values, tiny_dir):
    stacked = huggingface.load(tiny_dir, replace(config, scan_layers=True))
    same(stacked, stacked_values)
    same(unstack(stacked), values)


def test_loading_into_another_precision_rounds_once(config, values, tiny_dir):
    half = huggingface.load(tiny_dir, config.compute("bfloat16"))
    same(half, {path: np.asarray(value).astype("bfloat16") for path, value in values.items()})


def test_progress_counts_every_tensor(config, tiny_dir):
    seen = []
    huggingface.load(tiny_dir, config, progress=lambda done, total: seen.append((done, total)))
    count = len(huggingface.rows(config))
    assert seen == [(n, count) for n in range(1, count + 1)]


@pytest.mark.parametrize("stacked", [False, True], ids=["unrolled", "stacked"])
def test_loading_holds_no_second_copy(config, tiny_dir, stacked):
    gc.collect()
    before = {id(array) for array in jax.live_arrays()}
    held = []

    def measure(done, total):
        held.append(sum(array.nbytes for array in jax.live_arrays() if id(array) not in before))

    result = huggingface.load(tiny_dir, replace(config, scan_layers=stacked), progress=measure)
    sizes = [value.nbytes for value in result.values()]
    assert held[-1] == sum(sizes)
    assert max(held) <= sum(sizes) + max(sizes)


@pytest.mark.parametrize("stacked", [False, True], ids=["unrolled", "stacked"])
def test_what_is_written_reads_back_bit_for_bit(config, values, stacked_values, tmp_path, stacked):
    huggingface.write(tmp_path, config, stacked_values if stacked else values, max_shard_bytes=100_000)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2 and (tmp_path / huggingface.INDEX).is_file()
    again = config_json.read(tmp_path)
    assert (again.text, again.vision) == (config.text, config.vision)
    same(huggingface.load(tmp_path, again), values)


# --- Orbax ---


@pytest.fixture(scope="module")
def saved(config, stacked_values, tmp_path_factory):
    directory = tmp_path_factory.mktemp("orbax")
    orbax.save(directory, config, stacked_values)
    return directory


def test_a_store_is_told_from_hugging_face_files(saved, tiny_dir):
    assert orbax.is_store(saved) and not orbax.is_store(tiny_dir)
    assert (config_json.read(saved).text, config_json.read(saved).vision) == (
        config_json.read(tiny_dir).text,
        config_json.read(tiny_dir).vision,
    )


@pytest.mark.parametrize("ways", [None, {"fsdp": 8}, {"fsdp": 2, "tensor": 2}])
def test_a_store_gives_back_every_bit_in_either_form_on_any_mesh(config, values, stacked_values, saved, ways):
    mesh = ways and make_mesh(**ways)
    stacked = orbax.load(saved, replace(config, scan_layers=True), mesh)
    same(stacked, stacked_values)
    same(orbax.load(saved, config, mesh), values)
    if mesh:
        kernel = stacked["text.layers.mlp.up.kernel"]
        assert kernel.addressable_shards[0].data.size * mesh.devices.size == kernel.size


def test_a_store_saved_from_a_mesh_is_the_same(config, values, tiny_dir, tmp_path):
    stacked = replace(config, scan_layers=True)
    orbax.save(tmp_path, config, huggingface.load(tiny_dir, stacked, make_mesh(fsdp=4, tensor=2)))
    same(orbax.load(tmp_path, config), values)


def test_an_unstacked_parameter_keeps_the_sharding_of_its_stack(config, saved):
    mesh = make_mesh(fsdp=8)
    for path, value in orbax.load(saved, config, mesh).items():
        if path.endswith("mlp.up.kernel"):
            assert value.addressable_shards[0].data.size * 8 == value.size


REFUSED = """
import json, sys
from dataclasses import replace
from pathlib import Path
from svlm_jax.checkpoint import orbax
from svlm_jax.families import config_json
from svlm_jax.errors import InputError

for directory in sys.argv[1:]:
    try:
        orbax.load(directory, config_json.read(directory))
    except InputError as error:
        print(json.dumps([directory, str(error)]))
"""


def damaged(saved, directory, damage):
    """A copy of a store with half of every file of a kind, or with the config of a wider model."""
    shutil.copytree(saved, directory)
    if damage == "config":
        raw = json.loads((directory / "config.json").read_text())
        raw["text_config"]["intermediate_size"] *= 2
        (directory / "config.json").write_text(json.dumps(raw))
        return
    for path in (directory / orbax.PARAMS).rglob("*"):
        if path.is_file() and (damage == "all" or (damage == "metadata") == ("METADATA" in path.name)):
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_damaged_store_or_one_of_another_model_is_one_line(saved, tmp_path):
    """In a process of its own: after a read that fails, threads of Orbax go on and complain to no one."""
    directories = [tmp_path / damage for damage in ("metadata", "data", "all", "config")]
    for directory in directories:
        damaged(saved, directory, directory.name)
    command = [sys.executable, "-c", REFUSED, *map(str, directories)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=HANG).stdout.splitlines()
    lines = dict(json.loads(line) for line in said if line.startswith("["))
    assert list(lines) == list(map(str, directories))
    for directory, message in lines.items():
        assert len(message) < 300 and message.isprintable()
        assert not any(word in message for word in ("zarr", "tensorstore", "OCDBT", "driver"))
        if directory.endswith("config"):
            assert "[4, 128, 64], expected [4, 256, 64], as its config.json says" in message
        else:
            assert message.startswith(f"{directory}/params: got a copy that is incomplete or damaged")


@pytest.mark.parametrize(
    ("key", "value", "surplus"),
    [("tie_word_embeddings", True, "text.head.kernel"), ("vision_config", {"depth": 2}, "vision.blocks.2")],
)
def test_a_store_with_more_parameters_than_its_config_is_refused(saved, key, value, surplus):
    """It would run without its own head, or without its last blocks, and talk nonsense in silence."""
    raw = json.loads((saved / "config.json").read_text())
    raw[key] = raw[key] | value | {"fullatt_block_indexes": [1]} if isinstance(value, dict) else value
    with pytest.raises(InputError, match=rf"got {surplus}\S* too, .*use the config.json that came with it"):
        orbax.check(saved, config_json.parse(raw))


def test_the_types_of_a_store_are_known_before_it_is_read(config, saved):
    """A config.json that says another one would cast without a word."""
    assert convert.check(saved, config.compute("bfloat16")) == ["float32"]


def test_a_store_in_another_precision_is_cast(config, values, saved):
    same(
        orbax.load(saved, config.compute("bfloat16")),
        {path: np.asarray(value).astype("bfloat16") for path, value in values.items()},
    )


@pytest.mark.parametrize("model", ["tiny", "tiny_tied"])
def test_every_row_regroups_axes_as_its_pattern_says(data_dir, model):
    files = huggingface.TensorFiles(data_dir / "models" / model)
    for row in huggingface.rows(config_json.read(data_dir / "models" / model)):
        tensor = files.read(row.name)
        ours = einops.rearrange(tensor, row.pattern, **row.sizes)
        assert ours.shape == row.shape
        assert np.array_equal(row.read(tensor), ours), row.name
        assert np.array_equal(row.write(ours), tensor), row.name


def test_a_tensor_of_a_type_that_numpy_lacks_is_one_line(tmp_path):
    header = b'{"a": {"dtype": "F8_E8M0", "shape": [2], "data_offsets": [0, 2]}}'
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"ab")
    with pytest.raises(InputError, match="got F8_E8M0, expected float32 or bfloat16; use the unquantised") as error:
        huggingface.TensorFiles(tmp_path).read("a")
    assert "\n" not in str(error.value)
