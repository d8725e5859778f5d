"""Claims about the benchmarks: what was not measured is told, a rival does the same work, a kernel that refuses has its row."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from benchmarks import device, drops, kernels, teacher_forcing
from benchmarks.__main__ import parser
from benchmarks.model_configs import model_config
from benchmarks.torch_baseline import measure
from pallas_kernels.workloads import WORKLOADS, Workload
from svlm_jax.errors import InputError
from tests.support import ROOT


def bench(*args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_parts_that_fail_or_have_no_time_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(device, "PARTS", {"table": ("table",), "wrong": ("aot", "--shape", "none"), "late": ("table",)})
    times = iter([0, 0, 1, 99, 99])
    monkeypatch.setattr(device.time, "monotonic", lambda: next(times))
    monkeypatch.setitem(device.PARTS, "table", ("table", "--unknown"))
    with pytest.raises(SystemExit, match="1"):
        device.bench(arguments(tmp_path))
    stderr = capsys.readouterr().err
    assert "not measured: table (exit code 2), wrong (exit code 2), late (no time)" in stderr and "0 of 3" in stderr


def arguments(out: Path):
    import argparse

    return argparse.Namespace(only=None, out=out, budget=60, min_seconds=30)


def test_every_part_is_a_command_that_the_benchmarks_take():
    for name, command in device.PARTS.items():
        assert parser().parse_args([*command, "--name", name]).name == name


def test_an_unknown_part_is_one_line(tmp_path):
    with pytest.raises(InputError, match="expected some of: stream_7b, kernels"):
        args = arguments(tmp_path)
        args.only = "kernels,everything"
        device.bench(args)


def test_plain_torch_measures_the_same_chunk():
    pytest.importorskip("torch")
    row = measure(model_config("tiny", "float32"), (1, 8, 12), tokens=40, slots=256, reply=20)
    stages = [row["vision (ms)"], row["prefill (ms)"], row["one token (ms)"]]
    assert min(stages) > 0 and row["one token, CUDA graph (ms)"] is None
    assert row["ms/chunk"] == pytest.approx(stages[0] + stages[1] + 20 * stages[2], rel=0.1, abs=0.3)


def test_a_kernel_that_does_not_run_here_has_a_row_that_says_why():
    work = Workload("decode", 1, 1, 128, 4, 2, 16)
    row = kernels.timed(work, "cudnn", (1e9, 1e9))
    assert (row["us"] == "-" and "cuDNN" in row["error"]) or "cudnn" in row["error"]
    row = kernels.timed(work, "xla", (1e9, 1e9))
    assert row["us"] > 0 and row["error"] < 0.05


def test_work_is_counted_as_far_as_a_token_sees():
    assert Workload("prefill", 2, 3, 8, 4, 2, 16).flops == 4 * 2 * (6 + 7 + 8) * 4 * 16
    assert WORKLOADS["decode 7b"].flops == 4 * 14336 * 28 * 128
    assert WORKLOADS["frame 720p"].flops == 4 * 3600 * 3600 * 16 * 80


def test_int8_states_its_error(tmp_path, tiny_dir):
    result = bench("--out", tmp_path, "int8", "--model", tiny_dir)
    assert result.returncode == 0, result.stderr
    row = json.loads((tmp_path / "benchmarks" / "int8.json").read_text())["rows"][0]
    assert 0.1 < row["relative RMS error of logits (%)"] < 10 and row["same greedy token (%)"] > 80


def test_replies_are_right_when_all_of_their_tokens_are():
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "svlm_jax" / "touchline" / "weights" / "touchline")
    parts = [("<|im_start|>", False), ("Corner, Reds. Reds 2-1 Blues.", True), ("<|im_end|>\n", False)]
    for text in (" ...<|im_end|>", "Reds 2-1 Blues.\nGOAL for Reds! Reds 3-1 Blues. ...<|im_end|>"):
        parts += [("<|im_start|>assistant\n", False), (text, True), ("\n", False)]
    tokens = [(token, learned) for text, learned in parts for token in tokenizer.encode(text, add_special_tokens=False)]
    ids = np.array([token for token, _ in tokens])
    labels = np.where([learned for _, learned in tokens], ids, -100)

    def counts(predicted: np.ndarray) -> dict[str, list[int]]:
        by_column: dict[str, list[int]] = {}
        for column, right in teacher_forcing.judged_parts(labels, predicted, tokenizer):
            by_column.setdefault(column, []).append(int(right))
        return by_column

    predicted = np.append(ids[1:], [0, 0, 0])  # the next token of each; batches are padded
    text, silent = {"scores in text before": [1]}, {"silent": [1]}
    rest = {"replies": [1, 1], "with words": [1], "answers": [1], "scores in replies": [1, 1]}
    assert counts(predicted) == text | silent | rest
    (three,) = (index for index, token in enumerate(ids) if tokenizer.decode([token]).strip() == "3")
    predicted[three - 1] = ids[0]
    assert counts(predicted) == text | silent | {
        "replies": [1, 0],
        "with words": [0],
        "answers": [0],
        "scores in replies": [1, 0],
    }


def test_which_seconds_a_slow_device_drops_follows_from_its_speed():
    """Else the table of what drops cost tells of other seconds than those that are dropped."""
    assert drops.dropped_seconds(drops.Policy(4), speed=1.0, seconds=90) == set()
    lost = {policy: drops.dropped_seconds(policy, 0.7, 90) for policy in (drops.Policy(4), drops.Policy(4, newest_only=True))}
    oldest, latest_event = lost.values()
    assert len(oldest) == len(latest_event) == 24  # 0.7 of 90 s can be watched, and four wait at the end
    assert max(oldest) < 90 - 1 and not any({second, second + 1} <= oldest for second in oldest)  # one by one, and not the last
    assert any({second, second + 1, second + 2} <= latest_event for second in latest_event)  # in a row
