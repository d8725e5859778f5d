"""Claims about settings: those of an older version are refused in one line that has the new name."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from svlm_jax.cli.train import read
from svlm_jax.data.config import Bucket, DataConfig
from svlm_jax.errors import InputError
from svlm_jax.train.config import RENAMED, MeshConfig, OptimizerConfig, TrainConfig, check_names
from svlm_jax.train.run import CONFIG, read_config


def test_a_written_config_is_read_again(tmp_path):
    config = TrainConfig(data=DataConfig(paths=("a.jsonl", "b.jsonl")), profile=(10, 3), optimizer=OptimizerConfig("muon"))
    (tmp_path / CONFIG).write_text(json.dumps(asdict(config)))
    assert read_config(tmp_path) == config


@pytest.mark.parametrize(
    ("path", "old", "new"),
    [
        ((), "micro_batch", "micro_batch_size"),
        ((), "trained", "trainable"),
        (("data",), "slide", "text_window"),
        (("optimizer",), "clip", "max_grad_norm"),
        (("data", "buckets", 0), "frame", "frame_patches"),
    ],
)
def test_a_run_of_an_older_version_is_refused_with_the_new_name(path, old, new, tmp_path):
    raw = json.loads(json.dumps(asdict(TrainConfig())))
    holder = raw
    for key in path:
        holder = holder[key]
    holder[old] = holder.pop(new)
    (tmp_path / CONFIG).write_text(json.dumps(raw))
    with pytest.raises(InputError, match=rf"{old}: got an old name, expected {new}; use the version"):
        read_config(tmp_path)


def test_a_config_file_with_an_old_name_is_refused_with_the_new_one(tmp_path):
    path = Path(tmp_path / "run.py")
    path.write_text("from svlm_jax.train.config import TrainConfig\n\nconfig = TrainConfig(batch=4)\n")
    with pytest.raises(InputError, match=r"run\.py batch: got an old name, expected batch_size; rename it"):
        read(str(path))


def test_every_new_name_is_a_setting():
    kinds = (TrainConfig, DataConfig, OptimizerConfig, MeshConfig, Bucket)
    names = {name for kind in kinds for name in kind.__dataclass_fields__}
    assert set(RENAMED.values()) <= names and not set(RENAMED) & names - {"batch"}
    with pytest.raises(InputError, match="x foo: got an unknown setting"):
        check_names("x", TrainConfig, ["foo"])


NAN, INFINITE = float("nan"), float("inf")
WRONG = {
    TrainConfig: {
        "epochs": (NAN, INFINITE, 0, 1e300),
        "steps": (-1, 10**12),
        "seed": (-1, 2**40),
        "eval_batches": (0,),
        "eval_every": (-1,),
        "keep_every": (-1,),
        "hang_seconds": (-1, NAN),
        "lora_alpha": (NAN, -1),
        "profile": ((-1, 5),),
        "trainable": ("(", "["),
    },
    OptimizerConfig: {
        "learning_rate": (NAN, INFINITE, -1),
        "weight_decay": (NAN,),
        "max_grad_norm": (NAN,),
        "warmup_ratio": (5, NAN),
        "b1": (1.0, NAN, -0.1),
        "b2": (2,),
        "momentum": (5,),
        "eps": (0, -1, NAN),
    },
    DataConfig: {"fps": (NAN, INFINITE, 0.5, 0, -2), "workers": (-1,), "max_bad_fraction": (NAN,)},
}
CASES = [(kind, name, value) for kind, wrong in WRONG.items() for name, values in wrong.items() for value in values]


@pytest.mark.parametrize(("kind", "name", "value"), CASES)
def test_a_setting_out_of_bounds_is_refused_before_anything_is_loaded(kind, name, value):
    """Some ended a run hours later: an evaluation of no batch, a rate that is no number, a watchdog that never waits."""
    with pytest.raises(InputError, match=name):
        kind(**{name: value})


def test_a_run_of_more_steps_than_can_be_is_refused():
    with pytest.raises(InputError, match=r"epochs: got .*, which are"):
        TrainConfig(epochs=1e8).total_steps(10**6)
