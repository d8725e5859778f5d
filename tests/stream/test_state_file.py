"""The bytes of a saved state: every one counts, and no accident leaves half of them under its name."""

import fcntl
import json
import os
import random
import resource
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from svlm_jax.errors import InputError
from svlm_jax.stream import state_file
from svlm_jax.stream.state_io import peek
from tests.support import ROOT


def refused(use, *args) -> str:
    """The one line of a refusal; anything else that is raised fails the test."""
    with pytest.raises(InputError) as error:
        use(*args)
    line = str(error.value)
    assert "\n" not in line and len(line) < 300 + len(str(args[0]))
    return line


# Cues and a state after each, for ever, from where the state stands: a stream without a model.
STREAM = """
import sys
from pathlib import Path
import numpy as np
from svlm_jax.stream import state_file
from svlm_jax.stream.captions import Subtitles

place, seconds = Path(sys.argv[1]), int(sys.argv[2])
notes = state_file.read(place / "a.state")[0] if (place / "a.state").exists() else {"next": 0, "marks": {}}
files = {}
for kind in ("vtt", "srt", "jsonl"):
    mark = notes["marks"].get(kind)
    back = {"append": True, "keep": mark["size"], "digest": mark["sha256"]} if mark else {}
    files[kind] = Subtitles(place / f"a.{kind}", **back)
for second in range(notes["next"], seconds):
    for captions in files.values():
        captions.write(second, second + 1, f"said {second}" if second % 3 else "", question="?" if second % 5 == 0 else "")
    marks = {kind: captions.mark for kind, captions in files.items()}
    for captions in files.values():
        captions.sync()
    state_file.write(place / "a.state", {"next": second + 1, "marks": marks}, {"0.keys.0": np.full(50_000, second, np.float32)})
"""


def stream(place: Path, seconds: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", STREAM, str(place), str(seconds)], cwd=ROOT)


def test_killed_twenty_times_while_it_saves_the_files_are_those_of_one_run(tmp_path):
    """And at every moment between, the state is whole."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    stood = 0
    for number in range(20):
        child, until = stream(killed, 10**6), stood + 1 + number % 3
        while stood < until:
            assert child.poll() is None
            if (killed / "a.state").exists():
                notes, tensors = state_file.read(killed / "a.state")
                stood = notes["next"]
                assert (tensors["0.keys.0"] == stood - 1).all()
        child.kill()
        child.wait()
        stood = state_file.read(killed / "a.state")[0]["next"]
    assert stream(killed, stood + 5).wait() == 0 and stream(whole, stood + 5).wait() == 0
    for kind in ("vtt", "srt", "jsonl", "state"):
        assert (killed / f"a.{kind}").read_bytes() == (whole / f"a.{kind}").read_bytes()


@pytest.fixture
def file(tmp_path):
    """A file as a small state is."""
    draw = np.random.default_rng(1)
    arrays = {f"0.{name}": draw.normal(size=(2, 9, 8)).astype(np.float32) for name in ("keys.0", "values.0")}
    ids = {"0.ids": np.arange(40, dtype=np.int32)}
    state_file.write(tmp_path / "a.state", {"extra": {"next": 5.0}, "streams": [{"query": "Commentate"}]}, arrays | ids)
    return tmp_path / "a.state"


def test_one_bit_that_differs_anywhere_refuses_the_whole_file(file):
    """A state with a flipped bit would go on with other words, and nobody would know."""
    good, draw = file.read_bytes(), random.Random(1)
    header = 8 + int.from_bytes(good[:8], "little")
    places = [draw.randrange(8 * len(good)) for _ in range(250)] + [draw.randrange(8 * header) for _ in range(250)]
    for place in [*range(8 * 100), *places]:  # the beginning, bit by bit
        bad = bytearray(good)
        bad[place // 8] ^= 1 << place % 8
        file.write_bytes(bad)
        line = refused(peek, file)
        assert "checksum" in line or "another kind of file" in line
    for length in [0, 1, 7, 8, 99, header, len(good) - 1, *(draw.randrange(len(good)) for _ in range(100))]:
        file.write_bytes(good[:length])
        refused(peek, file)
    file.write_bytes(good + b"\0")
    refused(peek, file)
    file.write_bytes(good)
    assert peek(file) == {"next": 5.0}


def test_what_is_no_state_is_told_for_what_it_is(file, tmp_path):
    header = json.dumps({"__metadata__": {"svlm_state": "1", "state": "{}"}}).encode()
    contents = {
        b"": "an empty file",
        bytes(5000): "a file of zeros, as a loss of power leaves it",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n": "a Git LFS pointer",
        len(header).to_bytes(8, "little") + header: "version 1, expected a state of version 4; it was saved by svlm-jax 0.1.0",
        file.read_bytes()[:20]: "another kind of file",
        b"\xff" * 4000: "another kind of file",
    }
    for content, line in contents.items():
        (tmp_path / "b.state").write_bytes(content)
        assert line in refused(peek, tmp_path / "b.state")
    os.mkfifo(tmp_path / "pipe.state")  # one without a writer would be waited for
    for path in (tmp_path, tmp_path / "pipe.state", tmp_path / "none.state", "/dev/null", tmp_path / ("x" * 3000)):
        assert "got an unreadable file" in refused(peek, path)


def test_a_state_of_a_newer_release_is_told_as_such(file, monkeypatch):
    with monkeypatch.context() as later:
        later.setattr(state_file, "VERSION", 7)
        state_file.write(file, {"extra": {}}, {})
        assert peek(file) == {}
    assert "version 7, expected a state of version 4; it was saved by a newer svlm-jax" in refused(peek, file)


def test_arrays_of_every_kind_come_back(tmp_path):
    arrays = {
        "half": np.arange(6).reshape(2, 3).astype(ml_dtypes.bfloat16),
        "none": np.zeros((3, 0), np.float32),
        "turned": np.arange(6, dtype=np.int32).reshape(2, 3).T,
        "levels": np.arange(256, dtype=np.uint8),
    }
    state_file.write(tmp_path / "a", {"ü": [1, None]}, arrays)
    notes, back = state_file.read(tmp_path / "a")
    assert notes == {"ü": [1, None]} and back.keys() == arrays.keys()
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype
        np.testing.assert_array_equal(back[name], array)


def test_where_a_state_cannot_be_written_is_told_before_there_is_one(file, tmp_path):
    """Not a minute into a live stream."""
    (tmp_path / "film.mp4").write_bytes(b"\0\0\0\x18ftypisom and much more")
    save_file({"a": np.zeros(3)}, tmp_path / "model.safetensors", {"format": "pt"})
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "to_nowhere").symlink_to(tmp_path / "none" / "a.state")
    (tmp_path / "round").symlink_to(tmp_path / "round")
    before = sorted(os.listdir(tmp_path))
    for path, line in {
        tmp_path / "none" / "a.state": "no folder",
        tmp_path / "film.mp4" / "a.state": "no folder",
        tmp_path / "to_nowhere": "no folder",
        tmp_path / "film.mp4": "a file of another kind",
        tmp_path / "model.safetensors": "a file of another kind",
        tmp_path: "a folder",
        tmp_path / "pipe": "no regular file",
        tmp_path / ("x" * 250): "a file that cannot be written (File name too long)",
        tmp_path / "round": "a file that cannot be written",
        "/proc/a.state": "a file that cannot be written",
    }.items():
        assert line in refused(state_file.check, path), path
    (tmp_path / "zeros.state").write_bytes(bytes(1000))  # what a loss of power left is no loss
    for path in (file, tmp_path / "new.state", tmp_path / "zeros.state"):
        state_file.check(path)
    assert sorted(os.listdir(tmp_path)) == sorted([*before, "zeros.state"])


def test_a_link_to_a_state_stays_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "a.state").symlink_to(tmp_path / "disk" / "real.state")
    state_file.check(tmp_path / "a.state")
    state_file.write(tmp_path / "a.state", {}, {})
    assert (tmp_path / "a.state").is_symlink() and os.listdir(tmp_path / "disk") == ["real.state"]


def test_a_disk_that_fills_up_in_the_middle_leaves_the_file_of_before(file):
    before, large = file.read_bytes(), {"0.keys.0": np.ones(10_000, np.float32)}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for room in (0, 50, 5000, 20_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
        try:
            line = refused(state_file.write, file, {}, large)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert "a file that cannot be written (File too large)" in line
        assert file.read_bytes() == before and os.listdir(file.parent) == ["a.state"]


def test_of_two_streams_that_save_to_one_file_the_second_is_told(file, tmp_path):
    """Else each renames away what the other writes, and what is resumed is a mixture of both."""
    new = tmp_path / "new.state"
    for path in (file, new):
        with state_file.StateFile(path) as first:
            first.write({"extra": {"next": 1.0}}, {})
            for use in (state_file.StateFile, state_file.check):
                assert "a file that another stream saves to" in refused(use, path)
            first.write({"extra": {"next": 2.0}}, {})  # the lock goes with the name, not with the file of before
            assert "a file that another stream saves to" in refused(state_file.write, path, {}, {})
            assert peek(path) == {"next": 2.0}
        state_file.write(path, {"extra": {"next": 3.0}}, {})
        assert peek(path) == {"next": 3.0}
    with state_file.StateFile(tmp_path / "b.state") as late:  # begun before there was a file to lock
        state_file.write(tmp_path / "b.state", {"extra": {}}, {})
        with state_file.StateFile(tmp_path / "b.state"):
            assert "another stream" in refused(late.write, {}, {})
    with (tmp_path / "c.state.partial").open("wb") as theirs:
        fcntl.flock(theirs, fcntl.LOCK_EX)
        theirs.write(b"half of a state")
        theirs.flush()
        assert "another stream" in refused(state_file.write, tmp_path / "c.state", {}, {})
        assert (tmp_path / "c.state.partial").read_bytes() == b"half of a state"


def test_what_a_killed_save_left_is_written_over_and_goes(file):
    draft = file.with_name("a.state.partial")
    for use in (state_file.check, lambda path: state_file.write(path, {"extra": {}}, {})):
        draft.write_bytes(bytes(10**6))
        use(file)
        assert os.listdir(file.parent) == ["a.state"] and peek(file) in ({"next": 5.0}, {})
