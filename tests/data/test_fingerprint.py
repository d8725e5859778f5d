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
    said = {"type": "text_stream", "text_stream": [[number, number + 1, f"w{number % 10}"]]}
    return [
        {"role": "user", "content": [clip, {"type": "text", "text": "q", "previous": ""}]},
        {"role": "assistant", "content": [said]},
    ]


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for name in "ab":
        (folder / f"{name}.mp4").write_bytes(name.encode() * 100)
    write(folder / "train.jsonl", [record(f"{'ab'[number % 2]}.mp4", number) for number in range(10, 20)])
    return folder


def known(folder, *names: str) -> dict:
    return JsonlWindows(Records([folder / name for name in names or ["train.jsonl"]]), 2, str(folder)).fingerprint()


def lines(folder) -> list[str]:
    return (folder / "train.jsonl").read_text().splitlines()


def rewrite(folder, some: list[str]) -> None:
    (folder / "train.jsonl").write_text("".join(f"{line}\n" for line in some))
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
    change, seen = CHANGES[name]
    before = known(folder)
    change(folder)
    after = known(folder)
    assert {key for key in before if before[key] != after[key]} <= seen and before != after
    assert name != "cut" or after["samples"] == 5


def test_files_in_another_order_and_a_file_more_are_seen(folder):
    write(folder / "more.jsonl", [record("a.mp4", number) for number in range(20, 30)])
    one, other = known(folder, "train.jsonl", "more.jsonl"), known(folder, "more.jsonl", "train.jsonl")
    assert one["samples"] == other["samples"] == 20 and one["records"] != other["records"]
    assert known(folder) != one


def test_data_that_moved_or_lost_its_seeks_is_the_same(folder, tmp_path):
    before = known(folder)
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert known(tmp_path / "elsewhere") == before
    seeks_path(folder / "train.jsonl").unlink()
    assert known(folder) == before
    with (folder / "train.jsonl").open("a") as file:
        file.write("\n")
    assert known(folder) == before


def test_of_a_large_set_a_part_is_compared(folder, monkeypatch):
    """Its order and length exactly: every line has another length here."""
    monkeypatch.setattr("svlm_jax.data.fingerprint.MAX_RECORDS", 3)
    some = [json.dumps([*record("a.mp4", 0), "x" * number]) for number in range(50)]
    rewrite(folder, some)
    before = known(folder)
    for one in np.random.default_rng(0).integers(1, 48, 5):
        rewrite(folder, [*some[:one], some[one + 1], some[one], *some[one + 2 :]])
        assert known(folder)["records"] != before["records"]
