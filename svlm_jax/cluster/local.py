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
# What runs a module in a child. Before that it asks Linux to be killed when its parent is gone (PR_SET_PDEATHSIG = 1); here and
# not between fork and exec, since a process with threads should not fork.
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
    processes: int, argv: Sequence[str], *, devices_each: int | None = None, environ: Mapping[str, str] = os.environ
) -> int:
    """Run `python -m ARGV...` that many times. Returns the exit code: that of the first to fail, 75 when asked to stop.

    Args:
        devices_each: virtual CPU devices of each, and its share of the GPUs. Not given: each has all GPUs, which only works
            where there are none.

    Raises:
        InputError: CUDA_VISIBLE_DEVICES names fewer GPUs than that.
    """
    common = {**environ, "SVLM_COORDINATOR": f"127.0.0.1:{free_port()}", "SVLM_NUM_PROCESSES": str(processes)}
    if devices_each:
        common["JAX_NUM_CPU_DEVICES"] = str(devices_each)
    shares = _shares(processes, devices_each, environ)
    started, echoes = [], []
    for number in range(processes):
        piped = {} if number == 0 else {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        command = [sys.executable, "-c", _CHILD, str(os.getpid()), *argv]
        own = common | {"SVLM_PROCESS_ID": str(number)} | shares[number]
        one = subprocess.Popen(command, env=own, **piped)
        started.append(one)
        if number:
            echoes.append(threading.Thread(target=_echo, args=(number, one), daemon=True))
            echoes[-1].start()
    before = {name: signal.signal(name, lambda heard, _: _signal(started, heard)) for name in (signal.SIGTERM, signal.SIGINT)}
    try:
        return _wait(started)
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
        for echo in echoes:  # the last lines of a process that failed; one whose own children hold the pipe is not waited for
            echo.join(timeout=2.0)


def _shares(processes: int, each: int | None, environ: Mapping[str, str]) -> list[dict[str, str]]:
    names = [name.strip() for name in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    if not each or names == ["-1"] or ("CUDA_VISIBLE_DEVICES" in environ and not names):  # not asked, or no GPUs on purpose
        return [{}] * processes
    names = names or [str(number) for number in range(processes * each)]
    if len(names) < processes * each:
        wanted = f"{processes} x {each}"
        raise InputError(
            "CUDA_VISIBLE_DEVICES", f"{len(names)} GPUs", f"{wanted} of them", "name more, or start fewer processes"
        )
    return [{"CUDA_VISIBLE_DEVICES": ",".join(names[n * each : (n + 1) * each])} for n in range(processes)]


def _wait(started: list[subprocess.Popen]) -> int:
    """The first exit code that is neither 0 nor 75, else the largest."""
    deadline, failed = None, 0
    while None in [one.poll() for one in started]:
        for one in started:
            if not failed and one.returncode not in (None, 0, PREEMPTED):
                failed, deadline = one.returncode, time.monotonic() + GRACE
                _signal(started, signal.SIGTERM)
        if deadline is not None and time.monotonic() > deadline:
            _signal(started, signal.SIGKILL)
        time.sleep(0.05)
    codes = [one.returncode for one in started]
    failed = failed or next((code for code in codes if code not in (0, PREEMPTED)), 0)
    return (128 - failed if failed < 0 else failed) if failed else max(codes)


def _signal(started: list[subprocess.Popen], number: int) -> None:
    for one in started:
        if one.poll() is None:
            one.send_signal(number)


def _echo(number: int, process: subprocess.Popen) -> None:
    assert process.stdout is not None
    with process.stdout as lines:
        for line in lines:
            print(f"[{number}] {line}", end="", file=sys.stderr, flush=True)
