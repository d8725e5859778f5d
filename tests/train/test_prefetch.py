"""Claims about the micro-batches of a run: padded ahead of the loop, ended with it; and about its rates."""

import time

import pytest

from svlm_jax.data.config import Bucket, DataConfig
from svlm_jax.data.pipeline import FILLER, Example, Examples, HostShard, ShuffledIndex
from svlm_jax.families import preset
from svlm_jax.sharding import make_mesh
from svlm_jax.train import flops
from svlm_jax.train.prefetch import BatchPrefetcher
from svlm_jax.train.throughput import StepStats, Workload

# --- rates ---


def test_rows_that_hosts_share_are_counted_once(monkeypatch):
    """One process a GPU and tensor 8: each of 8 hosts holds all rows, and MFU was 8 times too large."""
    monkeypatch.setattr(flops, "peak_flops", lambda device_kind: 989.5e12)
    rates = []
    for rows in (4, 1):  # all of 4 rows, shared by hosts; and a quarter of them
        workload = Workload(preset("qwen2.5-vl-3b"), ["text.layers.mlp.up.kernel"], make_mesh(fsdp=4, tensor=2), rows, 4)
        stats = StepStats(workload)
        stats.tokens, stats.labels, stats.video_seconds = 100 * rows, 10 * rows, 2.0 * rows
        stats.flops, stats.padded_tokens = 1e12 * rows, 400
        rates.append(stats.rates(2.0))
    assert rates[0]["tokens_per_second"] == rates[1]["tokens_per_second"] == 200.0
    assert rates[0]["video_seconds_per_second"] == rates[1]["video_seconds_per_second"] == 4.0
    assert rates[0]["tflops_per_device"] == rates[1]["tflops_per_device"] == 0.25  # over the devices of the mesh
    assert rates[0]["mfu"] == rates[1]["mfu"] == pytest.approx(0.25e12 / 989.5e12, abs=1e-4)


# --- batches ---


class Nothing(Examples):
    """Examples without a sample, which cost nothing; the one of `wrong` can not be made at all."""

    def __init__(self, count: int, wrong: int = -1) -> None:
        self.count, self.wrong = count, wrong

    def __getitem__(self, number: int) -> Example:
        if number == self.wrong:
            raise MemoryError("no room")
        return FILLER._replace(id=str(number))


def prefetcher(examples: Nothing, steps: int) -> BatchPrefetcher:
    size = Bucket(8, 16, 4, 16)
    shard = HostShard(ShuffledIndex(examples.count, 0), (0, 1), 2, 0, steps)
    data = DataConfig(buckets=(size,), threads=1)
    return BatchPrefetcher(examples, shard, data, preset("qwen2.5-vl-3b"), make_mesh(), workers=0)


def test_a_batch_is_padded_while_the_loop_is_busy():
    """Padding 74,000 patches takes a second, in which a device would wait."""
    batches = prefetcher(Nothing(8), 4)
    first = next(batches)
    assert [example.id for example in first.global_examples] == [example.id for example in first.examples]
    while not batches._queue.full():  # nobody asks: the second is made all the same
        time.sleep(0.01)
    rest = [batch.examples[0].id for batch in batches]
    assert len(rest) == 3 and first.batch.inputs.ids.shape == (2, 8)
    batches.close()
    assert not batches._thread.is_alive()


def test_what_goes_wrong_in_the_making_is_raised_in_the_loop():
    batches = prefetcher(Nothing(4, wrong=2), 2)
    with pytest.raises(MemoryError, match="no room"):
        list(batches)
    batches.close()


def test_a_loop_that_ends_early_leaves_no_thread():
    batches = prefetcher(Nothing(1000), 500)
    next(batches)
    batches.close()
    assert not batches._thread.is_alive()
