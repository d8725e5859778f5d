"""Claims about the loss and about the replay of recorded training samples: the recording of the original agrees, so does one of
another window, seed and rate, and none of it does once a single thing in it is changed."""

import json
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from svlm_jax.checkpoint import convert
from svlm_jax.data.batch import collate
from svlm_jax.errors import InputError
from svlm_jax.families import config_json, preset
from svlm_jax.media.processor import Processor
from svlm_jax.model.parameters import from_parameters
from svlm_jax.model.text import Decoder
from svlm_jax.replay import sample
from svlm_jax.train.loss import BLOCK, cross_entropy, loss

AGREE = ("ids_equal", "text_equal", "labels_equal", "positions_equal", "grids_equal", "ok")
WORDS = [[7.5, 8.0, "goal"], [8.0, 8.6, "by"], [8.7, 9.2, "the"], [9.3, 9.9, "red"], [10.2, 11.1, "keeper"]]
USER = [
    {"type": "video", "video": "clip.mp4", "video_start": 7.5, "video_end": 11},
    {"type": "text", "text": "Commentate", "previous": "the team kick the ball"},
]
SAID = [{"type": "text_stream", "text_stream": WORDS, "qa_stream": [["", 9.5, "Who scored?", "Red."]]}]
SECOND = {  # another window (it ends in half a second), rate, seed and size than the recording of the original
    "fps": 4,
    "text_sink": 5,
    "text_sliding_window": 4,
    "frame_height": 28,
    "frame_width": 84,
    "seed": 3,
    "annotation": [{"role": "user", "content": USER}, {"role": "assistant", "content": SAID}],
}


# --- loss ---


def plain(logits: jax.Array, labels: np.ndarray) -> jax.Array:
    """Mean of -log softmax over labelled tokens, from all the logits at once."""
    labels = labels[:, 1:]
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), jnp.maximum(labels, 0)[..., None], axis=-1)[..., 0]
    return -jnp.mean(chosen[labels >= 0])


@pytest.fixture(scope="module")
def tiny(tiny_dir):
    config = config_json.read(tiny_dir).compute("float32")
    return from_parameters(config, convert.load(tiny_dir, config))


@pytest.mark.parametrize("block", [1, 4, BLOCK])
def test_the_loss_in_blocks_is_the_plain_one_and_so_are_its_gradients(tiny, block):
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(2, 9, tiny.config.text.hidden_size)), jnp.float32)
    labels = np.where(rng.random((2, 9)) < 0.5, rng.integers(0, 448, (2, 9)), -100)
    labels[0, 0], labels[1, -1] = 7, 8  # a first label counts for nothing, a last one counts
    (ours, count), found = jax.value_and_grad(lambda x: cross_entropy(tiny.text, x, labels, block), has_aux=True)(hidden)
    want, gradient = jax.value_and_grad(lambda x: plain(tiny.text.logits(x), labels))(hidden)
    assert count == np.count_nonzero(labels[:, 1:] >= 0)
    assert float(ours) == pytest.approx(float(want), rel=1e-6)
    np.testing.assert_allclose(found, gradient, atol=1e-7)


def test_without_a_label_the_loss_and_its_gradients_are_nothing(tiny):
    hidden = jnp.ones((1, 5, tiny.config.text.hidden_size))
    labels = np.full((1, 5), -100)
    (value, count), gradient = jax.value_and_grad(lambda x: cross_entropy(tiny.text, x, labels), has_aux=True)(hidden)
    assert value == count == 0 and not np.any(gradient)


def test_the_loss_of_a_padded_batch_is_the_mean_over_its_labelled_tokens(tiny, processor_dir):
    processor = Processor.from_directory(processor_dir, tiny.config)
    inputs = collate(
        [processor.prompt("goal by the red team"), processor.prompt("kick")], tiny.config.vision, token_buckets=(64,)
    )
    labels = np.where(inputs.index >= 4, inputs.ids, -100)
    (ours, count), logits = jax.jit(lambda inputs, labels: (loss(tiny, inputs, labels), tiny(inputs)))(inputs, labels)
    assert float(ours) == pytest.approx(float(plain(logits, labels)), rel=1e-6)
    assert count == np.count_nonzero(labels >= 0) < labels.size


def test_a_long_sequence_never_has_all_its_logits():
    """The published vocabulary and 8192 tokens; width cut down, so that all that is large is logits."""
    config = preset("qwen2.5-vl-7b")
    narrow = replace(config.text, hidden_size=128, num_attention_heads=1, num_key_value_heads=1, num_hidden_layers=1)
    narrow = replace(narrow, mrope_section=(16, 24, 24), intermediate_size=8)
    config = replace(config, text=narrow, vision=replace(config.vision, out_hidden_size=128)).compute("bfloat16", "float32")
    tokens, vocabulary = 8192, narrow.vocab_size

    def objective(kernel, hidden, labels):
        decoder = Decoder(config, None)
        decoder.head.kernel[...] = kernel
        return cross_entropy(decoder, hidden, labels)[0]

    shapes = [((128, vocabulary), jnp.float32), ((1, tokens, 128), jnp.bfloat16), ((1, tokens), jnp.int32)]
    compiled = jax.jit(jax.grad(objective, argnums=(0, 1))).lower(*(jax.ShapeDtypeStruct(*shape) for shape in shapes)).compile()
    temporary = compiled.memory_analysis().temp_size_in_bytes
    assert temporary < 4 * tokens * vocabulary / 3, temporary


# --- replay ---


def record(directory, settings: dict, ours: sample.SampleResult, **changed):
    """Write `ours` in the format of the recordings; `changed` replaces keys of the JSON and arrays (dots as __)."""
    names = ("model.norm.weight", "model.layers.1.mlp.down_proj.weight")
    arrays = {
        "input_ids": ours.sample.ids.astype(np.int64),
        "labels": ours.labels.astype(np.int64),
        "grid": np.array([clip.grid for clip in ours.sample.clips]),
        "position_ids": ours.positions,
        "pixel_values": np.concatenate([clip.patches for clip in ours.sample.clips]),
        "loss": np.float32(ours.loss),
        "logits_tail": ours.logits,
        **{f"grad.{name}": ours.gradients[name] for name in names},
    }
    norms = {name: float(np.linalg.norm(gradient)) for name, gradient in ours.gradients.items()}
    text = {**settings, "text": ours.text, "loss": ours.loss, "grad_norms": norms}
    for key, change in changed.items():
        where = arrays if (name := key.removeprefix("array_").replace("__", ".")) in arrays and key != name else text
        where[name] = change(where[name])
    (directory / "second.json").write_text(json.dumps(text))
    np.savez(directory / "second.npz", **arrays)
    return directory / "second.json"


@pytest.fixture(scope="module")
def second(tiny_tied_dir, processor_dir, tmp_path_factory) -> tuple[sample.SampleResult, object]:
    """What our code makes of SECOND on the tied model, and where it is recorded."""
    directory = tmp_path_factory.mktemp("second")
    config = config_json.read(tiny_tied_dir).compute("float32")
    processor = Processor.from_directory(processor_dir, config)
    arrays = {"logits_tail": np.zeros((32, config.text.vocab_size))}
    keys = {"sink": 5, "text_window": 4, "height": 28, "width": 84}
    results = {"text": "", "loss": 0.0, "grad_norms": {}}
    window = sample.annotation.parse(SECOND["annotation"])
    empty = sample.SampleRecording("second", 4, **keys, seed=3, annotation=window, **results, arrays=arrays)
    ours = sample.compute(empty, processor, convert.load(tiny_tied_dir, config))
    return ours, record(directory, SECOND, ours)


def test_the_recording_of_the_original_replays(data_dir, tiny_dir, processor_dir):
    result = sample.replay(data_dir / "sft" / "sft_24s.json", tiny_dir, processor_dir)
    assert all(result[name] is True for name in AGREE), result
    assert result["recording"] == "sft_24s"
    assert json.loads(json.dumps(result)) == result
    assert 0 < result["pixels_max"] <= 1e-6 and result["loss_relative"] <= 1e-4
    assert result["gradients_relative"] <= 1e-3 and result["grad_norms_relative"] <= 1e-3
    assert result["logits_max"] <= 2e-3 and result["logits_median"] <= 2e-4


def test_another_window_rate_seed_and_model_replays_up_to_the_id_that_was_changed(
    second, tiny_tied_dir, processor_dir, tmp_path
):
    ours = second[0]
    result = sample.replay(record(tmp_path, SECOND, ours, array_input_ids=nudge(40, 1)), tiny_tied_dir, processor_dir)
    assert not result["ok"] and not result["ids_equal"]
    assert all(result[name] is True for name in AGREE if name not in ("ids_equal", "ok")), result
    assert all(value <= 1e-5 for value in result.values() if isinstance(value, float)), result
    assert [clip.grid for clip in ours.sample.clips] == [(2, 2, 6)] * 3 + [(1, 2, 6)]
    rng = np.random.default_rng(1000 + 3 * 7919 + 30)  # 7.5 s at 4 fps
    first = rng.integers(0, 256, (3, 28, 84)).astype(np.uint8)
    red = (first[0, :14, :14] / 255 - 0.48145466) / 0.26862954
    np.testing.assert_allclose(ours.sample.clips[0].patches[0].reshape(3, 2, 14, 14)[0, 0], red, atol=1e-6)
    assert "Time=8.5-9.5s Who scored?<|vision_start|>" in ours.text and "assistant\nRed.\n by the ..." in ours.text
    assert "previous text\nthe the ball<|im_end|>" in ours.text


def nudge(place, by):
    def change(array):
        array = np.array(array)
        array[place] += by
        return array

    return change


BROKEN = {  # what is changed, and what then no longer agrees
    "an id": ({"array_input_ids": nudge(40, 1)}, "ids_equal"),
    "a label": ({"array_labels": nudge(-2, 1)}, "labels_equal"),
    "a label where there is none": ({"array_labels": nudge(3, 500)}, "labels_equal"),
    "a position": ({"array_position_ids": nudge((0, 50), 0.5)}, "positions_equal"),
    "a grid": ({"array_grid": nudge((2, 0), 1)}, "grids_equal"),
    "the text": ({"text": lambda text: text.replace("Red", "red")}, "text_equal"),
    "a pixel": ({"array_pixel_values": nudge((3, 100), 1e-4)}, "pixels_max"),
    "fewer pixels": ({"array_pixel_values": lambda array: array[:-1]}, "pixels_max"),
    "the loss in the arrays": ({"array_loss": lambda loss: loss * np.float32(1.001)}, "loss_relative"),
    "the loss in the JSON": ({"loss": lambda loss: loss * 0.999}, "loss_relative"),
    "a loss that is no number": ({"array_loss": lambda loss: loss * np.nan}, "loss_relative"),
    "a gradient": ({"array_grad__model__norm__weight": lambda array: array * 1.01}, "gradients_relative"),
    "a gradient upside down": ({"array_grad__model__norm__weight": lambda array: array[::-1]}, "gradients_relative"),
    "a norm": (
        {"grad_norms": lambda norms: {**norms, "model.embed_tokens.weight": norms["model.embed_tokens.weight"] * 1.01}},
        "grad_norms_relative",
    ),
    "a logit": ({"array_logits_tail": nudge((5, 7), 0.01)}, "logits_max"),
    "all logits": ({"array_logits_tail": lambda array: array + 1e-3}, "logits_median"),
    "a logit that is no number": ({"array_logits_tail": nudge((0, 0), np.nan)}, "logits_max"),
    "too few logits": ({"array_logits_tail": lambda array: array[:8]}, "logits_max"),
}


@pytest.mark.parametrize(("changed", "field"), BROKEN.values(), ids=BROKEN.keys())
def test_one_changed_thing_fails_the_replay_and_is_named(second, tmp_path, changed, field):
    ours, whole = second
    result = sample.compare(sample.read(record(tmp_path, SECOND, ours, **changed)), ours)
    agreed = sample.compare(sample.read(whole), ours)
    assert agreed["ok"] and not result["ok"]
    assert result[field] != agreed[field]
    others = {name for name in AGREE[:-1] if name != field}
    assert all(result[name] is True for name in others)
    json.dumps(result, allow_nan=False)


MALFORMED = {
    "key": ({"fps": lambda _: None}, "second.json fps: got None, expected a JSON number"),
    "rate": ({"fps": lambda _: 2.5}, "second.json fps: got 2.5, expected a whole number, 1 or more"),
    "seed": ({"seed": lambda _: True}, "second.json seed: got True"),
    "record": ({"annotation": lambda record: record[:1]}, "second.json annotation: got a list of 1"),
    "norms": ({"grad_norms": lambda _: {"a": "b"}}, "second.json grad_norms a: got 'b'"),
    "lengths": ({"array_labels": lambda labels: labels[:-1]}, "second.npz labels: got int64"),
    "dtype": ({"array_input_ids": lambda ids: ids.astype(float)}, "second.npz input_ids: got float64"),
    "axes": ({"array_grid": lambda grid: grid[:, :2]}, "second.npz grid: got int64 [4, 2], expected whole numbers [any, 3]"),
}


@pytest.mark.parametrize(("changed", "said"), MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_recording_is_one_line_that_names_the_key(second, tmp_path, changed, said):
    with pytest.raises(InputError) as error:
        sample.read(record(tmp_path, SECOND, second[0], **changed))
    assert said in str(error.value)


@pytest.mark.parametrize(
    "name", ["input_ids", "labels", "grid", "position_ids", "pixel_values", "loss", "logits_tail", "grad."]
)
def test_a_missing_array_is_named(second, tmp_path, name):
    path = record(tmp_path, SECOND, second[0])
    arrays = {key: array for key, array in np.load(tmp_path / "second.npz").items() if not key.startswith(name)}
    np.savez(tmp_path / "second.npz", **arrays)
    with pytest.raises(InputError, match=rf"second\.npz {name}.*: got nothing"):
        sample.read(path)


def test_a_truncated_or_absent_file_is_said(second, tmp_path):
    for file in second[1].parent.iterdir():
        shutil.copy(file, tmp_path)
    path, arrays = tmp_path / "second.json", tmp_path / "second.npz"
    whole = arrays.read_bytes()
    broken = [whole[: len(whole) // 2], b"", whole[:100], whole[:5000] + bytes(200) + whole[5200:], b"\x93NUMPY" + whole]
    for content in broken:
        arrays.write_bytes(content)
        with pytest.raises(InputError, match=r"second\.npz: got an unreadable file"):
            sample.read(path)
    np.save(tmp_path / "one.npy", np.zeros(3))
    (tmp_path / "one.npy").replace(arrays)
    with pytest.raises(InputError, match=r"second\.npz: got an unreadable file"):
        sample.read(path)
    arrays.unlink()
    with pytest.raises(InputError, match=r"second\.npz: got no such file"):
        sample.read(path)
    path.write_text(path.read_text()[:-20])
    with pytest.raises(InputError, match=r"second\.json: got broken JSON"):
        sample.read(path)


def test_another_model_is_refused_before_anything_is_computed(second, tiny_dir, tiny_tied_dir, processor_dir, tmp_path):
    with pytest.raises(InputError, match=r"grad_norms: got 13 other names \(lm_head\.weight\), expected the model's"):
        sample.replay(second[1], tiny_dir, processor_dir)
    config = config_json.read(tiny_tied_dir)
    pixels = Processor.from_directory(processor_dir, config).video_config
    for changed, said in (
        ({"array_logits_tail": lambda array: array[:, 1:]}, "x logits_tail: got (32, 447), expected rows of 448 logits"),
        ({"array_grad__model__norm__weight": lambda array: array[1:]}, "x grad.model.norm.weight: got"),
        ({"frame_width": lambda _: 90}, "x frame_height and frame_width: got 28 x 90 px, expected multiples of 28"),
    ):
        with pytest.raises(InputError) as error:
            sample.check(sample.read(record(tmp_path, SECOND, second[0], **changed)), config, pixels, "x")
        assert said in str(error.value)
