"""How gradients move parameters: AdamW, or Muon for the matrices inside layers and AdamW for all else."""

import re
from typing import Any

import jax
import numpy as np
import optax
from optax.contrib import MuonDimensionNumbers, muon

from svlm_jax.train.config import OptimizerConfig

# Matrices by path: axes that are summed over and axes that come out, from the last. What is left is a stack of matrices:
# layers, the heads of q, k and v, the three of a joined qkv. Embeddings, the head and adapters are not here, and stay AdamW's.
MATRICES: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = (
    (r"text\.layers\..*attention\.[qkv]\.kernel", (-3,), (-1,)),
    (r"vision\.blocks\..*attention\.qkv\.kernel", (-4,), (-2, -1)),
    (r".*attention\.out\.kernel", (-3, -2), (-1,)),
    (r".*\.(gate|up|down)\.kernel", (-2,), (-1,)),
)
# Vectors by path, as Hugging Face's Trainer knows them: layers are stacked, and a stack of norms or biases [L, D] is no matrix.
VECTORS = r"(.*\.)?(scale|bias)"


def schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate of step 0, 1 ...: linear from one part of the warm-up, then down to 0 as a cosine, or constant."""
    warmup = round(config.warmup * steps)
    rise = optax.linear_schedule(0.0, config.learning_rate, max(1, warmup))
    if config.schedule == "constant":
        rest = optax.constant_schedule(config.learning_rate)
    else:
        rest = optax.cosine_decay_schedule(config.learning_rate, max(1, steps - warmup))
    # Hugging Face's first step has a rate of 0; ours begins with the first part of the rise, so that no step is lost.
    return optax.join_schedules([lambda step: rise(step + 1), rest], [warmup])


def rates(config: OptimizerConfig, steps: int) -> np.ndarray:
    """What `schedule` says of each step [steps] float32, on the host: to tell them without waiting for the device."""
    return np.asarray(jax.jit(jax.vmap(schedule(config, steps)))(np.arange(steps)))


def optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """That of a run of so many steps, for parameters by dotted path. Weight decay, if any, on matrices only (of Muon: on those
    of `MATRICES` only). The moments have one form, clipped or not."""
    rate = schedule(config, steps)
    if config.name == "muon":
        moved = muon(
            rate,
            beta=config.momentum,
            eps=config.eps,
            weight_decay=config.weight_decay,
            adam_b1=config.b1,
            adam_b2=config.b2,
            muon_weight_dimension_numbers=_matrices,
            consistent_rms=config.rms,
        )
    else:
        moved = optax.adamw(rate, config.b1, config.b2, config.eps, weight_decay=config.weight_decay, mask=_decayed)
    return optax.chain(optax.clip_by_global_norm(config.clip) if config.clip else optax.identity(), moved)


def advanced(moments: Any, kept: Any) -> Any:
    """`kept` moments with the counts of the schedule from `moments`: a step that is skipped counts as one of the run, or the
    rates of all that follow would lag, and the last would not be the schedule's."""
    is_count = lambda part: isinstance(part, optax.ScaleByScheduleState)  # noqa: E731
    return jax.tree.map(lambda new, old: new if is_count(new) else old, moments, kept, is_leaf=is_count)


def _decayed(parameters: Any) -> Any:
    """What weight decay is for: {path: whether it is a matrix} of {path: parameter}."""
    return {path: leaf.ndim > 1 and not re.fullmatch(VECTORS, path) for path, leaf in parameters.items()}


def _matrices(parameters: Any) -> Any:
    """What Muon moves, and how it lies: {path: MuonDimensionNumbers, or None} of {path: parameter}."""
    return {path: _matrix(path) for path in parameters}


def _matrix(path: str) -> MuonDimensionNumbers | None:
    for pattern, ins, outs in MATRICES:
        if re.fullmatch(pattern, path):
            return MuonDimensionNumbers(ins, outs)
    return None
