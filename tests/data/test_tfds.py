"""Claims about the frames of windows: which they are, what is said of a video that has too few, and what a prepared directory
keeps of them. Those about directories need tensorflow-datasets (the `train` extra)."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from svlm_jax.data.annotation import Annotation, Word, parse
from svlm_jax.data.dataset import TfdsWindows
from svlm_jax.data.frames import by_second, window_frames
from svlm_jax.data.records import Records, write
from svlm_jax.data.tfds import WINDOWS_A_FILE, TfdsDataset, prepare
from svlm_jax.data.windows import cut, to_record
from svlm_jax.errors import InputError
from svlm_jax.media.pixels import preprocess, resize
from svlm_jax.media.video import read_video, write_video
from tests.support import ROOT
from tests.support.pixels import STREAM_FRAME

HEIGHT, WIDTH = 224, 392  # a size that STREAM_FRAME leaves alone
SECONDS = 7
LOSS = 2.0  # levels of 255 that JPEG may cost in the mean; the docstring of `prepared` says so


def scene(number: int) -> np.ndarray:
    """A smooth sky, coloured things with edges that move, and grain: uint8 [H, W, 3]."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    sky = np.stack([60 + y / 2, 90 + x / 4, 200 - y / 3], axis=-1)
    ball = (y - 110) ** 2 + (x - 40 - 12 * number) ** 2 < 40**2
    fence = (x // 9 + number) % 4 == 0
    sky[ball] = (220, 60, 40)
    sky[(y > 180) & fence] = (40, 160, 70)
    return np.clip(sky + np.random.default_rng(number).normal(0, 3, sky.shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """clip.mp4: 7 s at 4 frames a second; half.mp4: 2.5 s; broken.mp4: no video."""
    folder = tmp_path_factory.mktemp("videos")
    frames = np.stack([scene(number) for number in range(4 * SECONDS)])
    write_video(folder / "clip.mp4", frames, fps=4)
    write_video(folder / "half.mp4", frames[:10, :112, :168], fps=4)
    (folder / "broken.mp4").write_bytes(b"no video at all" * 100)
    return folder


def window(start: float = 1, end: float = 4, video: str = "clip.mp4") -> Annotation:
    return Annotation(video, start, end, "q", "before", (Word(start, start + 0.5, "goal"),))


# --- frames of a window ---


@pytest.mark.parametrize("fps", [1, 2.0, 4])
def test_a_second_has_the_frames_on_screen_in_it(videos, fps):
    seconds = window_frames(window(), fps, videos)
    assert [second.shape for second in seconds] == [(int(fps), HEIGHT, WIDTH, 3)] * 3
    expected, times, _ = read_video(videos / "clip.mp4", fps, start=1, duration=3)
    np.testing.assert_array_equal(np.concatenate(seconds), expected)
    np.testing.assert_array_equal(times, 1 + np.arange(3 * fps) / fps)


def test_only_seconds_that_are_shown_are_decoded(videos):
    hidden = window_frames(replace(window(1, 4), hidden=2), 2, videos)
    np.testing.assert_array_equal(np.concatenate(hidden), np.concatenate(window_frames(window(3, 4), 2, videos)))
    with pytest.raises(InputError, match=r"video .*clip\.mp4: got frames of 1 s from 6 s on, expected 2 s of them"):
        window_frames(replace(window(5, 8), hidden=1), 2, videos)


def test_a_window_may_reach_to_the_end_and_an_absolute_path_needs_no_root(videos):
    absolute = window(0, SECONDS, str(videos / "clip.mp4"))
    for root in (None, "elsewhere", videos):
        assert [len(second) for second in window_frames(absolute, 2, root)] == [2] * SECONDS


def test_a_broken_second_is_shown_as_far_as_the_video_goes(videos):
    assert [len(second) for second in window_frames(window(0, 2.5), 2, videos)] == [2, 2, 2]
    ends_there = window_frames(window(0, 2.5, "half.mp4"), 2, videos)
    assert [len(second) for second in ends_there] == [2, 2, 1]
    assert preprocess(ends_there[-1], STREAM_FRAME)[1][0] == 1  # its frame is repeated: one pair, as in every other second


BAD = {
    "short": (window(5, 8), r"video .*clip\.mp4: got frames of 2 s from 5 s on, expected 3 s of them"),
    "no frame in the last second": (window(0, 3, "half.mp4"), r"video .*half\.mp4: got frames of 2\.5 s from 0 s on, .* 3 s"),
    "beyond the end": (window(100, 102), r"start: got 100 s, expected less than 7 s, where .*clip\.mp4 ends"),
    "missing": (window(video="no.mp4"), r"video .*no\.mp4: got no such file"),
    "broken": (window(video="broken.mp4"), r"video .*broken\.mp4: got InvalidDataError"),
    "folder": (window(video="."), r"video .*: got a directory"),
}


@pytest.mark.parametrize(("annotation", "reason"), BAD.values(), ids=BAD.keys())
def test_a_video_with_too_few_frames_is_refused_by_name(videos, annotation, reason):
    with pytest.raises(InputError, match=reason):
        window_frames(annotation, 2, videos)


@pytest.mark.parametrize("fps", [0, 0.5, 2.5, -2, float("nan"), float("inf")])
def test_a_second_has_a_whole_number_of_frames(videos, fps):
    with pytest.raises(InputError, match=r"fps: got .*, expected a whole number of frames a second"):
        window_frames(window(), fps, videos)


# --- prepared directories ---


def lines(folder: Path, *records: object) -> Records:
    """Annotations are written as records, anything else as it is."""
    path = folder / "a.jsonl"
    write(path, [to_record(item) if isinstance(item, Annotation) else item for item in records])
    return Records([path])


@pytest.fixture(scope="module")
def prepared_dataset(videos, tmp_path_factory) -> tuple[Path, Records]:
    pytest.importorskip("tensorflow_datasets")
    folder = tmp_path_factory.mktemp("made")
    records = lines(folder, window(0, 2), window(3, 6), window(0, 2.5, "half.mp4"))
    assert prepare(records, folder / "out", STREAM_FRAME, root=videos) == (3, 4 + 6 + 5, 0)
    return folder / "out", records


def test_windows_come_back_by_number(prepared_dataset, videos):
    directory, records = prepared_dataset
    prepared = TfdsDataset(directory)
    assert len(prepared) == 3 and prepared.fps == 2 and prepared.factor == 28
    assert [name for name, _, _ in prepared] == ["a.jsonl:1", "a.jsonl:2", "a.jsonl:3"]
    name, annotation, frames = prepared[1]
    assert annotation == parse(json.loads(records[1].line)) == window(3, 6)
    assert frames.dtype == np.uint8 and frames.shape == (6, HEIGHT, WIDTH, 3)
    assert prepared[-2][0] == name
    with pytest.raises(IndexError):
        prepared[3]


def test_frames_that_were_resized_for_other_patches_are_refused(prepared_dataset):
    """Resized a second time they would not be the frames that a stream sees."""
    dataset = TfdsDataset(prepared_dataset[0])
    assert len(TfdsWindows(dataset, 2, 28)) == 3
    with pytest.raises(InputError, match=r"vision tokens of 28 px, expected 32 px, .* svlm windows --family"):
        TfdsWindows(dataset, 2, 32)


def test_frames_of_a_second_lie_together_and_jpeg_costs_little(prepared_dataset, videos):
    loss = []
    for _, annotation, frames in TfdsDataset(prepared_dataset[0]):
        read = window_frames(annotation, 2, videos)
        stored = by_second(frames, 2)
        assert [len(second) for second in stored] == [len(second) for second in read]
        for stored_second, expected in zip(stored, read, strict=True):
            resized = np.stack([resize(frame, *stored_second.shape[1:3]) for frame in expected])
            loss.append(np.abs(stored_second.astype(int) - resized).mean())
    assert 0 < max(loss) < LOSS


def test_frames_are_resized_already(prepared_dataset, videos):
    for _, annotation, frames in TfdsDataset(prepared_dataset[0]):
        from_file = preprocess(window_frames(annotation, 2, videos)[0], STREAM_FRAME)
        patches, grid = preprocess(frames[:2], STREAM_FRAME)
        assert grid == from_file[1] and (14 * grid[1], 14 * grid[2]) == frames.shape[1:3]
        assert patches.shape == from_file[0].shape


def test_a_directory_is_read_in_another_process_without_tensorflow_or_jax(prepared_dataset):
    read = TfdsDataset(prepared_dataset[0])
    sent = pickle.dumps(read)
    assert len(sent) < 10_000 and pickle.loads(sent)[1][0] == read[1][0]
    show = "print(name, len(frames), *{'jax', 'tensorflow'} & set(sys.modules))"
    code = f"import pickle, sys; name, _, frames = pickle.loads({sent!r})[1]; {show}"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=False)
    assert ran.stdout == "a.jsonl:2 6\n", ran.stderr


def test_bad_records_are_told_and_left_out(videos, tmp_path):
    pytest.importorskip("tensorflow_datasets")
    records = lines(tmp_path, [1], window(0, 1), window(5, 9), window(0, 1, "no.mp4"), window(2, 3))
    reasons: dict[str, str] = {}
    progress: list[tuple[int, int]] = []
    counts = prepare(
        records,
        tmp_path / "out",
        STREAM_FRAME,
        root=videos,
        max_bad=3,
        on_bad=reasons.__setitem__,
        progress=lambda *counts: progress.append(counts),
    )
    assert counts == (2, 4, 3)
    assert progress == [(n, 5) for n in range(1, 6)]
    assert [name for name, _, _ in TfdsDataset(tmp_path / "out")] == ["a.jsonl:2", "a.jsonl:5"]
    assert list(reasons) == ["a.jsonl:1", "a.jsonl:3", "a.jsonl:4"]
    assert [reason.split(",")[0] for reason in reasons.values()] == [
        "record: got a list of 1",
        f"video {videos}/clip.mp4: got frames of 2 s from 5 s on",
        f"video {videos}/no.mp4: got no such file",
    ]


def test_more_windows_than_a_file_holds_stay_in_order(videos, tmp_path, monkeypatch):
    """One of the files has nothing but bad records. Nothing is left among the temporary files of the machine."""
    pytest.importorskip("tensorflow_datasets")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr("svlm_jax.data.tfds.WINDOWS_A_FILE", 2)
    missing = window(0, 1, "no.mp4")
    records = lines(tmp_path, window(0, 1), window(1, 2), missing, missing, window(2, 3))
    assert prepare(records, tmp_path / "out", STREAM_FRAME, root=videos, max_bad=2).windows == 3
    assert [annotation.start for _, annotation, _ in TfdsDataset(tmp_path / "out")] == [0, 1, 2]
    assert WINDOWS_A_FILE > 2 and len(list((tmp_path / "out").glob("*array_record*"))) == 3
    assert not any((tmp_path / "temporary").iterdir())


def test_a_directory_appears_whole_or_not_at_all(videos, tmp_path):
    pytest.importorskip("tensorflow_datasets")
    records = lines(tmp_path, window(0, 1), window(0, 1, "no.mp4"))
    with pytest.raises(InputError, match=r"out: got 1 bad records, expected at most 0; mend them or allow more"):
        prepare(records, tmp_path / "out", STREAM_FRAME, root=videos)

    def stop(*_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(records, tmp_path / "out", STREAM_FRAME, root=videos, progress=stop)
    with pytest.raises(InputError, match="out: got no good records"):
        prepare(records, tmp_path / "out", STREAM_FRAME, root=tmp_path, max_bad=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "a_seeks.jsonl"]


def test_wrong_directories_are_refused(videos, tmp_path):
    records = lines(tmp_path, window(0, 1))
    with pytest.raises(InputError, match="got something that exists already"):
        prepare(records, tmp_path, STREAM_FRAME, root=videos)
    for directory in (tmp_path, tmp_path / "no"):
        with pytest.raises(InputError, match=r"got no svlm_windows dataset, expected a directory written by svlm windows"):
            TfdsDataset(directory)


def test_without_tensorflow_datasets_the_extra_is_named(videos, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(InputError, match=r"tensorflow_datasets: got no module .*; pip install 'svlm-jax\[train\]'"):
        prepare(lines(tmp_path, window(0, 1)), tmp_path / "out", STREAM_FRAME, root=videos)
    assert not (tmp_path / "out").exists()


# --- the command ---


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}


def command(*args: object, cwd: Path, limit: int | None = None) -> subprocess.CompletedProcess[str]:
    """`limit` is the largest file it may write, in bytes (a full disk)."""
    line = [sys.executable, "-m", "launch.windows", *map(str, args)]
    if limit is not None:
        if shutil.which("prlimit") is None:
            pytest.skip("needs prlimit (util-linux)")
        line = ["prlimit", f"--fsize={limit}", *line]
    return subprocess.run(line, capture_output=True, text=True, env=environment(), cwd=cwd, check=False)


@pytest.mark.parametrize("out", [(), ("--out", "train.jsonl")], ids=["alone", "with --out"])
def test_the_command_prepares_windows(videos, tmp_path, out):
    pytest.importorskip("tensorflow_datasets")
    long = replace(window(0, SECONDS), words=(Word(0, 1, "a"), Word(3, 4.5, "b")))
    write(tmp_path / "long.jsonl", [to_record(long)])
    flags = ("--window", 4, "--stride", 2, "--fps", 1, "--root", videos)
    result = command("long.jsonl", *out, "--tfds", "frames", *flags, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    cuts, decoded = result.stdout.splitlines()
    assert cuts == "1 records, 2 windows, 8 s, words in 25% of the seconds" + (" -> train.jsonl" if out else "")
    assert decoded == "2 windows, 8 frames, 0.00 GB -> frames"
    assert "Traceback" not in result.stderr
    expected = [parse(item) for item in cut(long, window=4, stride=2)]
    assert [annotation for _, annotation, _ in TfdsDataset(tmp_path / "frames")] == expected
    assert [name for name, _, _ in TfdsDataset(tmp_path / "frames")] == [
        f"{'train' if out else 'frames'}.jsonl:{n}" for n in (1, 2)
    ]


def test_a_video_that_is_missing_ends_the_command_with_1_and_leaves_no_directory(videos, tmp_path):
    pytest.importorskip("tensorflow_datasets")
    write(tmp_path / "long.jsonl", [to_record(window(0, 2)), to_record(window(0, 2, "no.mp4"))])
    result = command("long.jsonl", "--tfds", "frames", "--root", videos, cwd=tmp_path)
    assert result.returncode == 1
    reasons = [line for line in result.stderr.splitlines() if not line.startswith("decode: ")]
    assert reasons[0].startswith(f"left out frames.jsonl:2: video {videos}/no.mp4: got no such file")
    assert reasons[1].startswith("error: ") and len(reasons) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["long.jsonl", "long_seeks.jsonl"]


def test_a_full_disk_is_one_line_and_leaves_nothing(videos, tmp_path):
    pytest.importorskip("tensorflow_datasets")
    write(tmp_path / "long.jsonl", [to_record(window(0, 6))])
    result = command("long.jsonl", "--tfds", "frames", "--root", videos, cwd=tmp_path, limit=50_000)
    assert result.returncode == 2
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "frames: got a failed write (" in errors[0] and "Traceback" not in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["long.jsonl", "long_seeks.jsonl"]
