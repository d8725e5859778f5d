"""Captions on the disk: what other programs read, at every moment and after every accident."""

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svlm_jax.errors import InputError
from svlm_jax.stream import captions as captions_module
from svlm_jax.stream.captions import Subtitles
from tests.support import ROOT

KINDS = ("vtt", "srt", "jsonl")
NASTY = "a & b <i> --> c\n\n2\n00:00:09,000 --> 00:00:10,000\r\n\r\nd\x00e\tf\x1b\u2028g\ud800"


@pytest.fixture(params=KINDS)
def path(request, tmp_path) -> Path:
    return tmp_path / f"live.{request.param}"


def written(path: Path, *texts: str, append: bool = False) -> bytes:
    """The file after one cue a second."""
    with Subtitles(path, append=append) as captions:
        for second, text in enumerate(texts):
            captions.write(second, second + 1, text)
    return path.read_bytes()


def seen_by_a_player(path: Path) -> list[tuple[float, float, str]]:
    """(start, end, text) of each cue as libav reads the file."""
    with av.open(str(path)) as container:
        unit = float(container.streams.subtitles[0].time_base or 0)
        cues = [(p.pts or 0, p.duration or 0, bytes(p).decode()) for p in container.demux(subtitles=0) if p.size]
        return [(start * unit, (start + length) * unit, text) for start, length, text in cues]


def test_webvtt_as_it_stands_on_the_disk(tmp_path):
    assert written(tmp_path / "a.vtt", '"Hello".', "", "R&D") == (
        b'WEBVTT\n\n00:00:00.000 --> 00:00:01.000\n"Hello".\n\n00:00:02.000 --> 00:00:03.000\nR&amp;D\n\n'
    )


def test_subrip_as_it_stands_on_the_disk(tmp_path):
    assert written(tmp_path / "a.SRT", "Hello.", " \n", "R&D") == (
        b"1\n00:00:00,000 --> 00:00:01,000\nHello.\n\n2\n00:00:02,000 --> 00:00:03,000\nR&D\n\n"
    )


def test_json_lines_hold_silence_and_all_else_that_is_given(tmp_path):
    with Subtitles(tmp_path / "a.jsonl") as captions:
        captions.write(0.0, 1.0, "", tokens=np.array([5, 6], np.int32), ms={"decode": np.float32(1.5)}, slots=np.int64(7))
        captions.write(0.99951, 2.00049, "你好\n\n\ud800")
    first, second = (tmp_path / "a.jsonl").read_text().splitlines()
    assert json.loads(first) == {"start": 0, "end": 1, "text": "", "tokens": [5, 6], "ms": {"decode": 1.5}, "slots": 7}
    assert json.loads(second) == {"start": 1, "end": 2, "text": "你好\n\n\ud800"}


@pytest.mark.parametrize(
    ("seconds", "stamp"),
    [
        (0, "00:00:00.000"),
        (59.9994, "00:00:59.999"),
        (59.9996, "00:01:00.000"),
        (3599.9999, "01:00:00.000"),
        (7199, "01:59:59.000"),
        (360_000.25, "100:00:00.250"),
        (1.1 * 3, "00:00:03.300"),
    ],
)
def test_times_are_rounded_to_milliseconds_and_carry_into_hours(tmp_path, seconds, stamp):
    for kind, point in (("vtt", "."), ("srt", ",")):
        with Subtitles(tmp_path / f"a.{kind}") as captions:
            captions.write(seconds, seconds + 60, "x")
        assert f"{stamp.replace('.', point)} --> " in (tmp_path / f"a.{kind}").read_text()


@pytest.mark.parametrize(("start", "end"), [(1, 1), (2, 1), (-1, 1), (0, float("inf")), (float("nan"), 1), (1, 1.0001)])
def test_a_cue_that_takes_no_time_is_a_mistake_and_leaves_no_trace(path, start, end):
    with Subtitles(path) as captions:
        before = path.read_bytes()
        with pytest.raises(ValueError, match="expected 0 <= start < end"):
            captions.write(start, end, "x")
    assert path.read_bytes() == before


def test_a_number_that_json_does_not_have_leaves_no_trace(tmp_path):
    with Subtitles(tmp_path / "a.jsonl") as captions, pytest.raises(ValueError, match="JSON"):
        captions.write(0, 1, "x", ms={"decode": float("nan")})
    assert (tmp_path / "a.jsonl").read_bytes() == b""


def test_a_reader_sees_a_cue_as_soon_as_it_is_written(path):
    with Subtitles(path) as captions:
        for number in range(1, 4):
            captions.write(number, number + 1, f"cue{number}")
            assert path.read_bytes().endswith(b"\n")
            assert path.read_text().count("cue") == number


@pytest.mark.parametrize("kind", ["vtt", "srt"])
def test_a_player_reads_what_was_said_and_when(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    with Subtitles(path) as captions:
        captions.write(0.5, 1, "one\r\n \r\ntwo")
        captions.write(3661.25, 3662, "later")
    assert seen_by_a_player(path) == [(0.5, 1, "one\ntwo"), (3661.25, 3662, "later")]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.one_of(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), st.just(NASTY)), max_size=4))
def test_no_text_can_break_out_of_its_cue(texts):
    with tempfile.TemporaryDirectory() as place:
        for kind in ("vtt", "srt"):
            path = Path(place, f"a.{kind}")
            content = written(path, *texts).decode()
            cues = content.removeprefix("WEBVTT\n\n").removesuffix("\n\n").split("\n\n") if " --> " in content else []
            assert not set(content) & (set(map(chr, range(32))) - {"\n"})
            times = [(start, end) for start, end, _ in seen_by_a_player(path)] if cues else []
            assert len(cues) == len(times)
            assert set(times) <= {(second, second + 1) for second in range(len(texts))}
            assert all(cue.count("-->") == 1 for cue in cues)
        lines = written(Path(place, "a.jsonl"), *texts).decode("ascii").splitlines()
        assert [json.loads(line)["text"] for line in lines] == texts


def test_what_is_no_blank_is_said_word_for_word(tmp_path):
    said = "  Ein «Übel» \u00a0? \u202bאבג\u202c  👩\u200d🚀\tx"
    for kind in ("vtt", "srt"):
        assert f"\n{said.strip()}\n\n".replace("\t", " ").encode() in written(tmp_path / f"a.{kind}", said)


@pytest.mark.parametrize("append", [False, True])
def test_a_folder_that_is_missing_is_told_first(path, append):
    with pytest.raises(InputError, match=r"captions .*no/live.*: got no folder .*make it first"):
        Subtitles(path.parent / "no" / path.name, append=append)


def test_another_ending_is_refused_and_makes_no_file(tmp_path):
    for name in ("a.txt", "vtt", "a"):
        with pytest.raises(InputError, match=r"one of \.vtt \.srt \.jsonl"):
            Subtitles(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_file_that_exists_is_left_alone(path):
    before = written(path, "old")
    with pytest.raises(InputError, match="a file that exists"):
        Subtitles(path)
    assert path.read_bytes() == before


def test_of_two_that_start_at_once_one_is_refused(path, monkeypatch):
    before = written(path, "old")
    monkeypatch.setattr(captions_module.os.path, "lexists", lambda path: False)
    monkeypatch.setattr(Path, "is_file", lambda path: False)
    with pytest.raises(InputError, match="File exists"):
        Subtitles(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("text", ["notes, all mine", "1\r\n00:00:00,000 --> 00:00:01,000\r\nx", "{}\n", "WEBVTT - x\n\n"])
def test_nothing_is_appended_to_a_file_of_another_kind(path, text):
    path.write_bytes(text.encode())
    with pytest.raises(InputError, match="a file of another kind"):
        Subtitles(path, append=True)
    assert path.read_bytes() == text.encode()


def test_a_folder_in_the_place_of_the_file_is_told(path):
    path.mkdir()
    with pytest.raises(InputError, match="Is a directory"):
        Subtitles(path, append=True)


def test_appending_goes_on_as_if_there_had_been_no_break(path):
    texts = ("one", "two\nlines", "", "three")
    whole = written(path, *texts)
    path.unlink()
    for second, text in enumerate(texts):
        with Subtitles(path, append=True) as captions:
            captions.write(second, second + 1, text)
    assert path.read_bytes() == whole


@pytest.mark.filterwarnings("ignore:captions .* unfinished cue")
def test_wherever_a_file_was_torn_it_goes_on_after_the_last_whole_cue(path):
    texts = ("one", "two\nlines", "é & 你")
    states = [b""]  # on the disk after each write
    with Subtitles(path) as captions:
        states.append(path.read_bytes())
        for second, text in enumerate(texts):
            captions.write(second, second + 1, text)
            states.append(path.read_bytes())
    new = states[1]
    for cut in range(len(states[-1]) + 1):
        path.write_bytes(states[-1][:cut])
        whole = max(len(state) for state in states if len(state) <= cut)
        Subtitles(path, append=True).close()
        assert path.read_bytes() == (states[-1][:whole] or new)
    torn = states[-1][:-3]
    path.write_bytes(torn)
    with Subtitles(path, append=True) as captions:
        captions.write(2, 3, texts[-1])
    assert path.read_bytes() == states[-1]


def test_what_is_cut_off_is_told_and_only_then(path):
    whole = written(path, "one", "two")
    written(path, append=True)  # warnings are errors
    path.write_bytes(whole[:-2])
    with pytest.warns(UserWarning, match=r"captions .*live.*: cut off \d+ bytes of an unfinished cue"):
        Subtitles(path, append=True).close()


def test_a_killed_process_leaves_whole_cues(path):
    code = (
        "import os, signal, sys; from svlm_jax.stream.captions import Subtitles; captions = Subtitles(sys.argv[1]);"
        "[captions.write(n, n + 1, f'cue{n}') for n in range(3)]; os.kill(os.getpid(), signal.SIGKILL)"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, check=False)
    assert ran.returncode == -signal.SIGKILL
    before = path.read_bytes()
    assert before.count(b"cue") == 3
    assert written(path, append=True) == before


class Full:
    """A file on a disk that has room for a few bytes more, and fails at once when it has none."""

    def __init__(self, path: Path, room: int) -> None:
        self.path, self.room = path, room

    def write(self, data: bytes) -> int:
        if not self.room:
            raise OSError(28, "No space left on device")
        took = data[: self.room]
        self.room -= len(took)
        with self.path.open("ab") as file:
            return file.write(took)

    def truncate(self, size: int) -> None:
        os.truncate(self.path, size)

    def close(self) -> None:
        self.write(b"what a network drive held back")


@pytest.mark.parametrize("room", [0, 1, 30])
def test_a_full_disk_is_told_and_takes_no_part_of_a_cue(path, room, monkeypatch):
    with Subtitles(path) as captions:
        captions.write(0, 1, "one")
        before = path.read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(captions, "file", Full(path, room))
            with pytest.raises(InputError, match=r"captions .*live.*No space left on device.*room on a writable disk"):
                captions.write(1, 2, "two, which is longer than there is room")
        assert path.read_bytes() == before
        captions.write(1, 2, "two")
    full = path.read_bytes()
    path.unlink()
    assert full == written(path, "one", "two")


def test_a_limit_of_the_system_cuts_nothing_in_two(path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Subtitles(path) as captions:
        captions.write(0, 1, "one")
        before = path.read_bytes()
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 9, hard))
        try:
            with pytest.raises(InputError, match="a failed write"):
                captions.write(1, 2, "two")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert path.read_bytes() == before
        captions.write(1, 2, "two")
    assert path.read_bytes().startswith(before)
    assert path.read_text().count("two") == 1


def test_a_device_that_is_full_is_told_although_it_cannot_be_cut(path):
    path.symlink_to("/dev/full")
    with pytest.raises(InputError, match="No space left on device"), Subtitles(path, append=True) as captions:
        captions.write(0, 1, "one")


def test_a_disk_that_is_found_full_when_the_file_is_closed_is_told(path, monkeypatch):
    captions = Subtitles(path)
    captions.close()
    monkeypatch.setattr(captions, "file", Full(path, 0))
    with pytest.raises(InputError, match="No space left on device"):
        captions.close()


def test_it_loads_without_jax():
    code = "import sys, svlm_jax.stream.captions; print(*{'jax', 'flax'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not ran.stdout.split()


def test_a_run_that_fails_before_its_first_cue_leaves_no_file(path):
    with pytest.raises(RuntimeError), Subtitles(path):
        raise RuntimeError("no model")
    assert not path.exists()
    whole = written(path, "first")
    with pytest.raises(RuntimeError), Subtitles(path, append=True):
        raise RuntimeError("no model")
    assert path.read_bytes() == whole


@pytest.mark.parametrize("kind", ["vtt", "srt"])
def test_a_question_stands_before_its_answer_and_alone_when_there_is_none(tmp_path, kind):
    """Else answers stand there that nobody has asked for."""
    path = tmp_path / f"a.{kind}"
    with Subtitles(path) as captions:
        captions.write(0, 1, "1-0.", question="What is\nthe <score>\x1b?", tokens=[1])
        captions.write(1, 2, "", question="Who scored?")
        captions.write(2, 3, " ", question="")
        captions.write(3, 4, "-->", question="-->")
    arrow = "-->" if kind == "vtt" else "→"
    assert path.read_text().count(" --> ") == 3
    escaped = "Q: What is the &lt;score&gt; ?" if kind == "vtt" else "Q: What is the <score> ?"
    assert f"\n{escaped}\n1-0.\n\n" in path.read_text() and "\nQ: Who scored?\n\n" in path.read_text()
    assert seen_by_a_player(path)[2][2].replace("&gt;", ">") == f"Q: {arrow}\n{arrow}"


def test_another_process_that_writes_is_told(path):
    before = written(path, "first")
    with Subtitles(path, append=True) as captions:
        captions.write(1, 2, "mine")
        both = path.read_bytes()
        with pytest.raises(InputError, match="another stream writes"):
            Subtitles(path, append=True)
        assert path.read_bytes() == both != before


def test_a_file_without_a_cue_is_no_obstacle(tmp_path):
    """Ctrl-C while programs are compiled leaves it, and the same command is typed again."""
    for name, content in {"a.vtt": b"WEBVTT\n\n", "b.vtt": b"", "a.srt": b"", "a.jsonl": b""}.items():
        (tmp_path / name).write_bytes(content)
        with Subtitles(tmp_path / name) as captions:
            captions.write(0, 1, "one")
        assert (tmp_path / name).read_text().count("one") == 1
