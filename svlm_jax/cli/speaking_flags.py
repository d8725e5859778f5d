"""When a stream speaks: flags of pacing and alerts, and the settings that they make. docs/speaking.md."""

import argparse
from pathlib import Path
from typing import Any

from svlm_jax.cli.flags import integer, number
from svlm_jax.errors import InputError
from svlm_jax.files import read_json
from svlm_jax.stream.alerts import AlertRule
from svlm_jax.stream.pacing import Pacing

_ALERT_FLAGS = ("--alert-yes", "--alert-no", "--alert-threshold", "--alert-confirm", "--alert-schema")


def speaking_flags(parser: Any) -> None:
    """--min-gap, --max-talk, and --alert with its own. `sampling_flags` has --silence."""
    group = parser.add_argument_group("when to speak")
    gap = "seconds of silence, at least, between two talks (default 0)"
    group.add_argument("--min-gap", type=number(0), metavar="S", help=gap)
    talk = "seconds after which a talk is cut; a pause of a chunk or of --min-gap follows (default: never)"
    group.add_argument("--max-talk", type=number(1e-3), metavar="S", help=talk)
    alert = "instead of commentary: a condition, or a question with its ?, asked with every chunk; only changes are told"
    group.add_argument("--alert", metavar="TEXT", help=alert)
    group.add_argument("--alert-yes", action="append", metavar="TEXT", help="answer that means yes; repeatable (default Yes)")
    group.add_argument("--alert-no", action="append", metavar="TEXT", help="any other answer; repeatable (default No)")
    threshold = "probability of yes at which the condition holds (default 0.5)"
    group.add_argument("--alert-threshold", type=number(1e-6, 1), metavar="P", help=threshold)
    confirm = "chunks in a row before a change is told (default 1)"
    group.add_argument("--alert-confirm", type=integer(1), metavar="CHUNKS", help=confirm)
    schema = "JSON schema of what the model is asked for on a change to yes"
    group.add_argument("--alert-schema", type=Path, metavar="FILE", help=schema)


def pacing_of(args: argparse.Namespace) -> Pacing:
    """--min-gap and --max-talk."""
    return Pacing(args.min_gap or 0.0, args.max_talk)


def alert_of(args: argparse.Namespace) -> AlertRule | None:
    """The rule of --alert and its flags; None without it.

    Raises:
        InputError: a flag of --alert without it, a schema that is none, too many answers.
    """
    values = {flag: getattr(args, flag[2:].replace("-", "_")) for flag in _ALERT_FLAGS}
    fields = {flag.removeprefix("--alert-"): value for flag, value in values.items() if value is not None}
    if args.alert is None:
        if fields:
            raise InputError(f"--alert-{next(iter(fields))}", "without --alert", "a condition", "add --alert TEXT")
        return None
    fields |= {name: tuple(fields[name]) for name in ("yes", "no") if name in fields}
    if "schema" in fields:
        fields["schema"] = read_json(fields["schema"], "a JSON schema")
    text = args.alert.strip()
    return AlertRule(text, **fields) if text.endswith("?") else AlertRule.of_condition(text, **fields)


def given_speaking(args: argparse.Namespace) -> dict[str, Any]:
    """Fields of `StreamSettings` that flags were given for: what a resumed stream is to have in place of its own."""
    changes: dict[str, Any] = {}
    if args.min_gap is not None or args.max_talk is not None:
        changes["pacing"] = pacing_of(args)
    if (rule := alert_of(args)) is not None:
        changes["alert"] = rule
    return changes
