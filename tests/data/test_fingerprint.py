"""Claims about what a set of samples is known by: whatever changes which sample is which is seen; moving the data is not."""

import json
import os
import shutil

import numpy as np
import pytest

from svlm_jax.data.dataset import JsonlWindows
from svlm_jax.data.records import Records, seeks_path, write


def record(video: str, number: int) -> list:
    clip = {"type": "video", "video": video, "video_start": number, "video_end": number + 1}
    speech = {"type": "text_stream", "text_stream": [[number, number + 1, f"w{number % 10}"]]}
    return [
        {"role": "user", "content": [clip, {"type": "text", "text": "q", "previous": ""}]},
        {"role": "assistant", "content": [speech]},
    ]


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for name in "ab":
        (folder / f"{name}.mp4").write_bytes(name.encode() * 100)
    write(folder / "train.jsonl", [record(f"{'ab'[number % 2]}.mp4", number) for number in range(10, 20)])
    return folder


def fingerprint_of(folder, *names: str) -> dict:
    return JsonlWindows(Records([folder / name for name in names or ["train.jsonl"]]), 2, str(folder)).fingerprint()


def lines(folder) -> list[str]:
    return (folder / "train.jsonl").read_text().splitlines()


def rewrite(folder, texts: list[str]) -> None:
    (folder / "train.jsonl").write_text("".join(f"{line}\n" for line in texts))
    os.utime(folder / "train.jsonl")
    seeks_path(folder / "train.jsonl").unlink(missing_ok=True)


CHANGES = {
    "cut": (lambda folder: rewrite(folder, lines(folder)[:5]), {"samples", "records", "media"}),
    "two change places": (lambda folder: rewrite(folder, lines(folder)[1::-1] + lines(folder)[2:]), {"records"}),
    "a word": (lambda folder: rewrite(folder, [line.replace("w5", "w6") for line in lines(folder)]), {"records"}),
    "the last word": (lambda folder: rewrite(folder, [line.replace("w9", "w8") for line in lines(folder)]), {"records"}),
    "a video is longer": (lambda folder: (folder / "a.mp4").write_bytes(b"a" * 101), {"media"}),
    "a video is gone": (lambda folder: (folder / "b.mp4").unlink(), {"media"}),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_seen(name, folder):
    change, expected = CHANGES[name]
    before = fingerprint_of(folder)
    change(folder)
    after = fingerprint_of(folder)
    assert {key for key in before if before[key] != after[key]} <= expected and before != after
    assert name != "cut" or after["samples"] == 5


def test_files_in_another_order_and_a_file_more_are_seen(folder):
    write(folder / "more.jsonl", [record("a.mp4", number) for number in range(20, 30)])
    first, second = fingerprint_of(folder, "train.jsonl", "more.jsonl"), fingerprint_of(folder, "more.jsonl", "train.jsonl")
    assert first["samples"] == second["samples"] == 20 and first["records"] != second["records"]
    assert fingerprint_of(folder) != first


def test_data_that_moved_or_lost_its_seeks_is_the_same(folder, tmp_path):
    before = fingerprint_of(folder)
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert fingerprint_of(tmp_path / "elsewhere") == before
    seeks_path(folder / "train.jsonl").unlink()
    assert fingerprint_of(folder) == before
    with (folder / "train.jsonl").open("a") as file:
        file.write("\n")
    assert fingerprint_of(folder) == before


def test_of_a_large_set_a_part_is_compared(folder, monkeypatch):
    """Its order and length exactly: every line has another length here."""
    monkeypatch.setattr("svlm_jax.data.fingerprint.MAX_RECORDS", 3)
    texts = [json.dumps([*record("a.mp4", 0), "x" * number]) for number in range(50)]
    rewrite(folder, texts)
    before = fingerprint_of(folder)
    for first in np.random.default_rng(0).integers(1, 48, 5):
        rewrite(folder, [*texts[:first], texts[first + 1], texts[first], *texts[first + 2 :]])
        assert fingerprint_of(folder)["records"] != before["records"]
