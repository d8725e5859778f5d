"""Commands in a process of their own, forked from one that has imported what they all import: most of what a short one does.

The process forked from starts no backend and no thread. Tests of the start itself (`test_first_use.py`, the installed wheel),
and those that signal a running command, start a new interpreter.
"""

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import HANG, ROOT

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.support.preload"])


def command(
    module: str,
    *args: object,
    limit: int | None = None,
    cwd: Path = ROOT,
    prepare: Callable[[], None] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run `python -m launch.MODULE ARGS` in `cwd`; `limit` is the largest file it may write, in bytes (a full disk); `prepare`
    is called first, in its process."""
    line = [f"launch.{module}", *map(str, args)]
    with tempfile.TemporaryDirectory() as folder:
        streams = [Path(folder, name) for name in ("stdout", "stderr")]
        process = _CONTEXT.Process(target=_run, args=(line, dict(os.environ), cwd, limit, *streams, prepare))
        process.start()
        process.join(HANG)
        if process.exitcode is None:
            process.kill()
            pytest.fail(f"{line} hangs: {streams[1].read_text()}")
        return subprocess.CompletedProcess(line, process.exitcode, *(path.read_text() for path in streams))


def _run(
    line: list[str],
    environment: dict[str, str],
    cwd: Path,
    limit: int | None,
    stdout: Path,
    stderr: Path,
    prepare: Callable[[], None] | None,
) -> None:
    for descriptor, path in enumerate((Path(os.devnull), stdout, stderr)):
        opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.path.insert(0, str(ROOT))  # where `launch` is, whatever the folder
    warnings.resetwarnings()
    warnings.simplefilter("ignore")
    if limit is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    if prepare is not None:
        prepare()
    sys.argv = line
    try:
        runpy.run_module(line[0], run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # as an interpreter does that ends, and a forked process does not
