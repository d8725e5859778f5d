"""Claims about processes: two are one; asked to stop they save and say so; killed they go on where they had saved; one that
fails ends all."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from svlm_jax.cli.train import Screen, refusal_of
from svlm_jax.cluster.distributed import ProcessLayout, process_layout
from svlm_jax.cluster.local import spawn
from svlm_jax.errors import InputError
from svlm_jax.train import logs
from svlm_jax.train.checkpoints import FOLDER
from tests.support import HANG, ROOT, XLA_FLAGS, commands
from tests.train.conftest import elsewhere


def command(settings, **flags) -> list[str]:
    """A run of the fixture's settings, from a config file, as a user would start it."""
    path = Path(settings.run_dir).with_suffix(".py")
    imports = "from svlm_jax.data.config import Bucket, DataConfig\n"
    imports += "from svlm_jax.train.config import MeshConfig, OptimizerConfig, TrainConfig\n"
    path.write_text(f"{imports}\nconfig = {replace(settings, steps=4)!r}\n")
    given = {"config": path, "micro-batch-size": 2} | flags
    return ["launch.train", *(str(part) for name, value in given.items() for part in (f"--{name}", value))]


def start(argv: list[str], limit: int | None = None) -> subprocess.Popen:
    """`limit`: the largest file it may write, in bytes (a full disk)."""
    environ = os.environ | {"XLA_FLAGS": XLA_FLAGS, "SVLM_LEAVE_SECONDS": "10", "SVLM_HEARTBEAT_SECONDS": "10"}
    environ |= {"JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir or ""}
    environ |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2"}
    environ |= {"JAX_COMPILATION_CACHE_MAX_SIZE": str(jax.config.jax_compilation_cache_max_size)}
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    full = [] if limit is None else ["sh", "-c", f'ulimit -f {limit // 512}; exec "$@"', "sh"]
    return subprocess.Popen([*full, sys.executable, "-m", *argv], cwd=ROOT, env=environ, **piped)


def finish(process: subprocess.Popen, seconds: float = HANG) -> tuple[int, str]:
    output, _ = process.communicate(timeout=seconds)
    return process.returncode, output


def until(run_dir: str, step: int, process: subprocess.Popen) -> None:
    """Wait until a run has told of a step."""
    while process.poll() is None:
        path = Path(run_dir) / logs.FILE
        if path.exists() and path.read_text().count("\n") >= step:
            return
        time.sleep(0.05)
    raise AssertionError(process.stdout.read() if process.stdout else "ended")


def losses(run_dir: str) -> list[float]:
    return [line["loss"] for line in logs.read_metrics(run_dir)]


def test_two_processes_make_the_steps_of_one(config, train):
    train(elsewhere(config, "one", steps=4, micro_batch_size=2))
    code, output = finish(start(command(config, **{"nproc": 2, "mesh.fsdp": 2})))
    assert code == 0 and "2 x cpu, 4 steps of 4 samples" in output
    np.testing.assert_allclose(losses(config.run_dir), losses(elsewhere(config, "one").run_dir), rtol=1e-5)
    told_once(config.run_dir)


def told_once(run_dir: str) -> None:
    """What processes say of their rates is what the devices counted: rows that both hold are not told twice."""
    for line in logs.read_metrics(run_dir):
        assert line["labels_per_second"] * line["step_seconds"] == pytest.approx(line["labels"], rel=0.25)


@pytest.mark.slow
def test_asked_to_stop_two_processes_save_and_go_on(config):
    flags = {"nproc": 2, "mesh.fsdp": 1, "mesh.tensor": 2, "steps": 500}
    process = start(command(config, **flags))
    until(config.run_dir, 3, process)
    process.send_signal(signal.SIGTERM)
    code, output = finish(process)
    assert code == 75 and "asked to stop: saved after step" in output, output
    assert (Path(config.run_dir) / "preempted").exists()
    (saved,) = (int(path.name) for path in (Path(config.run_dir) / FOLDER).iterdir() if path.name.isdigit())
    told_once(config.run_dir)
    code, output = finish(start(command(config, steps=saved + 2, **{"nproc": 2, "mesh.fsdp": 2})))
    assert code == 0 and f"resumes after step {saved} of {saved + 2}" in output
    assert not (Path(config.run_dir) / "preempted").exists()
    assert [line["step"] for line in logs.read_metrics(config.run_dir)] == list(range(1, saved + 3))


@pytest.mark.slow  # more than a minute
def test_a_killed_run_goes_on_bit_by_bit(config):
    """SIGKILL while checkpoints are being written, every step one: again and again until the run is done."""
    whole = str(Path(config.run_dir) / "whole")
    assert finish(start(command(config, **{"run-dir": whole, "steps": 6})))[0] == 0
    killed = str(Path(config.run_dir) / "killed")
    for lines in (2, 4):
        process = start(command(config, **{"run-dir": killed, "steps": 6, "save-every": 1}))
        until(killed, lines, process)
        process.kill()
        finish(process)
    code, output = finish(start(command(config, **{"run-dir": killed, "steps": 6, "save-every": 1})))
    assert code == 0 and "resumes after step" in output
    assert losses(killed) == losses(whole)


def test_bad_data_ends_all_processes_at_once_with_one_line(config, tmp_path):
    (tmp_path / "gone.jsonl").write_text(json.dumps([{"role": "user"}]) + "\n")
    code, output = finish(start(command(config, **{"nproc": 2, "mesh.fsdp": 2, "data.paths": tmp_path / "gone.jsonl"})))
    assert code == 2 and "error: bad samples: got" in output and "bad sample gone.jsonl:1" in output, output
    assert "Traceback" not in output


BAD = {
    "an unknown field": ({"optimizer.learning-rat": 1}, "learning-rat"),
    "an unknown config": ({"config": "sft_stage9"}, "expected a Python file, or one of"),
    "a batch that does not divide": ({"batch-size": 5}, "batch_size: got 5, expected a multiple of micro_batch_size = 2"),
    "a model that is not there": ({"model": "/nowhere"}, "model: got /nowhere"),
    "data that is not there": ({"data.paths": "/nowhere.jsonl"}, "nowhere.jsonl"),
    "an unknown topology": ({"dry-run": "h900x8"}, "--dry-run: got h900x8, expected one of h100x1"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_settings_are_refused_in_one_line(name, config):
    flags, words = BAD[name]
    module, *args = command(config, **flags)
    refused = commands.command(module.removeprefix("launch."), *args)
    assert refused.returncode == 2 and words in refused.stderr and "Traceback" not in refused.stderr, refused.stderr


@pytest.mark.slow  # a minute
def test_a_full_disk_is_one_line_and_what_was_saved_stays(config):
    code, output = finish(start(command(config, steps=1, **{"save-every": 1})))
    assert code == 0, output
    process = start(command(config, steps=3, **{"save-every": 1}), limit=20_000)  # the config fits, a checkpoint does not
    code, output = finish(process)
    assert code == 2 and "room on a writable disk" in output and "Traceback" not in output, output
    code, output = finish(start(command(config, steps=2)))
    assert code == 0 and "resumes after step 1 of 2" in output


def test_a_run_that_hangs_shows_its_stacks_and_ends(tmp_path):
    code = "import time; from svlm_jax.train.loop import Watchdog; Watchdog(0.5); time.sleep(1000)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=HANG)
    assert done.returncode == 70 and "nothing finished for 0.5 s" in done.stderr and "Thread" in done.stderr


def test_a_process_that_fails_ends_the_others(tmp_path):
    child = tmp_path / "child.py"
    lines = ("import os, sys, time", "if os.environ['SVLM_PROCESS_ID'] == '1': sys.exit(3)", "time.sleep(1000)")
    child.write_text("\n".join([*lines, f"open({str(tmp_path / 'left alone')!r}, 'w')"]))
    assert spawn(2, ["child"], environ=os.environ | {"PYTHONPATH": str(tmp_path)}) == 3
    assert not (tmp_path / "left alone").exists()


def test_a_process_that_is_killed_is_told_for_it_cannot_say_it(tmp_path, capfd):
    (tmp_path / "killed.py").write_text(
        "import os, time\nif os.environ['SVLM_PROCESS_ID'] == '1': os.kill(os.getpid(), 9)\ntime.sleep(9)\n"
    )
    assert spawn(2, ["killed"], environ=os.environ | {"PYTHONPATH": str(tmp_path)}) == 137
    assert "error: process 1 was ended by SIGKILL (mostly for want of memory): all are ended" in capfd.readouterr().err


XLA = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 90.2GiB.\nmore\nlines"
REFUSED = {
    "memory": (
        RuntimeError(XLA),
        "memory of a device: got too little (RESOURCE_EXHAUSTED: Out of memory while trying to alloc",
    ),
    "a full disk": (OSError(28, "No space left on device"), "disk: got no space left on device"),
    "a limit on files": (OSError(27, "File too large"), "disk: got file too large"),
    "a path": (NotADirectoryError(20, "Not a directory", "/x/run"), "file /x/run: got not a directory"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_user_can_mend_is_one_line_in_a_run_too(name):
    error, words = REFUSED[name]
    refusal = refusal_of(error)
    assert str(refusal).startswith(words) and "\n" not in str(refusal)
    assert refusal_of(OSError(5, "Input/output error")) is None and refusal_of(ValueError("a bug")) is None


ENVIRONMENTS = {
    "nothing": ({}, ("one process", 1, 0)),
    "local": (
        {"SVLM_COORDINATOR": "127.0.0.1:5", "SVLM_NUM_PROCESSES": "4", "SVLM_PROCESS_ID": "3"},
        ("svlm train --nproc", 4, 3),
    ),
    "torchrun": ({"MASTER_ADDR": "a", "MASTER_PORT": "7", "WORLD_SIZE": "2", "RANK": "1"}, ("torchrun", 2, 1)),
    "jobset": ({"JAX_COORDINATOR_ADDRESS": "job-0", "NNODES": "8", "NODE_RANK": "0"}, ("JobSet", 8, 0)),
    "skypilot": (
        {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1"},
        ("SkyPilot", 2, 1),
    ),
    "slurm": (
        {"SLURM_NTASKS": "16", "SLURM_TASKS_PER_NODE": "8(x2)", "SLURM_STEP_NODELIST": "n[1-2]"},
        ("SLURM", None, None),
    ),
    "tpu": ({"TPU_WORKER_HOSTNAMES": "a,b"}, ("TPU pod", None, None)),
}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_each_environment_says_who_is_who(name):
    environ, want = ENVIRONMENTS[name]
    layout = process_layout(environ)
    assert (layout.source, layout.num_processes, layout.process_id) == want


def test_addresses_and_devices_of_environments():
    assert process_layout(ENVIRONMENTS["torchrun"][0]).coordinator == "a:7"
    assert process_layout(ENVIRONMENTS["skypilot"][0]).coordinator == "10.0.0.1:6002"
    assert process_layout(ENVIRONMENTS["jobset"][0]) == ProcessLayout("JobSet", "job-0:6002", 8, 0, all_local_devices=True)
    assert not process_layout(ENVIRONMENTS["slurm"][0]).all_local_devices


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"MASTER_ADDR": "a", "RANK": "0"}, "MASTER_ADDR without WORLD_SIZE"),
        ({"MASTER_ADDR": "a", "WORLD_SIZE": "2", "RANK": "2"}, "environment RANK: got 2, expected 0 to 1"),
        ({"MASTER_ADDR": "a", "WORLD_SIZE": "two", "RANK": "0"}, "WORLD_SIZE: got 'two', expected a number"),
    ],
)
def test_half_an_environment_is_refused(environ, words):
    with pytest.raises(InputError, match=words):
        process_layout(environ)


def test_at_the_first_step_ctrl_c_is_that_of_python_again():
    """Else: it would end the process in the middle of a checkpoint."""
    ended = []
    screen = Screen(chief=False)
    screen.before_steps.callback(ended.append, "compiling")
    screen("compiling; the first step comes after that ...")
    assert not ended
    screen("step 1/2: loss 5.0")
    assert ended


@pytest.mark.slow
def test_ctrl_c_while_the_first_step_compiles_ends_the_run_at_once(tmp_path):
    """Else: nothing happens for minutes, until XLA is done."""
    code = (
        "import ctypes, signal, types\nfrom svlm_jax.cli import run, train\nfrom svlm_jax.train import run as training\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a script's background ignores it
        "def compiles():\n print('busy', flush=True)\n while True: ctypes.CDLL(None).sleep(600)\n"
        "trainer = types.SimpleNamespace(total_steps=1, state=types.SimpleNamespace(step=0), run=compiles)\n"
        "training.build_trainer = lambda *_, **__: trainer\nrun.run(train.main)\n"
    )
    line = [sys.executable, "-c", code, "--config", "sft_smoke", "--run-dir", str(tmp_path), "--model", str(tmp_path)]
    child = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert child.stdout is not None and child.stdout.readline() == "busy\n"
    child.send_signal(signal.SIGINT)
    _, told = child.communicate(timeout=HANG)
    assert child.returncode == 130 and told.endswith("\ninterrupted\n"), told
