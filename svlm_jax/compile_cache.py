"""Compiled programs kept on disk, so that the next start does not compile them again.

Owns where they lie, how much room they may take, and when none are kept: a directory that cannot be written, that is another
user's, or on a full disk never stops anybody. jax owns the format, the keys (program, versions, flags, device) and the lock
between processes. Units: bytes.
"""

import hashlib
import os
import platform
import shutil
import warnings
from pathlib import Path

from svlm_jax.errors import InputError

MAX_SIZE = 1 << 30  # the least recently used programs make room beyond that
ROOM = 64 << 20  # on the disk, without which nothing is kept
REMEDY = "name another directory, or none"
_ENABLED, _PLACE = "jax_enable_compilation_cache", "jax_compilation_cache_dir"  # of jax.config


def enable_compile_cache(directory: str | os.PathLike | None = None) -> Path | None:
    """Keep compiled programs in `directory`, by default in the user's cache directory; call it before the first program runs.

    What jax has been told already (JAX_COMPILATION_CACHE_DIR, JAX_ENABLE_COMPILATION_CACHE) stands. Processes may share a
    directory; one that is not given has a part for each kind of processor, since programs for a CPU run on its like alone.

    Returns:
        Where programs are kept; None where they are not, with one warning that says why.

    Raises:
        InputError: a directory was given and is not usable.
    """
    import jax

    if not getattr(jax.config, _ENABLED):
        return None
    if directory is None and (place := kept_in()):
        return place
    place = None
    try:
        place = Path(directory) if directory is not None else default_directory()
        _prepare(place)
    except (OSError, RuntimeError, ValueError, ImportError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        if directory is not None:
            raise InputError("compile cache", f"{directory} ({reason.lower()})", "a directory of yours", REMEDY) from None
        warnings.warn(
            f"compiled programs are not kept for the next start: {place or 'no home'}: {reason.lower()}", stacklevel=2
        )
        return None
    jax.config.update(_PLACE, str(place))
    # Without a limit in the environment: programs that compile fast too, there are many; and an end to how many are kept.
    for name, value in (("persistent_cache_min_compile_time_secs", 0.0), ("compilation_cache_max_size", MAX_SIZE)):
        if f"JAX_{name.upper()}" not in os.environ:
            jax.config.update(f"jax_{name}", value)
    return place


def kept_in() -> Path | None:
    """Where compiled programs are kept now; None where they are not."""
    import jax

    place = getattr(jax.config, _PLACE) if getattr(jax.config, _ENABLED) else None
    return Path(place) if place else None


def default_directory() -> Path:
    """$XDG_CACHE_HOME/svlm_jax/compiled/PROCESSOR, under ~/.cache where the variable is not set.

    Raises:
        RuntimeError: there is no home.
    """
    given = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(given) if os.path.isabs(given) else Path.home() / ".cache"  # a relative one is to be ignored, says XDG
    return base / "svlm_jax" / "compiled" / _processor()


def forget(module: str) -> None:
    """Remove what is kept of a program that jax could not read ("jit__prefill"): it would never be written again."""
    if place := kept_in():
        for path in place.glob(f"{module}-*"):
            path.unlink(missing_ok=True)


def _processor() -> str:
    """A name for what the CPU can do: a home that several machines share must not hand one's instructions to another."""
    told = [platform.system(), platform.machine(), platform.processor()]
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        told += [line for line in lines if line.partition("\t")[0] in ("model name", "flags", "Features", "CPU part")]
    except (OSError, ValueError):
        pass
    return f"{platform.machine() or 'cpu'}-{hashlib.sha256(' '.join(told).encode()).hexdigest()[:8]}"


def _prepare(place: Path) -> None:
    """Make the directory, try its lock, and remove what a process that was killed, or a full disk, left half written.

    Raises:
        OSError: it cannot be made, written or locked, is another's, or its disk is full.
        RuntimeError: its lock is held for seconds.
    """
    import filelock

    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    status = place.stat()
    # Who can write a program here can have us run it; and files of root would lock a user out of his own.
    if hasattr(os, "geteuid") and (status.st_uid != os.geteuid() or status.st_mode & 0o002):
        raise PermissionError(13, "it is another user's, or everybody may write to it")
    if shutil.disk_usage(place).free < ROOM:
        raise OSError(28, "no room on the disk")
    try:
        with filelock.FileLock(place / ".lockfile", timeout=5):
            for path in place.glob("*-cache"):
                time_of_use = path.with_name(path.name.removesuffix("-cache") + "-atime")
                if not time_of_use.exists():  # jax writes it last, and stops writing anything where one is missing
                    path.unlink(missing_ok=True)
    except filelock.Timeout:
        raise RuntimeError("its lock is held by another process") from None
