"""Which files are videos, what they are called, and what is known of them."""

import json
import os

import numpy as np
import pytest

from svlm_jax.curate.outcome import SetAside
from svlm_jax.curate.transcribing.videos import (
    Video,
    find_videos,
    from_record,
    read_titles,
    to_records,
    video_duration,
    with_titles,
)
from svlm_jax.errors import InputError
from svlm_jax.json_lines import BadLines
from svlm_jax.media.video import write_video


def make_video(path, frames=4, shade=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, [np.full((16, 16, 3), shade, np.uint8)] * frames, 2)
    return path


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def test_videos_of_a_folder_in_order_without_what_is_hidden_or_no_video(tmp_path):
    touch(*(tmp_path / name for name in ("b.MKV", "a.mp4", "league/c.ts", "._a.mp4", ".trash/d.mp4", "a.vtt", "a.mp4.part")))
    found = find_videos([tmp_path])
    assert [video.name for video in found] == [str(tmp_path / name) for name in ("a.mp4", "b.MKV", "league/c.ts")]
    assert [video.source for video in found] == [tmp_path.name, tmp_path.name, "league"]


def test_each_video_once_in_the_order_in_which_it_is_named(tmp_path):
    touch(tmp_path / "a.mp4", tmp_path / "b.mp4")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "link.mp4").symlink_to(tmp_path / "a.mp4")
    found = find_videos([tmp_path / "b.mp4", tmp_path])
    assert [video.path.name for video in found] == ["b.mp4", "a.mp4"]


def test_names_are_relative_to_a_root(tmp_path, monkeypatch):
    touch(tmp_path / "games/league/a.mp4")
    monkeypatch.chdir(tmp_path)
    assert find_videos(["games"])[0].name == "games/league/a.mp4"
    assert find_videos(["games"], root=tmp_path / "games")[0].name == "league/a.mp4"
    assert find_videos([tmp_path / "games"], root=tmp_path)[0].name == "games/league/a.mp4"
    with pytest.raises(InputError, match="--root"):
        find_videos(["games"], root=tmp_path / "elsewhere")


@pytest.mark.parametrize(("name", "line"), [("none", "no such file or folder"), ("", "no video")])
def test_what_is_not_there_is_told(tmp_path, name, line):
    with pytest.raises(InputError, match=line):
        find_videos([tmp_path / name])


def test_a_title_is_the_name_of_the_file_without_the_id_of_a_download(tmp_path):
    touch(tmp_path / "Reds_-_Blues 2-1 [dQw4w9WgXcQ].mp4", tmp_path / "Reds [live].mp4")
    assert [video.title for video in find_videos([tmp_path])] == ["Reds [live]", "Reds - Blues 2-1"]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv"])
def test_titles_of_a_file(tmp_path, kind):
    rows = [("games/a.mp4", "Reds - Blues, final", "cup", "English"), ("b", "Greens", "", "")]
    columns = ("video", "title", "source", "language")
    if kind == "jsonl":
        text = "".join(json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in rows)
    else:
        comma = "," if kind == "csv" else "\t"
        text = "\ufeff" + "\r\n".join(comma.join(f'"{value}"' for value in row) for row in (columns, *rows))
    (tmp_path / f"titles.{kind}").write_text(text, encoding="utf-8")
    titles = read_titles(tmp_path / f"titles.{kind}", BadLines())
    a, b, c = (Video(f"games/{name}.mp4", tmp_path / f"{name}.mp4", name, "games") for name in "abc")
    first, second, third = with_titles([a, b, c], titles, "de")
    assert (first.title, first.source, first.language) == ("Reds - Blues, final", "cup", "en")
    assert (second.title, second.source, second.language) == ("Greens", "games", "de")
    assert third == Video(c.name, c.path, "c", "games", "de")


def test_titles_of_no_video_are_told_and_a_name_that_two_files_have_is_nobodys(tmp_path):
    videos = [Video(f"{folder}/a.mp4", tmp_path / folder / "a.mp4", "a") for folder in ("x", "y")]
    with pytest.warns(UserWarning, match="1 of 1 titles are of no video"):
        assert with_titles(videos, {"a.mp4": {"title": "Reds"}}) == videos


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("t.csv", "name,title\na,b\n", "got the columns name, title"),
        ("t.csv", "video,title\n,b\n", "t.csv:2 video"),
        ("t.jsonl", '{"title": "x"}\n', "t.jsonl:1 video"),
        ("t.jsonl", '{"video": "a", "title": 3}\n', "t.jsonl:1 title"),
        ("t.csv", "video,title\na,b\nc," + "x" * 200_000, "t.csv:3: got field larger"),
        ("none.csv", None, "no such file"),
    ],
)
def test_titles_that_cannot_be_read(tmp_path, name, text, line):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=line):
        read_titles(tmp_path / name, BadLines())


def test_a_video_is_known_again_by_its_bytes_and_its_title(tmp_path):
    video = Video("a.mp4", make_video(tmp_path / "a.mp4"), "Reds", "cup", "en")
    record = to_records([video])[0]
    assert (record["video"], record["duration"], record["size"]) == ("a.mp4", 2.0, video.path.stat().st_size)
    os.utime(video.path, (0, 0))
    assert to_records([video]) == [record]
    assert from_record(record, "videos:1", tmp_path) == video
    make_video(tmp_path / "a.mp4", shade=200)
    assert to_records([video]) != [record]


def test_durations(tmp_path):
    assert video_duration(make_video(tmp_path / "a.mp4", 6)) == pytest.approx(3.0)
    content = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "page.mp4").write_text("<!doctype html>")
    with pytest.raises(SetAside, match="a file that cannot be read"):
        video_duration(tmp_path / "page.mp4")
    (tmp_path / "cut.mp4").write_bytes(b"\0\0\0\x18ftypisom" + bytes(12) + b"\0\0\0\0mdat" + content[:50])
    with pytest.raises(SetAside, match="an MP4 without its index"):
        video_duration(tmp_path / "cut.mp4")
    with pytest.raises(SetAside, match="cannot be read"):
        video_duration(tmp_path / "none.mp4")
