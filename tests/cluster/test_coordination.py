"""Claims about processes that agree: without a device, on one checkpoint. An error tells whether another process is lost."""

import os
import subprocess
import sys

import pytest

from svlm_jax.cluster.coordination import Channel, PeerLost, is_peer_lost
from svlm_jax.cluster.distributed import free_port
from svlm_jax.errors import InputError
from svlm_jax.train import checkpoints
from tests.support import HANG, ROOT, XLA_FLAGS

LOST_PEER = (
    "Gloo AllGather failed: [external/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:2",
    "UNAVAILABLE: Barrier failed because it is in error: task 1 heartbeat timeout",
    "INTERNAL: NCCL operation ncclAllReduce failed: remote process exited or there was a network error",
    "DEADLINE_EXCEEDED: Barrier timed out. Id: orbax_save::0. Some tasks have not reached it",
    "The following tasks are unhealthy (stopped sending heartbeats)",
)
OWN_ERRORS = (
    OSError(28, "No space left on device"),
    InputError("batch", 5, "a multiple of 2", "change it"),
    ValueError("Gloo is not a backend of this array"),
    RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 12 bytes"),
    FileNotFoundError("No such file: /heartbeat/x"),
)


@pytest.mark.parametrize("text", LOST_PEER)
def test_a_lost_peer_is_not_reported_as_a_full_disk(text, tmp_path):
    try:
        try:
            raise RuntimeError(text)
        except RuntimeError as cause:
            raise ValueError("a save failed") from cause
    except ValueError as error:
        reported = checkpoints._write_error(tmp_path, error)
    assert (
        isinstance(reported, PeerLost) and "another process of this run ended" in str(reported) and "disk" not in str(reported)
    )
    assert len(str(reported)) < 400 and "\n" not in str(reported)


@pytest.mark.parametrize("error", OWN_ERRORS, ids=str)
def test_an_error_of_this_process_is_no_lost_peer(error):
    assert not is_peer_lost(error)


def test_a_full_disk_is_reported_as_one(tmp_path):
    reported = checkpoints._write_error(tmp_path, OSError(28, "No space left on device"))
    assert isinstance(reported, InputError) and "no room on the disk" in str(reported)


def test_a_single_process_gathers_its_own_value():
    assert Channel("alone").all_gather([1, "a"]) == [[1, "a"]]


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
checkpoints = Checkpoints(sys.argv[1] if len(sys.argv) > 1 else os.environ["RUN"], keep_last=3)
for step in (1, 2):
    checkpoints.save(step, state(step), {"samples": step}, wait=True)
described = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state(0))
read = checkpoints._read
def fails(step, wanted):
    if rank == 1 and step == 2:
        raise OSError("a disk of this host")
    return read(step, wanted)
checkpoints._read = fails
out, meta = checkpoints.load(described)
print(f"\\nloaded {rank}: {int(out.step)} {meta['samples']}", flush=True)
checkpoints._read = read
print(f"\\nagain {rank}: {int(checkpoints.load(described)[0].step)}", flush=True)
try:
    dataset_check.check_across_hosts({"samples": 8 + rank, "records": "", "media": ""})
except InputError as error:
    print(f"\\nrefused {rank}: {error}", flush=True)
if rank == 1:
    os._exit(9)
try:
    checkpoints.save(3, state(3), {"samples": 3}, wait=True)
except Exception as error:
    distributed.fail(error)
"""


def test_hosts_load_the_same_step_and_report_who_is_lost(tmp_path):
    """One host that cannot read the newest step, and the others would go on from it: a hang, or two runs in one."""
    (tmp_path / "child.py").write_text(CHILD)
    environ = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "RUN": str(tmp_path / "run"), "XLA_FLAGS": XLA_FLAGS}
    environ |= {"SVLM_HEARTBEAT_SECONDS": "60", "SVLM_LEAVE_SECONDS": "10", "JAX_PLATFORMS": "cpu"}
    common = environ | {"SVLM_COORDINATOR": f"127.0.0.1:{free_port()}", "SVLM_NUM_PROCESSES": "2"}
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "cwd": ROOT}
    both = [
        subprocess.Popen([sys.executable, "-m", "child"], env=common | {"SVLM_PROCESS_ID": str(n)}, **piped) for n in (0, 1)
    ]
    outputs = [process.communicate(timeout=HANG)[0] for process in both]
    for rank, text in enumerate(outputs):
        assert f"loaded {rank}: 1 1" in text, text  # the newest that all could read
        assert f"again {rank}: 1" in text, text  # the one that a host could not read is put aside for all
    assert "refused 1: data.paths: got 9 samples, not 8 on process 1, expected what process 0 has" in outputs[1]
    assert both[1].returncode == 9 and both[0].returncode == 1
    assert "error: another process of this run ended" in outputs[0] and "Traceback" not in outputs[0], outputs[0]
