"""One optimizer step: micro-steps accumulate gradients, then one update applies them. State in, state out, both jitted.

The loss is the mean over ALL labels of a step, whatever micro-batch, device or host they are on: micro-steps add up sums and
counts, and only the last division knows the count. Trainable parameters are float32 and are used in the compute dtype; frozen
ones are stored in it and have neither gradients nor optimizer state. A step whose gradients are not finite changes nothing but
counters: the schedule goes on.

Axes as in `data.pipeline.Batch`; parameters by dotted path, decoder layers stacked.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float32, Int32

from svlm_jax.config import ModelConfig
from svlm_jax.data.pipeline import Batch
from svlm_jax.model.parameters import Parameters, from_parameters
from svlm_jax.sharding import shardings
from svlm_jax.train.loss import cross_entropy_at
from svlm_jax.train.optimizer import advance_schedule


class TrainState(NamedTuple):
    """step: optimizer steps so far, skipped ones among them, int32; skipped: non-finite ones in a row, int32; trainable:
    parameters by path, float32; opt_state: of optax, its moments sharded as the parameters are; ema: averaged parameters, or
    {}.
    """

    step: Int32[Array, ""]
    skipped: Int32[Array, ""]
    trainable: Parameters
    opt_state: optax.OptState
    ema: Parameters


class GradAccumulator(NamedTuple):
    """Sums over micro-steps, not means: gradients by path, float32; loss in nats, float32; count of labels, int32."""

    gradients: Parameters
    loss: Float32[Array, ""]
    count: Int32[Array, ""]


class StepMetrics(NamedTuple):
    """loss in nats a label; count: labels; norms are global, that of gradients before clipping; finite: 0 when the step was
    skipped; skipped: steps in a row that were."""

    loss: Float32[Array, ""]
    count: Int32[Array, ""]
    grad_norm: Float32[Array, ""]
    param_norm: Float32[Array, ""]
    update_norm: Float32[Array, ""]
    finite: Int32[Array, ""]
    skipped: Int32[Array, ""]


def split_parameters(parameters: Mapping[str, Any], trainable: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(trainable, frozen) by a regular expression that full paths match."""
    paths = {path for path in parameters if re.fullmatch(trainable, path)}
    frozen = parameters.keys() - paths
    return {path: parameters[path] for path in paths}, {path: parameters[path] for path in frozen}


class TrainStep:
    """The jitted functions of a run: `init_state`, `zero_grads`, `accumulate`, `apply_gradients` and `eval_loss`.

    Output shardings are explicit: of what depends on no input (initial moments, zero gradients) XLA would put a replica on
    every device.
    """

    def __init__(
        self,
        config: ModelConfig,
        optimizer: optax.GradientTransformation,
        mesh: Mesh,
        trainable: Mapping[str, Any],
        ema_decay: float | int = 0.0,
    ) -> None:
        """Args:
        trainable: the trainable parameters, or their shapes and dtypes.
        """
        self.config, self.optimizer, self.mesh, self.ema_decay = config, optimizer, mesh, ema_decay
        # TrainState and GradAccumulator also describe themselves: with shardings, or with shapes, in place of arrays.
        replicated: Any = NamedSharding(mesh, PartitionSpec())
        sharded: Any = shardings({path: leaf.shape for path, leaf in trainable.items()}, mesh)
        shapes = {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in trainable.items()}
        # Moments lie in dicts by parameter path: the last key of a leaf's path tells whose sharding it has. Counters have none.
        opt_state = jax.tree_util.tree_map_with_path(
            lambda path, _: sharded.get(getattr(path[-1], "key", ""), replicated), jax.eval_shape(optimizer.init, shapes)
        )
        state = TrainState(replicated, replicated, sharded, opt_state, sharded if ema_decay else {})
        accumulator = GradAccumulator(sharded, replicated, replicated)
        self.abstract_state: TrainState = _with_shardings(jax.eval_shape(self._init_state, shapes), state)
        self.abstract_accumulator: GradAccumulator = _with_shardings(jax.eval_shape(self._zero_grads, shapes), accumulator)
        # Donated buffers are updated in place: state and gradients are the largest arrays, and exist once.
        self.init_state = jax.jit(self._init_state, out_shardings=state, donate_argnums=0)
        self.zero_grads = jax.jit(lambda: self._zero_grads(shapes), out_shardings=accumulator)
        self.accumulate = jax.jit(self._accumulate, out_shardings=(accumulator, replicated), donate_argnums=1)
        self.apply_gradients = jax.jit(
            self._apply_gradients, out_shardings=(state, accumulator, replicated), donate_argnums=(0, 1)
        )
        self.eval_loss = jax.jit(self._loss, out_shardings=replicated)

    def _init_state(self, trainable: Parameters) -> TrainState:
        """The state of step 0 around trainable parameters (which are donated)."""
        zero = jnp.zeros((), jnp.int32)
        ema = jax.tree.map(jnp.copy, trainable) if self.ema_decay else {}
        return TrainState(zero, zero, trainable, self.optimizer.init(trainable), ema)

    def _zero_grads(self, trainable: Mapping[str, Any]) -> GradAccumulator:
        """Sums over no micro-step yet."""
        gradients = {path: jnp.zeros(leaf.shape, jnp.float32) for path, leaf in trainable.items()}
        return GradAccumulator(gradients, jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32))

    def _loss(self, trainable: Parameters, frozen: Parameters, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """(sum of the losses, number of labels)."""
        # Only the first argument is differentiated: frozen parameters have no gradients, a frozen tower has no backward pass.
        model = from_parameters(self.config, trainable | frozen)
        return cross_entropy_at(model.text, model.hidden(batch.inputs), batch.token_index, batch.labels)

    def _accumulate(
        self, trainable: Parameters, accumulator: GradAccumulator, frozen: Parameters, batch: Batch
    ) -> tuple[GradAccumulator, jax.Array]:
        """The accumulator with a micro-batch added, and the loss of that micro-batch (only to wait for)."""
        with jax.named_scope("forward_backward"):
            (loss, count), gradients = jax.value_and_grad(self._loss, has_aux=True)(trainable, frozen, batch)
        with jax.named_scope("accumulate"):  # in float32, whatever the compute dtype: small terms would be lost
            gradients = jax.tree.map(lambda total, new: total + new.astype(jnp.float32), accumulator.gradients, gradients)
            return GradAccumulator(gradients, accumulator.loss + loss, accumulator.count + count), loss

    def _apply_gradients(
        self, state: TrainState, accumulator: GradAccumulator
    ) -> tuple[TrainState, GradAccumulator, StepMetrics]:
        """The state after the step, the accumulator zeroed in its own buffers, and the metrics of the step."""
        with jax.named_scope("gradients"):
            count = jnp.maximum(accumulator.count, 1)  # a step of bad samples alone has no label
            gradients = jax.tree.map(lambda x: x / count, accumulator.gradients)
            grad_norm = optax.tree.norm(gradients)
            finite = jnp.isfinite(grad_norm) & jnp.isfinite(accumulator.loss)
        with jax.named_scope("optimizer"):
            updates, opt_state = self.optimizer.update(gradients, state.opt_state, state.trainable)
            trainable = optax.apply_updates(state.trainable, updates)
        with jax.named_scope("ema"):
            decay = self.ema_decay
            ema = jax.tree.map(lambda old, new: old * decay + new * (1 - decay), state.ema, trainable) if decay else {}
        # A select and no branch: with a branch XLA could not update the donated state in place.
        keep_if_finite = lambda new, old: jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)  # noqa: E731
        skipped = jnp.where(finite, 0, state.skipped + 1)
        opt_state = advance_schedule(opt_state, keep_if_finite(opt_state, state.opt_state))
        trainable = keep_if_finite(trainable, state.trainable)
        next_state = TrainState(state.step + 1, skipped, trainable, opt_state, keep_if_finite(ema, state.ema))
        update_norm = jnp.where(finite, optax.tree.norm(updates), 0.0)
        norms = (grad_norm, optax.tree.norm(next_state.trainable), update_norm)
        metrics = StepMetrics(accumulator.loss / count, accumulator.count, *norms, finite.astype(jnp.int32), skipped)
        # Zeros of the accumulator's own shape, so that XLA writes them into its donated buffers.
        return next_state, jax.tree.map(jnp.zeros_like, accumulator), metrics


def _with_shardings(shapes: Any, shardings: Any) -> Any:
    """ShapeDtypeStructs with their shardings."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, shardings
    )
