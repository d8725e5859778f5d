"""Claims about an optimiser step: cut, accumulated or whole it is the same; frozen is frozen; a bad step changes nothing."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from svlm_jax.errors import InputError
from svlm_jax.train import logs
from svlm_jax.train.config import MeshConfig, OptimizerConfig
from svlm_jax.train.step import optimizer, schedule
from tests.train.conftest import elsewhere

MESHES = {
    "fsdp": MeshConfig(fsdp=8),
    "tensor": MeshConfig(fsdp=4, tensor=2),
    "context": MeshConfig(fsdp=4, context=2),
}


def trained(made) -> dict[str, np.ndarray]:
    return {path: np.asarray(value) for path, value in made.state.trained.items()}


def far(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    assert one.keys() == other.keys()
    return max(float(np.abs(one[path] - other[path]).max()) for path in one)


@pytest.fixture
def sgd(monkeypatch):
    """Plain gradient descent: of AdamW's first steps nearly all numbers move by the learning rate, whatever their gradient."""
    monkeypatch.setattr("svlm_jax.train.run.optimizer", lambda config, steps: optax.sgd(1e-2))


@pytest.mark.parametrize("name", MESHES)
def test_a_step_on_eight_devices_is_that_of_one(name, config, train, sgd):
    config = replace(config, batch=8, micro_batch=8)
    want = trained(train(config)[0])
    mesh = MESHES[name]
    many, _ = train(elsewhere(config, "many", mesh=mesh), 8)
    assert far(want, trained(many)) < 1e-5
    leaf = many.state.trained["text.layers.mlp.up.kernel"]
    assert leaf.addressable_shards[0].data.size * 8 == leaf.size


def test_moments_lie_where_their_parameters_do(config, train):
    made, _ = train(replace(config, steps=1, mesh=MeshConfig(fsdp=2, tensor=2)), 4)
    moments = next(part for part in jax.tree.leaves(made.state.moments, is_leaf=_is_adam) if _is_adam(part))
    for path, value in made.state.trained.items():
        assert moments.mu[path].sharding == moments.nu[path].sharding == value.sharding
    assert not any(path.startswith("vision.") for path in moments.mu)


def _is_adam(part) -> bool:
    return isinstance(part, optax.ScaleByAdamState)


def test_four_micro_steps_are_one_of_four_samples(config, train, sgd):
    want = trained(train(config)[0])
    assert far(want, trained(train(elsewhere(config, "apart", micro_batch=1))[0])) < 1e-5


def test_the_loss_of_a_step_is_the_mean_over_all_learned_tokens(config, train):
    train(replace(config, steps=1))
    train(elsewhere(config, "apart", steps=1, micro_batch=1))
    one, apart = (logs.read(run)[0] for run in (config.run_dir, elsewhere(config, "apart").run_dir))
    assert one["loss"] == pytest.approx(apart["loss"], rel=1e-6)
    assert one["learned_tokens"] == apart["learned_tokens"] > 0


def test_the_vision_tower_is_frozen_unless_it_is_named(config, train):
    made, _ = train(config)
    assert all(path.startswith("text.") for path in made.state.trained)
    every, _ = train(elsewhere(config, "all", trained=".*", steps=1))
    before = {path: np.asarray(value) for path, value in made.frozen.items()}
    after = trained(every)
    assert far(before, {path: after[path] for path in before}) > 1e-5


def test_a_step_that_is_not_finite_changes_nothing(config, train):
    made, _ = train(replace(config, steps=1))
    state, step = made.state, made.step
    before = trained(made)
    sums = step.empty()
    sums = sums._replace(
        gradients=sums.gradients | {"text.norm.scale": jnp.full_like(state.trained["text.norm.scale"], jnp.nan)}
    )
    after, empty, told = step.apply(state, sums)
    assert far(before, {path: np.asarray(value) for path, value in after.trained.items()}) == 0
    assert (int(told.finite), int(after.skipped), int(after.step)) == (0, 1, 2)
    assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(empty))


def test_a_run_of_bad_steps_stops_and_names_its_samples(config, train):
    hot = replace(config, steps=9, bad_steps=2, optimizer=OptimizerConfig(learning_rate=1e38, clip=0.0, warmup=0.0))
    with pytest.raises(InputError, match="not finite in 2 steps in a row"):
        train(hot)
    assert "train.jsonl:" in (Path(hot.run_dir) / "not_finite_0.jsonl").read_text()


def test_the_average_follows_the_parameters(config, train):
    made, _ = train(replace(config, ema=0.5, steps=2))
    path = "text.norm.scale"
    assert far({path: np.asarray(made.state.ema[path])}, {path: trained(made)[path]}) > 0


def test_the_learning_rate_rises_and_falls():
    rate = schedule(OptimizerConfig(learning_rate=1.0, warmup=0.1), 100)
    told = [float(rate(step)) for step in range(100)]
    assert told[0] == pytest.approx(0.1) and told[9] == pytest.approx(1.0) == max(told)
    assert told[99] < 0.01 and all(before >= after for before, after in pairwise(told[10:]))
    assert float(schedule(OptimizerConfig(learning_rate=1.0, schedule="constant", warmup=0.0), 10)(9)) == 1.0


def test_weight_decay_leaves_vectors_alone():
    tx = optimizer(OptimizerConfig(learning_rate=1.0, warmup=0.0, schedule="constant", weight_decay=0.1, clip=0.0), 10)
    values = {"matrix": jnp.ones((2, 2)), "vector": jnp.ones(2)}
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, values), tx.init(values), values)
    assert float(updates["matrix"].max()) < 0 and float(jnp.abs(updates["vector"]).max()) == 0
