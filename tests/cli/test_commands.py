"""The commands as a user runs them: in a process of their own, on real files, with good and bad input."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from benchmarks import report as bench
from svlm_jax.cli.convert import parse_size
from svlm_jax.errors import InputError
from svlm_jax.media.video import write_video
from tests.support import ROOT, XLA_FLAGS, wait_until
from tests.support.commands import command


def refusal(result: subprocess.CompletedProcess[str], *, noisy: bool = False) -> str:
    """The one error line of a command that refused; `noisy` lets a library's own threads write to stderr too."""
    assert result.returncode == 2, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert noisy or "Traceback" not in result.stderr
    return lines[0]


@pytest.fixture(scope="module")
def converted(tmp_path_factory, shallow_dir, processor_dir) -> tuple[Path, Path]:
    """A model as Orbax, and back as Hugging Face in small shards, both through the command."""
    place = tmp_path_factory.mktemp("converted")
    first = command("convert", shallow_dir, place / "orbax", "--processor", processor_dir, "--verify")
    assert first.returncode == 0, first.stderr
    second = command("convert", place / "orbax", place / "hf", "--max-shard-size", "300KB", "--verify")
    assert second.returncode == 0, second.stderr
    assert "verified bit by bit" in second.stdout
    return place / "orbax", place / "hf"


def test_a_checkpoint_comes_back_bit_by_bit_with_its_tokenizer(converted, shallow_dir, processor_dir):
    before = load_file(shallow_dir / "model.safetensors")
    weights = json.loads((converted[1] / "model.safetensors.index.json").read_text())["weight_map"]
    after = {name: load_file(converted[1] / file)[name] for name, file in weights.items()}
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert len(set(weights.values())) > 1
    for path in processor_dir.iterdir():
        assert (converted[1] / path.name).read_bytes() == path.read_bytes()


def test_nothing_is_left_of_a_conversion_that_fails(tmp_path, tiny_dir):
    line = refusal(command("convert", tiny_dir, tmp_path / "out", "--to", "hf", limit=200_000))
    assert str(tmp_path) in line
    assert "free some or choose another place" in line
    assert list(tmp_path.iterdir()) == []


def test_an_orbax_conversion_that_fails_leaves_nothing_either(tmp_path, tiny_dir):
    line = refusal(command("convert", tiny_dir, tmp_path / "out", "--to", "orbax", limit=100_000), noisy=True)
    assert "a failed write" in line
    assert list(tmp_path.iterdir()) == []


def test_a_processor_given_does_not_lose_what_lies_beside_the_weights(tmp_path, tiny_dir, processor_dir):
    source = tmp_path / "source"
    shutil.copytree(tiny_dir, source)
    (source / "generation_config.json").write_text('{"eos_token_id": [435, 433], "top_k": 7}')
    result = command("convert", source, tmp_path / "out", "--to", "hf", "--processor", processor_dir)
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["top_k"] == 7
    assert (tmp_path / "out" / "tokenizer.json").is_file()


def test_tensors_are_never_cast_unasked(tmp_path, tiny_dir):
    source = tmp_path / "source"
    shutil.copytree(tiny_dir, source)
    raw = json.loads((source / "config.json").read_text()) | {"torch_dtype": "bfloat16"}
    (source / "config.json").write_text(json.dumps(raw))
    line = refusal(command("convert", source, tmp_path / "out", "--to", "hf", "--verify"))
    assert "tensors of float32" in line
    assert "--dtype" in line
    result = command("convert", source, tmp_path / "out", "--to", "hf", "--verify", "--dtype", "float32")
    assert result.returncode == 0, result.stderr


def test_an_existing_target_is_never_touched(tmp_path, tiny_dir):
    (tmp_path / "out").mkdir()
    assert "already" in refusal(command("convert", tiny_dir, tmp_path / "out"))
    assert list((tmp_path / "out").iterdir()) == []


def test_a_source_with_a_wrong_tensor_leaves_nothing(tmp_path, tiny_dir):
    source = tmp_path / "source"
    source.mkdir()
    raw = json.loads((tiny_dir / "config.json").read_text()) | {"num_hidden_layers": 5}
    (source / "config.json").write_text(json.dumps(raw))
    (source / "model.safetensors").write_bytes((tiny_dir / "model.safetensors").read_bytes())
    line = refusal(command("convert", source, tmp_path / "out"))
    assert "12 wrong tensors" in line
    assert "12 missing (model.layers.4." in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "size"), [("5GB", 5 * 10**9), ("512MiB", 512 * 2**20), ("1.5kb", 1500), ("10", 10), ("2G", 2 * 10**9)]
)
def test_sizes_are_read_as_people_write_them(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "5TB", "-1GB", "0", "big"])
def test_other_sizes_are_refused(text):
    with pytest.raises(InputError, match="--max-shard-size"):
        parse_size(text)


def test_the_demo_watches_a_game_beside_the_truth_and_draws_it(tmp_path):
    result = command("demo", "--seconds", 20, "--picture", tmp_path / "demo.png")
    assert result.returncode == 0, result.stderr
    assert "times real time" in result.stdout and "F1 so far" in result.stdout and "What is the score?" in result.stdout
    assert (tmp_path / "demo.png").stat().st_size > 10_000
    for wrong in (tmp_path / "none" / "demo.png", tmp_path / "demo.what", tmp_path):
        assert refusal(command("demo", "--picture", wrong)).startswith("error: --picture: got ")


def test_a_path_that_the_system_refuses_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    line = refusal(command("world", "--out", tmp_path / "file" / "films", "--seeds", "0:1", "--seconds", "10"))
    assert line.startswith(f"error: file {tmp_path / 'file' / 'films'}: got not a directory, expected ")


def test_a_picture_for_which_the_disk_has_no_room_is_none(tmp_path):
    result = command("world", "--sheet", "--out", tmp_path, "--size", "56x56", limit=1000)
    assert refusal(result).startswith(f"error: {tmp_path / 'world.png'}: got a file that cannot be written (File too large)")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_films_are_drawn_by_nobody_once_the_command_has_been_killed(tmp_path):
    """Else: processes that nobody sees draw on for minutes."""
    line = [sys.executable, "-m", "launch.world", "--out", tmp_path, "--seeds", "0:4", "--seconds", "7200"]
    with subprocess.Popen(line, cwd=ROOT, start_new_session=True, stderr=subprocess.DEVNULL) as child:
        wait_until(lambda: list(tmp_path.glob("*.partial")))
        child.terminate()
    wait_until(lambda: not is_alive(child.pid))


def is_alive(group: int) -> bool:
    """Whether a process group has a process left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_caption_reads_an_image_and_a_video_from_an_exported_checkpoint(tmp_path, converted):
    Image.fromarray(np.full((60, 90, 3), 200, np.uint8)).save(tmp_path / "photo.png")
    write_video(tmp_path / "clip.mp4", np.zeros((20, 56, 84, 3), np.uint8), 10)
    for checkpoint, source in ((converted[1], "photo.png"), (converted[0], "clip.mp4")):
        result = command("caption", tmp_path / source, "--model", checkpoint, "--max-new-tokens", 4)
        assert result.returncode == 0, result.stderr
        assert f"{source}: " in result.stdout


def test_bad_input_to_caption_is_one_line(tmp_path, converted, tiny_dir):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 not a picture")
    Image.new("RGB", (20_000, 28)).save(tmp_path / "wide.png")
    cases = {
        ("empty.mp4", converted[1]): "video",
        ("broken.jpg", converted[1]): "image",
        ("wide.png", converted[1]): "aspect ratio",
        ("absent.mp4", converted[1]): "absent.mp4",
        ("wide.png", tiny_dir): "tokenizer",
        ("wide.png", tmp_path): "config.json",
    }
    for (source, model), word in cases.items():
        line = refusal(command("caption", tmp_path / source, "--model", model))
        assert word in line, line


def test_the_benchmark_table_is_made_of_the_recorded_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["bench", "aot", "--shape", "none"])
    rows = [{"step": "prefill", "TFLOP": 1.5}, {"step": "decode", "compile (s)": 2}]
    bench.record("aot_none", "What it is.", rows, tmp_path, plot="benchmarks/aot_none.svg")
    text = (tmp_path / "benchmarks.md").read_text()
    assert "| prefill | 1.5 | - |" in text and "| decode | - | 2 |" in text and "![aot_none](benchmarks/aot_none.svg)" in text
    assert "python -m benchmarks aot --shape none" in text
    assert "jax 0." in text


@pytest.mark.parametrize("name", ["configs/__init__.py", "configs.py"])
def test_a_users_own_configs_does_not_hide_the_recipes(name, tmp_path):
    """Most repositories of this kind have one, and Python looks there first."""
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("raise SystemExit(3)")
    line = [sys.executable, "-m", "launch.train", "--config", "sft_smoke", "--run-dir", "run", "--data.paths", "none.jsonl"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert "none.jsonl" in refusal(subprocess.run(line, capture_output=True, text=True, env=env, cwd=tmp_path, check=False))


def test_a_dry_run_for_this_machine_says_what_a_step_takes(tmp_path):
    """From any folder, by the path of a config file, and nothing is written."""
    text = (ROOT / "configs" / "sft_smoke.py").read_text()
    text = text.replace("Path(__file__).parents[1]", f"Path({str(ROOT)!r})")
    text = re.sub(r"buckets=\(.*\)\),", "buckets=(Bucket(256, 64, 64, 16),)),", text)  # the recipe's take a minute to compile
    (tmp_path / "small.py").write_text(text)
    (tmp_path / "empty").mkdir()
    env = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": XLA_FLAGS}
    line = [sys.executable, "-m", "svlm_jax.cli", "train", "--config", str(tmp_path / "small.py"), "--dry-run"]
    result = subprocess.run(line, capture_output=True, text=True, env=env, cwd=tmp_path / "empty", check=False)
    assert result.returncode == 0, result.stderr
    assert "micro-step" in result.stdout and result.stdout.splitlines()[-1].endswith("fits")
    assert not any((tmp_path / "empty").iterdir())
