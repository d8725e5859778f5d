"""Claims about rematerialisation: what a policy saves is not computed twice, no result changes, and `auto` takes what fits."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, get_args
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from pallas_kernels.remat import CUDNN_FORWARD
from svlm_jax.config import Attention, Dtype, Remat
from svlm_jax.families import config_json
from svlm_jax.model.parameters import from_parameters, shapes
from svlm_jax.sharding import make_mesh
from svlm_jax.train import remat
from svlm_jax.train.memory import AbstractStep, Memory
from svlm_jax.train.setup import training_model_config
from tests.train.conftest import elsewhere

POLICIES = get_args(Remat)
CUDNN_VERSION = "jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version"


def primitives(jaxpr: Any) -> Iterator[str]:
    """Names of all primitives of a jaxpr, those of its inner ones too."""
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for inner in jaxprs_in_params(equation.params):
            yield from primitives(inner)


def gradients(
    shallow_dir, policy: Remat, attention: Attention = "xla", dtype: Dtype = "float32"
) -> tuple[Any, dict[str, np.ndarray]]:
    """The gradient of a stacked decoder as a function of its parameters, and parameters."""
    model = config_json.read(shallow_dir).compute(dtype)
    model = replace(model, scan_layers=True, remat=policy, attention=attention)
    rng = np.random.default_rng(0)
    values = {path: rng.normal(0, 0.3, leaf.shape).astype(leaf.dtype) for path, leaf in shapes(model).items()}
    x = jnp.asarray(rng.normal(size=(1, 16, model.text.hidden_size)), dtype)
    index, positions = jnp.arange(16)[None], jnp.broadcast_to(jnp.arange(16.0), (1, 3, 16))

    def loss(values):
        return jnp.sum(from_parameters(model, values).text(x, index, positions).astype(jnp.float32) ** 2)

    return jax.grad(loss), values


def test_what_a_policy_saves_is_not_computed_again(shallow_dir):
    """cuDNN's log-sum-exp has no name of its own: with a saved output alone its forward pass ran again all the same."""
    counts = []
    for policy in POLICIES:
        gradient, values = gradients(shallow_dir, policy, "cudnn", "bfloat16")
        with mock.patch(CUDNN_VERSION, lambda: 91000):
            counts.append(Counter(primitives(jax.make_jaxpr(gradient)(values).jaxpr)))
    assert [count[CUDNN_FORWARD] for count in counts] == [1, 1, 1, 1, 1, 2]
    again = [count["dot_general"] - counts[0]["dot_general"] for count in counts]
    assert again == [0, 0, 1, 2, 6, 6]  # of a layer gate; gate and up; and q, k, v and out


def test_a_policy_changes_no_gradient(shallow_dir):
    want, some = None, ("none", "save_up")  # all is saved, and some
    for policy in some:
        gradient, values = gradients(shallow_dir, policy)
        got = jax.tree.leaves(jax.jit(gradient)(values))
        want = got if want is None else want
        for a, b in zip(want, got, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(jnp.abs(a).max()))


def test_auto_is_the_first_policy_that_fits(config, shallow_dir, monkeypatch):
    """Those that cannot fit are not compiled: half a minute each."""
    gigabytes, compiled, log_lines = {"none": 9.0, "save_projections": 7.0, "save_up": 5.0}, [], []
    policy_of = lambda step: step.step.config.remat  # noqa: E731
    needed = lambda step: gigabytes.get(policy_of(step), 2.0) * 1e9  # noqa: E731

    def micro_step(step: AbstractStep) -> Memory:
        compiled.append(policy_of(step))
        return Memory(needed(step), 0, 0, "", 0)

    monkeypatch.setattr(AbstractStep, "least_bytes", lambda step: needed(step) - 2e9)
    monkeypatch.setattr(AbstractStep, "micro_step", micro_step)
    auto = replace(config, remat="auto")
    model, mesh = training_model_config(auto, config_json.read(shallow_dir)), make_mesh(devices=jax.devices()[:1])

    def choose(capacity: float | None) -> str:
        return remat.choose_remat(auto, model, mesh, capacity, log_lines.append)

    assert choose(6e9) == "save_up" and compiled == ["save_projections", "save_up"]
    assert "save_up, a micro-step needs 5.0 GB, a device has 6.0" in log_lines[-1]
    assert choose(1e12) == "none" and choose(5e9) == "save_attention_block"
    assert choose(1e9) == "full" and "MAY NOT FIT" in log_lines[-1]
    assert choose(None) == "full" and "do not say" in log_lines[-1]
    assert remat.choose_remat(config, model, mesh, 1.0, log_lines.append) == config.remat  # named, not chosen


def test_what_is_saved_is_counted_without_compiling(config, shallow_dir):
    mesh = make_mesh(devices=jax.devices()[:1])
    model = training_model_config(config, config_json.read(shallow_dir))

    def bound(policy: Remat, trainable: str = config.trainable) -> float:
        return AbstractStep(replace(config, trainable=trainable), replace(model, remat=policy), mesh).least_bytes()

    bounds = [bound(policy) for policy in POLICIES]
    assert bounds == sorted(bounds, reverse=True) and len(set(bounds)) == len(bounds)
    assert bound("none", ".*") - bound("full", ".*") > bounds[0] - bounds[-1]  # a tower that is trained is computed again, too


@pytest.mark.slow
def test_a_run_may_leave_it_to_auto_and_resume(config, train):
    want, _ = train(elsewhere(config, "saved", steps=2))
    auto = replace(config, remat="auto", steps=1)
    _, log_lines = train(auto)
    assert any("remat auto: full, because the devices do not say" in line for line in log_lines)
    got, _ = train(replace(auto, steps=2))
    for path, value in want.state.trainable.items():
        np.testing.assert_allclose(value, got.state.trainable[path], atol=2e-4)
