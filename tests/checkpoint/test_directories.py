"""Claims about checkpoint directories as they are met: in float16, sharded without an index, as links into a cache, left by a
killed conversion; and about names that are no directory."""

import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import svlm_jax
from svlm_jax import pretrained
from svlm_jax.checkpoint import convert, huggingface, orbax
from svlm_jax.checkpoint.directory import refuse_other_kinds
from svlm_jax.errors import InputError
from svlm_jax.families import config_json
from svlm_jax.files import atomic_directory
from svlm_jax.model.parameters import parameters, stack
from tests.support import HANG, ROOT


@pytest.fixture
def copy(tiny_dir, processor_dir, tmp_path):
    for source in (processor_dir, tiny_dir):
        shutil.copytree(source, tmp_path / "d", dirs_exist_ok=True)
    return tmp_path / "d"


def refusal(action, *args, **options):
    with pytest.raises(InputError) as error:
        action(*args, **options)
    assert len(str(error.value)) < 300 and str(error.value).isprintable()
    return str(error.value)


def set_config(directory, **values):
    raw = json.loads((directory / "config.json").read_text()) | values
    (directory / "config.json").write_text(json.dumps(raw))


def in_half(directory):
    held = load_file(directory / huggingface.SINGLE)
    save_file(
        {name: value.astype(np.float16) for name, value in held.items()}, directory / huggingface.SINGLE, {"format": "pt"}
    )
    return held


# --- float16 ---


@pytest.mark.parametrize("to", ["hf", "orbax"])
def test_a_float16_checkpoint_is_converted_when_the_type_is_chosen(copy, tmp_path, to):
    """Merges made on older cards are float16: "convert it" told by the converter helps nobody."""
    held = in_half(copy)
    set_config(copy, torch_dtype="float16")
    assert "--dtype" in refusal(convert.convert, copy, tmp_path / "out", to=to)
    config = convert.convert(copy, tmp_path / "out", to=to, dtype="float32", verify=True)
    assert config.param_dtype == "float32" and config_json.read(tmp_path / "out").param_dtype == "float32"
    got = convert.load(tmp_path / "out", config)
    kernel = held["model.layers.0.mlp.up_proj.weight"].astype(np.float16).astype(np.float32)
    path = "text.layers.mlp.up.kernel" if "text.layers.mlp.up.kernel" in got else "text.layers.0.mlp.up.kernel"
    np.testing.assert_array_equal(got[path][0] if path.startswith("text.layers.mlp") else got[path], kernel.T)


def test_a_float16_checkpoint_loads_when_the_type_is_chosen_and_is_refused_otherwise(copy):
    in_half(copy)
    set_config(copy, torch_dtype="float16")
    assert "'float16'" in refusal(svlm_jax.from_pretrained, copy)
    vlm = svlm_jax.from_pretrained(copy, dtype="bfloat16")
    assert {str(value.dtype) for value in parameters(vlm.model).values()} == {"bfloat16"}


def test_tensors_of_another_type_than_the_config_says_are_cast_with_a_word(copy, tiny_dir, processor_dir):
    """A float16 file under a config of bfloat16 loses bits on loading: the user hears of it, unless that is what was asked."""
    in_half(copy)
    with pytest.warns(UserWarning, match="float16 are cast to float32, as its config.json says"):
        svlm_jax.from_pretrained(copy)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svlm_jax.from_pretrained(copy, dtype="float32")
        svlm_jax.from_pretrained(tiny_dir, processor=processor_dir)


# --- shards and links ---


def sharded(directory, parts=2):
    held = load_file(directory / huggingface.SINGLE)
    (directory / huggingface.SINGLE).unlink()
    for number in range(parts):
        names = sorted(held)[number::parts]
        file = directory / f"model-{number + 1:05}-of-{parts:05}.safetensors"
        save_file({name: held[name] for name in names}, file, {"format": "pt"})


def test_shards_whose_index_was_not_downloaded_load(copy, tiny_dir):
    sharded(copy, 3)
    config = config_json.read(tiny_dir)
    got, want = huggingface.load(copy, config), huggingface.load(tiny_dir, config)
    assert got.keys() == want.keys() and all(np.array_equal(got[path], want[path]) for path in want)


def test_the_index_of_an_earlier_save_is_no_obstacle(copy, tiny_dir):
    """Saved again into the same directory, in one file: transformers takes that. Where shards are there too, the user says."""
    config, index = config_json.read(tiny_dir), {"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    assert huggingface.open_files(copy, config).files.keys() == huggingface.open_files(tiny_dir, config).files.keys()
    (copy / "model-00001-of-00002.safetensors").write_bytes(b"older")
    assert "out of date" in refusal(huggingface.open_files, copy, config)


def test_of_a_directory_of_checkpoints_the_newest_is_named(tmp_path):
    for step in (500, 1000):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "config.json").write_text("{}")
    assert "point to one: checkpoint-1000" in refusal(refuse_other_kinds, tmp_path)


def test_a_shard_that_is_missing_is_named_before_tensors_are_read(copy, tiny_dir):
    sharded(copy, 3)
    (copy / "model-00002-of-00003.safetensors").unlink()
    line = refusal(huggingface.open_files, copy, config_json.read(tiny_dir))
    assert "model-00002-of-00003.safetensors" in line and "index" in line


def test_files_that_are_links_into_a_cache_load(copy, tmp_path):
    """The hub's cache holds links to files elsewhere: what may not leave the directory is what an index says, not these."""
    sharded(copy)
    (tmp_path / "linked").mkdir()
    for number, file in enumerate(sorted(copy.iterdir())):
        blob = tmp_path / f"blob{number}"
        file.rename(blob)
        (tmp_path / "linked" / file.name).symlink_to(blob)
    svlm_jax.from_pretrained(tmp_path / "linked")


# --- Orbax copies ---


def test_a_copy_of_a_store_without_some_of_its_files_is_one_plain_line(copy, tmp_path):
    """tensorstore's own words for it are a page of JSON."""
    config = config_json.read(copy)
    orbax.save(tmp_path / "whole", config, stack(huggingface.load(copy, config))) if (
        tmp_path / "whole"
    ).mkdir() is None else None
    (tmp_path / "whole" / "params" / "_CHECKPOINT_METADATA").unlink()
    line = refusal(orbax.load, tmp_path / "whole", config)
    assert "incomplete or damaged" in line and "copy the directory again" in line


# --- drafts of killed conversions ---

KILLED = """
import os, signal, sys, time
from svlm_jax.files import atomic_directory
with atomic_directory(sys.argv[1]) as draft:
    (draft / "half").write_bytes(b"x")
    print(draft, flush=True)
    sys.stdin.read() if len(sys.argv) > 2 else os.kill(os.getpid(), signal.SIGKILL)
"""


def drafting(target, *more):
    command = [sys.executable, "-c", KILLED, str(target), *more]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def test_the_draft_of_a_killed_conversion_is_removed_by_the_next_and_one_at_work_is_not(tmp_path):
    """A conversion of 72B that is killed twice would fill the disk with files that no listing shows."""
    with drafting(tmp_path / "out") as dead, drafting(tmp_path / "out", "stay") as alive, drafting(tmp_path / "other") as apart:
        assert dead.stdout and alive.stdout and apart.stdout
        left, held, others = (Path(child.stdout.readline().strip()) for child in (dead, alive, apart))
        assert dead.wait(HANG) == apart.wait(HANG) == -signal.SIGKILL
        with atomic_directory(tmp_path / "out") as draft:
            assert not left.exists()  # unless the one that is alive removed it already
            assert held.is_dir() and (held / "half").is_file() and others.is_dir() and draft.is_dir()
            with pytest.raises(InputError), atomic_directory(tmp_path / "out" / ".." / "out") as second:
                assert draft.is_dir() and second != draft
                raise InputError("a", "b", "c", "d")
        alive.kill()
    assert sorted(os.listdir(tmp_path)) == sorted([held.name, others.name, "out"])


# --- names ---


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("touchlin", ["touchlin", "did you mean touchline?"]),
        ("", ["''", "touchline, touchline-base"]),
        ("/no/such/directory", ["/no/such/directory (no such directory)"]),
        ("./models/x", ["no such directory"]),
        ("../x", ["no such directory"]),
        ("~/models/x", ["no such directory"]),
        ("a/b/c", ["no such directory"]),
        ("https://huggingface.co/Qwen/Qwen2.5-VL-3B-Instruct", ["OWNER/NAME"]),
        ("x" * 5000, ["no such directory"]),
        ("a\0b", ["no such directory"]),
        (__file__, ["a file", "name the one it lies in"]),
    ],
)
def test_a_name_that_can_be_no_model_is_told_without_asking_the_hub(name, parts, monkeypatch, tmp_path):
    import huggingface_hub

    monkeypatch.chdir(tmp_path)  # nothing lies beside it
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    line = refusal(pretrained.local_directory, name)
    assert line.startswith("model: got ") and all(part in line for part in parts)


def test_a_file_in_the_place_of_a_directory_is_named_as_what_it_is(tmp_path):
    (tmp_path / "model-Q4_K_M.gguf").write_bytes(b"GGUF" + bytes(16))
    assert "GGUF" in refusal(pretrained.local_directory, tmp_path / "model-Q4_K_M.gguf")


@pytest.mark.parametrize("failure", [RuntimeError("proxy"), TimeoutError(), ConnectionError("no route")])
def test_whatever_the_client_of_the_hub_raises_is_one_line(monkeypatch, failure):
    import huggingface_hub

    def download(*_, **__):
        raise failure

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    line = refusal(pretrained.local_directory, "Qwen/Qwen2.5-VL-3B-Instruct")
    assert "check the name, or the connection" in line


def test_a_repository_of_another_form_is_named_before_its_files_are_downloaded(monkeypatch, tmp_path):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    line = refusal(pretrained.local_directory, "owner/Qwen2.5-VL-7B-Instruct-GGUF")
    assert "a repository without config.json" in line


def test_of_a_hub_model_that_can_not_be_used_only_settings_are_downloaded(monkeypatch, tmp_path):
    """A quantised 72B is 40 GB of download before "quantised" is said."""
    import huggingface_hub

    asked = []

    def download(name, allow_patterns):
        asked.append(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    settings = {"model_type": "qwen2_5_vl", "quantization_config": {"quant_method": "awq"}}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert "awq" in refusal(pretrained.local_directory, "Qwen/Qwen2.5-VL-72B-Instruct-AWQ")
    assert len(asked) == 1 and not any("safetensors" in pattern and "index" not in pattern for pattern in asked[0])
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl"}))
    assert pretrained.local_directory("Qwen/Qwen2.5-VL-3B-Instruct") == tmp_path
    assert "*.safetensors" in asked[-1]
