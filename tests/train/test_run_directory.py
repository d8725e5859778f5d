"""Claims about a run's directory: nothing of others is written over, two runs do not share one, metrics survive a kill."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from svlm_jax.errors import InputError
from svlm_jax.train import dataset_check, logs, model_check
from svlm_jax.train.run import CONFIG, build_trainer, read_config
from svlm_jax.train.run_lock import LOCK, RunLock

OTHERS = {
    "a model": '{"model_type": "qwen2_5_vl", "hidden_size": 64}',
    "cut short": '{"data": {"paths": [',
    "a list": "[1]",
    "nothing": "",
    "zeros": "\0" * 100,
    "half of a run": '{"data": {}, "optimizer": {}, "mesh": {}}',
    "other types": '{"data": {"paths": 5, "eval_paths": []}, "optimizer": {}, "mesh": {}, "profile": [0, 0]}',
}


@pytest.mark.parametrize("name", OTHERS)
def test_the_directory_of_something_else_is_refused_and_left_alone(name, config):
    path = Path(config.run_dir) / CONFIG
    path.parent.mkdir()
    path.write_text(OTHERS[name])
    with pytest.raises(InputError) as refused:
        build_trainer(config, Path(config.model))
    assert str(path) in str(refused.value) and "training run" in str(refused.value)
    assert path.read_text() == OTHERS[name] and [file.name for file in path.parent.iterdir()] == [CONFIG]


def test_what_is_refused_does_not_change_the_config_of_a_run(config):
    """Or the export of it would be of other settings than its checkpoints."""
    with pytest.raises(InputError, match="no_such"):
        build_trainer(replace(config, data=replace(config.data, paths=("/no_such.jsonl",))), Path(config.model))
    with pytest.raises(InputError, match=f"no {CONFIG}"):
        read_config(config.run_dir)


HOLD = "import fcntl, sys; file = open(sys.argv[1], 'ab'); fcntl.lockf(file, 2); print(flush=True); sys.stdin.read()"


def test_a_directory_has_one_run_at_a_time_until_its_process_ends(tmp_path):
    RunLock(tmp_path).close()
    holder = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / LOCK], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with holder:
        assert holder.stdout is not None and holder.stdout.readline()
        with pytest.raises(InputError, match="where a run is under way, expected one run at a time"):
            RunLock(tmp_path)
        holder.kill()
    RunLock(tmp_path).close()


TAILS = (b'{"step": 3, "lo', b"\0" * 50, b"\xff\xfe\n", b"5\n", b"[1]\nnull\n", b'{"step": "x"}\n')


@pytest.mark.parametrize("tail", TAILS)
def test_what_a_kill_left_at_the_end_of_the_metrics_costs_no_line_before_it(tail, tmp_path):
    path = tmp_path / logs.FILE
    path.write_bytes(b'{"step": 1, "loss": NaN}\n{"step": 2, "loss": 0.5}\n' + tail)
    assert [line["step"] for line in logs.read_metrics(tmp_path)] == [1, 2]
    writer = logs.MetricsWriter(tmp_path, 1)
    writer.write({"step": 2, "loss": float("inf"), "mfu": None})
    writer.close()
    assert path.read_bytes().splitlines()[1:] == [b'{"step": 2, "loss": null, "mfu": null}']


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")
def test_metrics_on_a_full_disk_are_one_line(tmp_path):
    writer = logs.MetricsWriter(tmp_path, 0)
    writer.file.close()
    writer.file = open("/dev/full", "w")  # noqa: SIM115 (closed by the writer)
    with pytest.raises(InputError, match=r"metrics\.jsonl: got a file that cannot be written \(No space left on device\)"):
        writer.write({"step": 1})
    writer.close()


def test_a_model_may_move_and_not_change(tmp_path):
    """Frozen parameters are in no checkpoint: with those of another model a run goes on as something that nobody trained."""
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    weights = rng.bytes(100_000)
    (tmp_path / "a" / "model.safetensors").write_bytes(weights)
    (tmp_path / "b" / "renamed.safetensors").write_bytes(weights)
    meta = {"config": json.dumps({"model": "a"}), "model": model_check.fingerprint(tmp_path / "a")}
    model_check.check_since_checkpoint(meta, "elsewhere/b", model_check.fingerprint(tmp_path / "b"))
    (tmp_path / "a" / "model.safetensors").write_bytes(rng.bytes(100_000))
    with pytest.raises(InputError, match="model: got 'a', with other weights, expected 'a' as the run started with it"):
        model_check.check_since_checkpoint(meta, "a", model_check.fingerprint(tmp_path / "a"))
    del meta["model"]  # of a version without: the name alone is compared
    model_check.check_since_checkpoint(meta, "a", "")
    with pytest.raises(InputError, match="model: got 'c'"):
        model_check.check_since_checkpoint(meta, "c", "")


def test_evaluation_data_that_changed_are_told_and_training_data_refused():
    three, four = ({"samples": number, "records": str(number), "media": "x"} for number in (3, 4))
    old, new = {"data": three, "eval_data": three}, {"data": three, "eval_data": four}
    lines: list[str] = []
    dataset_check.check_since_checkpoint(old, new, allow_changed=False, log=lines.append)
    assert lines == ["evaluation data changed since the checkpoint: 4 samples, not 3; do not compare losses with those before"]
    with pytest.raises(InputError, match="4 samples, not 3"):
        dataset_check.check_since_checkpoint(old, old | {"data": four}, allow_changed=False, log=lines.append)
    dataset_check.check_since_checkpoint({}, new, allow_changed=False, log=lines.append)  # of a version without
    assert len(lines) == 1
