"""How gradients move parameters: AdamW, or Muon for the matrices inside layers and AdamW for all else."""

import re
from collections.abc import Mapping
from typing import Any, cast

import jax
import numpy as np
import optax
from optax.contrib import MuonDimensionNumbers, muon

from svlm_jax.train.config import OptimizerConfig

# Matrices by path: axes that are summed over and axes of the output, from the last. The other axes are a stack of matrices:
# layers, the heads of q, k and v, the three of a fused qkv. Embeddings, the head and adapters are not in it: AdamW moves them.
MATRICES: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = (
    (r"text\.layers\..*attention\.[qkv]\.kernel", (-3,), (-1,)),
    (r"vision\.blocks\..*attention\.qkv\.kernel", (-4,), (-2, -1)),
    (r".*attention\.out\.kernel", (-3, -2), (-1,)),
    (r".*\.(gate|up|down)\.kernel", (-2,), (-1,)),
)
# Vectors by path, as Hugging Face's Trainer knows them: layers are stacked, and a stack of norms or biases [L, D] is no matrix.
VECTORS = r"(.*\.)?(scale|bias)"


def learning_rate_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate of step 0, 1 ...: linear warm-up, then down to 0 as a cosine, or constant."""
    warmup_steps = round(config.warmup_ratio * steps)
    warmup = optax.linear_schedule(0.0, config.learning_rate, max(1, warmup_steps))
    if config.schedule == "constant":
        decay = optax.constant_schedule(config.learning_rate)
    else:
        decay = optax.cosine_decay_schedule(config.learning_rate, max(1, steps - warmup_steps))
    # Hugging Face's first step has a rate of 0. This one starts at the first increment, so that no step is lost.
    return optax.join_schedules([lambda step: warmup(step + 1), decay], [warmup_steps])


def learning_rates(config: OptimizerConfig, steps: int) -> np.ndarray:
    """The schedule's value of each step [steps] float32, on the host: metrics need it without waiting for the device."""
    return np.asarray(jax.jit(jax.vmap(learning_rate_schedule(config, steps)))(np.arange(steps)))


def build_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """The optimizer of a run of so many steps, for parameters by dotted path. Weight decay, if any, is for matrices only (of
    Muon: for those of `MATRICES` only)."""
    schedule = learning_rate_schedule(config, steps)
    if config.name == "muon":
        update = muon(
            schedule,
            beta=config.momentum,
            eps=config.eps,
            weight_decay=config.weight_decay,
            adam_b1=config.b1,
            adam_b2=config.b2,
            muon_weight_dimension_numbers=cast(Any, _muon_dimensions),
            consistent_rms=config.muon_rms,
        )
    else:
        update = optax.adamw(
            schedule, config.b1, config.b2, config.eps, weight_decay=config.weight_decay, mask=_weight_decay_mask
        )
    # `identity` has the state of `clip_by_global_norm`: a run may switch clipping on or off between a stop and a start.
    clip = optax.clip_by_global_norm(config.max_grad_norm) if config.max_grad_norm else optax.identity()
    return optax.chain(clip, update)


def advance_schedule(new: optax.OptState, old: optax.OptState) -> optax.OptState:
    """`old` with the schedule's counts of `new`: a step that is skipped counts as one of the run, or the rates of all steps
    after it would lag, and the last would not be the schedule's."""
    is_count = lambda part: isinstance(part, optax.ScaleByScheduleState)  # noqa: E731
    return jax.tree.map(lambda new, old: new if is_count(new) else old, new, old, is_leaf=is_count)


def _weight_decay_mask(parameters: Mapping[str, Any]) -> dict[str, bool]:
    """{path: whether it is a matrix} of {path: parameter}."""
    return {path: leaf.ndim > 1 and not re.fullmatch(VECTORS, path) for path, leaf in parameters.items()}


def _muon_dimensions(parameters: Mapping[str, Any]) -> dict[str, MuonDimensionNumbers | None]:
    """{path: the axes of a matrix that Muon moves, or None} of {path: parameter}."""
    return {path: _matrix_dimensions(path) for path in parameters}


def _matrix_dimensions(path: str) -> MuonDimensionNumbers | None:
    for pattern, input_axes, output_axes in MATRICES:
        if re.fullmatch(pattern, path):
            return MuonDimensionNumbers(input_axes, output_axes)
    return None
