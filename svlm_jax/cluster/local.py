"""Several processes of one command on this machine, as a cluster would start them.

Output of all but the first is prefixed with its number. When one fails the others are ended, within seconds; when this process
is ended, so are they.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence

from svlm_jax.cluster.distributed import free_port
from svlm_jax.errors import InputError

GRACE = 10.0  # seconds from SIGTERM to SIGKILL when another process has failed
PREEMPTED = 75
# Runs a module in a child. First it asks Linux to be killed when its parent has ended (PR_SET_PDEATHSIG = 1): in the child
# itself and not between fork and exec, since a process with threads should not fork.
_CHILD = """
import ctypes, os, runpy, signal, sys
parent, module, *rest = sys.argv[1:]
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != int(parent):
        sys.exit(1)
sys.argv = [module, *rest]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def spawn(
    num_processes: int, argv: Sequence[str], *, devices_each: int | None = None, environ: Mapping[str, str] = os.environ
) -> int:
    """Run `python -m ARGV...` that many times. Returns the exit code: that of the first to fail, 75 when asked to stop.

    Args:
        devices_each: virtual CPU devices of each, and its share of the GPUs. By default each has all GPUs, which only works
            where there are none.

    Raises:
        InputError: CUDA_VISIBLE_DEVICES names fewer GPUs than that.
    """
    coordinator = f"127.0.0.1:{free_port()}"
    common = {**environ, "SVLM_COORDINATOR": coordinator, "SVLM_NUM_PROCESSES": str(num_processes)}
    if devices_each:
        common["JAX_NUM_CPU_DEVICES"] = str(devices_each)
    gpus = _gpu_shares(num_processes, devices_each, environ)
    processes: list[subprocess.Popen] = []
    echoes: list[threading.Thread] = []
    for number in range(num_processes):
        pipes = {} if number == 0 else {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        command = [sys.executable, "-c", _CHILD, str(os.getpid()), *argv]
        process = subprocess.Popen(command, env=common | {"SVLM_PROCESS_ID": str(number)} | gpus[number], **pipes)
        processes.append(process)
        if number:
            echoes.append(threading.Thread(target=_echo, args=(number, process), daemon=True))
            echoes[-1].start()
    handlers = {
        number: signal.signal(number, lambda received, _: _signal(processes, received))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        return _wait(processes)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        # The last lines of a process that failed. Its own children may keep the pipe open: not without end.
        for echo in echoes:
            echo.join(timeout=2.0)


def _gpu_shares(num_processes: int, devices_each: int | None, environ: Mapping[str, str]) -> list[dict[str, str]]:
    """The environment of each process that gives it its GPUs; empty without `devices_each`, or where GPUs are switched off."""
    names = [name.strip() for name in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    switched_off = names == ["-1"] or ("CUDA_VISIBLE_DEVICES" in environ and not names)
    if not devices_each or switched_off:
        return [{}] * num_processes
    names = names or [str(number) for number in range(num_processes * devices_each)]
    if len(names) < num_processes * devices_each:
        expected = f"{num_processes} x {devices_each} of them"
        raise InputError("CUDA_VISIBLE_DEVICES", f"{len(names)} GPUs", expected, "name more, or start fewer processes")
    shares = (names[first : first + devices_each] for first in range(0, num_processes * devices_each, devices_each))
    return [{"CUDA_VISIBLE_DEVICES": ",".join(share)} for share in shares]


def _wait(processes: list[subprocess.Popen]) -> int:
    """The first exit code that is neither 0 nor 75, else the largest."""
    deadline, failed = None, 0
    while None in [process.poll() for process in processes]:
        for number, process in enumerate(processes):
            if not failed and process.returncode not in (None, 0, PREEMPTED):
                if process.returncode < 0:  # it could not say anything itself
                    name = signal.Signals(-process.returncode).name
                    likely = " (mostly for want of memory)" if name == "SIGKILL" else ""
                    print(f"error: process {number} was ended by {name}{likely}: all are ended", file=sys.stderr, flush=True)
                failed, deadline = process.returncode, time.monotonic() + GRACE
                _signal(processes, signal.SIGTERM)
        if deadline is not None and time.monotonic() > deadline:
            _signal(processes, signal.SIGKILL)
        time.sleep(0.05)
    codes = [process.returncode for process in processes]
    failed = failed or next((code for code in codes if code not in (0, PREEMPTED)), 0)
    return (128 - failed if failed < 0 else failed) if failed else max(codes)  # -9 (a signal) is 137 in a shell


def _signal(processes: list[subprocess.Popen], number: int) -> None:
    for process in processes:
        if process.poll() is None:
            process.send_signal(number)


def _echo(number: int, process: subprocess.Popen) -> None:
    assert process.stdout is not None
    with process.stdout as lines:
        for line in lines:
            print(f"[{number}] {line}", end="", file=sys.stderr, flush=True)
