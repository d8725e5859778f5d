"""Claims about an optimiser step: cut, accumulated or whole it is the same; frozen is frozen; a bad step changes nothing."""

from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from einops import parse_shape, rearrange
from optax.contrib import MuonState

from svlm_jax.errors import InputError
from svlm_jax.families import FAMILIES
from svlm_jax.model import text
from svlm_jax.model.parameters import shapes
from svlm_jax.train import logs
from svlm_jax.train.config import MeshConfig, OptimizerConfig
from svlm_jax.train.optimizer import advance_schedule, build_optimizer, learning_rate_schedule, learning_rates
from tests.support.families import tiny_config
from tests.train.conftest import elsewhere

MESHES = {
    "fsdp": MeshConfig(fsdp=8),
    "tensor": MeshConfig(fsdp=4, tensor=2),
    "context": MeshConfig(fsdp=4, context=2),
}


def trained(trainer) -> dict[str, np.ndarray]:
    return {path: np.asarray(value) for path, value in trainer.state.trainable.items()}


def max_difference(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> float:
    assert first.keys() == second.keys()
    return max(float(np.abs(first[path] - second[path]).max()) for path in first)


@pytest.fixture
def sgd(monkeypatch):
    """Plain gradient descent: of AdamW's first steps nearly all numbers move by the learning rate, whatever their gradient."""
    monkeypatch.setattr("svlm_jax.train.run.build_optimizer", lambda config, steps: optax.sgd(1e-2))


@pytest.mark.slow  # test_families.py has the gradients on a mesh, test_run.py a run that goes on with another one
@pytest.mark.parametrize("name", ["fsdp", "tensor", "context"])
def test_a_step_on_eight_devices_is_that_of_one(name, config, train, sgd):
    config = replace(config, batch_size=8)  # in two micro-steps, whose program the other tests have compiled
    want = trained(train(config)[0])
    many, _ = train(elsewhere(config, "many", mesh=MESHES[name], micro_batch_size=8), 8)
    assert max_difference(want, trained(many)) < 1e-5
    leaf = many.state.trainable["text.layers.mlp.up.kernel"]
    assert leaf.addressable_shards[0].data.size * 8 == leaf.size


@pytest.mark.parametrize("name", ["adamw", pytest.param("muon", marks=pytest.mark.slow)])
def test_moments_lie_where_their_parameters_do(name, config, train):
    named = OptimizerConfig(name=name)
    trainer, _ = train(replace(config, steps=1, mesh=MeshConfig(fsdp=2, tensor=2), optimizer=named), 4)
    if name == "muon":
        moments = next(part for part in jax.tree.leaves(trainer.state.opt_state, is_leaf=_is_muon) if _is_muon(part))
        assert "text.layers.mlp.up.kernel" in (arrays := _arrays(moments.mu)) and "text.embedding" not in arrays
        assert all(leaf.sharding == trainer.state.trainable[path].sharding for path, leaf in arrays.items())
        return
    moments = next(part for part in jax.tree.leaves(trainer.state.opt_state, is_leaf=_is_adam) if _is_adam(part))
    for path, value in trainer.state.trainable.items():
        assert moments.mu[path].sharding == moments.nu[path].sharding == value.sharding
    assert not any(path.startswith("vision.") for path in moments.mu)


def _is_adam(part) -> bool:
    return isinstance(part, optax.ScaleByAdamState)


def _is_muon(part) -> bool:
    return isinstance(part, MuonState)


def _arrays(moments) -> dict[str, jax.Array]:
    return {path: leaf for path, leaf in moments.items() if isinstance(leaf, jax.Array)}


MATRICES = {  # a parameter of each kind that Muon moves: its shape, and the stack of matrices that it is
    "text.layers.attention.q.kernel": ((2, 12, 3, 4), "layer i head o -> (layer head) i o"),
    "text.layers.attention.out.kernel": ((2, 3, 4, 12), "layer head k o -> layer (head k) o"),
    "text.layers.mlp.up.kernel": ((2, 12, 16), "layer i o -> layer i o"),
    "text.layers.0.mlp.down.kernel": ((16, 12), "i o -> 1 i o"),
    "vision.blocks.0.attention.qkv.kernel": ((12, 3, 2, 6), "i three head k -> three i (head k)"),
    "vision.blocks.0.attention.out.kernel": ((2, 6, 12), "head k o -> 1 (head k) o"),
    "vision.blocks.0.mlp.up.kernel": ((12, 16), "i o -> 1 i o"),
    "vision.merger.up.kernel": ((16, 16), "i o -> 1 i o"),
    "vision.deepstack.0.down.kernel": ((16, 12), "i o -> 1 i o"),
}


def with_singular_values(gradient, stack, least):
    """A stack of matrices whose singular values are `least` to 1."""
    left, right = stack.split(" -> ")
    u, sizes, vt = np.linalg.svd(rearrange(gradient, stack), full_matrices=False)
    matrices = (u * np.linspace(1, least, sizes.shape[-1])) @ vt
    return rearrange(matrices.astype(np.float32), f"{right} -> {left}", **parse_shape(gradient, left))


def test_muon_moves_matrices_by_all_their_directions_alike():
    rate, rms = 0.01, 0.3
    tx = build_optimizer(OptimizerConfig("muon", rate, "constant", warmup_ratio=0.0, muon_rms=rms, max_grad_norm=0.0), 10)
    shapes = {path: shape for path, (shape, _) in MATRICES.items()} | {"text.embedding": (7, 12), "text.norm.scale": (12,)}
    draw = np.random.default_rng(0)
    values = {path: jnp.asarray(draw.normal(size=shape), jnp.float32) for path, shape in shapes.items()}
    gradients = {path: draw.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}
    for path, (
        _,
        stack,
    ) in MATRICES.items():  # five steps of Newton-Schulz make singular values of 0.2 to 1 alike, not those near 0
        gradients[path] = with_singular_values(gradients[path], stack, 0.2)
    updates, _ = jax.jit(tx.update)(gradients, tx.init(values), values)
    for path, (_, stack) in MATRICES.items():
        update = rearrange(np.asarray(updates[path]), stack)
        sizes = np.linalg.svd(update, compute_uv=False) / (rate * rms * max(update.shape[1:]) ** 0.5)
        assert 0.6 < sizes.min() <= sizes.max() < 1.3, path
        assert np.sum(update * rearrange(np.asarray(gradients[path]), stack)) < 0, path
    for path in ("text.embedding", "text.norm.scale"):  # the first step of Adam: the rate, against the gradient
        assert np.sign(updates[path]) == pytest.approx(-np.sign(gradients[path]))
        assert np.abs(updates[path]) == pytest.approx(np.abs(updates[path]).max(), rel=1e-3), path


def test_four_micro_steps_are_one_of_four_samples(config, train, sgd):
    want = trained(train(config)[0])
    assert max_difference(want, trained(train(elsewhere(config, "apart", micro_batch_size=1))[0])) < 1e-5


def test_the_loss_of_a_step_is_the_mean_over_all_labels(config, train):
    train(replace(config, steps=1))
    train(elsewhere(config, "apart", steps=1, micro_batch_size=1))
    together, apart = (logs.read_metrics(run)[0] for run in (config.run_dir, elsewhere(config, "apart").run_dir))
    assert together["loss"] == pytest.approx(apart["loss"], rel=1e-6)
    assert together["labels"] == apart["labels"] > 0


def test_the_vision_tower_is_frozen_unless_it_is_named(config, train):
    trainer, _ = train(replace(config, steps=1))
    assert all(path.startswith("text.") for path in trainer.state.trainable)
    before = {path: np.asarray(value) for path, value in trainer.frozen.items()}
    named, _ = train(elsewhere(config, "named", trainable=r"vision\.(merger|blocks\.1\.attention)\..*", steps=1))
    after = trained(named)
    assert {path.split(".")[1] for path in after} == {"merger", "blocks"} and after.keys() < before.keys()
    assert max_difference({path: before[path] for path in after}, after) > 1e-5
    assert all(np.abs(after[path] - before[path]).max() > 0 for path in after if path.endswith("kernel"))


def test_a_step_that_is_not_finite_changes_nothing(config, train):
    trainer, _ = train(replace(config, steps=1))
    state, step = trainer.state, trainer.step
    before = trained(trainer)
    accumulator = step.zero_grads()
    accumulator = accumulator._replace(
        gradients=accumulator.gradients | {"text.norm.scale": jnp.full_like(state.trainable["text.norm.scale"], jnp.nan)}
    )
    after, empty, metrics = step.apply_gradients(state, accumulator)
    assert max_difference(before, {path: np.asarray(value) for path, value in after.trainable.items()}) == 0
    assert (int(metrics.finite), int(after.skipped), int(after.step)) == (0, 1, 2)
    assert [int(leaf) for leaf in jax.tree.leaves(after.opt_state) if leaf.ndim == 0] == [1, 2]  # Adam's count, the schedule's
    assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(empty))


def test_a_run_of_bad_steps_stops_and_names_its_samples(config, train):
    hot = replace(
        config, steps=9, max_skipped_steps=2, optimizer=OptimizerConfig(learning_rate=1e38, max_grad_norm=0.0, warmup_ratio=0.0)
    )
    with pytest.raises(InputError, match="not finite in 2 steps in a row"):
        train(hot)
    assert "train.jsonl:" in (Path(hot.run_dir) / "not_finite_0.jsonl").read_text()


def test_the_average_follows_the_parameters(config, train):
    trainer, _ = train(replace(config, ema_decay=0.5, steps=2))
    path = "text.norm.scale"
    assert max_difference({path: np.asarray(trainer.state.ema[path])}, {path: trained(trainer)[path]}) > 0


def test_the_learning_rate_rises_and_falls():
    rate = learning_rate_schedule(OptimizerConfig(learning_rate=1.0, warmup_ratio=0.1), 100)
    rates = [float(rate(step)) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == pytest.approx(1.0) == max(rates)
    assert rates[99] < 0.01 and all(before >= after for before, after in pairwise(rates[10:]))
    assert (
        float(learning_rate_schedule(OptimizerConfig(learning_rate=1.0, schedule="constant", warmup_ratio=0.0), 10)(9)) == 1.0
    )


@pytest.mark.parametrize(("family", "stacked"), [("qwen2_5_vl", True), ("qwen2_5_vl", False), ("qwen3_vl", True)])
def test_weight_decay_leaves_norms_and_biases_alone(family, stacked):
    """Of a real model, whose layers are stacked: a stack of norms has two axes, and is no matrix. Learned positions are an
    embedding, and decay as Hugging Face's Trainer has it."""
    tx = build_optimizer(
        OptimizerConfig(learning_rate=1.0, warmup_ratio=0.0, schedule="constant", weight_decay=0.1, max_grad_norm=0.0), 10
    )
    config = replace(tiny_config(FAMILIES[family]), scan_layers=stacked, lora_rank=2)
    values = {path: jnp.ones((2,) * len(leaf.shape)) for path, leaf in shapes(config).items()}
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, values), tx.init(values), values)
    decayed = {path for path, update in updates.items() if float(jnp.abs(update).max())}
    names = ("kernel", "embedding", "position_embedding", "lora_a", "lora_b")
    assert decayed == {path for path in values if path.split(".")[-1] in names}
    assert ("vision.position_embedding" in decayed) == (family == "qwen3_vl")
    unchanged = values.keys() - decayed
    assert {path.split(".")[-1] for path in unchanged} == {"scale", "bias"}
    if stacked:
        assert any(values[path].ndim == 3 for path in unchanged)  # q.bias [L, N, H]


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_run_goes_on_with_the_clip_switched_off_or_on(name):
    values = {"text.layers.mlp.up.kernel": jnp.ones((2, 4, 4)), "text.norm.scale": jnp.ones(4)}
    forms = {
        jax.tree.structure(build_optimizer(OptimizerConfig(name, max_grad_norm=clip), 10).init(values)) for clip in (0.0, 0.5)
    }
    assert len(forms) == 1


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_skipped_step_counts_in_the_schedule(name):
    """Or the true rate would lag behind the one that is told, and not end at 0."""
    tx = build_optimizer(OptimizerConfig(name), 10)
    values = {"text.layers.mlp.up.kernel": jnp.ones((2, 4, 4)), "text.norm.scale": jnp.ones(4)}
    before = tx.init(values)
    _, after = tx.update(values, before, values)
    skipped = advance_schedule(after, before)
    is_count = lambda part: isinstance(part, optax.ScaleByScheduleState)  # noqa: E731
    counts = [part for part in jax.tree.leaves(skipped, is_leaf=is_count) if is_count(part)]
    assert counts and all(int(part.count) == 1 for part in counts)
    moments = jax.tree.map(lambda part: 0 if is_count(part) else part, skipped, is_leaf=is_count)
    same = jax.tree.map(lambda part: 0 if is_count(part) else part, before, is_leaf=is_count)
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(moments), jax.tree.leaves(same), strict=True))


def test_the_rates_in_the_metrics_are_those_of_the_schedule_and_wait_for_no_device():
    for config in (OptimizerConfig(), OptimizerConfig(schedule="constant", warmup_ratio=0.0)):
        rates, schedule = learning_rates(config, 40), learning_rate_schedule(config, 40)
        assert isinstance(rates, np.ndarray)
        np.testing.assert_allclose(rates, [float(schedule(step)) for step in range(40)], rtol=1e-6)


def test_embeddings_are_cast_before_they_are_gathered_and_learn_in_float32():
    """Half the bytes between devices; a token that comes a thousand times has the gradient of a thousand."""
    table = jax.random.normal(jax.random.key(0), (7, 4), jnp.float32)
    ids = jnp.asarray(np.r_[np.zeros(3000, int), 1:7].reshape(2, -1) % 7)
    weights = jax.random.normal(jax.random.key(1), (*ids.shape, 4), jnp.float32)

    def loss(look, table):
        return jnp.sum(look(table).astype(jnp.float32) * weights)

    plain = lambda table: jnp.take(table, ids, axis=0).astype(jnp.bfloat16)  # noqa: E731
    cast_first = lambda table: text._lookup(table, ids, "bfloat16")  # noqa: E731
    (want, gradient), (got, cast_gradient) = (jax.value_and_grad(partial(loss, look))(table) for look in (plain, cast_first))
    assert want == got
    np.testing.assert_array_equal(gradient, cast_gradient)
    gathers = [eqn for eqn in jax.make_jaxpr(cast_first)(table).jaxpr.eqns if "bf16" in str(eqn.params.get("call_jaxpr", eqn))]
    assert gathers and "f32[2,1503,4]" not in str(jax.make_jaxpr(cast_first)(table))
