"""From the environment to `jax.distributed.initialize`: one adapter for a local spawner, torchrun, JobSet, SkyPilot, SLURM and
TPU pods, and an end in seconds for all processes when one fails.

Owns which variables are read, and their precedence: the first set that is complete decides. Knows nothing of training.
"""

import os
import signal
import socket
import sys
import traceback
from collections.abc import Mapping
from threading import current_thread, main_thread
from typing import NamedTuple, NoReturn

from svlm_jax.errors import InputError

PORT = 6002  # of the coordinator, where the environment names only a host
BAD_INPUT, FAILED = 2, 1  # exit codes


class ProcessLayout(NamedTuple):
    """How the processes of a run find each other, and which devices this one has. None: jax finds out itself.

    source: the environment that it comes from; coordinator: "host:port"; all_local_devices: the process has all devices of its
    machine, whatever jax would choose; local_device: the one GPU of this process, where its machine has several processes.
    """

    source: str
    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    all_local_devices: bool = False
    local_device: int | None = None


# Source -> variables of the coordinator's address, the number of processes, and the id of this one. A source is used when its
# first variable is set.
_VARIABLES: dict[str, tuple[str, str, str]] = {
    "svlm train --nproc": ("SVLM_COORDINATOR", "SVLM_NUM_PROCESSES", "SVLM_PROCESS_ID"),
    "torchrun": ("MASTER_ADDR", "WORLD_SIZE", "RANK"),
    "JobSet": ("JAX_COORDINATOR_ADDRESS", "NNODES", "NODE_RANK"),
}
_SKYPILOT = ("SKYPILOT_NUM_NODES", "SKYPILOT_NODE_RANK")


def process_layout(environ: Mapping[str, str]) -> ProcessLayout:
    """The layout that an environment describes.

    Raises:
        InputError: variables that are half set, no numbers, or contradict each other.
    """
    for source, names in _VARIABLES.items():
        if environ.get(names[0]):
            return _explicit(source, environ, names)
    if ips := environ.get("SKYPILOT_NODE_IPS", "").split():
        with_address = {**environ, "address": f"{ips[0]}:{PORT}"}
        return _explicit("SkyPilot", with_address, ("address", *_SKYPILOT))
    if _number(environ, "SLURM_NTASKS", "1") > 1:
        return _slurm(environ)
    several_hosts = any("," in environ.get(name, "") for name in ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES"))
    # A TPU VM outside Kubernetes has nothing in its environment: jax asks the machine's metadata, and our recipe sets
    # SVLM_TPU_POD.
    if several_hosts or environ.get("MEGASCALE_COORDINATOR_ADDRESS") or environ.get("SVLM_TPU_POD") == "1":
        return ProcessLayout("TPU pod")
    # Each of N processes that takes itself for the only one would write the same run directory.
    for first, *others in [*_VARIABLES.values(), ("SKYPILOT_NODE_IPS", *_SKYPILOT)]:
        if names := [name for name in others if environ.get(name)]:
            raise InputError("environment", f"{', '.join(names)} without {first}", "all of them, or none", f"set {first}")
    return ProcessLayout("one process", f"127.0.0.1:{free_port()}", 1, 0)


def _explicit(source: str, environ: Mapping[str, str], names: tuple[str, str, str]) -> ProcessLayout:
    missing = [name for name in names if not environ.get(name)]
    if missing:
        raise InputError(f"environment ({source})", f"{names[0]} without {', '.join(missing)}", "all of them", "set them")
    address = environ[names[0]]
    if ":" not in address:
        address = f"{address}:{_torchrun_port(environ) if source == 'torchrun' else PORT}"
    num_processes, process_id = _number(environ, names[1]), _number(environ, names[2])
    if not 0 <= process_id < num_processes:
        raise InputError(f"environment {names[2]}", process_id, f"0 to {num_processes - 1}", f"check {names[1]}")
    local_device = None
    if source == "torchrun" and _number(environ, "LOCAL_WORLD_SIZE", "1") > 1:
        local_device = _number(environ, "LOCAL_RANK")
    return ProcessLayout(source, address, num_processes, process_id, source in ("JobSet", "SkyPilot"), local_device)


def _torchrun_port(environ: Mapping[str, str]) -> int:
    """MASTER_PORT, or the next one where torchrun's agent listens on MASTER_PORT itself."""
    return _number(environ, "MASTER_PORT", str(PORT)) + (environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True")


def _slurm(environ: Mapping[str, str]) -> ProcessLayout:
    if not environ.get("SLURM_STEP_NODELIST"):  # in the batch script itself, or in the shell of an allocation
        raise InputError("SLURM", f"{environ['SLURM_NTASKS']} tasks, and no step", "a step", "start with srun")
    # jax gives each task the device of its local rank: where a node has one task, seven of its eight devices would be idle.
    names = ("SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE", "SLURM_NTASKS_PER_NODE")
    tasks_per_node = next((environ[name] for name in names if environ.get(name)), "")  # "8", or "1(x2)"
    return ProcessLayout("SLURM", all_local_devices=tasks_per_node.split("(")[0] == "1")


def _number(environ: Mapping[str, str], name: str, default: str = "") -> int:
    text = environ.get(name) or default
    try:
        return int(text)
    except ValueError:
        raise InputError(f"environment {name}", repr(text), "a number", "set it") from None


def local_devices(layout: ProcessLayout, environ: Mapping[str, str], num_gpus: int) -> list[int] | None:
    """The GPUs of this process, as jax counts them: from 0 among those in CUDA_VISIBLE_DEVICES. None: jax chooses.

    Args:
        num_gpus: of the machine.
    """
    if layout.local_device is not None:
        return [layout.local_device]
    visible = environ.get("CUDA_VISIBLE_DEVICES")  # SLURM sets it
    count = num_gpus if visible is None else len([name for name in visible.split(",") if name.strip()])
    return list(range(count)) or None if layout.all_local_devices else None


def initialize(layout: ProcessLayout | None = None, environ: Mapping[str, str] = os.environ) -> ProcessLayout:
    """Join the other processes, and end this one at once, with all others, when it fails. A single process joins itself: jax
    notices SIGTERM only then."""
    import jax

    layout = layout or process_layout(environ)
    sys.excepthook = lambda kind, error, trace: fail(error)
    if current_thread() is main_thread():
        # jax notices SIGTERM from here on, by a handler that Python does not know of: whoever sets another for a while and then
        # restores what Python knows (`cli.progress.interruptible`) would remove it.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # Device files are counted, and their names ignored: in a container nvidia3 may be the only one.
    num_gpus = sum(name.removeprefix("nvidia").isdigit() for name in os.listdir("/dev")) if os.path.isdir("/dev") else 0
    is_local = layout.coordinator is not None and layout.coordinator.startswith("127.0.0.1:")
    jax.distributed.initialize(
        layout.coordinator,
        layout.num_processes,
        layout.process_id,
        local_device_ids=local_devices(layout, environ, num_gpus),
        initialization_timeout=int(environ.get("SVLM_JOIN_SECONDS", "300")),
        heartbeat_timeout_seconds=int(environ.get("SVLM_HEARTBEAT_SECONDS", "60")),
        shutdown_timeout_seconds=int(environ.get("SVLM_LEAVE_SECONDS", "30")),
        # jax would otherwise look for a cluster itself, in variables that may belong to an outer job.
        cluster_detection_method=None if layout.coordinator is None else "deactivate",
        # By default the coordinator listens on all interfaces: not where all processes are on this machine.
        coordinator_bind_address=layout.coordinator if is_local and layout.process_id == 0 else None,
    )
    if jax.process_index() == 0:
        print(f"{jax.process_count()} processes, from: {layout.source}", file=sys.stderr, flush=True)
    return layout


def leave(code: int) -> NoReturn:
    """End this process when all others end too."""
    import jax

    jax.distributed.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def fail(error: BaseException) -> NoReturn:
    """Print an error and end without a barrier: the others, in theirs, would wait minutes for this process."""
    from svlm_jax.cluster.coordination import PeerLost, is_peer_lost

    if isinstance(error, InputError | PeerLost):
        print(f"error: {error}", file=sys.stderr)
    elif is_peer_lost(error):
        print(f"error: {PeerLost('in a step', error)}", file=sys.stderr)
    else:
        traceback.print_exception(error)
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: jax's exit handlers wait for the other processes.
    os._exit(BAD_INPUT if isinstance(error, InputError) else FAILED)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
