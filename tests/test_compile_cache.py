"""Compiled programs are kept for the next start: where, how safely, and that nothing depends on it."""

import argparse
import os
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

import svlm_jax
from svlm_jax import compile_cache
from svlm_jax.cli import model_flags, run
from svlm_jax.errors import InputError
from tests.support import HANG, ROOT

NAMES = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs", "jax_compilation_cache_max_size")
PROGRAM = """
import sys, logging, jax, svlm_jax
found = []
jax.monitoring.register_event_listener(lambda name, **_: found.append(name.rsplit("/", 1)[-1]))
print(svlm_jax.enable_compile_cache(*sys.argv[1:]))
print(jax.jit(lambda x: x * 2 + 1)(20.0))
print(found.count("cache_hits"), found.count("cache_misses"))
"""


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    """What the tests tell jax is taken back; no cache is left on for the tests that follow."""
    before = {name: getattr(jax.config, name) for name in NAMES}
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    jax.config.update(NAMES[0], None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def start(*args: object, **changes: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("JAX_COMP")} | {"PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-c", PROGRAM, *map(str, args)]
    return subprocess.run(line, capture_output=True, text=True, env=env | changes, cwd=ROOT, check=False)


def test_the_second_start_compiles_nothing_again(tmp_path):
    """Else: every start costs what the first did, 14 s for the shipped model and minutes for a large one."""
    first, second = (start(XDG_CACHE_HOME=str(tmp_path)) for _ in range(2))
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    place, value, (hits, misses) = (*first.stdout.splitlines()[:2], first.stdout.splitlines()[2].split())
    assert Path(place).parent == tmp_path / "svlm_jax" / "compiled" and value == "41.0" and hits == "0" and int(misses) > 0
    place, value, (hits, misses) = (*second.stdout.splitlines()[:2], second.stdout.splitlines()[2].split())
    assert value == "41.0" and int(hits) > 0 and misses == "0" and second.stderr == ""
    assert Path(place).stat().st_mode & 0o777 == 0o700  # programs in it are run


def test_several_processes_may_share_it(tmp_path):
    env = os.environ | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path)}
    line = [sys.executable, "-c", PROGRAM]
    some = [
        subprocess.Popen(line, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(3)
    ]
    for one in some:
        out, told = one.communicate(timeout=HANG)
        assert one.returncode == 0 and "41.0" in out and told == ""


def test_what_was_half_written_is_written_again(tmp_path):
    """Else: a process that is killed while it writes leaves a program that no start can read, or write again, for ever."""
    start(tmp_path)
    entries = sorted(tmp_path.glob("*-cache"))
    assert entries
    for entry in entries:
        entry.write_bytes(entry.read_bytes()[:100])
        entry.with_name(entry.name.removesuffix("-cache") + "-atime").unlink()  # which jax writes after it
    second = start(tmp_path)
    assert second.stderr == "" and "41.0" in second.stdout
    assert all(entry.stat().st_size > 100 for entry in entries)


def test_what_cannot_be_read_is_told_once_and_forgotten(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run, "_warned", set())
    jax.config.update(NAMES[0], str(tmp_path))
    for name in ("jit_f-0a-cache", "jit_f-0a-atime", "jit_g-0b-cache"):
        (tmp_path / name).touch()
    for _ in range(2):
        run._warn("Error reading persistent compilation cache entry for 'jit_f': error: invalid\nstream")
    assert capsys.readouterr().err == "warning: a compiled program could not be read: error: invalid stream\n"
    assert [path.name for path in tmp_path.iterdir()] == ["jit_g-0b-cache"]


def test_where_nothing_can_be_kept_a_run_goes_on_with_one_line(tmp_path, monkeypatch):
    """Else: an unwritable or missing home, another user's folder or a full disk breaks every command."""
    (tmp_path / "file").touch()
    other = tmp_path / "other"
    place = other / "svlm_jax" / "compiled" / compile_cache._processor()
    place.mkdir(parents=True)
    place.chmod(0o777)  # everybody could have us run what he likes
    full = (tmp_path / "full", lambda *_: type("Usage", (), {"free": 0}))
    for home, usage in ((tmp_path / "file", None), (other, None), full):
        monkeypatch.setenv("XDG_CACHE_HOME", str(home))
        if usage is not None:
            monkeypatch.setattr(compile_cache.shutil, "disk_usage", usage)
        with pytest.warns(UserWarning, match="compiled programs are not kept for the next start: ") as told:
            assert svlm_jax.enable_compile_cache() is None
        assert len(told) == 1 and jax.config.jax_compilation_cache_dir is None
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("Could not determine home directory.")))
    with pytest.warns(UserWarning, match="no home"):
        assert svlm_jax.enable_compile_cache() is None


def test_a_directory_that_was_asked_for_and_is_unusable_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        InputError, match=r"^compile cache: got .*expected a directory of yours; name another directory, or none$"
    ):
        svlm_jax.enable_compile_cache(tmp_path / "file" / "cache")


def test_what_jax_was_told_already_stands(tmp_path, monkeypatch):
    """Else: a cluster's shared cache (JAX_COMPILATION_CACHE_DIR) is left unused, and written elsewhere."""
    jax.config.update(NAMES[0], str(tmp_path))
    sizes = jax.config.jax_compilation_cache_max_size
    assert svlm_jax.enable_compile_cache() == tmp_path and jax.config.jax_compilation_cache_max_size == sizes
    chosen = svlm_jax.enable_compile_cache(tmp_path / "other")
    assert chosen == tmp_path / "other" and jax.config.jax_compilation_cache_dir == str(chosen)
    assert jax.config.jax_compilation_cache_max_size == compile_cache.MAX_BYTES


def test_nothing_is_said_to_be_kept_where_nothing_can_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(compile_cache, "cache_directory", lambda: tmp_path)
    assert compile_cache.where_kept() == tmp_path
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)  # root may write everywhere
    assert compile_cache.where_kept() is None


def test_a_relative_cache_home_is_ignored_and_processors_do_not_share(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    mine = compile_cache.default_directory()
    assert mine.parent == tmp_path / ".cache" / "svlm_jax" / "compiled"
    monkeypatch.setattr(Path, "read_text", lambda path: "model name\t: another\nflags\t\t: fpu avx512f\n\nmodel name")
    assert compile_cache.default_directory() != mine


def test_none_turns_it_off():
    with warnings.catch_warnings(action="error"):
        try:
            model_flags.set_compile_cache(argparse.Namespace(compile_cache="none"))
            assert compile_cache.cache_directory() is None and svlm_jax.enable_compile_cache() is None
        finally:
            jax.config.update("jax_enable_compilation_cache", True)
