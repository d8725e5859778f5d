"""Claims about checkpoint directories that are damaged, odd or of another kind: each is one line that says what it is, the same
for loading and converting, takes no memory and runs no code; what is odd but whole loads."""

import json
import shutil
import subprocess
import sys

import pytest

from tests.support import HANG, ROOT, hostile

GB = 1 << 30
# Runs a command, and says how it ended and how many bytes it took at most.
MEASURED = """
import os, subprocess, sys
child = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, used = os.wait4(child.pid, 0)
print(os.waitstatus_to_exitcode(status), used.ru_maxrss * 1024)
"""


@pytest.fixture(scope="module")
def outcomes(tiny_dir, processor_dir, tmp_path_factory) -> dict[str, dict]:
    """What was said of each directory, in one process that the loaded models do not share."""
    work = tmp_path_factory.mktemp("hostile")
    command = [sys.executable, "-m", "tests.support.hostile", str(tiny_dir), str(processor_dir), str(work)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=HANG)
    lines = [json.loads(line.removeprefix("CASE ")) for line in done.stdout.splitlines() if line.startswith("CASE ")]
    assert done.returncode == 0, done.stderr[-2000:]
    assert "panicked" not in done.stderr and "Traceback" not in done.stderr
    return {line["name"]: line for line in lines}


@pytest.mark.parametrize("name", [name for name in hostile.CASES if name not in hostile.LOADS])
def test_a_directory_that_is_no_model_is_one_short_line_that_says_what_to_do(outcomes, name):
    """Who points at the wrong directory would otherwise see a traceback, pages of tensor names, or a crashed machine."""
    got = outcomes[name]
    assert got["loaded"] == got["converted"]
    line = got["loaded"]
    assert all(part in line for part in (": got ", ", expected ", "; ")), line
    assert len(line) < 300 and line.isprintable()
    assert "out" not in got["left"] and not [name for name in got["left"] if name.endswith(".partial")]


@pytest.mark.parametrize("name", hostile.LOADS)
def test_an_odd_directory_that_holds_a_whole_model_loads_and_converts(outcomes, name):
    assert (outcomes[name]["loaded"], outcomes[name]["converted"]) == ("", "")


def test_no_directory_takes_memory_or_runs_code(outcomes):
    """A config.json of a kilobyte could otherwise take a machine down, and a pickle take it over."""
    assert max(line["grown"] for line in outcomes.values()) < GB // 4
    assert max(line["peak"] for line in outcomes.values()) < GB
    assert not any(hostile.MARKER in line["left"] for line in outcomes.values())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("config.json quantization_config = {'quant_method': 'awq'}", ["quantised", "awq"]),
        ("config.json quantization = {'group_size': 64, 'bits': 4}", ["quantised", "MLX"]),
        ("tensors: awq without a word", ["quantised", "qweight"]),
        ("tensors: mlx", ["quantised", "biases"]),
        ("only m-q4_k_m.gguf", ["GGUF", "quantised"]),
        ("adapter", ["adapter of o/base", "merge"]),
        ("adapter, no config", ["adapter of o/base", "merge"]),
        ("adapter beside the model", ["a model and a", "adapter"]),
        ("tensors: unmerged", ["adapters that are not merged"]),
        ("tensors: ZeRO-3, empty", ["ZeRO-3", "[0]"]),
        ("tensors: ZeRO-3, flattened", ["of another shape"]),
        ("deepspeed", ["DeepSpeed", "zero_to_fp32.py"]),
        ("fsdp", ["FSDP"]),
        ("only pytorch_model.bin", ["pickles", "save_pretrained"]),
        ("only consolidated.00.pth, no config", ["pickles"]),
        ("trainer's output", ["directories of checkpoints", "checkpoint-500"]),
        ("other name", ["merged.safetensors"]),
        ("tokenizer.json: git lfs pointer", ["tokenizer.json", "Git LFS pointer", "git lfs pull"]),
        ("model.safetensors: git lfs pointer", ["model.safetensors", "Git LFS pointer", "git lfs pull"]),
        ("config.json: git lfs pointer", ["config.json", "Git LFS pointer", "git lfs pull"]),
        ("config.json model_type = 'qwen2_vl'", ["vision hidden_act", "'silu'", "'quick_gelu'"]),
        ("config.json model_type = 'qwen3_5'", ["Qwen3.5", "cannot forget a frame", "use a Qwen3-VL"]),
        ("config.json model_type = 'qwen3_vl_moe'", ["mixture of experts", "use a dense Qwen3-VL"]),
        ("config.json model_type = 'qwen2'", ["text alone"]),
        ("config.json torch_dtype = 'float16'", ["'float16'", "--dtype"]),
        ("config.json: 200,000 brackets", ["nested too deeply"]),
        ("config.json num_hidden_layers = 10000000", ["num_hidden_layers", "10000000"]),
        ("config.json vision_config.window_size = 100", ["config.json vision_config.window_size: got 100"]),
        ("index: parent", ["../secret.safetensors", "in this directory"]),
        ("index: number", ["5 for model.norm.weight"]),
        ("tensors: both key layouts", ["model.norm.weight twice", "model.language_model.norm.weight"]),
        ("index: both layouts", ["model.language_model.norm.weight"]),
        ("safetensors: a tensor twice", ["the key 'a' twice"]),
        ("safetensors: length of 2^63", ["a header of 9223372036854775807 bytes"]),
        ("safetensors: overlap", ["overlap"]),
        ("shards: one missing", ["model-00002-of-00002.safetensors", "index"]),
        ("generation_config.json top_p = 2", ["generation_config.json sampling top_p: got 2"]),
        ("preprocessor_config.json patch_size = 16", ["expected 14"]),
    ],
)
def test_the_line_names_what_the_directory_is(outcomes, name, said):
    """ "missing model.layers..." sends nobody to the checkpoint that the adapter, or the quantised copy, was made from."""
    assert all(part in outcomes[name]["loaded"] for part in said), outcomes[name]["loaded"]


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
