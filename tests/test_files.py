"""Claims about places to write to: an address of a bucket is refused in one line, by all that writes, and no folder of its name
appears; a path with a colon in it is a path."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from svlm_jax import files
from svlm_jax.data import records, tfds
from svlm_jax.errors import InputError
from svlm_jax.files import atomic_directory, atomic_write, local_path, read_json
from svlm_jax.stream.captions import Subtitles
from svlm_jax.train.checkpoints import Checkpoints
from svlm_jax.train.logs import MetricsWriter
from tests.support import ROOT

ADDRESSES = ["gs://bucket/run", "gs:/bucket/run", "s3://b", "file:///x/y", "hf://a/b", "https://h/x", "r2:/b/c", "GS://b/c"]
PATHS = ["runs/a", "/runs/a", "./gs:/b", "run:3", "match 12:30.vtt", "C:/runs", "a/b://c", "~/x", "10:30/run"]


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_is_no_path(address):
    with pytest.raises(InputError, match=r"--run-dir: got the address .*, expected a folder or file of this machine; mount"):
        local_path(address, "--run-dir")
    with pytest.raises(InputError) as told:
        local_path(Path(f"{address}/{'x' * 5000}"))
    assert len(str(told.value)) < 300


@pytest.mark.parametrize("path", PATHS)
def test_a_path_is_one(path):
    assert local_path(path) == Path(path)


WRITERS = {
    "a converted checkpoint": lambda at: atomic_directory(at).__enter__(),
    "windows": lambda at: records.write(f"{at}.jsonl", []),
    "decoded windows": lambda at: tfds.prepare(None, at, None),  # pyright: ignore[reportArgumentType]
    "checkpoints": lambda at: Checkpoints(at, keep_last=1),
    "metrics": lambda at: MetricsWriter(at, 0),
    "captions": lambda at: Subtitles(f"{at}.vtt"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_whatever_writes_refuses_an_address(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError):
        WRITERS[name]("gs://bucket/x")
    assert not list(tmp_path.iterdir())


COMMANDS = {
    "train": "--config sft_smoke --data.paths x.jsonl --run-dir gs://bucket/run",
    "convert": "touchline gs://bucket/out",
    "windows": "x.jsonl --out s3://bucket/train.jsonl",
    "windows --tfds": "x.jsonl --tfds gs://bucket/train",
    "world": "--out gs://bucket/films --seeds 1:2",
    "scratch": "{here} --out gs://bucket/0",
    "tiny": "--out gs://bucket/tiny",
    "bench": "--out gs://bucket/docs table",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_refuse_an_address_at_once(name, tmp_path, monkeypatch, capsys):
    words = [[0.0, 0.5, "Kick-off!"]]
    said = [{"type": "text_stream", "text_stream": words}]
    clip = [{"type": "video", "video": None, "video_start": 0, "video_end": 2}, {"type": "text", "text": "q"}]
    (tmp_path / "one.jsonl").write_text(
        json.dumps([{"role": "user", "content": clip}, {"role": "assistant", "content": said}]) + "\n"
    )
    monkeypatch.chdir(tmp_path)
    command, *_ = name.split()
    monkeypatch.setattr(sys, "argv", [command, *COMMANDS[name].format(here="one.jsonl").split()])
    main = importlib.import_module("benchmarks.__main__" if command == "bench" else f"svlm_jax.cli.{command}").main
    with pytest.raises((InputError, SystemExit)) as refused:
        main()
    assert "got the address" in f"{refused.value} {capsys.readouterr().err}"
    assert [path.name for path in tmp_path.iterdir()] == ["one.jsonl"]


def test_a_text_without_an_end_is_refused_before_it_fills_the_memory(tmp_path):
    """`--patterns /dev/zero` took all the memory of the machine."""
    (tmp_path / "long").write_bytes(b"x" * (files.TEXT_BYTES + 1))
    for path in ("/dev/zero", tmp_path / "long"):
        with pytest.raises(InputError, match=r"--prompt: got .*, which has more than 1048576 bytes, expected a text"):
            files.read_text(path, "--prompt", "a text")
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    with pytest.raises(InputError, match="which is not UTF-8, expected a text; save it as UTF-8"):
        files.read_text(tmp_path / "latin", "--prompt", "a text")
    for path, reason in ((tmp_path / "none", "No such file"), (tmp_path, "Is a directory"), ("a\0b", "null byte")):
        with pytest.raises(InputError, match=f"--prompt: got .*{reason}"):
            files.read_text(path, "--prompt", "a text")
    (tmp_path / "windows").write_bytes("\ufeffone\r\ntwö".encode())
    assert files.read_text(tmp_path / "windows", "--prompt", "a text") == "one\ntwö"
    reader, writer = os.pipe()
    os.write(writer, b"from a pipe")
    os.close(writer)
    assert files.read_text(f"/dev/fd/{reader}", "--prompt", "a text") == "from a pipe"  # as a shell's <(...)
    os.close(reader)


def test_the_mark_that_windows_writes_before_a_file_is_no_part_of_it(tmp_path):
    path = tmp_path / "names.json"
    path.write_bytes(b'\xef\xbb\xbf{"Reds": []}')
    assert read_json(path, "names", is_handwritten=True) == {"Reds": []}
    with pytest.raises(InputError, match="byte order mark"):
        read_json(path, "a file of a checkpoint, which other readers would refuse")


def test_a_device_is_never_replaced_by_a_file(tmp_path):
    """As root, `--out /dev/null` would put a file in the place of /dev/null."""
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        with pytest.raises(InputError, match="choose another name"), atomic_write(tmp_path / name):
            raise AssertionError("nothing is written")
    assert (tmp_path / "pipe").is_fifo() and [path.name for path in tmp_path.iterdir()] == ["pipe"]


LATE = """
import sys
from svlm_jax.errors import InputError
from svlm_jax.files import atomic_directory
try:
    with atomic_directory(sys.argv[1]) as draft:
        raise OSError("No space left on device")
except InputError:
    assert not draft.exists()
    (draft / "params").mkdir(parents=True)
    print("made anew")
"""


def test_what_a_late_thread_writes_after_a_failure_is_gone_when_the_process_is(tmp_path):
    """Orbax's threads go on after a write has failed, on a busy machine for seconds."""
    done = subprocess.run([sys.executable, "-c", LATE, tmp_path / "out"], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "made anew\n", done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("moment", ["before it is opened", "before it is locked", "while it is being removed"])
def test_a_draft_that_is_taken_for_abandoned_before_its_lock_is_made_anew(moment, tmp_path, monkeypatch):
    """Two conversions to one name that start together: one cleans up when the other has made its draft and not locked it."""
    taken, others = [], []
    make, lock = files.tempfile.mkdtemp, files.try_lock

    def make_then_lose(**where):
        draft = make(**where)
        if not taken:
            taken.append(Path(draft))
            if moment == "before it is opened":
                files._remove_abandoned(tmp_path / "out")
        return draft

    def lose_then_lock(descriptor):
        if not others and moment != "before it is opened":
            others.append(os.open(taken[0], os.O_RDONLY))
            assert lock(others[0]) is True  # as the cleaning process holds it
            if moment == "before it is locked":
                taken[0].rmdir()
                os.close(others[0])
        return lock(descriptor)

    monkeypatch.setattr(files.tempfile, "mkdtemp", make_then_lose)
    monkeypatch.setattr(files, "try_lock", lose_then_lock)
    with atomic_directory(tmp_path / "out") as draft:
        assert draft.is_dir() and draft != taken[0]
        if moment == "while it is being removed":
            taken[0].rmdir()
            os.close(others[0])
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
