"""Claims about training Qwen2-VL and Qwen3-VL (most other tests have Qwen2.5-VL): a step on a mesh, batches with learned
positions, and that what is learned is exported and streamed."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import svlm_jax
from svlm_jax.config import ModelConfig, StreamConfig
from svlm_jax.data import annotation, records
from svlm_jax.data.annotation import NO_LOSS
from svlm_jax.data.batch import collate
from svlm_jax.data.pipeline import Batch, Example, pad_batch
from svlm_jax.data.windows import cut
from svlm_jax.decode.sampling import Sampling
from svlm_jax.families import FAMILIES, config_json
from svlm_jax.families.family import Family
from svlm_jax.inputs import Clip, Grid, Sample, patch_layout
from svlm_jax.model.parameters import Parameters, shapes
from svlm_jax.sharding import batch_sharding, make_mesh, shardings
from svlm_jax.spans import Kind, Span, vision_span
from svlm_jax.train import logs, setup
from svlm_jax.train.config import TrainConfig
from svlm_jax.train.export import export
from svlm_jax.train.optimizer import build_optimizer
from svlm_jax.train.run import build_trainer
from svlm_jax.train.step import TrainStep, split_parameters
from tests.support.families import tiny_checkpoint, tiny_config
from tests.train.conftest import BUCKETS, WINDOW, film_record

QWEN2, QWEN3 = FAMILIES["qwen2_vl"], FAMILIES["qwen3_vl"]
MESH = {"fsdp": 4, "tensor": 2}
GRIDS: tuple[tuple[Grid, ...], ...] = (((1, 4, 6),), ((2, 4, 4),), (), ((1, 2, 2), (1, 6, 4)))  # of the samples of a batch
TOLERANCE = 1e-5  # of the largest value of a gradient, float32: sums over devices are made in another order


def sample(grids: tuple[Grid, ...], config: ModelConfig, seed: int) -> Sample:
    """Random tokens around random images."""
    rng, spans, clips = np.random.default_rng(seed), [Span(Kind.USER_TEXT, 3 + seed)], []
    for grid in grids:
        spans += [vision_span(grid), Span(Kind.USER_TEXT, 4)]
        clips.append(Clip(rng.normal(size=(int(np.prod(grid)), config.vision.patch_dim)).astype(np.float32), grid))
    count = sum(span.length for span in spans)
    return Sample(rng.integers(0, 400, count).astype(np.int32), tuple(spans), tuple(clips))


def batch_of(config: ModelConfig) -> Batch:
    """Samples with images, and one without, whose every token has a label."""
    samples = [sample(grids, config, seed) for seed, grids in enumerate(GRIDS)]
    inputs = collate(samples, config.vision, token_buckets=(32,), patch_buckets=(64,))
    labels = np.where(np.roll(inputs.index, -1, axis=1) > 0, np.roll(inputs.ids, -1, axis=1), NO_LOSS)
    return Batch(inputs, np.broadcast_to(np.arange(32, dtype=np.int32), inputs.ids.shape), labels)


def gradients(config: TrainConfig, model: ModelConfig, mesh_sizes: dict[str, int]) -> dict[str, np.ndarray]:
    """Of the trainable parameters of a random model, by a micro-step on a mesh."""
    mesh = make_mesh(**(mesh_sizes or {"fsdp": 1}))
    with jax.set_mesh(mesh):
        trainable, frozen = split_parameters(random_parameters(model, mesh), setup.trainable_pattern(config))
        step = TrainStep(model, build_optimizer(config.optimizer, 1), mesh, trainable)
        batch = jax.tree.map(lambda x: jax.device_put(x, batch_sharding(mesh, x.ndim)), batch_of(model))
        accumulator, loss = step.accumulate(trainable, step.zero_grads(), frozen, batch)
    assert np.isfinite(float(loss))
    return {path: np.asarray(value) for path, value in accumulator.gradients.items()}


def random_parameters(model: ModelConfig, mesh: Any) -> Parameters:
    """The same on any mesh; scales are about 1, kernels small enough that no softmax saturates and magnifies rounding."""
    rng, leaves = np.random.default_rng(0), shapes(model)
    targets = shardings({path: leaf.shape for path, leaf in leaves.items()}, mesh)
    values = {path: rng.normal(0, 0.1, leaf.shape) + path.endswith(".scale") for path, leaf in sorted(leaves.items())}
    return {path: jax.device_put(value.astype(np.float32), targets[path]) for path, value in values.items()}


KINDS = {
    "all parameters": {"trainable": ".*"},
    "adapters": {"lora_rank": 2},
    "a frozen tower": {},
}
STEPS = [(QWEN3, "all parameters")]
SLOW_STEPS = [(QWEN2, "all parameters"), (QWEN3, "adapters"), (QWEN3, "a frozen tower"), (QWEN2, "adapters")]


@pytest.mark.parametrize(("family", "kind"), [*STEPS, *(pytest.param(*step, marks=pytest.mark.slow) for step in SLOW_STEPS)])
def test_a_micro_step_on_a_mesh_is_that_of_one_device(family: Family, kind: str):
    """And every trainable parameter has a gradient: DeepStack's mergers and learned positions have theirs through a scan."""
    config = TrainConfig(dtype="float32", remat="save_attention", **KINDS[kind])
    model = setup.training_model_config(config, tiny_config(family))
    want, got = gradients(config, model, {}), gradients(config, model, MESH)
    assert want.keys() == got.keys()
    for path, gradient in want.items():
        largest = np.abs(gradient).max()
        assert largest > 0, path
        assert np.abs(got[path] - gradient).max() <= TOLERANCE * largest, path
    tower = {path for path in want if path.startswith("vision.")}
    assert bool(tower) == (kind == "all parameters")
    if tower and family is QWEN3:
        assert {"vision.position_embedding", "vision.deepstack.1.up.kernel", "text.layers.attention.q_norm.scale"} <= set(want)


def test_the_learned_positions_of_a_batch_are_those_of_its_rows():
    """Of each row its own; a bad sample and padding have none."""
    config = tiny_config(QWEN3)
    labels = np.zeros(0, np.int32)
    samples = [sample(grids, config, seed) for seed, grids in enumerate(GRIDS)]
    examples = [Example(str(row), one, np.full(len(one.ids), NO_LOSS), 0.0) for row, one in enumerate(samples)]
    vision = pad_batch([*examples, Example("bad", None, labels, 0.0, "gone")], BUCKETS[0], config).inputs.vision
    for row, grids in enumerate((*GRIDS, ())):
        layout = patch_layout(grids, config.vision, BUCKETS[0].patches)
        np.testing.assert_array_equal(vision.position_index[row], layout.position_index)
        np.testing.assert_array_equal(vision.position_weight[row], layout.position_weight)
        patches = sum(int(np.prod(grid)) for grid in grids)
        weights = vision.position_weight[row].sum(axis=-1)
        np.testing.assert_allclose(weights, np.arange(BUCKETS[0].patches) < patches, atol=1e-6)


@pytest.fixture
def small_frames_of(tmp_path):
    """A tiny checkpoint of a family whose frames have 4 vision tokens."""

    def make(family: Family) -> Path:
        directory = tiny_checkpoint(family, tmp_path / "model")
        vision = config_json.read(directory).vision
        pixels = 4 * (vision.patch_size * vision.spatial_merge_size) ** 2
        (directory / "streaming_config.json").write_text(json.dumps({"frame": {"min_pixels": pixels, "max_pixels": pixels}}))
        return directory

    return make


@pytest.mark.slow  # a minute
@pytest.mark.parametrize("family", [QWEN2, QWEN3], ids=lambda family: family.name)
def test_what_is_trained_is_said_in_a_stream(family, config, windows, small_frames_of, tmp_path):
    """Annotated film -> overlapped windows -> training -> export -> stream: the words of the annotation, second by second."""
    directory, last = small_frames_of(family), 3 * WINDOW
    film = annotation.parse(film_record(), "film")
    film = replace(film, end=last, words=tuple(word for word in film.words if word.end <= last))
    records.write(tmp_path / "train.jsonl", cut(film, window=WINDOW, stride=1))
    path = str(tmp_path / "train.jsonl")
    data = replace(config.data, paths=(path,), eval_paths=(path,), as_streamed=True)
    config = replace(config, model=str(directory), processor=str(directory), data=data, trainable=".*")
    config = replace(config, steps=100, batch_size=8, micro_batch_size=8, eval_every=100)
    build_trainer(config, directory, devices=jax.devices()[:1]).run()
    lines = logs.read_metrics(config.run_dir)
    losses = [line["loss"] for line in lines if "loss" in line]
    evaluated = [line["eval_loss"] for line in lines if "eval_loss" in line]
    print(f"{family.name}: loss {losses[0]:.3f} -> {losses[-1]:.4f}, evaluated {evaluated[-1]:.4f}")
    assert losses[-1] < 0.05 and evaluated[-1] < 0.05
    export(config.run_dir, tmp_path / "out")
    vlm = svlm_jax.from_pretrained(tmp_path / "out")
    settings = StreamConfig(vision_window=WINDOW, text_rounds=WINDOW)
    greedy, start, length = Sampling(repetition_penalty=1.0), 2, 2 * WINDOW
    clock = {"start": start, "duration": length, "previous": "".join(f" w{word}" for word in range(start))}
    replies = vlm.watch(windows.parent / "film.mp4", config=settings, sampling=greedy, **clock)
    words = [word for reply in replies for word in reply.text.split()]
    assert words == [f"w{word}" for word in range(start, start + length)]
