"""Claims about bad input to every flag of every command: one line, before anything is loaded, and nothing left behind."""

import argparse
import io
import os
from contextlib import redirect_stderr
from pathlib import Path

import pytest
from PIL import Image

from tests.support import hostile_flags
from tests.support.commands import command
from tests.support.hostile_flags import parsers


def accepted(action: argparse.Action, text: str) -> bool:
    """Whether the type of a flag takes a value."""
    assert callable(action.type)
    try:
        action.type(text)
    except (argparse.ArgumentTypeError, ValueError):
        return False
    return True


def is_number(action: argparse.Action) -> bool:
    return callable(action.type) and action.type is not Path and action.choices is None and not accepted(action, "abc")


def test_every_flag_that_is_a_number_has_bounds():
    """Else: nan, or more than any machine has, goes through to where it is a traceback, or a model that says nonsense."""
    numbers = {(name, action.dest): action for name, parser in parsers().items() for action in hostile_flags.flags(parser)}
    numbers = {where: action for where, action in numbers.items() if is_number(action)}
    assert len(numbers) > 200  # the test can fail
    wrong = [
        (*where, text[:9]) for where, action in numbers.items() for text in hostile_flags.NUMBERS if accepted(action, text)
    ]
    assert wrong == []


def test_a_path_that_is_empty_is_refused_by_every_flag():
    """Else: `--out "$DIR"` with a variable that is not set writes into the current folder."""
    for name, parser in parsers().items():
        for action in hostile_flags.flags(parser):
            if action.type is Path and action.option_strings:
                assert f"{action.option_strings[-1]}: got nothing, expected a path" in told(
                    parser, f"{action.option_strings[-1]}="
                ), name


def test_what_is_wrong_with_any_flag_is_one_short_line():
    for parser in parsers().values():
        for action in hostile_flags.flags(parser):
            for flag in action.option_strings[-1:]:
                line = told(parser, f"{flag}={'x' * 5000}")
                assert line.count("\n") <= 1 and line[:7] in ("", "error: ") and len(line) < 300, line


def told(parser: argparse.ArgumentParser, argument: str) -> str:
    """What stderr gets of a command that is given one argument."""
    with redirect_stderr(io.StringIO()) as stderr:
        try:
            parser.parse_known_args([argument])
        except SystemExit as end:
            assert end.code == 2
    return stderr.getvalue()


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Two games with subtitles, words of them, a small evaluation set, a picture."""
    folder = tmp_path_factory.mktemp("data")
    Image.new("RGB", (64, 64)).save(folder / "photo.png")
    (folder / "binary").write_bytes(os.urandom(5000))
    sets = folder / "sets"
    for module, line in (
        ("world", f"--out {folder}/games --seeds 0:2 --seconds 60 --subtitles rough --size 56x56 --jobs 1"),
        ("curate", f"transcribe {folder}/games --root {folder}/games --out {folder}/words.jsonl"),
        ("evaluate", f"game --out {sets} --seeds 1000000:1000001 --seconds 120 --jobs 1"),
        ("evaluate", f"infstreams segments --games {sets}/eval_all_metadata.jsonl --min-words 20 --out {folder}/clips.jsonl"),
    ):
        result = command(module, *line.split())
        assert result.returncode == 0, result.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", [line.command for line in hostile_flags.lines(Path("data"))])
def test_no_value_of_any_flag_ends_in_a_traceback_a_hang_or_a_file(name, data, tmp_path):
    """Each flag of the command with each hostile value, as far as it goes without a model: what is refused is one line and
    leaves nothing behind."""
    (line,) = (line for line in hostile_flags.lines(data) if line.command == name)
    module, *part = name.split()
    paths = {"DIRECTORY": "folder", "FILE": "a file.txt", "ABSENT": "no/such", "BINARY": str(data / "binary")}
    parser = parsers()[line.command]
    wrong = []
    for number, (action, value) in enumerate(
        (action, value)
        for action in hostile_flags.flags(parser)
        if action.option_strings
        for value in (*hostile_flags.NUMBERS, *hostile_flags.VALUES)
    ):
        cwd = tmp_path / str(number)
        (cwd / "folder").mkdir(parents=True)
        (cwd / "a file.txt").write_text("some words\n")
        args = line.given(action, paths.get(value, value))
        result = command(module, *part, *args, cwd=cwd, prepare=hostile_flags.stop_before_work)
        left = sorted(path.name for path in cwd.rglob("*"))
        if fault := fault_of(result.returncode, result.stderr, left):
            wrong.append((args[-1][:60], fault, result.stderr[-300:]))
    assert wrong == []


# What is about to be done with the data, before what is wrong in them.
PLANS = ("edited by rules, ", "judged by cues, ")


def fault_of(code: int | None, stderr: str, left: list[str]) -> str:
    """What is wrong with how a command ended; "" if nothing is."""
    if code not in (0, 1, 2, hostile_flags.REACHED) or "Traceback" in stderr:
        return f"exit code {code}"
    lines = [line for line in stderr.splitlines() if not line.startswith(PLANS)]
    if code == 2 and (len(lines) != 1 or not lines[0].startswith("error: ") or len(lines[0]) >= 300):
        return f"{len(lines)} lines"
    return f"left {left}" if code == 2 and left != ["a file.txt", "folder"] else ""
