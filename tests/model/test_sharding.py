"""Claims about svlm_jax.sharding: on eight virtual devices the model computes what one computes, and each holds its share."""

import math
from dataclasses import replace

import jax
import numpy as np
import pytest
from flax import nnx
from jax.extend.core import jaxprs_in_params

from svlm_jax.checkpoint import huggingface
from svlm_jax.data.batch import collate
from svlm_jax.decode.generate import _generate, generate
from svlm_jax.errors import InputError
from svlm_jax.families import config_json, preset, presets
from svlm_jax.inputs import Clip, Sample
from svlm_jax.model.parameters import from_parameters, shapes
from svlm_jax.sharding import AXES, activation_spec, batch_sharding, check, logical_axes, make_mesh, shardings, spec
from svlm_jax.spans import Kind, Span, vision_span

MESHES = {
    "fsdp": {"fsdp": 8},
    "tensor": {"fsdp": 4, "tensor": 2},
    "replicas": {"data": 2, "fsdp": 2, "tensor": 2},
}
# Replicated on every device although they have more than one axis: biases by head (28 x 128 numbers a layer at most), and
# stacks of norms.
REPLICATED = (
    r"attention.q.bias",
    r"attention.k.bias",
    r"attention.v.bias",
    r"attention.qkv.bias",
    r"attention.q_norm.scale",
    r"attention.k_norm.scale",
    r"norm1.scale",
    r"norm2.scale",
)


@pytest.fixture(scope="module")
def config(shallow_dir):
    return config_json.read(shallow_dir)


@pytest.fixture(scope="module")
def batch(config):
    """Eight samples with images and clips of different grids, one without."""
    rng = np.random.default_rng(0)
    grids = [[(1, 4, 6)], [(1, 8, 8)], [], [(2, 4, 4)], [(1, 2, 2), (1, 6, 4)], [(1, 10, 4)], [(3, 4, 4)], [(1, 2, 12)]]
    samples = []
    for n, own in enumerate(grids):
        spans, clips = [Span(Kind.USER_TEXT, 3 + n)], []
        for grid in own:
            spans += [vision_span(grid, step=0.5), Span(Kind.USER_TEXT, 2)]
            clips.append(Clip(rng.normal(size=(math.prod(grid), 1176)).astype(np.float32), grid, 0.5))
        count = sum(span.length for span in spans)
        samples.append(Sample(rng.integers(0, 400, count).astype(np.int32), tuple(spans), tuple(clips)))
    return collate(samples, config.vision, token_buckets=(48,), patch_buckets=(64,))


def logits(config, values, inputs):
    graph, state = nnx.split(from_parameters(config, values))
    return jax.jit(lambda state, inputs: nnx.merge(graph, state)(inputs))(state, inputs)


@pytest.fixture(scope="module")
def unsharded(config, shallow_dir, batch):
    return np.asarray(logits(config, huggingface.load(shallow_dir, config), batch))


@pytest.mark.parametrize(("ways", "stacked"), [("fsdp", True), ("tensor", False), ("tensor", True), ("replicas", False)])
def test_a_mesh_of_eight_computes_what_one_device_computes(config, shallow_dir, batch, unsharded, ways, stacked):
    config, mesh = replace(config, scan_layers=stacked), make_mesh(**MESHES[ways])
    values = huggingface.load(shallow_dir, config, mesh)
    inputs = jax.tree.map(lambda x: jax.device_put(x, batch_sharding(mesh, x.ndim)), batch)
    with jax.set_mesh(mesh):
        got = logits(config, values, inputs)
    assert {shard.data.shape[0] for shard in got.addressable_shards} == {8 // (mesh.shape["data"] * mesh.shape["fsdp"])}
    real = batch.index >= 0
    scale = np.abs(unsharded[real]).max()
    assert np.abs(np.asarray(got) - unsharded)[real].max() <= 1e-5 * scale


@pytest.mark.parametrize("stacked", [False, True], ids=["unrolled", "stacked"])
@pytest.mark.parametrize("ways", MESHES)
def test_every_device_holds_its_share_and_no_more(config, shallow_dir, ways, stacked):
    mesh = make_mesh(**MESHES[ways])
    values = huggingface.load(shallow_dir, replace(config, scan_layers=stacked), mesh)
    parts = mesh.shape["fsdp"] * mesh.shape["tensor"]
    bytes_of_device = dict.fromkeys(jax.devices(), 0)
    replicated = []
    for path, value in values.items():
        assert len(value.addressable_shards) == 8
        cut = value.size // value.addressable_shards[0].data.size
        for shard in value.addressable_shards:
            assert shard.data.size * cut == value.size
            bytes_of_device[shard.device] += shard.data.nbytes
        if path.startswith("vision.") and cut > 1:
            assert cut == mesh.shape["fsdp"]
        elif cut > 1:
            assert cut in (parts, mesh.shape["tensor"])
        if cut == 1 and value.ndim > 1:
            replicated.append(path)
    assert all(path.endswith(REPLICATED) for path in replicated)
    assert len(set(bytes_of_device.values())) == 1
    vision = sum(value.nbytes for path, value in values.items() if path.startswith("vision.")) / mesh.shape["fsdp"]
    text = sum(value.nbytes for path, value in values.items() if path.startswith("text.")) / parts
    share = bytes_of_device[jax.devices()[0]]
    assert vision + text <= share <= 1.1 * (vision + text)


@pytest.mark.parametrize("name", presets())
@pytest.mark.parametrize("stacked", [False, True], ids=["unrolled", "stacked"])
def test_every_parameter_of_every_preset_has_a_row_and_divides_by_eight(name, stacked):
    config = preset(name)
    if not stacked:  # one layer stands for all: a path differs in its number alone
        config = replace(config, text=replace(config.text, num_hidden_layers=1))
    sizes = {path: leaf.shape for path, leaf in shapes(replace(config, scan_layers=stacked)).items()}
    for ways in ({"fsdp": 8}, {"fsdp": 4, "tensor": 2}):
        mesh = make_mesh(**ways)
        targets = shardings(sizes, mesh)
        assert targets.keys() == sizes.keys()
        for path, shape in sizes.items():
            if len(shape) > 1 and not path.endswith(REPLICATED):
                assert math.prod(targets[path].shard_shape(shape)) <= math.prod(shape) // 4, path


def test_the_layer_axis_of_a_stack_is_never_cut():
    assert logical_axes("text.layers.mlp.up.kernel", 3) == (None, "embed", "mlp")
    assert logical_axes("text.layers.7.mlp.up.kernel", 2) == ("embed", "mlp")


def test_a_parameter_without_a_row_is_refused():
    with pytest.raises(ValueError, match=r"parameter text\.layers\.0\.mlp\.gate\.bias: no row in sharding\.PARAMETERS"):
        logical_axes("text.layers.0.mlp.gate.bias", 1)


def test_a_batch_is_cut_over_data_and_fsdp():
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    assert batch_sharding(mesh, 3).shard_shape((8, 5, 7)) == (2, 5, 7)
    assert spec(("batch", None)) == jax.sharding.PartitionSpec(("data", "fsdp"), None)


def test_a_batch_too_small_for_all_devices_is_cut_over_those_that_divide_it():
    """And not replicated on all of them."""
    mesh = make_mesh(data=2, fsdp=4)
    rows = {size: activation_spec(mesh, (size, 7), ("batch", None))[0] for size in (8, 4, 2, 1)}
    assert rows == {8: ("data", "fsdp"), 4: "fsdp", 2: "data", 1: None}


# --- meshes ---


def test_one_axis_may_take_what_is_left():
    assert dict(make_mesh(fsdp=-1, tensor=2).shape) == {"data": 1, "fsdp": 4, "context": 1, "tensor": 2}
    assert make_mesh(fsdp=-1).axis_names == AXES


def test_a_mesh_may_leave_devices_out():
    assert make_mesh(fsdp=3).devices.size == 3


@pytest.mark.parametrize(
    "sizes", [{"fsdp": 16}, {"fsdp": 4, "tensor": 4}, {"fsdp": 0}, {"fsdp": -1, "tensor": -1}, {"tensor": 16, "fsdp": -1}]
)
def test_sizes_that_the_devices_cannot_fill_are_one_line(sizes):
    with pytest.raises(InputError, match=r"^mesh: got data=1, .*at most 8 devices; [^\n]*$"):
        make_mesh(**sizes)


@pytest.mark.parametrize(("size", "legal"), [("3b", [1, 2]), ("7b", [1, 2, 4]), ("32b", [1, 2, 4, 8]), ("72b", [1, 2, 4, 8])])
def test_tensor_ways_are_those_that_leave_no_head_cut(size, legal):
    for ways in (1, 2, 3, 4, 8):
        mesh = make_mesh(tensor=ways)
        if ways in legal:
            check(preset(f"qwen2.5-vl-{size}"), mesh)
            continue
        with pytest.raises(InputError) as error:
            check(preset(f"qwen2.5-vl-{size}"), mesh)
        assert str(error.value).startswith(f"mesh axis tensor: got {ways} ways for ")
        assert f"one of {legal}" in str(error.value) and "\n" not in str(error.value)


def test_ways_that_do_not_divide_the_width_are_one_line(config, shallow_dir):
    with pytest.raises(
        InputError, match=r"^mesh: got \d+ parameters that do not divide \(text\.embedding \(448, 64\) axis embed by 5\)[^\n]*$"
    ):
        huggingface.load(shallow_dir, config, make_mesh(fsdp=5))
    with pytest.raises(InputError, match=r"^mesh axis tensor: got 4 ways for 4 query and 2 kv heads, expected one of \[1, 2\]"):
        huggingface.load(shallow_dir, config, make_mesh(tensor=4))


# --- replies over a mesh ---


def test_a_reply_over_a_mesh_is_that_of_one_device(config, shallow_dir, batch):
    prompts = jax.tree.map(lambda x: x, batch)
    one = generate(from_parameters(config, huggingface.load(shallow_dir, config)), prompts, max_new_tokens=6)
    cut = from_parameters(config, huggingface.load(shallow_dir, config, make_mesh(**MESHES["tensor"])))
    assert [reply.tolist() for reply in generate(cut, prompts, max_new_tokens=6)] == [reply.tolist() for reply in one]


def calls(jaxpr, primitive: str) -> int:
    """How often a program calls a primitive; layers that are alike share their jaxpr."""
    inner = [calls(sub, primitive) for eqn in jaxpr.eqns for sub in jaxprs_in_params(eqn.params)]
    return sum(eqn.primitive.name == primitive for eqn in jaxpr.eqns) + sum(inner)


def test_kernels_of_a_reply_over_a_mesh_are_cut_over_it(config, shallow_dir, batch, monkeypatch):
    """A TPU refuses a kernel that is not, and a GPU gathers queries, keys, values and cache on every device for it."""
    config = replace(config, attention="tpu")
    model = from_parameters(config, huggingface.load(shallow_dir, config, make_mesh(**MESHES["tensor"])))
    lowered = []

    def lower(*args, **static):
        traced = _generate.trace(*args, **static)
        lowered.append((calls(traced.jaxpr.jaxpr, "shard_map"), traced.lower(lowering_platforms=("tpu",)).as_text()))
        return np.zeros((8, 16), np.int32), np.ones(8, np.int32)

    monkeypatch.setattr("svlm_jax.decode.generate._generate", lower)
    generate(model, batch, max_new_tokens=6)
    ((cut, text),) = lowered
    layers = config.vision.depth + 2 * config.text.num_hidden_layers  # tower, prefill, decode
    kinds = 3  # tower, prefill, decode: layers that are alike are lowered once
    assert cut == layers and text.count("tpu_custom_call") >= kinds
