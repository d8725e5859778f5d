"""Claims about checkpoints of runs: a damaged one costs the steps since the one before, once; a reader disturbs no run."""

import logging
import random
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from svlm_jax.checkpoint import abandoned_reads
from svlm_jax.errors import InputError
from svlm_jax.train.checkpoints import FOLDER, Checkpoints
from svlm_jax.train.step import TrainState
from tests.support import ROOT, wait_until


def state(step: int) -> TrainState:
    return TrainState(jnp.int32(step), jnp.int32(0), {"a.kernel": jnp.arange(12.0).reshape(4, 3) + step}, (), {})


ABSTRACT = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state(0))


@pytest.fixture
def run(tmp_path):
    """A run's directory with the checkpoints of steps 1 and 2."""
    checkpoints = Checkpoints(tmp_path, keep_last=3)
    for step in (1, 2):
        checkpoints.save(step, state(step), {"samples": step, "config": "{}"}, wait=True)
    checkpoints.close()
    return tmp_path


def load(run: Path, keep_last: int = 3) -> tuple[Checkpoints, int]:
    """The checkpoints of a run that resumes, and its step."""
    checkpoints = Checkpoints(run, keep_last=keep_last)
    loaded = checkpoints.load(ABSTRACT)
    assert loaded is not None and loaded[1]["samples"] == int(loaded[0].step)
    np.testing.assert_array_equal(loaded[0].trainable["a.kernel"], state(int(loaded[0].step)).trainable["a.kernel"])
    return checkpoints, int(loaded[0].step)


def coroutine(file: str) -> SimpleNamespace:
    return SimpleNamespace(cr_code=SimpleNamespace(co_filename=file))


def damage(run: Path) -> None:
    for path in (run / FOLDER / "2").rglob("*"):
        if path.is_file() and path.name == "manifest.ocdbt":
            path.write_bytes(b"")


@pytest.mark.filterwarnings("ignore:checkpoint .* does not load")
def test_a_step_that_was_damaged_is_saved_again_and_takes_nobody_s_place(run):
    """It kept its name once: each start went back to step 1, and with keep_last=1 what was saved before step 2 was removed."""
    damage(run)
    checkpoints, step = load(run, keep_last=1)
    assert step == 1 and checkpoints.put_aside == ["2.damaged"]
    checkpoints.save(2, state(2), {"samples": 2}, wait=True)
    checkpoints.close()
    damage(run)
    shutil.copytree(run / FOLDER / "2", run / FOLDER / "1")  # what keep_last=1 removed
    with pytest.raises(InputError, match=r"step 2: .*; step 1: .*expected a complete checkpoint"):
        Checkpoints(run, keep_last=1).load(ABSTRACT)
    assert sorted(path.name for path in (run / FOLDER).iterdir()) == ["1", "2", "2.damaged"]  # nothing is renamed for nothing


def test_a_damaged_checkpoint_is_a_line_and_nothing_else_whenever_python_collects_what_is_left_of_the_read(run, tmp_path):
    """Else: of each read that Orbax had begun a traceback and pages of tensorstore's messages, some minutes later."""
    code = (
        "import gc, logging, sys\nfrom svlm_jax.train.checkpoints import Checkpoints\n"
        "from tests.train.test_checkpoints import ABSTRACT\n"
        "logging.getLogger('absl').setLevel(logging.CRITICAL)\n"  # as commands do
        "for copy in sys.argv[1:]:\n"
        " checkpoints = Checkpoints(copy)\n print(int(checkpoints.load(ABSTRACT)[0].step))\n"
        " checkpoints.close()\n gc.collect()\n"
    )
    rng, copies = random.Random(0), []
    for file in sorted((run / FOLDER / "2").rglob("*")):
        if file.is_file() and (file.name == "manifest.ocdbt" or file.parent.name == "d"):
            copies.append(tmp_path / f"copy{len(copies)}")
            shutil.copytree(run / FOLDER, copies[-1] / FOLDER)
            (copies[-1] / file.relative_to(run)).write_bytes(rng.randbytes(file.stat().st_size))
    done = subprocess.run([sys.executable, "-c", code, *copies], capture_output=True, text=True, cwd=ROOT)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("  ")]  # those are of the code that warns
    assert done.returncode == 0 and len(lines) == done.stdout.count("1") >= 4, done.stderr
    assert all("does not load (" in line and "trying the one before" in line for line in lines), done.stderr


@pytest.mark.parametrize(
    ("event", "is_printed"),
    [
        (SimpleNamespace(object=None, exc_value=RuntimeError("Event loop is closed")), False),
        (SimpleNamespace(object=None, exc_value=RuntimeError("another")), True),
        (SimpleNamespace(object=coroutine("x/orbax/checkpoint/y.py"), exc_value=Exception("...")), False),
        (SimpleNamespace(object=coroutine("svlm_jax/serve/server.py"), exc_value=RuntimeError("Event loop is closed")), True),
    ],
)
def test_what_others_leave_behind_is_printed_as_before(event, is_printed, monkeypatch):
    printed = []
    monkeypatch.setattr(sys, "unraisablehook", printed.append)
    monkeypatch.setattr(abandoned_reads, "_is_silent", False)
    monkeypatch.setattr(logging.getLogger("asyncio"), "addFilter", lambda keep: None)
    abandoned_reads.silence_abandoned_reads()
    sys.unraisablehook(event)
    assert printed == [event] * is_printed


def test_an_export_leaves_what_a_run_is_writing(run):
    half_written = run / FOLDER / "3.orbax-checkpoint-tmp"
    half_written.mkdir()
    Checkpoints(run, read_only=True).close()
    assert half_written.is_dir()
    Checkpoints(run, keep_last=1).close()  # a run that starts: nobody else writes there
    wait_until(lambda: not half_written.exists())  # by a thread of Orbax


KINDS = {
    "gone": lambda path, data, rng: path.unlink(),
    "empty": lambda path, data, rng: path.write_bytes(b""),
    "half": lambda path, data, rng: path.write_bytes(data[: len(data) // 2]),
    "other": lambda path, data, rng: path.write_bytes(rng.randbytes(len(data))),
    "a bit": lambda path, data, rng: path.write_bytes(flipped(data, rng)),
}


def flipped(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_whatever_happens_to_a_file_the_state_is_the_one_that_was_saved(kind, run, tmp_path_factory):
    """Of the newest checkpoint, or of the one before, with a line that says so."""
    rng = random.Random(0)
    files = [path.relative_to(run) for path in sorted((run / FOLDER / "2").rglob("*")) if path.is_file()]
    for number, file in enumerate(files * (5 if kind == "a bit" else 1)):
        copy = tmp_path_factory.mktemp("run") / str(number)
        shutil.copytree(run, copy)
        data = (copy / file).read_bytes()
        if not data:
            continue
        KINDS[kind](copy / file, data, rng)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            checkpoints, step = load(copy)
        checkpoints.close()
        assert any("does not load" in str(warning.message) for warning in told) == (step == 1)
