"""Claims about what processes agree on: without a device, on one checkpoint, ahead of the loop; and who is gone is told so."""

import os
import subprocess
import sys
import time

import pytest

from svlm_jax.cluster.coordination import Channel, PeerLost, is_peer_lost
from svlm_jax.cluster.distributed import free_port
from svlm_jax.data.config import Bucket, DataConfig
from svlm_jax.data.pipeline import FILLER, Example, Examples, HostShard, ShuffledIndex
from svlm_jax.errors import InputError
from svlm_jax.families import preset
from svlm_jax.sharding import make_mesh
from svlm_jax.train import checkpoints, flops
from svlm_jax.train.prefetch import BatchPrefetcher
from svlm_jax.train.throughput import StepStats, Workload
from tests.support import ROOT

GONE = (
    "Gloo AllGather failed: [external/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:2",
    "UNAVAILABLE: Barrier failed because it is in error: task 1 heartbeat timeout",
    "INTERNAL: NCCL operation ncclAllReduce failed: remote process exited or there was a network error",
    "DEADLINE_EXCEEDED: Barrier timed out. Id: orbax_save::0. Some tasks have not reached it",
    "The following tasks are unhealthy (stopped sending heartbeats)",
)
HERE = (
    OSError(28, "No space left on device"),
    InputError("batch", 5, "a multiple of 2", "change it"),
    ValueError("Gloo is not a backend of this array"),
    RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 12 bytes"),
    FileNotFoundError("No such file: /heartbeat/x"),
)


@pytest.mark.parametrize("text", GONE)
def test_a_lost_peer_is_told_as_one_and_not_as_a_full_disk(text, tmp_path):
    try:
        try:
            raise RuntimeError(text)
        except RuntimeError as cause:
            raise ValueError("a save failed") from cause
    except ValueError as error:
        told = checkpoints._write_error(tmp_path, error)
    assert isinstance(told, PeerLost) and "another process of this run ended" in str(told) and "disk" not in str(told)
    assert len(str(told)) < 400 and "\n" not in str(told)


@pytest.mark.parametrize("error", HERE, ids=str)
def test_what_goes_wrong_here_is_no_lost_peer(error):
    assert not is_peer_lost(error)


def test_a_full_disk_is_told_as_one(tmp_path):
    told = checkpoints._write_error(tmp_path, OSError(28, "No space left on device"))
    assert isinstance(told, InputError) and "no room on the disk" in str(told)


def test_alone_an_agreement_is_what_was_said():
    assert Channel("alone").all_gather([1, "a"]) == [[1, "a"]]


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
    return BatchPrefetcher(examples, shard, data, preset("qwen2.5-vl-3b"), workers=0)


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


# --- two processes ---

CHILD = """
import os, sys, warnings
from svlm_jax.cluster import distributed
distributed.initialize()
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
from svlm_jax.errors import InputError
from svlm_jax.sharding import make_mesh
from svlm_jax.train import dataset_check
from svlm_jax.train.checkpoints import Checkpoints
from svlm_jax.train.step import TrainState
warnings.showwarning = lambda message, *_, **__: None
rank, mesh = jax.process_index(), make_mesh(fsdp=2)
cut, whole = NamedSharding(mesh, P("fsdp")), NamedSharding(mesh, P())
def state(step):
    make = jax.jit(lambda: TrainState(jnp.int32(step), jnp.int32(0), {"a.kernel": jnp.full((4, 3), float(step))}, (), {}),
                   out_shardings=TrainState(whole, whole, {"a.kernel": cut}, (), {}))
    return make()
kept = Checkpoints(sys.argv[1] if len(sys.argv) > 1 else os.environ["RUN"], keep_last=3)
for step in (1, 2):
    kept.save(step, state(step), {"samples": step}, wait=True)
described = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state(0))
read = kept._read
def fails(step, wanted):
    if rank == 1 and step == 2:
        raise OSError("a disk of this host")
    return read(step, wanted)
kept._read = fails
out, meta = kept.load(described)
print(f"\\nloaded {rank}: {int(out.step)} {meta['samples']}", flush=True)
kept._read = read
print(f"\\nagain {rank}: {int(kept.load(described)[0].step)}", flush=True)
try:
    dataset_check.check_across_hosts({"samples": 8 + rank, "records": "", "media": ""})
except InputError as error:
    print(f"\\nrefused {rank}: {error}", flush=True)
if rank == 1:
    os._exit(9)
try:
    kept.save(3, state(3), {"samples": 3}, wait=True)
except Exception as error:
    distributed.fail(error)
"""


def test_hosts_load_the_same_step_and_tell_who_is_gone(tmp_path):
    """One host that cannot read the newest step, and the others would go on from it: a hang, or two runs in one."""
    (tmp_path / "child.py").write_text(CHILD)
    environ = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "RUN": str(tmp_path / "run"), "XLA_FLAGS": ""}
    environ |= {"SVLM_HEARTBEAT_SECONDS": "60", "SVLM_LEAVE_SECONDS": "10", "JAX_PLATFORMS": "cpu"}
    common = environ | {"SVLM_COORDINATOR": f"127.0.0.1:{free_port()}", "SVLM_NUM_PROCESSES": "2"}
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "cwd": ROOT}
    both = [
        subprocess.Popen([sys.executable, "-m", "child"], env=common | {"SVLM_PROCESS_ID": str(n)}, **piped) for n in (0, 1)
    ]
    told = [process.communicate(timeout=300)[0] for process in both]
    for rank, text in enumerate(told):
        assert f"loaded {rank}: 1 1" in text, text  # the newest that all could read
        assert f"again {rank}: 2" in text, text
    assert "refused 1: data.paths: got 9 samples, not 8 on process 1, expected what process 0 has" in told[1]
    assert both[1].returncode == 9 and both[0].returncode == 1
    assert "error: another process of this run ended" in told[0] and "Traceback" not in told[0], told[0]
