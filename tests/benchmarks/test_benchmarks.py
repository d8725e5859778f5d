"""Claims about the benchmarks: what was not measured is told, a rival does the same work, a kernel that refuses has its row."""

import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from transformers import AutoTokenizer

from benchmarks import assembler, device, drops, kernels, silence, teacher_forcing, timeline
from benchmarks.__main__ import parser
from benchmarks.ceilings import Ceilings
from benchmarks.kernel_rivals import RIVALS, visibility
from benchmarks.kernel_timing import Variant, compiled, timed
from benchmarks.model_configs import model_config, published_name
from benchmarks.torch_baseline import measure
from pallas_kernels import reference
from pallas_kernels.workloads import WORKLOADS, Workload
from svlm_jax.errors import InputError
from svlm_jax.families import FAMILIES, family_named
from svlm_jax.stream.events import Alert
from tests.support import ROOT


def bench(*args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def device_arguments(out: Path, *flags: str):
    return parser().parse_args(["--out", str(out), "device", "--compile-cache", str(out / "cache"), *flags])


def test_parts_that_fail_or_have_no_time_are_named(tmp_path, monkeypatch, capsys):
    """Else: a table that looks complete, of a run that was not."""
    part = device.Part("about", 30, ("table",), ())
    monkeypatch.setattr(device, "PARTS", {"wrong": part, "long": part._replace(seconds=61), "late": part})
    monkeypatch.setattr(device, "describe_device", lambda env: "a device")
    times = iter([0, 0, 1, 40, 50])
    monkeypatch.setattr(device.time, "monotonic", lambda: next(times))
    with pytest.raises(SystemExit, match="1"):
        device.bench(device_arguments(tmp_path, "--budget", "60"))
    stderr = capsys.readouterr().err
    assert "a device" in stderr and "about 30 s on an H200, at most 60 s" in stderr  # before the part begins
    assert "not measured: wrong (exit code 2), long (no time), late (no time)" in stderr and "0 of 3" in stderr


@pytest.mark.parametrize("name", device.PARTS)
def test_a_part_is_a_command_that_the_benchmarks_take(name):
    """Else: minutes of a borrowed GPU are spent on finding a typo."""
    part = device.PARTS[name]
    for command in (part.command, (*part.command, *part.small)):
        assert parser().parse_args([*command, "--name", name]).name == name
    assert part.seconds <= device.LIMIT and part.about


@pytest.mark.slow
def test_a_part_at_the_size_of_a_cpu_measures_its_stages_and_its_kernels(tmp_path):
    """The whole way, in a process of its own: the stages one by one, kernels under the names of the model's parts."""
    result = bench("--out", tmp_path, "device", "--part", "profile", "--small", "--compile-cache", tmp_path / "cache")
    assert result.returncode == 0, result.stderr
    assert re.search(r"cores, \S+; python [\d.]+, jax [\d.]+", result.stderr)  # device and versions, before it begins
    (row,) = json.loads((tmp_path / "benchmarks" / "device_profile_small.json").read_text())["rows"]
    assert {f"one by one: {stage} (ms)" for stage in ("frames", "policy", "vision", "prefill", "decode")} <= set(row)
    assert row["ms/chunk"] > 0 and 0 <= row["device idle (%)"] < 100 and row["compiled after chunk 3"] == 0
    kernels = json.loads((tmp_path / "benchmarks" / "device_profile_small_profile.json").read_text())["rows"]
    assert {"decode/layer/attention", "prefill/layer/mlp", "vision/block/mlp"} <= {kernel["scope"] for kernel in kernels}


def test_the_picture_of_a_chunk_is_that_of_its_data(tmp_path):
    """Else: docs/performance.md shows other numbers than it says."""
    timeline.draw(ROOT / "docs" / "timeline.json", tmp_path / "timeline.svg")
    assert (tmp_path / "timeline.svg").read_text() == (ROOT / "docs" / "timeline.svg").read_text()
    for line in json.loads((ROOT / "docs" / "timeline.json").read_text())["timelines"]:
        for bars in line["lanes"].values():
            ends = [bar["start"] + bar["ms"] for bar in bars]
            assert all(bar["start"] >= end - 0.01 for bar, end in zip(bars[1:], ends, strict=False))  # one thing at a time
            assert ends[-1] <= line["total"] + 0.01


def test_a_part_runs_another_model_by_its_name(tmp_path):
    """Else: a number of one model stands under the name of another."""
    args = device_arguments(tmp_path, "--shape", "qwen2-vl-2b")
    command = parser().parse_args(device.part_command("stream", args)[2:])
    assert (command.shape, command.height, command.name) == ("qwen2-vl-2b", 720, "device_stream_qwen2-vl-2b")
    args.small = True
    command = parser().parse_args(device.part_command("stream", args)[2:])
    assert (command.shape, command.height, command.name) == ("qwen2-vl-tiny", 112, "device_stream_qwen2-vl-2b_small")
    with pytest.raises(InputError, match="--shape: got parts kernels, expected parts that run a model"):
        device.bench(device_arguments(tmp_path, "--shape", "7b", "--part", "kernels,stream"))


@pytest.mark.parametrize("family", [family.name.lower() for family in FAMILIES.values()])
def test_a_small_shape_is_its_family(family):
    """Else: what is measured is another kind of model."""
    small, published = model_config(f"{family}-tiny", "float32"), family_named(family).presets
    for config in published.values():
        for name in ("norm", "hidden_act", "window_size", "num_position_embeddings", "patch_size", "patch_bias"):
            assert getattr(small.vision, name) == getattr(config.vision, name), name
        for name in ("qk_norm", "qkv_bias", "mrope_interleaved", "rope_theta"):
            assert getattr(small.text, name) == getattr(config.text, name), name
        assert bool(small.vision.deepstack_visual_indexes) == bool(config.vision.deepstack_visual_indexes)
    assert small.vision.depth == 2 and small.model_type == config.model_type


def test_a_shape_is_named_with_or_without_its_family():
    assert published_name("7b") == "qwen2.5-vl-7b" and published_name("qwen2-vl-7b") == "qwen2-vl-7b"
    with pytest.raises(InputError, match=r"--shape: got 9b, expected one of qwen2\.5-vl-3b, ") as error:
        published_name("9b")
    assert len(str(error.value)) < 300


def test_an_unknown_part_is_one_line(tmp_path):
    with pytest.raises(InputError, match="expected some of: kernels, stream"):
        device.bench(device_arguments(tmp_path, "--part", "kernels,everything"))


def test_plain_torch_measures_the_same_chunk():
    pytest.importorskip("torch")
    row = measure(model_config("tiny", "float32"), (1, 8, 12), tokens=40, slots=256, reply=20)
    stages = [row["vision (ms)"], row["prefill (ms)"], row["one token (ms)"]]
    assert min(stages) > 0 and row["one token, CUDA graph (ms)"] is None
    assert row["ms/chunk"] == pytest.approx(stages[0] + stages[1] + 20 * stages[2], rel=0.1, abs=0.3)


def timed_row(work: Workload, implementation: str) -> dict:
    variant = Variant("a workload", implementation)
    return timed(work, variant, Ceilings(1e9, 1e9), lambda: compiled(work, variant))


@pytest.mark.parametrize("implementation", ["cudnn", "cudnn_lengths", "jax_mgpu", "mosaic_gpu_pingpong"])
def test_a_kernel_that_does_not_run_here_has_a_row_that_says_why(implementation):
    row = timed_row(Workload("prefill", 1, 9, 128, 4, 2, 64), implementation)
    assert row["us"] == "-" and len(row["error"]) > 10


def test_a_kernel_is_timed_and_compared_with_the_reference():
    row = timed_row(Workload("decode", 1, 1, 128, 4, 2, 16), "xla")
    assert row["us"] > 0 and row["error"] < 0.05 and row["same again"]


WINDOWS, CHUNK = Workload("vision", 1, 200, 200, 2, 2, 64, span=64), Workload("prefill", 1, 20, 128, 4, 2, 64)


@pytest.mark.parametrize(("name", "work"), [("cudnn_lengths", WINDOWS), ("cudnn_lengths", CHUNK), ("jax_mgpu", CHUNK)])
def test_what_jax_ships_attends_to_what_its_error_is_measured_by(name, work):
    """Else a rival is told to be wrong, or is given less work. Their kernels need a GPU: plain attention stands for them."""
    rival = RIVALS[name]

    @jax.jit
    def difference(arguments):
        q, k, v, *lengths = (x if x.dtype == np.int32 else x.astype(np.float32) for x in rival.layout(work, arguments))
        attend = partial(jax.nn.dot_product_attention, q, k, v, implementation="xla")
        out = rival.unfold(work, attend(key_value_seq_lengths=lengths[0]) if lengths else attend(scale=1.0))
        return abs(out.astype(np.float32) - reference.attention(**arguments | visibility(work, arguments))).max()

    assert difference(work.arguments()) < 0.03


def test_the_quick_comparison_is_of_known_workloads_and_implementations():
    for variant in kernels.quick():
        assert variant.workload in WORKLOADS and variant.implementation in kernels.DEFAULT.split(",")


SOFTMAX_UNDER_PRODUCTS = """
   -:-:-:Y:01  /*1000*/  HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4], RZ ;
   -:-:-:Y:01  /*1010*/  WARPGROUP.DEPBAR.LE gsb0, 0x1 ;
   1:-:-:Y:01  /*1020*/  @!P0 MUFU.EX2 R4, R4 ;
   1:-:-:Y:01  /*1030*/  MUFU.EX2 R5, R5 ;
   -:-:-:Y:01  /*1040*/  WARPGROUP.DEPBAR.LE gsb0, 0x0 ;
   1:-:-:Y:01  /*1050*/  MUFU.EX2 R6, R6 ;
"""


def test_a_softmax_that_no_longer_overlaps_is_a_fault():
    """Else a new version of the compiler halves the speed of a kernel, and every test passes."""
    assert assembler.hidden_exps(SOFTMAX_UNDER_PRODUCTS) == 2
    lines = SOFTMAX_UNDER_PRODUCTS.splitlines()
    moved = [*lines[:3], lines[5], *lines[3:5], *lines[6:]]  # the second wait, in front of the exps
    assert assembler.hidden_exps("\n".join(moved)) == 0
    good = assembler.Assembly(168, 0, 0, [], 128, 1.0, None)
    assert good.faults(128) == good._replace(hidden_exps=None).faults(128) == []
    bad = good._replace(spilled=40, serialized=["C7513"], hidden_exps=0)
    assert bad.faults(128) == ["40 bytes spilled", "wgmma serialized (C7513)", "0 of 128 exps under products"]


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


def test_an_alert_is_a_hit_of_one_change_alone():
    """Else a table tells of hits that two alerts share, or of false alarms that were late hits."""
    world = SimpleNamespace(holders=["", "Reds", "Reds", "", "Reds", "Blues", "Blues", "Blues", "Blues", "Reds"])
    announced = [
        Alert(stream="a", start=second, end=second + 1, name="ball", state=state, probability=0.9)
        for second, state in ((2, True), (3, False), (4, True), (7, True))
    ]
    game = silence.Watched(world, 10, {}, {"a": announced})  # pyright: ignore[reportArgumentType]
    assert silence.judge_alerts(game, announced) == silence.Alerts(onsets=3, hits=2, announced=3, delays=(1, 0))
