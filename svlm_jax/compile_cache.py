"""The compilation cache on disk, so that the next start does not compile the same programs again.

Owns its directory, its size, and when there is none: a directory that cannot be written, belongs to another user or is on a
full disk is a warning, never an error, unless the user named it. jax owns the format, the keys (program, versions, flags,
device) and the lock between processes. Units: bytes.
"""

import hashlib
import os
import platform
import shutil
import warnings
from pathlib import Path

from svlm_jax.errors import InputError

MAX_BYTES = 1 << 30  # beyond that the least recently used programs are removed
MIN_FREE_BYTES = 64 << 20  # of the disk; with less there is no cache
REMEDY = "name another directory, or none"
_ENABLED, _DIRECTORY = "jax_enable_compilation_cache", "jax_compilation_cache_dir"  # of jax.config


def enable_compile_cache(directory: str | os.PathLike | None = None) -> Path | None:
    """Keep compiled programs in `directory`, by default in the user's cache directory; call it before the first program runs.

    Settings of jax itself (JAX_COMPILATION_CACHE_DIR, JAX_ENABLE_COMPILATION_CACHE) take precedence. Processes may share a
    directory; the default one has a part for each kind of processor, since programs for a CPU run only on the same kind.

    Returns:
        The directory of the cache; None without one, after one warning that says why.

    Raises:
        InputError: a directory was given and is not usable.
    """
    import jax

    if not getattr(jax.config, _ENABLED):
        return None
    if directory is None and (path := cache_directory()):
        return path
    path = None
    try:
        path = Path(directory) if directory is not None else default_directory()
        _prepare(path)
    except (OSError, RuntimeError, ValueError, ImportError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        if directory is not None:
            raise InputError("compile cache", f"{directory} ({reason.lower()})", "a directory of yours", REMEDY) from None
        warnings.warn(f"compiled programs are not kept for the next start: {path or 'no home'}: {reason.lower()}", stacklevel=2)
        return None
    jax.config.update(_DIRECTORY, str(path))
    # Unless the environment sets them: keep fast compilations too, for there are many; and limit the size of the cache.
    for name, value in (("persistent_cache_min_compile_time_secs", 0.0), ("compilation_cache_max_size", MAX_BYTES)):
        if f"JAX_{name.upper()}" not in os.environ:
            jax.config.update(f"jax_{name}", value)
    return path


def cache_directory() -> Path | None:
    """The directory of the compilation cache; None without one."""
    import jax

    path = getattr(jax.config, _DIRECTORY) if getattr(jax.config, _ENABLED) else None
    return Path(path) if path else None


def where_kept() -> Path | None:
    """The directory in which programs that are compiled from now on will be found again; None where none are kept. One that
    the environment names may be read alone: an image with programs that were compiled before."""
    directory = cache_directory()
    return directory if directory is not None and os.access(directory, os.W_OK) else None


def default_directory() -> Path:
    """$XDG_CACHE_HOME/svlm_jax/compiled/PROCESSOR, under ~/.cache where the variable is not set.

    Raises:
        RuntimeError: there is no home.
    """
    home = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(home) if os.path.isabs(home) else Path.home() / ".cache"  # XDG says that a relative path is to be ignored
    return base / "svlm_jax" / "compiled" / _processor()


def forget(module: str) -> None:
    """Remove the entries of a program ("jit__prefill") that jax could not read: jax would never write them again."""
    if directory := cache_directory():
        for path in directory.glob(f"{module}-*"):
            path.unlink(missing_ok=True)


def _processor() -> str:
    """A name for the instruction set of the CPU: machines that share a home must not run each other's programs."""
    properties = [platform.system(), platform.machine(), platform.processor()]
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        properties += [line for line in lines if line.partition("\t")[0] in ("model name", "flags", "Features", "CPU part")]
    except (OSError, ValueError):
        pass
    return f"{platform.machine() or 'cpu'}-{hashlib.sha256(' '.join(properties).encode()).hexdigest()[:8]}"


def _prepare(directory: Path) -> None:
    """Create the directory, try its lock, and remove what a killed process or a full disk left half written.

    Raises:
        OSError: it cannot be made, written or locked, is another's, or its disk is full.
        RuntimeError: its lock is held for seconds.
    """
    import filelock

    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    status = directory.stat()
    # Whoever can write a program here can have it run; and files of root would lock users out of their own cache.
    if hasattr(os, "geteuid") and (status.st_uid != os.geteuid() or status.st_mode & 0o002):
        raise PermissionError(13, "it is another user's, or everybody may write to it")
    if shutil.disk_usage(directory).free < MIN_FREE_BYTES:
        raise OSError(28, "no room on the disk")
    try:
        with filelock.FileLock(directory / ".lockfile", timeout=5):
            for path in directory.glob("*-cache"):
                access_time = path.with_name(path.name.removesuffix("-cache") + "-atime")
                if not access_time.exists():  # jax writes it last, and writes nothing more while one is missing
                    path.unlink(missing_ok=True)
    except filelock.Timeout:
        raise RuntimeError("its lock is held by another process") from None
