"""Claims about flags that name files and folders: an address is never made a local folder of its name, whatever the command."""

import argparse
import importlib
import sys
from pathlib import Path

import pytest

from svlm_jax import cli
from svlm_jax.cli.flags import path as local

ADDRESS = "gs://bucket/x"
CLI = Path(cli.__path__[0])
FILES = sorted(path for path in CLI.rglob("*.py") if "\ndef main(" in path.read_text())
COMMANDS = [
    ".".join(path.relative_to(CLI).with_suffix("").parts) for path in FILES if path.name not in ("__init__.py", "run.py")
]
# Texts that are looked at elsewhere: what is no local folder may be a hub id, a camera, or a name in a list.
NOT_HERE = {"model", "source", "config", "compile_cache", "dry_run"}


class Parsing(Exception):
    pass


def parser_of(command: str, monkeypatch) -> argparse.ArgumentParser:
    """The parser that a command makes, before it reads anything."""
    found = []

    def stop(parser, *_args, **_options):
        found.append(parser)
        raise Parsing

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        patch.setattr(argparse.ArgumentParser, "parse_known_args", stop)
        patch.setattr(sys, "argv", ["svlm x"])
        with pytest.raises(Parsing):
            importlib.import_module(f"svlm_jax.cli.{command}").main()
    return found[0]


def flags(parser: argparse.ArgumentParser, parts: tuple[str, ...] = ()):
    """(names of subcommands, flag) of all."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, part in action.choices.items():
                yield from flags(part, (*parts, name))
        else:
            yield parts, action


@pytest.mark.parametrize("command", COMMANDS)
def test_no_path_of_a_command_is_an_address(command, monkeypatch, capsys):
    parser = parser_of(command, monkeypatch)
    for parts, action in flags(parser):
        if action.type is not Path:
            assert action.metavar not in ("DIR", "FILE") or action.dest in NOT_HERE, action.dest
            continue
        count = 1 if action.option_strings else sum(not other.option_strings for _, other in flags(parser))
        with pytest.raises(SystemExit) as end:
            parser.parse_args([*parts, *action.option_strings[-1:], *[ADDRESS] * count])
        error = capsys.readouterr().err
        assert end.value.code == 2 and f"got the address {ADDRESS}" in error and error.count("\n") == 1, error


@pytest.mark.parametrize(
    ("text", "path"), [("file:///a/b%20c", "/a/b c"), ("./gs:/x", "gs:/x"), ("a:b", "a:b"), ("~/x", "~/x"), ("x y", "x y")]
)
def test_a_file_of_this_machine_is_one(text, path):
    assert local(text) == Path(path)


@pytest.mark.parametrize(
    "address", ["s3://key:secret@bucket/x", "hf://datasets/a/b", "az://c/x", "file://host/x", "gs:/bucket/x"]
)
def test_an_address_is_refused_and_its_password_is_not_printed(address, capsys):
    from svlm_jax.cli.flags import Parser

    parser = Parser(prog="svlm x")
    parser.add_argument("--out", type=Path)
    with pytest.raises(SystemExit):
        parser.parse_args(["--out", address])
    error = capsys.readouterr().err
    assert "--out: got the address" in error and "secret" not in error
