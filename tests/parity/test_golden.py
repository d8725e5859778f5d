"""The recorded runs of the original code (tests/fixtures): training loss and gradients, streaming positions and logits."""

import json
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from svlm_jax.checkpoint import huggingface
from svlm_jax.config import ModelConfig
from svlm_jax.data.batch import collate
from svlm_jax.families import config_json
from svlm_jax.inputs import Clip, Inputs, Sample
from svlm_jax.media.pixels import normalise, patchify
from svlm_jax.model.parameters import Parameters, from_parameters, stack, unstack
from svlm_jax.spans import Kind, Span, positions, vision_span
from svlm_jax.train.loss import cross_entropy
from tests.parity import reference as ref
from tests.parity.reference import image, torch, video
from tests.support.pixels import STREAM_FRAME

MOST, MEDIAN = 2e-3, 2e-4  # agreement of logits that the recordings promise
FPS = 2.0
FORMS = {  # how parameters are held, and what a layer keeps for the backward pass
    "one array a layer": {"scan_layers": False, "remat": "none"},
    "stacked, full remat": {"scan_layers": True, "remat": "full"},
    "stacked, attention saved": {"scan_layers": True, "remat": "save_attention"},
    "stacked, projections saved": {"scan_layers": True, "remat": "save_projections"},
}
SELDOM = "stacked, projections saved"  # the others take the same way
every_form = pytest.mark.parametrize(
    "form", [*(form for form in FORMS if form != SELDOM), pytest.param(SELDOM, marks=pytest.mark.slow)]
)


def recorded_sample(ids: np.ndarray, clips: list[Clip], config: ModelConfig) -> Sample:
    """Spans of a recorded sequence, found by its vision pads (a recording has nothing else)."""
    spans: list[Span] = []
    left = iter(clips)
    at = 0
    while at < len(ids):
        if ids[at] == config.video_token_id:
            clip = next(left)
            spans.append(vision_span(clip.grid, step=clip.step))
        else:
            pads = np.flatnonzero(ids[at:] == config.video_token_id)
            spans.append(Span(Kind.USER_TEXT, int(pads[0]) if len(pads) else len(ids) - at))
        at += spans[-1].length
    return Sample(np.asarray(ids, np.int32), tuple(spans), tuple(clips))


def read(directory, form: str) -> tuple[ModelConfig, Parameters]:
    config = replace(config_json.read(directory), **FORMS[form])
    return config, huggingface.load(directory, config)


def assert_logits(ours: np.ndarray, recorded: np.ndarray) -> None:
    difference = np.abs(ours - recorded)
    assert ours.shape == recorded.shape
    assert difference.max() <= MOST
    assert np.median(difference) <= MEDIAN


class Training(NamedTuple):
    """The recorded training sample as the model takes it."""

    arrays: dict[str, np.ndarray]
    grad_norms: dict[str, float]
    inputs: Inputs
    labels: np.ndarray


@pytest.fixture(scope="session")
def training(data_dir, tiny_dir) -> Training:
    arrays = dict(np.load(data_dir / "sft" / "sft_24s.npz"))
    config = config_json.read(tiny_dir)
    grids = [tuple(map(int, grid)) for grid in arrays["grid"]]
    pixels = np.split(arrays["pixel_values"], np.cumsum([np.prod(grid) for grid in grids])[:-1])
    step = config.vision.temporal_step(FPS)
    clips = [Clip(patches, grid, step, video=True) for patches, grid in zip(pixels, grids, strict=True)]
    sample = recorded_sample(arrays["input_ids"], clips, config)
    inputs = collate([sample], config.vision, token_buckets=(896,), patch_buckets=(576,))
    labels = np.full(inputs.ids.shape, -100)
    labels[inputs.index >= 0] = arrays["labels"]
    norms = json.loads((data_dir / "sft" / "sft_24s.json").read_text())["grad_norms"]
    return Training(arrays, norms, inputs, labels)


def test_training_positions_are_the_recorded_ones(training: Training):
    length = len(training.arrays["input_ids"])
    np.testing.assert_array_equal(training.inputs.positions[0, :, :length], training.arrays["position_ids"])


@every_form
def test_training_loss_and_gradients_are_the_recorded_ones(training: Training, tiny_dir, form):
    config, values = read(tiny_dir, form)
    frozen = {path: value for path, value in values.items() if path.startswith("vision.")}
    trained = {path: value for path, value in values.items() if path not in frozen}

    def loss(trained, frozen, inputs):
        model = from_parameters(config, trained | frozen)
        hidden = model.hidden(inputs)
        return cross_entropy(model.text, hidden, jnp.asarray(training.labels))[0], model.text.logits(hidden[0])

    (value, logits), found = jax.jit(jax.value_and_grad(loss, has_aux=True))(trained, frozen, training.inputs)
    arrays, length = training.arrays, len(training.arrays["input_ids"])
    assert float(value) == pytest.approx(float(arrays["loss"]), rel=1e-4)
    assert_logits(np.asarray(logits)[length - 32 : length], arrays["logits_tail"])

    found = unstack(found) if config.scan_layers else found
    gradients = {row.name: row.write(np.asarray(found[row.path])) for row in huggingface.rows(config) if row.path in found}
    recorded = {name.removeprefix("grad."): array for name, array in arrays.items() if name.startswith("grad.")}
    assert len(recorded) == 4
    for name, array in recorded.items():
        assert np.linalg.norm(gradients[name] - array) <= 1e-3 * np.linalg.norm(array), name
    assert set(training.grad_norms) == set(gradients)
    norms = {name: float(np.linalg.norm(gradient)) for name, gradient in gradients.items()}
    assert norms == pytest.approx(training.grad_norms, rel=1e-3)


def test_stacking_what_was_read_is_reading_stacked(tiny_dir):
    _, flat = read(tiny_dir, "one array a layer")
    _, stacked = read(tiny_dir, "stacked, full remat")
    ours = stack(flat)
    assert set(ours) == set(stacked)
    assert all(np.array_equal(ours[path], stacked[path]) for path in ours)


class Recording(NamedTuple):
    """One streaming run: its rounds, its arrays, and the patches of every round so far."""

    rounds: list[dict]
    arrays: dict[str, np.ndarray]
    clips: list[Clip]

    def sample(self, number: int, config: ModelConfig, *, replied: bool) -> Sample:
        """What the model has before it in a round: at the start, or before its last token."""
        this = self.rounds[number]
        ids = [*this["input_ids"], *(this["generated"][:-1] if replied else ())]
        return recorded_sample(np.array(ids), self.clips[: number + 1], config)


@pytest.fixture(scope="session")
def stream(data_dir, tiny_dir) -> Recording:
    recording = json.loads((data_dir / "streams" / "full_attention.json").read_text())
    arrays = dict(np.load(data_dir / "streams" / "full_attention.npz"))
    settings, vision = recording["config"], config_json.read(tiny_dir).vision
    shape = (3, settings["frame_height"], settings["frame_width"])
    step = vision.temporal_step(settings["fps"])
    clips = []
    for this in recording["rounds"]:
        seeds = [1000 + settings["seed"] * 7919 + frame for frame in this["frames"]]
        frames = np.stack([np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8) for seed in seeds])
        patches, grid = patchify(normalise(frames.transpose(0, 2, 3, 1), STREAM_FRAME), STREAM_FRAME)
        assert [list(grid)] == this["grid_thw"]
        clips.append(Clip(patches, grid, step, video=True))
    return Recording(recording["rounds"], arrays, clips)


def test_patches_are_the_recorded_ones(stream: Recording):
    for number in (0, 1):
        np.testing.assert_allclose(stream.clips[number].patches, stream.arrays[f"pixels_{number}"], rtol=0, atol=1e-6)


def test_streaming_positions_are_the_recorded_ones(stream: Recording, tiny_dir):
    config = config_json.read(tiny_dir)
    for number in range(len(stream.rounds)):
        for name, replied in (("prefill", False), ("last", True)):
            spans = stream.sample(number, config, replied=replied).spans
            np.testing.assert_array_equal(positions(spans), stream.arrays[f"pos_{name}_{number}"])


@pytest.mark.parametrize("form", ["one array a layer", "stacked, full remat"])
def test_full_attention_stream_has_the_recorded_logits(stream: Recording, tiny_dir, form):
    config, values = read(tiny_dir, form)
    graph, state = nnx.split(from_parameters(config, values))
    forward = jax.jit(lambda state, inputs: nnx.merge(graph, state)(inputs))
    for number, this in enumerate(stream.rounds):
        recorded = stream.arrays[f"logits_{number}"]
        for replied in (False, True) if number == len(stream.rounds) - 1 else (True,):
            sample = stream.sample(number, config, replied=replied)
            inputs = collate([sample], config.vision, token_buckets=(512,), patch_buckets=(288,))
            logits = np.asarray(forward(state, inputs))[0, len(this["input_ids"]) - 1 : len(sample.ids)]
            assert_logits(logits, recorded if replied else recorded[:1])


def test_tied_model_has_the_logits_of_transformers(pair, measure):
    both = pair("tiny_tied")
    samples = ref.make_samples([(9, image(6, 10), 5), (4, video(2, 8, 6), 11)], both.config)
    with torch.no_grad():
        theirs = both.torch(**ref.torch_inputs(samples, both.config)).logits
    graph, state = nnx.split(both.model)
    ours = jax.jit(lambda state, inputs: nnx.merge(graph, state)(inputs))(state, collate(samples, both.config.vision))
    measure("end to end", *(np.concatenate(ref.real_tokens(values, samples, "right")) for values in (ours, theirs)))
