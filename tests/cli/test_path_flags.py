"""Claims about flags that name files and folders: an address is never made a local folder of its name, whatever the command."""

from pathlib import Path

import pytest

from svlm_jax.cli.flags import Parser
from svlm_jax.cli.flags import path as local
from tests.support.hostile_flags import flags, parsers

ADDRESS = "gs://bucket/x"
# Texts that are looked at elsewhere: what is no local folder may be a hub id, a camera, or a name in a list.
NOT_HERE = {"model", "source", "config", "compile_cache", "dry_run"}


def test_no_path_of_a_command_is_an_address(capsys):
    for name, parser in parsers().items():
        for action in flags(parser):
            if action.type is not Path:
                assert action.metavar not in ("DIR", "FILE") or action.dest in NOT_HERE, (name, action.dest)
                continue
            count = 1 if action.option_strings else sum(not other.option_strings for other in flags(parser))
            with pytest.raises(SystemExit) as end:
                parser.parse_args([*action.option_strings[-1:], *[ADDRESS] * count])
            error = capsys.readouterr().err
            assert end.value.code == 2 and f"got the address {ADDRESS}" in error and error.count("\n") == 1, (name, error)


@pytest.mark.parametrize(
    ("text", "path"), [("file:///a/b%20c", "/a/b c"), ("./gs:/x", "gs:/x"), ("a:b", "a:b"), ("~/x", "~/x"), ("x y", "x y")]
)
def test_a_file_of_this_machine_is_one(text, path):
    assert local(text) == Path(path)


@pytest.mark.parametrize(
    "address", ["s3://key:secret@bucket/x", "hf://datasets/a/b", "az://c/x", "file://host/x", "gs:/bucket/x"]
)
def test_an_address_is_refused_and_its_password_is_not_printed(address, capsys):
    parser = Parser(prog="svlm x")
    parser.add_argument("--out", type=Path)
    with pytest.raises(SystemExit):
        parser.parse_args(["--out", address])
    error = capsys.readouterr().err
    assert "--out: got the address" in error and "secret" not in error
