"""Micro-batches of this host, padded and copied to the devices while those are busy.

A thread is one micro-batch ahead of the loop: it waits for the samples, agrees with the other hosts on a bucket and on the bad
samples, pads, and copies. No program of a device takes part in that, so it never waits for the micro-step under way. Axes as in
`data.pipeline.Batch`.
"""

import queue
import threading
from collections.abc import Generator, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from svlm_jax.cluster.coordination import Channel
from svlm_jax.config import ModelConfig
from svlm_jax.data.config import DataConfig
from svlm_jax.data.pipeline import Batch, Example, Examples, HostShard, bucket_index, micro_batches, pad_batch
from svlm_jax.errors import InputError
from svlm_jax.sharding import batch_sharding

PREFETCHED = 3  # batches on the devices besides that of the running micro-step: dispatched, in the queue, in the thread
POLL_SECONDS = 0.2  # between two checks whether the loop has closed the prefetcher
JOIN_SECONDS = 30.0  # for the thread to end


class MicroBatch(NamedTuple):
    """examples: of this host's rows; batch: of all rows, on the devices, padded to the bucket that all hosts take;
    padded_tokens: of this host's rows; global_examples: of all rows, of another host's nothing but its error."""

    examples: list[Example]
    batch: Batch
    padded_tokens: int
    global_examples: list[Example]


class BatchPrefetcher(Iterator[MicroBatch]):
    """The micro-batches of a host's shard, in order. To be closed."""

    def __init__(
        self, examples: Examples, shard: HostShard, data: DataConfig, model: ModelConfig, mesh: Mesh, *, workers: int
    ) -> None:
        self._shard, self._buckets, self._model, self._mesh = shard, data.buckets, model, mesh
        self._channel = Channel("batches")
        self._queue: queue.Queue[MicroBatch | BaseException] = queue.Queue(maxsize=1)
        self._closed = threading.Event()
        source = micro_batches(examples, shard, workers=workers, threads=data.threads)
        self._thread = threading.Thread(target=self._run, args=(source,), name="batches", daemon=True)
        self._thread.start()

    def __next__(self) -> MicroBatch:
        """Raises what the thread raised."""
        item = self._queue.get()
        if isinstance(item, MicroBatch):
            return item
        self._enqueue(item)  # the next call raises it again, and does not wait for ever
        raise item

    def close(self) -> None:
        self._closed.set()
        self._channel.close()
        self._thread.join(timeout=JOIN_SECONDS)

    def _run(self, source: Generator[list[Example]]) -> None:
        try:
            for examples in source:
                if self._closed.is_set() or not self._enqueue(self._micro_batch(examples)):
                    return
            self._enqueue(StopIteration())
        except BaseException as error:  # raised in the loop: nobody would see it in a thread
            self._enqueue(error)
        finally:
            source.close()

    def _enqueue(self, item: MicroBatch | BaseException) -> bool:
        """False if the prefetcher was closed and nobody will take the item."""
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=POLL_SECONDS)
                return True
            except queue.Full:
                continue
        return False

    def _micro_batch(self, examples: list[Example]) -> MicroBatch:
        rows = self._shard.rows
        # Bad samples and filler rows: the only ones that other hosts must know about, to count alike.
        exceptions = [
            (row, example.id, example.error)
            for row, example in zip(rows, examples, strict=True)
            if example.error or not example.id
        ]
        reports = self._channel.all_gather([bucket_index(examples, self._buckets), exceptions])
        bucket = self._buckets[max(index for index, _ in reports)]
        by_row = {
            row: Example(id_, None, np.zeros(0, np.int32), 0.0, error)
            for _, host_exceptions in reports
            for row, id_, error in host_exceptions
        }
        by_row |= dict(zip(rows, examples, strict=True))
        remote = Example("of another host", None, np.zeros(0, np.int32), 0.0)
        global_examples = [by_row.get(row, remote) for row in range(self._shard.micro_batch_size)]
        batch = shard_batch(pad_batch(examples, bucket, self._model), rows, self._shard.micro_batch_size, self._mesh)
        return MicroBatch(examples, batch, len(rows) * bucket.tokens, global_examples)


def check_micro_batch(mesh: Mesh, micro_batch_size: int) -> None:
    """Raises InputError where the mesh does not divide a micro-batch."""
    num_shards = mesh.shape["data"] * mesh.shape["fsdp"]
    if micro_batch_size % num_shards:
        expected = f"a multiple of data x fsdp = {num_shards}"
        raise InputError("micro_batch_size", micro_batch_size, expected, "change it or the mesh")


def host_rows(mesh: Mesh, micro_batch_size: int) -> list[int]:
    """Rows of a micro-batch that this host's devices hold; where an axis besides data and fsdp spans hosts, several hosts hold
    the same.

    Raises:
        InputError: a batch that the mesh does not divide, or a mesh without a device of this process.
    """
    check_micro_batch(mesh, micro_batch_size)
    indices = batch_sharding(mesh, 1).addressable_devices_indices_map((micro_batch_size,))
    rows = sorted({row for index in indices.values() if index for row in range(*index[0].indices(micro_batch_size))})
    if not rows:
        got = f"{mesh.size} of {jax.device_count()} devices, none of process {jax.process_index()}"
        raise InputError("mesh", got, "devices of every process", "make it larger, or start fewer processes")
    return rows


def shard_batch(host_batch: Batch, rows: Sequence[int], micro_batch_size: int, mesh: Mesh) -> Batch:
    """A host's rows as global arrays, sharded over data and fsdp."""

    def to_devices(x: np.ndarray) -> jax.Array:
        def device_rows(index: Any) -> np.ndarray:
            # `index` counts global rows. Those of a device are contiguous, in `rows` too.
            start, stop, _ = index[0].indices(micro_batch_size)
            first = rows.index(start)
            return x[first : first + stop - start]

        return jax.make_array_from_callback((micro_batch_size, *x.shape[1:]), batch_sharding(mesh, x.ndim), device_rows)

    return jax.tree.map(to_devices, host_batch)
