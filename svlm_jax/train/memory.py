"""Memory of one device in a training step, from the step compiled ahead of time for devices that need not exist.

Nothing is run and no weight is read. Units: bytes.
"""

import re
import time
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from svlm_jax.config import ModelConfig
from svlm_jax.data.config import Bucket
from svlm_jax.data.pipeline import Batch
from svlm_jax.inputs import Inputs, blank_vision
from svlm_jax.model.parameters import shapes
from svlm_jax.sharding import batch_sharding, shardings
from svlm_jax.train.config import TrainConfig
from svlm_jax.train.optimizer import build_optimizer
from svlm_jax.train.prefetch import PREFETCHED, check_micro_batch
from svlm_jax.train.setup import trainable_pattern
from svlm_jax.train.step import TrainStep, split_parameters

STEPS = 100  # of the optimizer's schedule: any number, nothing is run


class Memory(NamedTuple):
    """Of one device while a function of the step runs, in bytes.

    arguments: and outputs that are not written over them. temporary: of the function alone. idle: what else lies there
    meanwhile: optimizer state, and batches made ahead. hlo: the compiled program. seconds: to compile it.
    """

    arguments: float
    temporary: float
    idle: float
    hlo: str
    seconds: float

    @property
    def total(self) -> float:
        return self.arguments + self.temporary + self.idle


class AbstractStep:
    """The step of a run on a mesh, described by shapes and shardings: a micro-batch of the largest bucket."""

    def __init__(self, config: TrainConfig, model: ModelConfig, mesh: Mesh) -> None:
        """Raises:
        InputError: a mesh that does not divide the parameters or the micro-batch.
        """
        check_micro_batch(mesh, config.micro_batch_size)
        self.mesh = mesh
        self.trainable, frozen = split_parameters(_abstract_parameters(model, mesh), trainable_pattern(config))
        self.step = TrainStep(model, build_optimizer(config.optimizer, STEPS), mesh, self.trainable, config.ema_decay)
        self.frozen = {path: _with_dtype(leaf, config.dtype) for path, leaf in frozen.items()}
        self.batch = _abstract_batch(config.data.buckets[-1], config.micro_batch_size, model, mesh)

    def micro_step(self) -> Memory:
        """Forward and backward pass of a micro-batch."""
        state = self.step.abstract_state
        idle = device_bytes((state.opt_state, state.ema)) + PREFETCHED * device_bytes(self.batch)
        arguments = (state.trainable, self.step.abstract_accumulator, self.frozen, self.batch)
        return self._compiled(self.step.accumulate, arguments, idle)

    def optimizer_step(self) -> Memory:
        state, accumulator = self.step.abstract_state, self.step.abstract_accumulator
        return self._compiled(self.step.apply_gradients, (state, accumulator), PREFETCHED * device_bytes(self.batch))

    def least_bytes(self) -> float:
        """What a micro-step needs at least, without compiling it: its arguments, and what its forward pass saves for its
        backward pass as if it were cut over all devices."""
        loss = lambda trainable: self.step.eval_loss(trainable, self.frozen, self.batch)[0]  # noqa: E731
        with jax.set_mesh(self.mesh):
            saved = jax.eval_shape(lambda trainable: jax.vjp(loss, trainable)[1], self.trainable)
        # Parameters and inputs are among what is saved, and are there anyway: of those nothing is counted.
        known_leaves = jax.tree.leaves((self.trainable, self.frozen, self.batch))
        known = {(leaf.shape, np.dtype(leaf.dtype)) for leaf in known_leaves}
        new = [leaf for leaf in jax.tree.leaves(saved) if (leaf.shape, np.dtype(leaf.dtype)) not in known]
        saved_bytes = sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in new)
        state, accumulator = self.step.abstract_state, self.step.abstract_accumulator
        return device_bytes((state, accumulator, self.frozen, self.batch)) + saved_bytes / self.mesh.size

    def _compiled(self, function: Any, arguments: tuple, idle: float) -> Memory:
        started = time.monotonic()
        with jax.set_mesh(self.mesh):
            lowered = function.trace(*arguments).lower()
        seconds = lambda: time.monotonic() - started  # noqa: E731
        try:
            compiled = lowered.compile()
        except RuntimeError as error:  # a TPU's compiler refuses a program that does not fit, and says by how much
            match = re.search(r"temporaries \(([\d.]+)G\) exceeds", str(error))
            if match is None:
                raise
            return Memory(device_bytes(arguments), float(match[1]) * 2**30, idle, "", seconds())
        memory = compiled.memory_analysis()
        # Donated arguments are aliased by outputs: those count once.
        arguments_bytes = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
        return Memory(arguments_bytes, memory.temp_size_in_bytes, idle, compiled.as_text() or "", seconds())


def device_bytes(tree: Any) -> int:
    """Of one device's shards of ShapeDtypeStructs with shardings."""
    shards = ((leaf.sharding.shard_shape(leaf.shape), leaf.dtype.itemsize) for leaf in jax.tree.leaves(tree))
    return sum(int(np.prod(shape)) * itemsize for shape, itemsize in shards)


def _abstract_parameters(model: ModelConfig, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    leaves = shapes(model)
    sharding = shardings({path: leaf.shape for path, leaf in leaves.items()}, mesh)
    return {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding[path]) for path, leaf in leaves.items()}


def _with_dtype(leaf: jax.ShapeDtypeStruct, dtype: str) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding)


def _abstract_batch(bucket: Bucket, batch_size: int, model: ModelConfig, mesh: Mesh) -> Batch:
    def array(*shape: int, dtype: Any = "int32") -> Any:
        return jax.ShapeDtypeStruct((batch_size, *shape), dtype, sharding=batch_sharding(mesh, len(shape) + 1))

    vision = replace(blank_vision(batch_size, model.vision, bucket.patches), frame_span=bucket.frame_patches)
    vision = jax.tree.map(lambda table: array(*table.shape[1:], dtype=table.dtype), vision)
    tokens = array(bucket.tokens)
    inputs = Inputs(tokens, tokens, array(3, bucket.tokens, dtype="float32"), tokens, vision)
    return Batch(inputs, array(bucket.labels), array(bucket.labels))
