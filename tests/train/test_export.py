"""Claims about exports: what was trained, bit for bit, with the memory of what is written and a tensor; nothing of moments."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from svlm_jax.checkpoint import convert
from svlm_jax.errors import InputError
from svlm_jax.families import FAMILIES, config_json
from svlm_jax.model.transforms import merge_lora
from svlm_jax.train import export, setup
from svlm_jax.train.checkpoints import FOLDER, Checkpoints
from svlm_jax.train.optimizer import build_optimizer
from svlm_jax.train.run import CONFIG
from svlm_jax.train.step import TrainStep
from tests.support.families import tiny_checkpoint


@pytest.fixture
def saved():
    """Makes a run directory with a checkpoint, as training writes it, of parameters that were never trained; its step."""

    def save(config, ema=0.0):
        config = replace(config, ema_decay=ema)
        directory, mesh = Path(config.model), setup.build_mesh(config.mesh, jax.devices()[:1])
        model = setup.training_model_config(config, config_json.read(directory))
        with jax.set_mesh(mesh):
            trained, frozen = setup.load_parameters(config, model, directory, mesh)
            trained = {path: value + 0.01 * (number + 1) for number, (path, value) in enumerate(sorted(trained.items()))}
            step = TrainStep(model, build_optimizer(config.optimizer, 1), mesh, trained, ema)
            state = step.init_state(trained)
            state = state._replace(ema={path: value + 1 for path, value in state.ema.items()})
        Path(config.run_dir).mkdir(parents=True, exist_ok=True)
        (Path(config.run_dir) / CONFIG).write_text(json.dumps(asdict(config)))
        checkpoints = Checkpoints(config.run_dir, keep_last=1)
        checkpoints.save(1, state, {"samples": 4}, wait=True)
        checkpoints.close()
        return model, state, frozen

    return save


def written(directory) -> dict[str, np.ndarray]:
    config = replace(config_json.read(directory), scan_layers=True)
    return {path: np.asarray(value) for path, value in convert.load(directory, config).items()}


def expected(model, state, frozen, dtype, ema=False) -> dict[str, np.ndarray]:
    """The whole of it on the device, as exports were made at first."""
    parameters = {path: jnp.copy(value) for path, value in {**(state.ema if ema else state.trainable), **frozen}.items()}
    _, values = merge_lora(model, parameters)
    return {path: np.asarray(value.astype(dtype)) for path, value in values.items()}


@pytest.mark.parametrize(("kind", "to"), [("full", "hf"), ("ema", "hf"), ("adapters", "hf"), ("bfloat16", "orbax")])
def test_an_export_is_what_was_trained_bit_for_bit(kind, to, config, saved, tmp_path):
    config = replace(config, lora_rank=2 if kind == "adapters" else 0, dtype="bfloat16" if kind == "bfloat16" else "float32")
    dtype, ema = ("bfloat16" if kind == "bfloat16" else "float32"), kind == "ema"
    model, state, frozen = saved(config, 0.5 if ema else 0.0)
    export.export(config.run_dir, tmp_path / "out", to=to, dtype=dtype, ema=ema)
    want, got = expected(model, state, frozen, dtype, ema), written(tmp_path / "out")
    assert got.keys() == want.keys()
    for path in want:
        np.testing.assert_array_equal(got[path].view(f"u{got[path].itemsize}"), want[path].view(f"u{want[path].itemsize}"))


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl"])
def test_an_export_of_another_family_loads_in_transformers(name, config, saved, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    directory = tiny_checkpoint(FAMILIES[name], tmp_path / "model")
    _, state, _ = saved(replace(config, model=str(directory), processor=str(directory)))
    export.export(config.run_dir, tmp_path / "out")
    read = getattr(transformers, FAMILIES[name].architecture).from_pretrained
    model, report = read(tmp_path / "out", output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    before, after = read(directory).state_dict(), model.state_dict()
    changed = {key for key in after if not torch.equal(before[key], after[key])}
    assert changed == {key for key in after if not key.startswith("model.visual.")}  # a frozen tower is that of the source
    scale = after["model.language_model.norm.weight"].numpy()
    np.testing.assert_array_equal(scale, state.trainable["text.norm.scale"])
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (directory / "tokenizer.json").read_bytes()


def test_an_export_puts_nothing_on_a_device_and_reads_no_moments(config, saved, tmp_path, monkeypatch):
    """A 7B run has 84 GB of state, and an 80 GB GPU did not export it."""
    saved(config, 0.5)
    requests, before = [], sum(array.nbytes for array in jax.live_arrays())
    peak_bytes, read = [0], Checkpoints._read

    def watched(self, step, request):
        requests.append(request)
        out = read(self, step, request)
        peak_bytes[0] = max(peak_bytes[0], sum(array.nbytes for array in jax.live_arrays()))
        return out

    monkeypatch.setattr(Checkpoints, "_read", watched)
    export.export(config.run_dir, tmp_path / "out")
    states = [request["state"] for request in requests if "state" in request]
    assert states and all(set(state) == {"trainable"} and len(state["trainable"]) == 1 for state in states)
    assert peak_bytes[0] <= before


def test_a_damaged_checkpoint_is_passed_over_in_an_export_too(config, saved, tmp_path):
    _, state, _ = saved(config)
    newest = Path(config.run_dir) / FOLDER / "1"
    newest.rename(newest.with_name("kept"))
    saved(config)
    newest.rename(newest.with_name("2"))
    (newest.with_name("kept")).rename(newest)
    for path in (newest.with_name("2") / "state").rglob("d/*"):
        path.write_bytes(path.read_bytes()[:50])
    with pytest.warns(UserWarning, match=r"2 does not load \(a file is damaged or cut short\): trying the one before"):
        export.export(config.run_dir, tmp_path / "out")
    got = written(tmp_path / "out")["text.norm.scale"]
    np.testing.assert_array_equal(got, np.asarray(state.trainable["text.norm.scale"]).astype(got.dtype))


def test_a_target_that_exists_is_refused_before_anything_is_read(config, saved, tmp_path, monkeypatch):
    saved(config)
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(Checkpoints, "load_trainable", lambda *_, **__: pytest.fail("read"))
    with pytest.raises(InputError, match="something that exists already"):
        export.export(config.run_dir, tmp_path / "out")
