"""Micro-batches of this host, padded while the device is busy, and their rows on the devices.

A thread is one micro-batch ahead of the loop: it waits for the samples, agrees with the other hosts on a size and on what is
bad, and pads. No device has a part in that, so the micro-step that is under way is never waited for; the copy to the devices
(`place`) runs beside it too. Axes as in `data.pipeline.Batch`.
"""

import queue
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from svlm_jax.config import ModelConfig
from svlm_jax.data.pipeline import Batch, Example, Examples, Ours, batch, micro_batches, size_of
from svlm_jax.errors import InputError
from svlm_jax.sharding import batch_sharding
from svlm_jax.train.config import DataConfig
from svlm_jax.train.hosts import Channel
from svlm_jax.train.step import Step

LOOK_SECONDS = 0.2  # between two looks whether the loop has gone


class MicroBatch(NamedTuple):
    """examples of this host's rows; padded: they, in the size that all hosts take; everyone: an example for each row of all
    hosts, with no more than its error where it is another's."""

    examples: list[Example]
    padded: Batch
    everyone: list[Example]


class Batches(Iterator[MicroBatch]):
    """The micro-batches of `ours`, in order. To be closed."""

    def __init__(self, examples: Examples, ours: Ours, data: DataConfig, model: ModelConfig, *, workers: int) -> None:
        self._ours, self._buckets, self._model = ours, data.buckets, model
        self._channel = Channel("batches")
        self._made: queue.Queue[Any] = queue.Queue(maxsize=1)
        self._gone = threading.Event()
        arguments = (examples, {"workers": workers, "threads": data.threads})
        self._thread = threading.Thread(target=self._run, args=arguments, name="batches", daemon=True)
        self._thread.start()

    def __next__(self) -> MicroBatch:
        """Raises whatever went wrong in the making."""
        made = self._made.get()
        if isinstance(made, MicroBatch):
            return made
        self._put(made)  # for whoever asks again
        raise made

    def close(self) -> None:
        self._gone.set()
        self._channel.close()
        self._thread.join(timeout=30.0)

    def _run(self, examples: Examples, options: dict[str, Any]) -> None:
        source = micro_batches(examples, self._ours, **options)
        try:
            for some in source:
                if self._gone.is_set() or not self._put(self._padded(some)):
                    return
            self._put(StopIteration())
        except BaseException as error:
            self._put(error)
        finally:
            source.close()

    def _put(self, made: Any) -> bool:
        """Whether it was taken: the loop may have gone."""
        while not self._gone.is_set():
            try:
                self._made.put(made, timeout=LOOK_SECONDS)
                return True
            except queue.Full:
                continue
        return False

    def _padded(self, examples: list[Example]) -> MicroBatch:
        mine = zip(self._ours.rows, examples, strict=True)
        odd = [(row, one.id, one.error) for row, one in mine if one.error or not one.id]
        told = self._channel.gather([size_of(examples, self._buckets), odd])
        size = self._buckets[max(number for number, _ in told)]
        found = {row: Example(id_, None, np.zeros(0, np.int32), 0.0, error) for _, some in told for row, id_, error in some}
        found |= dict(zip(self._ours.rows, examples, strict=True))
        other = Example("of another host", None, np.zeros(0, np.int32), 0.0)
        everyone = [found.get(row, other) for row in range(self._ours.batch)]
        return MicroBatch(examples, batch(examples, size, self._model), everyone)


def rows_of(step: Step, micro_batch: int) -> list[int]:
    """Rows of a micro-batch that this host's devices hold; where an axis besides data and fsdp goes over hosts, several hosts
    hold the same."""
    ways = step.mesh.shape["data"] * step.mesh.shape["fsdp"]
    if micro_batch % ways:
        raise InputError("micro_batch", micro_batch, f"a multiple of data x fsdp = {ways}", "change it or the mesh")
    places = batch_sharding(step.mesh, 1).addressable_devices_indices_map((micro_batch,))
    rows = sorted({row for index in places.values() if index for row in range(*index[0].indices(micro_batch))})
    if not rows:
        got = f"{step.mesh.size} of {jax.device_count()} devices, none of process {jax.process_index()}"
        raise InputError("mesh", got, "devices of every process", "make it larger, or start fewer processes")
    return rows


def place(padded: Batch, rows: list[int], micro_batch: int, step: Step) -> Batch:
    """A host's rows as global arrays, cut over data and fsdp."""

    def put(x: np.ndarray) -> jax.Array:
        def shard(index: Any) -> np.ndarray:
            first, last, _ = index[0].indices(micro_batch)
            return x[rows.index(first) : rows.index(first) + last - first]

        return jax.make_array_from_callback((micro_batch, *x.shape[1:]), batch_sharding(step.mesh, x.ndim), shard)

    return jax.tree.map(put, padded)
