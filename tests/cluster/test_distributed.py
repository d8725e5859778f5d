"""Claims about launching: processes find each other and agree, end together, leave nothing behind; the cluster
recipes are whole.

What a training run does on top of this is in tests/train/test_processes.py.
"""

import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
import yaml

from svlm_jax.cluster.distributed import ProcessLayout, local_devices, process_layout
from svlm_jax.cluster.local import spawn
from svlm_jax.errors import InputError
from tests.support import HANG, ROOT, XLA_FLAGS

RECIPES = ROOT / "launch" / "cluster"

JOINED = """import sys, time
from svlm_jax.cluster import distributed
distributed.initialize()
import jax
rank = jax.process_index()
"""

SUM = """
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
mine = np.arange(4, dtype=np.float32) + 10 * rank
whole = jax.make_array_from_process_local_data(NamedSharding(mesh, P("data")), mine)
total = jax.jit(lambda x: x.sum(), out_shardings=NamedSharding(mesh, P()))(whole)
print(f"\\nsum {float(total)} of {jax.process_count()} x {jax.local_device_count()}", flush=True)
distributed.leave(0)
"""

RAISES = """
from svlm_jax.errors import InputError
print(f"\\nready {rank}", flush=True)
if rank == 1:
    raise InputError("data", "a wrong file", "a right one", "mend it")
time.sleep(1000)
"""

STOPS = """
from jax.experimental.multihost_utils import reached_preemption_sync_point
for step in range(2000):
    if step == 1:
        print(f"\\nready {rank}", flush=True)
    if reached_preemption_sync_point(step):
        print(f"\\nstopped {rank} at {step}", flush=True)
        distributed.leave(75)
    time.sleep(0.02)
"""

# No jax: what a process does that was told to stop, and what is left of one whose parent is gone.
TOLD = r"""
import os, signal, sys, time
rank = os.environ["SVLM_PROCESS_ID"]
# os.write: the signal may come while print is under way, which no print in a handler survives
signal.signal(signal.SIGTERM, lambda *_: (os.write(1, f"told {rank}\n".encode()), os._exit(75)))
print(f"ready {rank} {os.getpid()}", flush=True)
time.sleep(1000)
"""


def start(folder: Path, text: str, processes: int, **environ: str) -> subprocess.Popen:
    """A parent that spawns `text` that many times, on two virtual devices each."""
    (folder / "child.py").write_text(text)
    code = f"import sys; from svlm_jax.cluster.local import spawn; sys.exit(spawn({processes}, ['child'], devices_each=2))"
    variables = {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "XLA_FLAGS": XLA_FLAGS}
    variables |= {"JAX_PLATFORMS": "cpu", "SVLM_HEARTBEAT_SECONDS": "10", "SVLM_LEAVE_SECONDS": "10"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([sys.executable, "-c", code], env=os.environ | variables | environ, **pipes)


def read_until(process: subprocess.Popen, words: str, times: int) -> list[str]:
    """Its lines, until `words` came that often: lines of two processes may run into one."""
    assert process.stdout is not None
    lines = []
    while "".join(lines).count(words) < times:
        line = process.stdout.readline()
        assert line, "".join(lines)
        lines.append(line)
    return lines


def finish(process: subprocess.Popen) -> tuple[int, str]:
    """Exit code and the rest of its output (`communicate` would lose what `readline` has read ahead)."""
    assert process.stdout is not None
    late = threading.Timer(HANG, process.kill)
    late.start()
    with process.stdout as lines:
        output = lines.read()
    process.wait()
    late.cancel()
    return process.returncode, output


def test_two_processes_of_two_devices_agree_on_a_sum(tmp_path):
    code, output = finish(start(tmp_path, JOINED + SUM, 2))
    assert code == 0, output
    assert output.count("sum 52.0 of 2 x 2") == 2, output  # 0 + 1 + 2 + 3 + 10 + 11 + 12 + 13
    assert "[1] sum 52.0 of 2 x 2" in output and "[0] " not in output


def test_a_process_that_raises_ends_all_with_its_code_and_one_line(tmp_path):
    process = start(tmp_path, JOINED + RAISES, 2)
    before = "".join(read_until(process, "ready", 2))
    code, after = finish(process)
    output = before + after
    assert code == 2 and "error: data: got a wrong file, expected a right one; mend it" in output, output
    assert "Traceback" not in output


@pytest.mark.parametrize("processes", [1, 2])
def test_asked_to_stop_all_processes_stop_at_the_same_step_with_75(tmp_path, processes):
    # As a command runs: with a handler of its own before, and a part that a signal ends at once, as the compiler's is.
    text = JOINED + "from svlm_jax.cli.progress import interruptible\nwith interruptible():\n    pass\n" + STOPS
    text = "from svlm_jax.cli.run import run\ndef main():\n" + textwrap.indent(text, "    ") + "\nrun(main)\n"
    process = start(tmp_path, text, processes)
    read_until(process, "ready", processes)
    process.send_signal(signal.SIGTERM)
    code, output = finish(process)
    stopped = re.findall(r"stopped \d at (\d+)", output)
    assert code == 75 and len(stopped) == processes and len(set(stopped)) == 1, output


@pytest.mark.parametrize("name", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_every_process(tmp_path, name):
    process = start(tmp_path, TOLD.replace("SIGTERM", name.name), 3)
    read_until(process, "ready", 3)
    process.send_signal(name)
    code, output = finish(process)
    assert code == 75 and all(f"told {rank}" in output for rank in range(3)), output


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux")
def test_no_process_outlives_its_parent(tmp_path):
    process = start(tmp_path, TOLD, 2)
    lines = read_until(process, "ready", 2)
    children = [int(number) for number in re.findall(r"ready \d (\d+)", "".join(lines))]
    assert len(children) == 2, lines
    process.kill()
    finish(process)
    until = time.monotonic() + HANG
    while any(alive(child) for child in children):
        assert time.monotonic() < until, children
        time.sleep(0.05)


def alive(number: int) -> bool:
    """Runs; a process that has ended and that nobody has waited for does not."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


CURATION = ("curate_slurm.sh", "curate_job.yaml")  # `test_curate_recipes.py`
SHELL = sorted(path for path in RECIPES.glob("*.sh") if path.name not in CURATION)
YAML = sorted(path for path in RECIPES.glob("*.yaml") if path.name not in CURATION)


def test_there_is_a_recipe_for_every_cluster():
    assert [path.name for path in [*SHELL, *YAML]] == ["slurm.sh", "tpu_pod.sh", "jobset.yaml", "skypilot.yaml"]


@pytest.mark.parametrize("path", SHELL, ids=lambda path: path.name)
def test_a_shell_recipe_parses_and_runs_the_trainer(path):
    checked = subprocess.run(["bash", "-n", path], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    assert "svlm train --config sft_stage1 --run-dir" in path.read_text()


def test_the_slurm_job_asks_for_what_its_processes_need():
    text = (RECIPES / "slurm.sh").read_text()
    for line in ("#SBATCH --signal=TERM@", "#SBATCH --requeue", "#SBATCH --open-mode=append", "--kill-on-bad-exit=1"):
        assert line in text, line
    assert "-eq 75" in text and 'scontrol requeue "$SLURM_JOB_ID"' in text


@pytest.mark.parametrize(
    ("code", "saves", "is_queued"), [(75, False, True), (143, True, True), (2, False, False), (0, False, False)]
)
def test_a_slurm_job_is_queued_again_when_it_saved_and_not_for_what_another_left(code, saves, is_queued, tmp_path):
    """A job that cannot even start, with the mark of the one before in its folder, went back into the queue for ever."""
    (tmp_path / "preempted").touch()
    programs = {"srun": f"{'touch $RUN_DIR/preempted; ' if saves else ''}exit {code}", "scontrol": 'echo "scontrol $@"'}
    for name, text in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    environ = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "RUN_DIR": str(tmp_path), "SLURM_JOB_ID": "77"}
    done = subprocess.run(["bash", RECIPES / "slurm.sh"], env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert (done.stdout == "scontrol requeue 77\n") == is_queued, done.stdout


def test_the_slurm_step_has_the_cpus_of_the_job():
    """srun takes them from nobody since Slurm 22.05; a process then decodes video on one."""
    text = (RECIPES / "slurm.sh").read_text()
    assert re.search(r"^#SBATCH --cpus-per-task=\d+$", text, re.M)
    assert re.search(r'^srun .*--cpus-per-task="\$\{?SLURM_CPUS_PER_TASK', text, re.M)


def test_a_bucket_is_mounted_so_that_a_run_can_append_and_rename():
    task = yaml.safe_load((RECIPES / "skypilot.yaml").read_text())
    mounts = {place: mount["mode"] for place, mount in task["file_mounts"].items()}
    written = re.findall(r"(?:--run-dir|CACHE_DIR)[ =](/\S+)", task["run"])
    assert len(written) == 2
    for path in written:
        assert [mode for place, mode in mounts.items() if path.startswith(f"{place}/")] == ["MOUNT_CACHED"]


def test_the_skypilot_task_runs_the_trainer():
    task = yaml.safe_load((RECIPES / "skypilot.yaml").read_text())
    assert "svlm train --config sft_stage1 --run-dir" in task["run"] and task["num_nodes"] == 2


def test_the_jobset_says_who_is_who_and_starts_again_after_75():
    spec = yaml.safe_load((RECIPES / "jobset.yaml").read_text())["spec"]
    job = spec["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    box = pod["containers"][0]
    assert box["command"][:5] == ["svlm", "train", "--config", "sft_stage1", "--run-dir"]
    assert {"JAX_COORDINATOR_ADDRESS", "NNODES", "NODE_RANK"} <= {variable["name"] for variable in box["env"]}
    nodes = next(variable["value"] for variable in box["env"] if variable["name"] == "NNODES")
    assert job["parallelism"] == job["completions"] == int(nodes)
    exits = [rule["onExitCodes"] for rule in job["podFailurePolicy"]["rules"] if "onExitCodes" in rule]
    assert exits == [{"containerName": box["name"], "operator": "In", "values": [75]}]
    restart = {"action": "RestartJobSetAndIgnoreMaxRestarts", "onJobFailureReasons": ["PodFailurePolicy"]}
    assert restart in spec["failurePolicy"]["rules"]
    assert pod["restartPolicy"] == "Never" and pod["terminationGracePeriodSeconds"] >= 120


def test_under_torchrun_jax_leaves_the_port_of_the_agent_alone_and_takes_one_device_a_process():
    environ = {"MASTER_ADDR": "a", "MASTER_PORT": "7", "WORLD_SIZE": "16", "RANK": "9"}
    assert process_layout(environ).coordinator == "a:7"
    environ |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "LOCAL_WORLD_SIZE": "8", "LOCAL_RANK": "1"}
    layout = process_layout(environ)
    assert layout.coordinator == "a:8" and local_devices(layout, {}, 8) == [1]


STEP = {"SLURM_NTASKS": "2", "SLURM_TASKS_PER_NODE": "1(x2)", "SLURM_STEP_NODELIST": "n[1-2]"}


def test_one_slurm_task_a_node_gets_all_devices_that_it_may_see():
    layout = process_layout(STEP)
    assert local_devices(layout, {}, 8) == list(range(8))
    assert local_devices(layout, {"CUDA_VISIBLE_DEVICES": "4,5,6,7"}, 8) == [0, 1, 2, 3]
    assert local_devices(layout, {}, 0) is None
    assert local_devices(process_layout(STEP | {"SLURM_STEP_TASKS_PER_NODE": "8(x2)"}), {}, 8) is None


@pytest.mark.parametrize(
    "environ", [{"SVLM_TPU_POD": "1"}, {"TPU_PROCESS_ADDRESSES": "a,b"}, {"MEGASCALE_COORDINATOR_ADDRESS": "a"}]
)
def test_a_tpu_pod_is_left_to_jax(environ):
    assert process_layout(environ) == ProcessLayout("TPU pod")


HALF = {
    "a rank alone": ({"RANK": "1"}, "RANK without MASTER_ADDR"),
    "no address": ({"WORLD_SIZE": "2", "RANK": "1"}, "WORLD_SIZE, RANK without MASTER_ADDR"),
    "ours": ({"SVLM_PROCESS_ID": "1"}, "SVLM_PROCESS_ID without SVLM_COORDINATOR"),
    "jobset": ({"NNODES": "2", "NODE_RANK": "1"}, "NNODES, NODE_RANK without JAX_COORDINATOR_ADDRESS"),
    "no list": ({"SKYPILOT_NODE_IPS": "", "SKYPILOT_NODE_RANK": "1"}, "SKYPILOT_NODE_RANK without SKYPILOT_NODE_IPS"),
    "no port": ({"MASTER_ADDR": "a", "MASTER_PORT": "x", "WORLD_SIZE": "2", "RANK": "0"}, "MASTER_PORT: got 'x'"),
    "no srun": ({"SLURM_NTASKS": "16"}, "start with srun"),
    "no number": ({"SLURM_NTASKS": "x"}, "SLURM_NTASKS: got 'x', expected a number"),
}


@pytest.mark.parametrize("name", HALF)
def test_a_process_never_believes_that_it_is_alone_by_mistake(name):
    environ, words = HALF[name]
    with pytest.raises(InputError, match=words):
        process_layout(environ)


def test_a_complete_set_is_not_refused_for_the_remains_of_another():
    environ = {"NNODES": "2", "NODE_RANK": "1", "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2"}
    layout = process_layout(environ | {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1"})
    assert layout == ProcessLayout("SkyPilot", "10.0.0.1:6002", 2, 1, all_local_devices=True)
    assert process_layout(environ | STEP | {"SKYPILOT_NODE_IPS": ""}).source == "SLURM"


def share(monkeypatch, tmp_path, visible: str | None, each: int | None) -> list[str]:
    """What two processes find in CUDA_VISIBLE_DEVICES."""
    code = "import os; open(os.environ['SVLM_PROCESS_ID'], 'w').write(os.environ.get('CUDA_VISIBLE_DEVICES', 'unset'))"
    (tmp_path / "child.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    environ = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    environ |= {"PYTHONPATH": str(tmp_path)} | ({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})
    assert spawn(2, ["child"], devices_each=each, environ=environ) == 0
    return [(tmp_path / name).read_text() for name in "01"]


def test_local_processes_share_the_gpus_when_asked(monkeypatch, tmp_path):
    handler = signal.getsignal(signal.SIGINT)
    assert share(monkeypatch, tmp_path, None, None) == ["unset", "unset"]
    assert share(monkeypatch, tmp_path, None, 2) == ["0,1", "2,3"]
    assert share(monkeypatch, tmp_path, "4,5,6,7", 2) == ["4,5", "6,7"]
    assert share(monkeypatch, tmp_path, "", 2) == ["", ""]
    with pytest.raises(InputError, match="CUDA_VISIBLE_DEVICES: got 3 GPUs, expected 2 x 2"):
        share(monkeypatch, tmp_path, "4,5,6", 2)
    assert signal.getsignal(signal.SIGINT) is handler
