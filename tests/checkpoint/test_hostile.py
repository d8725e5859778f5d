"""Claims about checkpoint directories that are damaged, odd or of another kind: each is one line that says what it is, the same
for loading and converting, takes no memory and runs no code; what is odd but whole loads."""

import json
import shutil
import subprocess
import sys

import pytest

from tests.support import HANG, ROOT, hostile, hostile_runner

GB = 1 << 30
REFUSED = [pair for pair in hostile_runner.pairs("some") if pair[0] not in hostile_runner.LOADS]
LOADED = [pair for pair in hostile_runner.pairs("some") if pair[0] in hostile_runner.LOADS]
# Runs a command, and says how it ended and how many bytes it took at most.
MEASURED = """
import os, subprocess, sys
child = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, used = os.wait4(child.pid, 0)
print(os.waitstatus_to_exitcode(status), used.ru_maxrss * 1024)
"""


def tried(work, how_many) -> dict[tuple[str, str], dict]:
    """What was said of each directory, by (case, family), in one process that the loaded models do not share."""
    command = [sys.executable, "-m", "tests.support.hostile_runner", str(work), how_many]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=HANG if how_many == "some" else None)
    lines = [json.loads(line.removeprefix("CASE ")) for line in done.stdout.splitlines() if line.startswith("CASE ")]
    assert done.returncode == 0, done.stderr[-2000:]
    assert "panicked" not in done.stderr and "Traceback" not in done.stderr
    return {(line["name"], line["family"]): line for line in lines}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict[tuple[str, str], dict]:
    return tried(tmp_path_factory.mktemp("hostile"), "some")


@pytest.mark.parametrize(("name", "family"), REFUSED)
def test_a_directory_that_is_no_model_is_one_short_line_that_says_what_to_do(outcomes, name, family):
    """Who points at the wrong directory would otherwise see a traceback, pages of tensor names, or a crashed machine."""
    refused_in_one_line(outcomes[name, family])


def refused_in_one_line(got):
    assert got["loaded"] == got["converted"]
    line = got["loaded"]
    assert all(part in line for part in (": got ", ", expected ", "; ")), line
    assert len(line) < 300 and line.isprintable()
    assert "out" not in got["left"] and not [name for name in got["left"] if name.endswith(".partial")]


@pytest.mark.parametrize(("name", "family"), LOADED)
def test_an_odd_directory_that_holds_a_whole_model_loads_and_converts(outcomes, name, family):
    assert (outcomes[name, family]["loaded"], outcomes[name, family]["converted"]) == ("", "")


def test_no_directory_takes_memory_or_runs_code(outcomes):
    """A config.json of a kilobyte could otherwise take a machine down, and a pickle take it over."""
    takes_no_memory_and_runs_no_code(outcomes)


@pytest.mark.slow
def test_every_directory_is_told_right_with_every_family(tmp_path):
    """What holds for one family's config.json and names of tensors does not hold for another's by itself."""
    outcomes = tried(tmp_path, "every")
    for (name, family), got in outcomes.items():
        if name in hostile_runner.LOADS:
            assert (got["loaded"], got["converted"]) == ("", ""), (name, family)
        else:
            refused_in_one_line(got)
    takes_no_memory_and_runs_no_code(outcomes)


def takes_no_memory_and_runs_no_code(outcomes):
    assert max(line["grown"] for line in outcomes.values()) < GB // 4
    assert max(line["peak"] for line in outcomes.values()) < GB
    assert not any(hostile.MARKER in line["left"] for line in outcomes.values())


@pytest.mark.parametrize("name", hostile_runner.SAID)
def test_the_line_names_what_the_directory_is(outcomes, name):
    """ "missing model.layers..." sends nobody to the checkpoint that the adapter, or the quantised copy, was made from."""
    line = next(got["loaded"] for (case, _), got in outcomes.items() if case == name)
    assert all(part in line for part in hostile_runner.SAID[name]), line


@pytest.mark.parametrize("name", ["config.json num_hidden_layers = 10000000000", "safetensors: length of 2^40"])
def test_the_command_exits_with_2_and_one_line_in_less_than_a_gigabyte(tiny_dir, processor_dir, tmp_path, name):
    for source in (processor_dir, tiny_dir):
        shutil.copytree(source, tmp_path / "d", dirs_exist_ok=True)
    hostile.CASES[name](tmp_path / "d")
    # Through a small process: a child begins with the peak of who starts it, and that may be the one that runs all tests.
    command = [sys.executable, "-m", "launch.convert", str(tmp_path / "d"), str(tmp_path / "out")]
    child = subprocess.run([sys.executable, "-c", MEASURED, *command], capture_output=True, text=True, cwd=ROOT)
    code, peak = map(int, child.stdout.split()[-2:])
    assert code == 2
    lines = child.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and len(lines[0]) < 310
    assert peak < GB
