"""Flags of when to speak: what they set, and what is refused before a model is loaded."""

import argparse

import pytest

from svlm_jax.cli.speaking_flags import alert_of, given_speaking, pacing_of, speaking_flags
from svlm_jax.errors import InputError
from svlm_jax.stream.alerts import AlertRule
from svlm_jax.stream.pacing import Pacing


def parsed(*flags: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    speaking_flags(parser)
    return parser.parse_args(flags)


def test_without_flags_nothing_is_set():
    args = parsed()
    assert (pacing_of(args), alert_of(args), given_speaking(args)) == (Pacing(), None, {})


def test_flags_are_the_settings_that_they_name(tmp_path):
    (tmp_path / "schema.json").write_text('{"type": "object"}')
    flags = ("--min-gap", "2", "--max-talk", "8", "--alert", "Who has the ball?", "--alert-yes", "Reds.")
    flags += ("--alert-no", "Blues.", "--alert-no", "Nobody.", "--alert-confirm", "2", "--alert-threshold", "0.75")
    args = parsed(*flags, "--alert-schema", str(tmp_path / "schema.json"))
    rule = AlertRule("Who has the ball?", ("Reds.",), ("Blues.", "Nobody."), 0.75, confirm=2, schema={"type": "object"})
    assert given_speaking(args) == {"pacing": Pacing(2.0, 8.0), "alert": rule}


def test_a_condition_becomes_a_question_and_names_its_alert():
    rule = alert_of(parsed("--alert", " a person falls "))
    assert rule == AlertRule("Is this true now: a person falls? Answer Yes or No.", name="a person falls")


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (("--alert-confirm", "2"), r"^--alert-confirm: got without --alert, "),
        (("--alert", " "), r"^alert condition: got nothing, "),
        (("--alert", "a", "--alert-schema", "missing.json"), r"^missing.json: got no file, expected a JSON schema"),
    ],
)
def test_what_is_wrong_is_one_line(flags, line):
    with pytest.raises(InputError, match=line):
        alert_of(parsed(*flags))
