"""Claims about runs: one that goes on is one that never stopped; what is learned is exported and streamed."""

import gc
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

import svlm_jax
from svlm_jax.config import StreamConfig
from svlm_jax.data import annotation, records
from svlm_jax.data.dataset import load_examples
from svlm_jax.data.pipeline import FILLER, pad_batch
from svlm_jax.data.windows import cut
from svlm_jax.decode.sampling import Sampling
from svlm_jax.errors import InputError
from svlm_jax.train import logs
from svlm_jax.train.checkpoints import FOLDER
from svlm_jax.train.config import MeshConfig, OptimizerConfig
from svlm_jax.train.export import export
from svlm_jax.train.loop import Preempted
from svlm_jax.train.prefetch import shard_batch
from svlm_jax.train.run import build_trainer
from tests.train.conftest import WINDOW, elsewhere, film_record


def losses(config) -> list[float]:
    return [line["loss"] for line in logs.read_metrics(config.run_dir) if "loss" in line]


@pytest.fixture(params=["adamw", pytest.param("muon", marks=pytest.mark.slow)])
def stopped(config, shallow_dir, request):
    """A run of 4 steps of which 2 are made: asked to stop in the middle of the third."""
    config = replace(config, steps=4, micro_batch_size=2, optimizer=replace(config.optimizer, name=request.param))
    trainer = build_trainer(config, shallow_dir, devices=jax.devices()[:1], should_stop=lambda micro_step: micro_step == 5)
    with pytest.raises(Preempted, match="saved after step 2"):
        trainer.run()
    return config


def test_a_run_that_was_stopped_resumes_as_if_it_had_not_been(stopped, train):
    uninterrupted, _ = train(elsewhere(stopped, "whole"))
    resumed, log_lines = train(stopped)
    assert any("resumes after step 2 of 4, 8 samples" in line for line in log_lines)
    assert losses(stopped) == losses(elsewhere(stopped, "whole")) and len(losses(stopped)) == 4
    for path, value in uninterrupted.state.trainable.items():
        np.testing.assert_array_equal(value, resumed.state.trainable[path])


def test_it_goes_on_with_another_mesh_and_micro_batch(stopped, train):
    train(elsewhere(stopped, "whole"))
    train(replace(stopped, mesh=MeshConfig(fsdp=2, tensor=2), micro_batch_size=4), 4)
    np.testing.assert_allclose(losses(stopped), losses(elsewhere(stopped, "whole")), rtol=1e-4)


def cut_short(checkpoint: Path) -> None:
    for path in checkpoint.rglob("*"):
        if path.is_file() and path.stat().st_size > 1000:
            path.write_bytes(path.read_bytes()[:200])


def flip(checkpoint: Path) -> None:
    """A bit in the middle of the largest file."""
    path = max((path for path in checkpoint.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize(("harm", "words"), [(cut_short, "a file is damaged or cut short"), (flip, "bits of .* are not what")])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(harm, words, config, train):
    config = replace(config, steps=2, save_every=1)
    train(config)
    newest = Path(config.run_dir) / FOLDER / "2"
    harm(newest)
    with pytest.warns(UserWarning, match=rf"{newest} does not load \({words}.*\): trying the one before"):
        _, log_lines = train(replace(config, steps=3))
    assert any("resumes after step 1 of 3" in line for line in log_lines)
    assert [line["step"] for line in logs.read_metrics(config.run_dir)] == [1, 2, 3]
    gc.collect()


def test_an_export_loads_in_transformers(config, train, tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    trainer, _ = train(replace(config, steps=1))
    export(config.run_dir, tmp_path / "out")
    model, loading_info = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(loading_info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    scale = model.model.language_model.norm.weight.detach().float().numpy()
    np.testing.assert_array_equal(scale, trainer.state.trainable["text.norm.scale"])


def test_old_checkpoints_make_room(config, train):
    train(replace(config, steps=5, save_every=1, keep_last=2, keep_every=3))
    assert sorted(int(path.name) for path in (Path(config.run_dir) / FOLDER).iterdir() if path.name.isdigit()) == [3, 4, 5]


def test_what_contradicts_the_run_is_refused(config, train):
    train(replace(config, steps=1))
    with pytest.raises(InputError, match=r"lora_rank: got 2, expected 0, as .* started with"):
        train(replace(config, steps=2, lora_rank=2))
    with pytest.raises(InputError, match=r"optimizer.name: got 'muon', expected 'adamw', as .* started with"):
        train(replace(config, steps=2, optimizer=OptimizerConfig("muon")))
    _, log_lines = train(replace(config, steps=2))
    assert "settings changed since this run started: steps" in log_lines


def test_every_step_is_one_line_of_numbers(config, train):
    train(replace(config, steps=2))
    line = logs.read_metrics(config.run_dir)[-1]
    wanted = {
        "loss",
        "learning_rate",
        "grad_norm",
        "tokens_per_second",
        "labels_per_second",
        "video_seconds_per_second",
        "padding_fraction",
    }
    assert wanted | {"data_wait_seconds", "step_seconds", "mfu", "bad_samples"} <= line.keys()
    assert 0 < line["padding_fraction"] < 1 and line["mfu"] is None  # a CPU's peak is not known


def test_data_that_changed_between_a_stop_and_a_start_is_refused_or_logged(config, train, shallow_dir, windows, tmp_path):
    """Sample g of a run is another one then, and its losses are those of no run."""
    copy = tmp_path / "mine.jsonl"
    copy.write_text(windows.read_text())
    config = replace(config, steps=1, data=replace(config.data, paths=(str(copy),)))
    train(config)
    lines = copy.read_text().splitlines()
    copy.write_text("".join(f"{line}\n" for line in lines[:5]))
    remedy = "restore them, start another run_dir, or resume with these: --data.allow-changed"
    with pytest.raises(InputError, match=rf"data\.paths: got .*changed.*5 samples, not 8.*; {remedy}"):
        build_trainer(replace(config, steps=2), shallow_dir, devices=jax.devices()[:1])
    copy.write_text("".join(f"{line}\n" for line in reversed(lines)))
    with pytest.raises(InputError, match="other records, or another order"):
        build_trainer(replace(config, steps=2), shallow_dir, devices=jax.devices()[:1])
    _, log_lines = train(replace(config, steps=2, data=replace(config.data, allow_changed=True)))
    assert any("data changed since the checkpoint: other records" in line for line in log_lines)
    assert any("resumes after step 1 of 2" in line for line in log_lines)
    build_trainer(replace(config, steps=2), shallow_dir, devices=jax.devices()[:1])  # what it went on with is now its data


def test_an_evaluation_of_what_cannot_be_read_is_no_loss_of_zero(config, train, windows):
    lines = windows.read_text().splitlines()
    missing = [line.replace("film.mp4", "gone.mp4") for line in lines]
    paths = {name: windows.with_name(f"{name}.jsonl") for name in ("gone", "half", "three")}
    for name, selected in (("gone", missing), ("half", [*lines[:2], missing[2]]), ("three", lines[:3])):
        paths[name].write_text("".join(f"{line}\n" for line in selected))
    trainer, log_lines = train(replace(config, steps=1))
    data = {name: load_examples([str(path)], config.data, trainer.train_set.build.processor) for name, path in paths.items()}

    def evaluate(name: str, share: float) -> float:
        trainer.eval_set, trainer.config = data[name], replace(config, data=replace(config.data, max_bad_fraction=share))
        with jax.set_mesh(trainer.step.mesh):
            return trainer.evaluate()

    with pytest.raises(InputError, match="bad samples: got 4 of 4"):
        evaluate("gone", 0.5)
    with pytest.raises(InputError, match=r"data\.eval_paths: got no label in 8 samples, 8 of them bad"):
        evaluate("gone", 1.0)
    assert [line for line in log_lines if line.startswith("bad sample gone.jsonl:8: ")] != []
    # Rows that are left of the last micro-batch of 4 are nobody's: no sample counts twice, a bad one not at all.
    single = {name: [one_loss(trainer, example) for example in data[name]] for name in ("three", "half")}
    for name, share in (("three", 0.0), ("half", 0.5)):
        total, count = (sum(part) for part in zip(*single[name], strict=True))
        assert evaluate(name, share) == pytest.approx(total / count, rel=1e-6)
    num_lines = len(log_lines)
    evaluate("half", 0.5)
    assert trainer.eval_bad_samples == 1 and len(log_lines) == num_lines  # told once


def one_loss(trainer, example) -> tuple[float, int]:
    """(sum of the losses, learned tokens) of one sample, in a batch of its own."""
    padded = pad_batch([example] + [FILLER] * 3, trainer.config.data.buckets[-1], trainer.step.config)
    with jax.set_mesh(trainer.step.mesh):
        sharded = shard_batch(padded, trainer.rows, 4, trainer.step.mesh)
        return tuple(map(float, trainer.step.eval_loss(trainer.state.trainable, trainer.frozen, sharded)))


def test_an_evaluation_is_the_same_twice(config, train, windows):
    data = replace(config.data, eval_paths=config.data.paths)
    trainer, _ = train(replace(config, data=data, eval_every=2, steps=3))
    losses = [line["eval_loss"] for line in logs.read_metrics(config.run_dir) if "eval_loss" in line]
    with jax.set_mesh(trainer.step.mesh):
        assert len(losses) == 2 and trainer.evaluate() == losses[-1] < losses[0]


def test_adapters_alone_are_trained_and_merged(config, train, shallow_dir, tmp_path):
    trainer, _ = train(replace(config, lora_rank=4, steps=2))
    assert all(".lora_" in path for path in trainer.state.trainable)
    assert float(np.abs(trainer.state.trainable["text.layers.attention.q.lora_b"]).max()) > 0
    written = export(config.run_dir, tmp_path / "out")
    assert written.lora_rank == 0
    before, after = (svlm_jax.from_pretrained(place, processor=config.processor) for place in (shallow_dir, tmp_path / "out"))
    name = "text.layers.0.attention.qkv.kernel"
    update = np.asarray(after.parameters[name]) - np.asarray(before.parameters[name])
    assert np.abs(update).max() > 0 and np.linalg.matrix_rank(update[:, 0, 0], tol=1e-5) <= 4
    np.testing.assert_array_equal(after.parameters["text.embedding"], before.parameters["text.embedding"])


@pytest.mark.slow
def test_the_average_can_be_exported(config, train, tmp_path):
    trainer, _ = train(replace(config, ema_decay=0.5, steps=2))
    export(config.run_dir, tmp_path / "mean", ema=True)
    mean = svlm_jax.from_pretrained(tmp_path / "mean", processor=config.processor).parameters["text.norm.scale"]
    np.testing.assert_array_equal(mean, trainer.state.ema["text.norm.scale"])
    train(elsewhere(config, "none", steps=1))
    with pytest.raises(InputError, match="--ema: got a run without an average"):
        export(elsewhere(config, "none").run_dir, tmp_path / "other", ema=True)


@pytest.mark.slow  # a minute and a half
def test_what_is_trained_is_said_in_a_stream(config, train, windows, tmp_path):
    """Annotated film -> overlapped windows -> training -> export -> stream: the words of the annotation, second by second."""
    film = annotation.parse(film_record(), "film")
    records.write(tmp_path / "train.jsonl", cut(film, window=WINDOW, stride=1))
    data = replace(config.data, paths=(str(tmp_path / "train.jsonl"),), as_streamed=True)
    train(replace(config, data=data, steps=150, batch_size=8, micro_batch_size=8))
    assert losses(config)[-1] < 0.05
    export(config.run_dir, tmp_path / "out")
    vlm = svlm_jax.from_pretrained(tmp_path / "out")
    settings = StreamConfig(vision_window=WINDOW, text_rounds=WINDOW)
    greedy, start, length = Sampling(repetition_penalty=1.0), 3, 2 * WINDOW
    clock = {"start": start, "duration": length, "previous": "".join(f" w{word}" for word in range(start))}
    replies = vlm.watch(windows.parent / "film.mp4", config=settings, sampling=greedy, **clock)
    words = [word for reply in replies for word in reply.text.split()]
    assert words == [f"w{word}" for word in range(start, start + length)]
