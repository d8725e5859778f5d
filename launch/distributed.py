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


def resolve(environ: Mapping[str, str]) -> Plan:
    """The plan of an environment.

    Raises:
        InputError: variables that are half set, no numbers, or contradict each other.
    """
    for source, wanted in _SETS.items():
        if wanted[0] in environ:
            return _explicit(source, environ, wanted)
    if "SKYPILOT_NODE_IPS" in environ:
        first = environ["SKYPILOT_NODE_IPS"].split()[0]
        found = {"address": f"{first}:{PORT}", **environ}
        return _explicit("SkyPilot", found, ("address", "SKYPILOT_NUM_NODES", "SKYPILOT_NODE_RANK"))
    if int(environ.get("SLURM_NTASKS", "1")) > 1:
        # jax gives each task the device of its local rank, and so seven of eight to nobody where a node has one task.
        each = environ.get("SLURM_TASKS_PER_NODE", environ.get("SLURM_NTASKS_PER_NODE", ""))  # "8", or "1(x2)"
        return Plan("SLURM", every_device=each.split("(")[0] == "1")
    if "," in environ.get("TPU_WORKER_HOSTNAMES", ""):
        return Plan("TPU pod")
    return Plan("one process", f"127.0.0.1:{free_port()}", 1, 0)


# Source -> variables of the coordinator's address, the number of processes, and this one's. The first tells whether it is set.
_SETS: dict[str, tuple[str, str, str]] = {
    "launch.train --nproc": ("SVLM_COORDINATOR", "SVLM_NUM_PROCESSES", "SVLM_PROCESS_ID"),
    "torchrun": ("MASTER_ADDR", "WORLD_SIZE", "RANK"),
    "JobSet": ("JAX_COORDINATOR_ADDRESS", "NNODES", "NODE_RANK"),
}


def _explicit(source: str, environ: Mapping[str, str], names: tuple[str, str, str]) -> Plan:
    missing = [name for name in names if not environ.get(name)]
    if missing:
        raise InputError(f"environment ({source})", f"{names[0]} without {', '.join(missing)}", "all of them", "set them")
    address = environ[names[0]]
    if ":" not in address:
        address = f"{address}:{environ.get('MASTER_PORT') or PORT}"
    try:
        processes, process = int(environ[names[1]]), int(environ[names[2]])
    except ValueError:
        got = f"{environ[names[1]]!r} and {environ[names[2]]!r}"
        raise InputError(f"environment {names[1]}, {names[2]}", got, "two numbers", "set them") from None
    if not 0 <= process < processes:
        raise InputError(f"environment {names[2]}", process, f"0 to {processes - 1}", f"check {names[1]}")
    return Plan(source, address, processes, process, every_device=source in ("JobSet", "SkyPilot"))


def initialize(plan: Plan | None = None, environ: Mapping[str, str] = os.environ) -> Plan:
    """Join the other processes, and make this one end at once, with all others, when it fails. A single process joins itself:
    jax notices SIGTERM only then."""
    import jax

    plan = plan or resolve(environ)
    sys.excepthook = lambda kind, error, trace: fail(error)
    local = None
    if plan.every_device and environ.get("CUDA_VISIBLE_DEVICES", "all") == "all" and os.path.exists("/dev/nvidia0"):
        local = [int(name.removeprefix("nvidia")) for name in os.listdir("/dev") if name.removeprefix("nvidia").isdigit()]
    on_this_machine = plan.coordinator is not None and plan.coordinator.startswith("127.0.0.1:")
    jax.distributed.initialize(
        plan.coordinator,
        plan.processes,
        plan.process,
        local_device_ids=sorted(local) if local else None,
        initialization_timeout=int(environ.get("SVLM_JOIN_SECONDS", "300")),
        heartbeat_timeout_seconds=int(environ.get("SVLM_HEARTBEAT_SECONDS", "60")),
        shutdown_timeout_seconds=int(environ.get("SVLM_LEAVE_SECONDS", "30")),
        cluster_detection_method=None if plan.coordinator is None else "deactivate",
        coordinator_bind_address=plan.coordinator if on_this_machine and plan.process == 0 else None,
    )
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
    if isinstance(error, InputError):
        print(f"error: {error}", file=sys.stderr)
    else:
        traceback.print_exception(error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(BAD_INPUT if isinstance(error, InputError) else FAILED)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
