"""Claims about annotation files: records by number, what seeks may be and what is said of wrong ones, written whole."""

import json
import os
import pickle
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svlm_jax.data.records import Records, seeks_path, write
from svlm_jax.errors import InputError

LINES = [b'[{"a": 1}]', '[{"\u00e9": 2}]'.encode(), b'[{"c": 3}]']


def annotations(folder: Path, text: bytes, seeks: str | None = None, name: str = "a.jsonl") -> Path:
    path = folder / name
    path.write_bytes(text)
    if seeks is not None:
        seeks_path(path).write_text(seeks)
    return path


def offsets(lines=LINES) -> list[int]:
    return [sum(len(line) + 1 for line in lines[:n]) for n in range(len(lines))]


JOINED = b"\n".join(LINES)
SEEKS = {
    "none": None,
    "a list": json.dumps(offsets()),
    "a list and a newline": json.dumps(offsets()) + "\n",
    "one a line": "".join(f"{offset}\n" for offset in offsets()),
}


@pytest.mark.parametrize("seeks", SEEKS.values(), ids=SEEKS.keys())
@pytest.mark.parametrize("tail", [b"", b"\n", b"\n\n", b"\n" + json.dumps(offsets()).encode() + b"\n"])
def test_records_are_the_lines_by_number(tmp_path, seeks, tail):
    """With any form of seeks; a list of offsets as the last line is no record."""
    records = Records([annotations(tmp_path, JOINED + tail, seeks)])
    assert list(records) == [(f"a.jsonl:{n}", line) for n, line in enumerate(LINES, 1)]
    assert len(records) == 3 and records[-1] == records[2] and records.name(2) == "a.jsonl:3"
    with pytest.raises(IndexError):
        records[3]


def test_blank_lines_are_no_records_and_are_counted(tmp_path):
    records = Records([annotations(tmp_path, b"\n" + LINES[0] + b"\n \n\n" + LINES[1] + b"\r\n\n" + LINES[2])])
    assert [record.id for record in records] == ["a.jsonl:2", "a.jsonl:5", "a.jsonl:7"]
    assert [record.line.strip() for record in records] == LINES


def test_files_follow_each_other_in_the_order_given(tmp_path):
    first = annotations(tmp_path, LINES[0], name="z.jsonl")
    nothing = annotations(tmp_path, b"\n", name="n.jsonl")
    second = annotations(tmp_path, b"\n".join(LINES[1:]), name="b.jsonl")
    assert [record.id for record in Records([first, nothing, second])] == ["z.jsonl:1", "b.jsonl:1", "b.jsonl:2"]


@settings(deadline=None, max_examples=40)
@given(
    texts=st.lists(st.lists(st.text(max_size=5), max_size=3).map(lambda words: [{"said": words}]), min_size=1, max_size=9),
    seeks=st.booleans(),
)
def test_what_is_written_is_read(tmp_path_factory, texts, seeks):
    path = tmp_path_factory.mktemp("written") / "a.jsonl"
    assert write(path, texts) == len(texts)
    if not seeks:
        seeks_path(path).unlink()
    assert [json.loads(record.line) for record in Records([path])] == texts
    assert all(record.id == f"a.jsonl:{number}" for number, record in enumerate(Records([path]), 1))


def test_the_seeks_file_is_named_as_the_original_names_it():
    assert seeks_path("data/train.jsonl") == Path("data/train_seeks.jsonl")
    assert seeks_path("data/train_with_seeks.jsonl") == Path("data/train_seeks.jsonl")
    with pytest.raises(InputError, match=r"annotations a\.json: got the suffix '\.json', expected a \.jsonl file"):
        seeks_path("a.json")


# --- sharing ---


def test_records_travel_to_other_processes_without_open_files(tmp_path):
    records = Records([annotations(tmp_path, b"\n".join(LINES * 1000), name=name) for name in ("a.jsonl", "b.jsonl")])
    read = records[4], records[5999]
    sent = pickle.dumps(records)
    assert len(sent) < 9 * len(records)  # 8 bytes a record, whatever was read
    again = pickle.loads(sent)
    assert (again[4], again[5999]) == read and len(again) == len(records)


def opened(path: Path) -> int:
    return sum(os.path.samefile(f"/proc/self/fd/{fd}", path) for fd in os.listdir("/proc/self/fd") if _exists(fd))


def _exists(fd: str) -> bool:
    return os.path.exists(f"/proc/self/fd/{fd}")


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs Linux")
def test_a_file_is_opened_once_and_closed_with_its_records(tmp_path):
    path = annotations(tmp_path, b"\n".join(LINES * 100))
    records = Records([path])
    assert opened(path) == 0
    assert [records[n].line for n in (5, 3, 5, 299)] == [LINES[2], LINES[0], LINES[2], LINES[2]]
    assert opened(path) == 1
    del records
    assert opened(path) == 0


def test_threads_do_not_disturb_each_other(tmp_path):
    records = Records([annotations(tmp_path, b"\n".join(LINES * 300))])
    wrong: list[int] = []

    def look(first: int) -> None:
        wrong.extend(n for n in range(first, len(records), 4) if records[n].line != LINES[n % 3])

    threads = [threading.Thread(target=look, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# --- bad files ---

WRONG = {
    "no JSON": ("[0, 11", "got broken JSON"),
    "words": ("zero one", "got broken JSON"),
    "empty": ("", "got something else, expected whole numbers of bytes, at least one"),
    "fractions": ("[0, 11.5, 23]", "got something else"),
    "negative": ("[0, -11, 23]", "got something else"),
    "huge": (f"[0, {2**70}]", "got something else"),
    "first line left out": (json.dumps(offsets()[1:]), "got offsets out of order, expected 0 first"),
    "twice the same": ("[0, 11, 11]", "got offsets out of order"),
    "backwards": ("[0, 23, 11]", "got offsets out of order"),
    "last line left out": (json.dumps(offsets()[:-1]), "got 2 offsets, the last of them not of the last line"),
    "of a longer file": (json.dumps([*offsets(), 500]), "got an offset of 500 bytes, expected less than 33"),
}


@pytest.mark.parametrize(("seeks", "reason"), WRONG.values(), ids=WRONG.keys())
def test_seeks_that_do_not_fit_are_refused_by_name(tmp_path, seeks, reason):
    path = annotations(tmp_path, JOINED, seeks)
    with pytest.raises(InputError) as error:
        Records([path])
    assert str(error.value).startswith(f"seeks {tmp_path}/a_seeks.jsonl: ") and reason in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("seeks", ["[0, 5, 23]", f"[0, {offsets()[2]}]"], ids=["in a line", "a line left out"])
def test_an_offset_that_is_no_line_is_refused_when_it_is_read(tmp_path, seeks):
    path = annotations(tmp_path, JOINED, seeks)
    with pytest.raises(InputError, match=r"a\.jsonl: got no single line at the bytes .* expected record a\.jsonl:1; remove"):
        Records([path])[0]


def test_a_file_that_shrinks_is_told(tmp_path):
    records = Records([annotations(tmp_path, JOINED)])
    os.truncate(tmp_path / "a.jsonl", 5)
    with pytest.raises(InputError, match=r"expected record a\.jsonl:1"):
        records[0]


def test_seeks_older_than_their_records_are_not_used(tmp_path):
    path = annotations(tmp_path, JOINED, "[0, 5]")
    os.utime(seeks_path(path), (1, 1))
    with pytest.warns(UserWarning, match=r"a_seeks\.jsonl: older than .*a\.jsonl, so the offsets are read from it"):
        records = Records([path])
    assert [record.line for record in records] == LINES


def test_missing_empty_and_no_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="annotation files: got none"):
        Records([])
    with pytest.raises(InputError, match=r"annotations .*b\.jsonl: got no such file"):
        Records([tmp_path / "b.jsonl"])
    with pytest.raises(InputError, match=r"annotations .*a\.jsonl: got an empty file"):
        Records([annotations(tmp_path, b"")])


# --- whole or not at all ---


def test_a_write_that_fails_leaves_nothing(tmp_path):
    def records():
        yield [1]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "a.jsonl", records())
    with pytest.raises(InputError, match=r"a\.jsonl: got no records"):
        write(tmp_path / "a.jsonl", [])
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match=r"got a file that cannot be written \(.*No such file"):
        write(tmp_path / "no" / "a.jsonl", [[1]])


def test_the_records_get_their_name_last(tmp_path, monkeypatch):
    named: list[str] = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (named.append(Path(b).name), replace(a, b)))
    write(tmp_path / "a.jsonl", [[1], [2]])
    assert named == ["a_seeks.jsonl", "a.jsonl"]
    assert json.loads((tmp_path / "a_seeks.jsonl").read_text()) == [0, 4]


@pytest.mark.parametrize("existing", ["a.jsonl", "a_seeks.jsonl"])
def test_what_is_there_is_not_overwritten(tmp_path, existing):
    (tmp_path / existing).write_text("mine")
    with pytest.raises(InputError, match=rf"{existing}: got something that exists already"):
        write(tmp_path / "a.jsonl", [[1]])
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]
