"""What a user of `svlm curate` sees of a run: a summary, what to do about what is left, and an exit code."""

import json
import sys
from pathlib import Path

import pytest

from svlm_jax.cli import curate
from svlm_jax.cli.curate import merge
from svlm_jax.cli.curate.step_flags import read_shard, summary
from svlm_jax.curate.running.step_files import step_files
from svlm_jax.errors import InputError
from tests.curate import step_command
from tests.curate.steps import write_input


@pytest.fixture
def shout(tmp_path, monkeypatch, capsys):
    """Runs `svlm curate shout --in words.jsonl --out g.jsonl ARGS` here; (exit code, stdout, stderr)."""

    def call(*args: object, main=step_command.main, files=True) -> tuple[int, str, str]:
        named = ["--in", tmp_path / "words.jsonl", "--out", tmp_path / "g.jsonl"] if files else []
        monkeypatch.setattr(sys, "argv", ["svlm curate shout", *map(str, [*named, *args])])
        try:
            main()
            code = 0
        except SystemExit as end:
            assert isinstance(end.code, int)
            code = end.code
        return code, *capsys.readouterr()

    return call


def test_a_run_says_what_is_kept_what_is_set_aside_and_why(tmp_path, shout):
    write_input(tmp_path / "words.jsonl", 7)
    code, out, error = shout()
    assert code == 0
    assert out.splitlines() == [
        f"6 of 7 videos, 0.01 of 0.01 h, 30 of 30 words -> {tmp_path / 'g.jsonl'}",
        f"1 set aside -> {tmp_path / 'g.set_aside.jsonl'}",
        "  1 x no words",
    ]
    assert "shout: 7/7 videos" in error
    code, again, error = shout()
    assert (code, again) == (0, out)
    assert error == "shout: nothing to do, all 7 videos were done before\n"


def test_reasons_that_are_not_printed_are_counted():
    """The numbers under "set aside" add up to it."""
    words, reasons = {"videos": {"in": 20, "kept": 4, "set_aside": 16}}, {f"reason {i}": 4 - i // 2 for i in range(6)}
    report = {**words, "hours": [1, 1], "words": [9, 9], "duplicates": 0, "set_aside": reasons}
    assert summary(report, step_files("g.jsonl")).splitlines()[2:] == [
        *(f"  {count} x {reason}" for reason, count in list(reasons.items())[:5]), "  2 x another reason"
    ]  # fmt: skip


def test_videos_that_have_to_wait_are_named_and_the_exit_code_is_1(tmp_path, shout):
    write_input(tmp_path / "words.jsonl", 9, titles={i: "hard" for i in range(8)})
    code, out, error = shout("--waits-for", tmp_path / "server")
    assert (code, out) == (1, "")
    lines = error.splitlines()
    assert lines[0] == "not done: words.jsonl:1: the server does not answer"
    assert lines[-2:] == [
        "not done: 3 more",
        "error: shout: 8 of 9 videos are not done; the same command again asks for them alone, and then writes --out",
    ]


def test_a_run_that_keeps_no_video_is_told_by_its_exit_code_and_a_shard_is_not(tmp_path, shout):
    write_input(tmp_path / "words.jsonl", 2, words=0)
    assert shout("--shard", "2/2")[0] == 0
    assert shout("--shard", "1/2")[0] == 0
    assert shout("--out", tmp_path / "g.jsonl", main=merge.main, files=False)[0] == 1
    assert shout("--out", tmp_path / "other.jsonl")[0] == 1


def test_an_input_is_never_its_own_output(tmp_path, shout):
    write_input(tmp_path / "words.jsonl", 2)
    with pytest.raises(InputError, match="the file of --in"):
        shout("--out", tmp_path / "." / "words.jsonl")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no.jsonl", "no such file"),
        ("empty.jsonl", "an empty file"),
        ("blank.jsonl", "with no line"),
        ("list.jsonl", "JSON list"),
    ],
)
def test_an_input_that_is_none_is_one_line(tmp_path, shout, name, words):
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "blank.jsonl").write_text("\n\n")
    (tmp_path / "list.jsonl").write_text("[1, 2]\n")
    with pytest.raises(InputError, match=words):
        shout("--in", tmp_path / name)
    assert not list(tmp_path.glob("g.*"))


@pytest.mark.parametrize("out", ["g.json", "g", ".jsonl", "no_folder/g.jsonl"])
def test_an_output_that_cannot_be_is_refused_before_any_work(tmp_path, shout, out):
    write_input(tmp_path / "words.jsonl", 1)
    with pytest.raises(InputError, match="--out: got"):
        shout("--out", tmp_path / out)


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "1/", "/2", "a/b", "-1/2", "1/2/3", "²/3"])
def test_a_shard_that_is_none_is_refused(text):
    with pytest.raises(InputError, match="--shard"):
        read_shard(text)


def test_a_video_that_comes_twice_is_told(tmp_path, shout):
    write_input(tmp_path / "words.jsonl", 2)
    lines = [json.loads(line) for line in Path(tmp_path / "words.jsonl").read_text().splitlines()]
    lines[1]["video"] = lines[0]["video"]
    (tmp_path / "words.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "1 of the lines are of a video that had one before" in shout()[1]


@pytest.mark.parametrize(("argument", "words"), [("claen", "expected clean"), ("x", "expected one of transcribe, clean")])
def test_a_step_that_is_none_is_refused_with_its_neighbour(monkeypatch, argument, words):
    monkeypatch.setattr(sys, "argv", ["svlm curate", argument])
    with pytest.raises(InputError, match=words):
        curate.main()


def test_every_step_is_a_module_and_every_module_a_step(capsys, monkeypatch):
    folder = Path(curate.__file__).parent
    modules = {path.stem for path in folder.glob("*.py") if "def main()" in path.read_text()} - {"__init__"}
    assert modules == set(curate.STEPS)
    monkeypatch.setattr(sys, "argv", ["svlm curate", "--help"])
    curate.main()
    listed = capsys.readouterr().out
    assert all(f"  {name} " in listed for name in curate.STEPS)
