"""From the environment to `jax.distributed.initialize`: one adapter for a local spawner, torchrun, JobSet, SkyPilot, SLURM and
TPU pods, and an end in seconds for all processes when one fails.

Owns which variables are read, and in which order; the first that are set decide. Knows nothing of training.
"""

import os
import socket
import sys
import traceback
from collections.abc import Mapping
from typing import NamedTuple, NoReturn

from svlm_jax.errors import InputError

PORT = 6002  # of the coordinator, where the environment names only a host
BAD_INPUT, FAILED = 2, 1  # exit codes


class Plan(NamedTuple):
    """How processes find each other. source: what said so; coordinator "host:port"; None where jax finds out itself."""

    source: str
    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None
    every_device: bool = False  # one process has all devices of its machine, whatever jax would give it
    device: int | None = None  # the one GPU of this process, where its machine has several processes


def resolve(environ: Mapping[str, str]) -> Plan:
    """The plan of an environment.

    Raises:
        InputError: variables that are half set, no numbers, or contradict each other.
    """
    for source, wanted in _SETS.items():
        if environ.get(wanted[0]):
            return _explicit(source, environ, wanted)
    if ips := environ.get("SKYPILOT_NODE_IPS", "").split():
        found = {**environ, "address": f"{ips[0]}:{PORT}"}
        return _explicit("SkyPilot", found, ("address", *_SKYPILOT))
    if _number(environ, "SLURM_NTASKS", "1") > 1:
        return _slurm(environ)
    several = any("," in environ.get(name, "") for name in ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES"))
    # A TPU VM outside Kubernetes has nothing in its environment: jax asks the machine's metadata, and our recipe says so.
    if several or environ.get("MEGASCALE_COORDINATOR_ADDRESS") or environ.get("SVLM_TPU_POD") == "1":
        return Plan("TPU pod")
    # Each of N processes that believes it is alone would write the same run directory.
    for first, *others in [*_SETS.values(), ("SKYPILOT_NODE_IPS", *_SKYPILOT)]:
        if given := [name for name in others if environ.get(name)]:
            raise InputError("environment", f"{', '.join(given)} without {first}", "all of them, or none", f"set {first}")
    return Plan("one process", f"127.0.0.1:{free_port()}", 1, 0)


# Source -> variables of the coordinator's address, the number of processes, and this one's. The first tells whether it is set.
_SETS: dict[str, tuple[str, str, str]] = {
    "svlm train --nproc": ("SVLM_COORDINATOR", "SVLM_NUM_PROCESSES", "SVLM_PROCESS_ID"),
    "torchrun": ("MASTER_ADDR", "WORLD_SIZE", "RANK"),
    "JobSet": ("JAX_COORDINATOR_ADDRESS", "NNODES", "NODE_RANK"),
}
_SKYPILOT = ("SKYPILOT_NUM_NODES", "SKYPILOT_NODE_RANK")


def _explicit(source: str, environ: Mapping[str, str], names: tuple[str, str, str]) -> Plan:
    missing = [name for name in names if not environ.get(name)]
    if missing:
        raise InputError(f"environment ({source})", f"{names[0]} without {', '.join(missing)}", "all of them", "set them")
    address = environ[names[0]]
    if ":" not in address:
        address = f"{address}:{_port(environ) if source == 'torchrun' else PORT}"
    processes, process = _number(environ, names[1]), _number(environ, names[2])
    if not 0 <= process < processes:
        raise InputError(f"environment {names[2]}", process, f"0 to {processes - 1}", f"check {names[1]}")
    device = None
    if source == "torchrun" and _number(environ, "LOCAL_WORLD_SIZE", "1") > 1:
        device = _number(environ, "LOCAL_RANK")
    return Plan(source, address, processes, process, source in ("JobSet", "SkyPilot"), device)


def _port(environ: Mapping[str, str]) -> int:
    """Of the coordinator under torchrun, whose agent listens on MASTER_PORT itself: the next one."""
    return _number(environ, "MASTER_PORT", str(PORT)) + (environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True")


def _slurm(environ: Mapping[str, str]) -> Plan:
    if not environ.get("SLURM_STEP_NODELIST"):  # in the batch script itself, or in the shell of an allocation
        raise InputError("SLURM", f"{environ['SLURM_NTASKS']} tasks, and no step", "a step", "start with srun")
    # jax gives each task the device of its local rank, and so seven of eight to nobody where a node has one task.
    names = ("SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE", "SLURM_NTASKS_PER_NODE")
    each = next((environ[name] for name in names if environ.get(name)), "")  # "8", or "1(x2)"
    return Plan("SLURM", every_device=each.split("(")[0] == "1")


def _number(environ: Mapping[str, str], name: str, default: str = "") -> int:
    text = environ.get(name) or default
    try:
        return int(text)
    except ValueError:
        raise InputError(f"environment {name}", repr(text), "a number", "set it") from None


def local_devices(plan: Plan, environ: Mapping[str, str], nodes: int) -> list[int] | None:
    """The GPUs of this process, as jax counts them: from 0 among those that CUDA_VISIBLE_DEVICES leaves. None: what jax takes.

    Args:
        nodes: GPUs of the machine.
    """
    if plan.device is not None:
        return [plan.device]
    visible = environ.get("CUDA_VISIBLE_DEVICES")  # SLURM sets it
    count = nodes if visible is None else len([name for name in visible.split(",") if name.strip()])
    return list(range(count)) or None if plan.every_device else None


def initialize(plan: Plan | None = None, environ: Mapping[str, str] = os.environ) -> Plan:
    """Join the other processes, and make this one end at once, with all others, when it fails. A single process joins itself:
    jax notices SIGTERM only then."""
    import jax

    plan = plan or resolve(environ)
    sys.excepthook = lambda kind, error, trace: fail(error)
    # In a container nvidia3 may be the only one: their number counts, not their names.
    nodes = sum(name.removeprefix("nvidia").isdigit() for name in os.listdir("/dev")) if os.path.isdir("/dev") else 0
    on_this_machine = plan.coordinator is not None and plan.coordinator.startswith("127.0.0.1:")
    jax.distributed.initialize(
        plan.coordinator,
        plan.processes,
        plan.process,
        local_device_ids=local_devices(plan, environ, nodes),
        initialization_timeout=int(environ.get("SVLM_JOIN_SECONDS", "300")),
        heartbeat_timeout_seconds=int(environ.get("SVLM_HEARTBEAT_SECONDS", "60")),
        shutdown_timeout_seconds=int(environ.get("SVLM_LEAVE_SECONDS", "30")),
        cluster_detection_method=None if plan.coordinator is None else "deactivate",
        coordinator_bind_address=plan.coordinator if on_this_machine and plan.process == 0 else None,
    )
    if jax.process_index() == 0:
        print(f"{jax.process_count()} processes, as told by: {plan.source}", file=sys.stderr, flush=True)
    return plan


def leave(code: int) -> NoReturn:
    """End this process as part of an orderly end of all."""
    import jax

    jax.distributed.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def fail(error: BaseException) -> NoReturn:
    """Tell, and end without waiting for the others, who would wait minutes for us."""
    from svlm_jax.train.hosts import PeerLost, is_lost

    if isinstance(error, InputError | PeerLost):
        print(f"error: {error}", file=sys.stderr)
    elif is_lost(error):
        print(f"error: {PeerLost('in a step', error)}", file=sys.stderr)
    else:
        traceback.print_exception(error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(BAD_INPUT if isinstance(error, InputError) else FAILED)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
