"""Values that no flag should take, and a line of every command in which each of its flags can be given them."""

import argparse
import importlib
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support import ROOT

NUMBERS = ("nan", "inf", "-inf", "1e300", "1" + "0" * 30, "", "abc")  # none is a number that a flag can mean
# Of every kind of flag. DIRECTORY, FILE, ABSENT and BINARY stand for paths.
VALUES = (
    "-1",
    "0",
    "DIRECTORY",
    "FILE",
    "ABSENT",
    "BINARY",
    "-",
    "ünï\t😀",
    "x" * 5000,
    "http://127.0.0.1:9/x",
    "/dev/full",
    ".",
)
REACHED = 99  # exit code of a command that would have begun to work
CLI = ROOT / "svlm_jax" / "cli"


class _Parsing(Exception):
    """Instead of what a command does when its flags are read."""


def parser_of(main: Callable[[], Any], program: str) -> argparse.ArgumentParser:
    """The parser that a command makes before it does anything."""
    found: list[argparse.ArgumentParser] = []

    def parse(self: argparse.ArgumentParser, *_: Any, **__: Any) -> Any:
        found.append(self)
        raise _Parsing

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [program])
        patch.setattr(argparse.ArgumentParser, "parse_args", parse)
        patch.setattr(argparse.ArgumentParser, "parse_known_args", parse)
        with pytest.raises(_Parsing):
            main()
    return found[0]


@cache
def parsers() -> dict[str, argparse.ArgumentParser]:
    """The parser of every command and of every verb, by the name as it is typed; those of benchmarks too."""
    from benchmarks.__main__ import parser as benchmark_parser

    commands = {"benchmarks": benchmark_parser()}
    for path in sorted(CLI.rglob("*.py")):
        if path.name not in ("__init__.py", "run.py") and "\ndef main(" in path.read_text():
            parts = path.relative_to(CLI).with_suffix("").parts
            name = " ".join(parts)
            commands[name] = parser_of(importlib.import_module(f"svlm_jax.cli.{'.'.join(parts)}").main, f"svlm {name}")
    of_verbs = {f"{name} {verb}": part for name, parser in commands.items() for verb, part in verbs(parser).items()}
    return commands | of_verbs


def verbs(parser: argparse.ArgumentParser) -> dict[str, Any]:
    """Parsers of the verbs of a command, by verb."""
    choices = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(choices[0]) if choices else {}  # type: ignore[arg-type]


def flags(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """What takes a value: flags, and what is given by its place."""
    special = (argparse._HelpAction, argparse._SubParsersAction)
    return [action for action in parser._actions if action.nargs != 0 and not isinstance(action, special)]


class Line(NamedTuple):
    """A command line that works: a command, with its part and verb, and its arguments."""

    command: str
    args: tuple[str, ...]

    def given(self, flag: argparse.Action, value: str) -> list[str]:
        """The arguments, with a flag that has this value in place of what it had."""
        name, args = flag.option_strings[-1], list(self.args)
        if name in args:
            del args[args.index(name) : args.index(name) + 2]
        return [*args, f"{name}={value}"]


def lines(data: Path) -> list[Line]:
    """A line of every command; data: the folder that `make_data` filled."""
    sets, streams = data / "sets", ROOT / "tests" / "fixtures" / "streams"
    shipped = ROOT / "svlm_jax" / "touchline" / "weights" / "touchline"
    judged = f"--a {sets}/answers/infstreams/truth --b {sets}/answers/infstreams/late"
    texts = [
        "stream: match:5 --duration 1",
        "serve: --port 0",
        f"caption: {data}/photo.png",
        "demo:",
        f"convert: {shipped} target",
        f"windows: {data}/games/matches.jsonl --out w.jsonl",
        "train: --config sft_smoke --run-dir run",
        f"replay: {streams}/greedy.json --model {shipped}",
        "world: --out films --seeds 0:1 --seconds 2",
        f"scratch: {data}/games/matches.jsonl --out tiny0",
        "tiny: --out tiny",
        f"curate transcribe: {data}/games --root {data}/games --out words.jsonl",
        f"curate clean: --in {data}/words.jsonl --out clean.jsonl",
        f"curate edit: --in {data}/words.jsonl --out edited.jsonl",
        f"curate windows: --in {data}/words.jsonl --out train.jsonl --words-per-second 0.1",
        f"curate anneal: --in {data}/words.jsonl --out anneal.jsonl",
        f"curate report: {data}/words.jsonl --out report --no-plots",
        f"evaluate infstreams segments: --games {sets}/eval_all_metadata.jsonl --min-words 20 --out clips.jsonl",
        f"evaluate infstreams generate: --games {sets}/eval_all_metadata.jsonl --videos {sets} --mode infinite --out run",
        f"evaluate infstreams judge: --clips {data}/clips.jsonl {judged} --judge exact --truth {sets}/truth.jsonl --out scores",
        f"evaluate livesports generate: --items {sets}/LiveSports-3K-CC.json --videos {sets} --out run",
        f"evaluate livesports qa: --items {sets}/LiveSports-3K-QA.json --videos {sets} --out run",
        f"evaluate ovo generate: --items {sets}/ovo_bench_new.json --videos {sets} --out run",
        f"evaluate streamingbench generate: --items {sets}/questions_real.json --videos {sets} --out run",
        f"evaluate timing: {sets}/answers/infstreams/truth --truth {sets}/truth.jsonl --out t.json",
        "evaluate game: --out sets --seeds 1000000 --seconds 120 --words-only",
        f"evaluate lmms: --items {sets}/ovo_bench_new.json --videos {sets} --out tasks",
    ]
    return [Line(name, tuple(args.split())) for name, _, args in (text.partition(":") for text in texts)]


def stop_before_work() -> None:
    """In a command's own process: it ends with REACHED where it would load, compile, film or convert."""
    import svlm_jax
    from svlm_jax import pretrained
    from svlm_jax.checkpoint import convert
    from svlm_jax.cli import caption, model_flags, replay, serve, stream, tiny, world
    from svlm_jax.cli.evaluate import commentator_flags, game, livesports_generate, question_flags
    from svlm_jax.cluster import distributed, local
    from svlm_jax.touchline import scratch
    from svlm_jax.train import run

    def reached(*_: Any, **__: Any) -> Any:
        raise SystemExit(REACHED)

    loaders = (model_flags, stream, serve, caption, replay, commentator_flags, livesports_generate, question_flags)
    names: list[tuple[Any, str]] = [(module, "load") for module in loaders]
    names += [(svlm_jax, "from_pretrained"), (pretrained, "from_pretrained"), (convert, "convert"), (scratch, "scratch")]
    names += [(world, "make_films"), (game, "make_films"), (tiny.subprocess, "run"), (run, "build_trainer"), (local, "spawn")]
    for module, name in names:
        assert hasattr(module, name)
        setattr(module, name, reached)
    distributed.initialize = lambda: None
