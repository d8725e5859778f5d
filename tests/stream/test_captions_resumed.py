"""Captions of a stream that is resumed: the file goes back to where it was when the state was saved, and nothing of a user's is
lost."""

from pathlib import Path

import pytest

from svlm_jax.errors import InputError
from svlm_jax.stream.captions import Subtitles
from tests.stream.test_captions import KINDS, written


@pytest.fixture(params=KINDS)
def path(request, tmp_path) -> Path:
    return tmp_path / f"live.{request.param}"


def test_it_goes_back_to_a_size_it_had(path):
    with Subtitles(path) as captions:
        captions.write(0, 1, "first")
        size = captions.size
        captions.write(1, 2, "second")
    whole = path.read_bytes()
    with Subtitles(path, append=True, keep=size) as captions:
        captions.write(1, 2, "second")
    assert path.read_bytes() == whole


def test_a_size_beyond_the_end_cuts_nothing(path):
    before = written(path, "first")
    Subtitles(path, append=True, keep=len(before) + 100).close()
    assert path.read_bytes() == before


def test_a_size_inside_a_cue_is_told_and_cut_to_the_cue_before(path):
    one = written(path, "first")
    both = written(path, "second", append=True)
    with pytest.warns(UserWarning, match="unfinished cue"):
        Subtitles(path, append=True, keep=len(both) - 1).close()
    assert path.read_bytes() == one


def test_a_file_of_another_kind_is_not_cut_to_a_size(path):
    path.write_text("notes of my own, which are long enough")
    with pytest.raises(InputError, match="another kind"):
        Subtitles(path, append=True, keep=8)
    assert path.read_text() == "notes of my own, which are long enough"


def test_it_goes_back_to_a_mark_and_refuses_what_has_changed(path):
    with Subtitles(path) as captions:
        captions.write(0, 1, "first")
        mark = captions.mark
        captions.write(1, 2, "second")
    captions.sync()  # closed: let be
    whole = path.read_bytes()
    back = {"keep": mark["size"], "digest": mark["sha256"]}
    for changed in (whole.replace(b"first", b"FIRST"), whole[: mark["size"] - 1]):
        path.write_bytes(changed)
        with pytest.raises(InputError, match="changed or cut since the stream was saved"):
            Subtitles(path, append=True, **back)
        assert path.read_bytes() == changed
    path.write_bytes(whole)
    with Subtitles(path, append=True, **back) as captions:
        assert captions.mark == mark
        captions.write(1, 2, "second")
    assert path.read_bytes() == whole


def test_nothing_is_cut_off_by_a_run_that_fails_before_its_first_cue(path):
    whole = written(path, "first", "second")
    with pytest.raises(RuntimeError), Subtitles(path, append=True, keep=20):
        raise RuntimeError("another model")
    assert path.read_bytes() == whole


@pytest.mark.parametrize("mine", ["NOTE to myself", "Kick-off!\n\n", "{}\n", "9\n\n10\n\n"])
def test_what_a_user_wrote_after_the_mark_is_never_cut_off(path, mine):
    with Subtitles(path) as captions:
        captions.write(0, 1, "one")
        mark = captions.mark
        captions.write(1, 2, "two")
    changed = path.read_bytes() + mine.encode()
    path.write_bytes(changed)
    with pytest.raises(InputError, match="changed or cut"):
        Subtitles(path, append=True, keep=mark["size"], digest=mark["sha256"])
    assert path.read_bytes() == changed


def test_what_a_killed_run_wrote_after_the_mark_is_written_again(path):
    with Subtitles(path) as captions:
        captions.write(0, 1, "one")
        mark, kept = captions.mark, path.read_bytes()
        captions.write(1, 2, "two 2:0 --> x\ny", question="?")
        captions.write(2, 3, "three")
    whole = path.read_bytes()
    for after in [*range(len(kept), len(whole)), whole + b"\0" * 50]:
        path.write_bytes(after if isinstance(after, bytes) else whole[:after])
        with Subtitles(path, append=True, keep=mark["size"], digest=mark["sha256"]) as captions:
            assert captions.rewritten == path.read_bytes()[len(kept) :].count(captions.ending)
            captions.write(1, 2, "two 2:0 --> x\ny", question="?")
            captions.write(2, 3, "three")
        assert path.read_bytes() == whole
