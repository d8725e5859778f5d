"""One optimiser step: micro-steps that add up gradients, then one that applies them. State in, state out, both jitted.

The loss is the mean over ALL learned tokens of a step, whatever micro-batch, device or host they are on: micro-steps add up
sums and counts, and only the last division knows the count. Trained parameters are float32 and are used in the compute dtype;
frozen ones are held in it and have neither gradients nor moments. A step whose gradients are not finite changes nothing but
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

from svlm_jax.config import ModelConfig
from svlm_jax.data.pipeline import Batch
from svlm_jax.model.parameters import Parameters, from_parameters
from svlm_jax.sharding import shardings
from svlm_jax.train.loss import gathered
from svlm_jax.train.optimizer import advanced


class State(NamedTuple):
    """step: optimiser steps made, counting those that were skipped; skipped: non-finite ones in a row; ema: averaged trained
    parameters, or {}."""

    step: Any  # arrays; ShapeDtypeStructs or shardings where a state is described
    skipped: Any
    trained: Any
    moments: Any
    ema: Any


class Sums(NamedTuple):
    """What micro-steps add up: gradients of the summed loss, the sum itself and the learned tokens."""

    gradients: Any
    loss: Any
    count: Any


class Metrics(NamedTuple):
    """loss in nats a learned token; norms before clipping; `finite` 0 when the step was skipped."""

    loss: jax.Array
    count: jax.Array
    gradient_norm: jax.Array
    parameter_norm: jax.Array
    update_norm: jax.Array
    finite: jax.Array
    skipped: jax.Array


def split(values: Parameters, trained: str) -> tuple[Parameters, Parameters]:
    """(trained, frozen) by a regular expression that whole paths match."""
    chosen = {path for path in values if re.fullmatch(trained, path)}
    return {path: values[path] for path in chosen}, {path: values[path] for path in values.keys() - chosen}


class Step:
    """The jitted functions of a run. Where everything lies is said, never left to be found: of what depends on no input (fresh
    moments, emptied sums) XLA would put a whole copy on every device."""

    def __init__(
        self,
        config: ModelConfig,
        tx: optax.GradientTransformation,
        mesh: Mesh,
        trained: Mapping[str, Any],
        ema: float | int = 0.0,
    ) -> None:
        """Args:
        trained: the trained parameters, or their shapes and dtypes.
        """
        self.config, self.tx, self.mesh, self.ema_decay = config, tx, mesh, ema
        whole = NamedSharding(mesh, PartitionSpec())
        own = shardings({path: leaf.shape for path, leaf in trained.items()}, mesh)
        shapes = {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in trained.items()}
        moments = jax.tree_util.tree_map_with_path(
            lambda at, _: own.get(getattr(at[-1], "key", ""), whole), jax.eval_shape(tx.init, shapes)
        )
        state, sums = State(whole, whole, own, moments, own if ema else {}), Sums(own, whole, whole)
        self.state = _placed(jax.eval_shape(self._fresh, shapes), state)
        self.sums = _placed(jax.eval_shape(self._empty, shapes), sums)
        self.start = jax.jit(self._fresh, out_shardings=state, donate_argnums=0)
        self.empty = jax.jit(lambda: self._empty(shapes), out_shardings=sums)
        self.micro = jax.jit(self._micro, out_shardings=(sums, whole), donate_argnums=1)
        self.apply = jax.jit(self._apply, out_shardings=(state, sums, whole), donate_argnums=(0, 1))
        self.loss = jax.jit(self._sum, out_shardings=whole)

    def _fresh(self, trained: Parameters) -> State:
        """A state around trained parameters (which are consumed)."""
        zero = jnp.zeros((), jnp.int32)
        ema = jax.tree.map(jnp.copy, trained) if self.ema_decay else {}
        return State(zero, zero, trained, self.tx.init(trained), ema)

    def _empty(self, trained: Mapping[str, Any]) -> Sums:
        """Sums of no micro-step yet."""
        held = {path: jnp.zeros(leaf.shape, jnp.float32) for path, leaf in trained.items()}
        return Sums(held, jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32))

    def _sum(self, trained: Parameters, frozen: Parameters, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """(sum of the losses, learned tokens)."""
        model = from_parameters(self.config, trained | frozen)
        return gathered(model.text, model.hidden(batch.inputs), batch.at, batch.labels)

    def _micro(self, trained: Parameters, sums: Sums, frozen: Parameters, batch: Batch) -> tuple[Sums, jax.Array]:
        """The sums with those of a micro-batch, and its own loss (to wait for, and for nothing else)."""
        (loss, count), gradients = jax.value_and_grad(self._sum, has_aux=True)(trained, frozen, batch)
        gradients = jax.tree.map(lambda held, new: held + new.astype(jnp.float32), sums.gradients, gradients)
        return Sums(gradients, sums.loss + loss, sums.count + count), loss

    def _apply(self, state: State, sums: Sums) -> tuple[State, Sums, Metrics]:
        """The state after the step, the sums' buffers emptied for the next one, and what to tell."""
        count = jnp.maximum(sums.count, 1)
        gradients = jax.tree.map(lambda x: x / count, sums.gradients)
        norm = optax.tree.norm(gradients)
        finite = jnp.isfinite(norm) & jnp.isfinite(sums.loss)
        updates, moments = self.tx.update(gradients, state.moments, state.trained)
        trained = optax.apply_updates(state.trained, updates)
        decay = self.ema_decay
        ema = jax.tree.map(lambda held, new: held * decay + new * (1 - decay), state.ema, trained) if decay else {}
        keep = lambda new, old: jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)  # noqa: E731
        skipped = jnp.where(finite, 0, state.skipped + 1)
        moments = advanced(moments, keep(moments, state.moments))
        after = State(state.step + 1, skipped, keep(trained, state.trained), moments, keep(ema, state.ema))
        moved = jnp.where(finite, optax.tree.norm(updates), 0.0)
        norms = (norm, optax.tree.norm(after.trained), moved)
        told = Metrics(sums.loss / count, sums.count, *norms, finite.astype(jnp.int32), skipped)
        return after, jax.tree.map(jnp.zeros_like, sums), told


def _placed(shapes: Any, places: Any) -> Any:
    """ShapeDtypeStructs with their shardings."""
    return jax.tree.map(lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at), shapes, places)
