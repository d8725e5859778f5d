"""Recipes that deal videos to many processes: every video once, and a process that failed is told from one that has to wait."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from svlm_jax.curate.running.merge import merge
from tests.curate.steps import write_input
from tests.support import ROOT

RECIPES = ROOT / "launch" / "cluster"
SLURM = RECIPES / "curate_slurm.sh"
JOB = yaml.safe_load((RECIPES / "curate_job.yaml").read_text())
POD = JOB["spec"]["template"]["spec"]
BOX = POD["containers"][0]


@pytest.fixture
def programs(tmp_path) -> Path:
    """A folder with a `svlm` that says how it was called and ends with $CODE, and a `scontrol` that says the same."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, code in (("svlm", "${CODE:-0}"), ("scontrol", "0")):
        (folder / name).write_text(f'#!/bin/sh\necho {name} "$@"\nexit {code}\n')
        (folder / name).chmod(0o755)
    return folder


def call(line: list, programs: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(line, env={**os.environ, "PATH": path, **environ}, capture_output=True, text=True, check=False)


def slurm(programs: Path, *args: object, task: int, **environ: str) -> subprocess.CompletedProcess[str]:
    task_environ = {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_TASK_COUNT": "2", "SLURM_JOB_ID": "77"}
    return call(["bash", SLURM, *map(str, args)], programs, **{**task_environ, "SLURM_CPUS_PER_TASK": "8", **environ})


def kubernetes(programs: Path, index: int, args: list | None = None, **environ: str) -> subprocess.CompletedProcess[str]:
    values = {variable["name"]: variable["value"] for variable in BOX["env"] if "value" in variable}
    line = [*BOX["command"], *(args or BOX["args"])]
    return call(line, programs, **{**values, "JOB_COMPLETION_INDEX": str(index), **environ})


def test_a_slurm_task_takes_its_shard_of_all_of_them_also_when_only_some_are_queued_again(programs):
    result = slurm(programs, "clean", "--in", "a b.jsonl", task=3)
    assert result.stdout == "svlm curate clean --in a b.jsonl --shard 3/32 --jobs 8\n", result.stderr
    text = SLURM.read_text()
    first, last = re.findall(r"^#SBATCH --array=(\d+)-(\d+)$", text, re.M)[0]
    assert (first, last) == ("1", re.findall(r"SHARDS:-(\d+)", text)[0])
    assert "#SBATCH --requeue" in text


@pytest.mark.parametrize(("code", "restarts", "is_queued"), [(0, 0, False), (1, 0, True), (1, 5, False), (2, 0, False)])
def test_a_slurm_task_is_queued_again_for_a_server_and_not_for_bad_input(programs, code, restarts, is_queued):
    result = slurm(programs, "edit", task=1, CODE=str(code), SLURM_RESTART_COUNT=str(restarts))
    assert result.returncode == code
    assert ("scontrol requeue 77" in result.stdout) == is_queued


def test_a_pod_takes_the_shard_of_its_index(programs):
    spec = JOB["spec"]
    assert (JOB["apiVersion"], JOB["kind"], spec["completionMode"], POD["restartPolicy"]) == (
        "batch/v1",
        "Job",
        "Indexed",
        "Never",
    )
    count = spec["completions"]
    assert {variable["name"]: variable.get("value") for variable in BOX["env"]}["SHARDS"] == str(count)
    result = kubernetes(programs, count - 1)
    assert result.stdout == f"svlm curate {' '.join(BOX['args'])} --shard {count}/{count} --jobs 8\n", result.stderr


def test_a_pod_that_is_moved_is_no_failure_and_bad_input_is_not_tried_again():
    spec = JOB["spec"]
    ignored, failed = spec["podFailurePolicy"]["rules"]
    assert ignored == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}
    assert failed["onExitCodes"] == {"containerName": BOX["name"], "operator": "In", "values": [2]}
    # FailIndex is refused by Kubernetes without this
    assert failed["action"] == "FailIndex" and spec["backoffLimitPerIndex"] > 0
    mounts = {mount["name"] for mount in BOX["volumeMounts"]}
    assert mounts == {volume["name"] for volume in POD["volumes"]}


@pytest.mark.slow
@pytest.mark.parametrize("cluster", ["slurm", "kubernetes"])
def test_the_shards_of_a_cluster_merge_to_what_one_process_makes(tmp_path, programs, cluster):
    """The recipes with the real command, a task after the other."""
    (programs / "svlm").write_text(f'#!/bin/sh\nshift\ncd {ROOT} && exec {sys.executable} -m launch.curate "$@"\n')
    write_input(tmp_path / "words.jsonl", 7)
    line = ["clean", "--in", tmp_path / "words.jsonl", "--out"]
    for task in (1, 2, 3):
        args = [*map(str, line), str(tmp_path / "g.jsonl")]
        if cluster == "slurm":
            result = slurm(programs, *args, task=task, SHARDS="3", JOBS="1")
        else:
            result = kubernetes(programs, task - 1, args, SHARDS="3", JOBS="1")
        assert result.returncode == 0, result.stderr
    merge(tmp_path / "g.jsonl")
    unsharded = call([programs / "svlm", "curate", *line, tmp_path / "whole.jsonl"], programs)
    assert unsharded.returncode == 0, unsharded.stderr
    for name in ("jsonl", "set_aside.jsonl", "changes.jsonl", "report.json"):
        assert (tmp_path / f"g.{name}").read_bytes() == (tmp_path / f"whole.{name}").read_bytes()
