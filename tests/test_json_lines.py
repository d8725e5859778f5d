"""Published files are read in both of their forms, and what is bad in them is named."""

import pytest

from svlm_jax.errors import InputError
from svlm_jax.json_lines import BadLines, read, require, require_time, require_video


def numbers(path, allowed=0):
    bad = BadLines(allowed)
    return read(path, "numbers", lambda record, source: require(record, "n", int, source), bad), bad.errors


@pytest.mark.parametrize("text", ['{"n": 1}\n\n{"n": 2}\n', '\n[{"n": 1},\n {"n": 2}]', '{"n": 1}\r\n{"n": 2}'])
def test_lines_and_a_list_are_the_same(tmp_path, text):
    (tmp_path / "f").write_text(text)
    assert numbers(tmp_path / "f") == ([1, 2], [])


@pytest.mark.filterwarnings("ignore:left out")
@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('{"n": 1}\n{"n": "x"}\n', "f:2 n"),
        ('[{"n": 1}, {}]', r"f\[1\] n"),
        ('[{"n": 1}, 7]', r"f\[1\]"),
        ('{"n": 1}\n[7]\n', "f:2"),
    ],
)
def test_what_is_bad_is_named_and_left_out_only_if_allowed(tmp_path, text, name):
    (tmp_path / "f").write_text(text)
    with pytest.raises(InputError, match=name):
        numbers(tmp_path / "f")
    assert numbers(tmp_path / "f", 1)[0] == [1]


@pytest.mark.parametrize("text", ["[]", " \n", '[{"n": 1}', '{"n": 1, "n": 2}'])
def test_a_file_without_good_content_is_one_error(tmp_path, text):
    (tmp_path / "f").write_text(text)
    with pytest.raises(InputError):
        numbers(tmp_path / "f")


@pytest.mark.parametrize("video", ["../secret.mp4", "a/../../b.mp4", "/etc/passwd", "", ".", "a\0.mp4"])
def test_items_of_others_name_no_file_outside_the_folder_of_videos(video):
    with pytest.raises(InputError, match=r"f:1 video: got .* below the folder of videos"):
        require_video({"video": video}, "video", "f:1")


@pytest.mark.parametrize("video", ["final.mp4", "./a/b.mp4", "COIN/ü ..mp4", "..a/b..mp4"])
def test_a_path_below_the_folder_is_taken_as_it_is(video):
    assert require_video({"video": video}, "video", "f:1") == video


def test_a_time_of_years_is_bad_before_its_seconds_are_counted():
    assert require_time({"end": 7421}, "end", "f:1") == 7421.0
    with pytest.raises(InputError, match="f:1 end: got 5e\\+08"):
        require_time({"end": 5e8}, "end", "f:1")


def test_half_a_character_is_a_bad_line_and_not_a_failed_write_at_the_end(tmp_path):
    (tmp_path / "f").write_text(r'{"n": 1, "title": "\ud83d\ude00"}' + "\n" + r'{"n": 2, "title": "\ud83d"}')
    with pytest.raises(InputError, match="f:2: got broken JSON"):
        numbers(tmp_path / "f")
