"""How every command runs: what can go wrong becomes one line on stderr and an exit code."""

import errno
import io
import logging
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from typing import Any, NoReturn

from svlm_jax.addresses import hide_secrets_in
from svlm_jax.cli.flags import BAD_INPUT
from svlm_jax.errors import InputError

INTERRUPTED, CLOSED, TERMINATED = 130, 141, 143  # exit codes of a shell for SIGINT, SIGPIPE and SIGTERM
# What is wrong with a path or a disk and can be mended by the user. A broken disk (EIO) keeps its traceback.
_PATH_ERRORS = "ENOENT ENOTDIR EISDIR EACCES EPERM EEXIST EROFS ENOSPC EDQUOT EFBIG ENAMETOOLONG ELOOP"
_USER_ERRNOS = {getattr(errno, name) for name in _PATH_ERRORS.split() if hasattr(errno, name)}
_FULL_DISK = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}  # a write that fails names no file
_KERNEL = re.compile(r"(cudnn|mosaic_gpu\w*|tpu): ")  # how the message of a kernel begins that does not take a model


def run(main: Callable[[], None]) -> None:
    """Run a command; InputError, and a path that can not be used, become one line on stderr and exit code 2, warnings one line
    each, Ctrl-C and SIGTERM one line and exit code 130 or 143; a reader that has gone (`| head`) ends it without a word."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax logs whole tracebacks of what we say in one line
    warnings.showwarning = _warn
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that has no such letter
    try:
        with _sigterm_unwinds():
            main()
        sys.stdout.flush()
    except InputError as error:
        _refuse(error)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the interpreter complains at its end
        sys.exit(CLOSED)
    except (OSError, RuntimeError, AssertionError) as error:
        if (refusal := user_error(error)) is None:
            raise
        _refuse(refusal)
    except KeyboardInterrupt as interrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(TERMINATED if isinstance(interrupt, _Terminated) else INTERRUPTED)


class _Terminated(KeyboardInterrupt):
    """SIGTERM."""


@contextmanager
def _sigterm_unwinds() -> Iterator[None]:
    """Inside, SIGTERM ends a command as Ctrl-C does: what it had begun to write is removed, which may be many gigabytes. A
    second one ends it at once. Commands that save and stop, or drain, set handlers of their own."""

    def unwind(*_: object) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise _Terminated

    is_ours = current_thread() is main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if is_ours:
        signal.signal(signal.SIGTERM, unwind)
    try:
        yield
    finally:
        if is_ours and signal.getsignal(signal.SIGTERM) is unwind:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def user_error(error: Exception) -> InputError | None:
    """What a user can mend of an error that is not ours: a path or a full disk, a kernel that does not take the model,
    a device that is not there."""
    if isinstance(error, OSError):
        if error.errno not in _USER_ERRNOS or (error.filename is None and error.errno not in _FULL_DISK):
            return None
        name = f"file {error.filename}" if error.filename is not None else "disk"
        return InputError(name, (error.strerror or str(error)).lower(), "a usable path", "check it")
    if isinstance(error, NotImplementedError) and _KERNEL.match(str(error)):
        return InputError("--attention", str(error), "a kernel for this model", "leave the flag out")
    if _finds_no_device(error):
        got = f"{os.environ.get('JAX_PLATFORMS', 'nothing')} ({str(error).partition(' (set JAX')[0] or 'no such device here'})"
        return InputError("JAX_PLATFORMS", got, "a device that is there, or cpu", "unset it: jax takes what it finds")
    return None


def _finds_no_device(error: BaseException) -> bool:
    """Whether it was raised where jax starts the devices that JAX_PLATFORMS names."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals.get("__name__") == "jax._src.xla_bridge"


def _refuse(error: InputError) -> None:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(BAD_INPUT)


_CACHE_WARNING = re.compile(r"Error (reading|writing) persistent compilation cache entry for '([\w.\-]+)'")
_warned: set[str] = set()


def _warn(message: Any, *_: Any, **__: Any) -> None:
    """A warning is one line; that of a compiled program which cannot be kept, or read again, comes once."""
    line = hide_secrets_in(" ".join(str(message).split()))
    if match := _CACHE_WARNING.match(line):
        if match[1] == "reading":
            from svlm_jax.compile_cache import forget

            forget(match[2])
        if match[1] in _warned:
            return
        _warned.add(match[1])
        line = f"a compiled program could not be {'read' if match[1] == 'reading' else 'kept'}: {line.partition(': ')[2]}"
    print(f"warning: {line}", file=sys.stderr)
