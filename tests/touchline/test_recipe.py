"""Claims about `svlm tiny`: from nothing to a model that streams, by commands alone."""

from itertools import pairwise

import pytest

from svlm_jax.touchline.recipe import Amount, steps
from tests.support.commands import command


def test_no_step_is_done_by_the_one_before_it():
    """A step is skipped when its result is there: what two steps share is made by the last of them."""
    todo = steps(8, Amount())
    shared = [step.result for step, after in pairwise(todo) if step.result == after.result]
    assert shared == [*"12345678"] and len({step.result for step in todo}) == len(todo) - len(shared)
    assert all(step.command.format(out="runs/tiny", family="qwen2.5-vl", **Amount()._asdict()) for step in todo)


def test_a_stage_more_goes_on_from_where_it_was():
    seven, eight = steps(7, Amount()), steps(8, Amount())
    assert eight[: len(seven)] == seven and "--model {out}/7" in eight[-2].command and "--seed 2" in eight[-2].command


def test_fewer_stages_than_there_are_is_one_line():
    refused = command("tiny", "--out", "nowhere", "--stages", "5")
    assert refused.returncode == 2 and "--stages: got 5, expected 6 or more" in refused.stderr


@pytest.mark.slow
def test_from_nothing_to_a_stream(tmp_path):
    out = tmp_path / "tiny"
    assert command("tiny", "--out", out, "--quick").returncode == 0
    again = command("tiny", "--out", out, "--quick")
    assert again.stdout.count("there: ") == len(steps(6, Amount()))
    result = command("stream", "match:1000000", "--model", out / "6", "--duration", "3")
    assert result.returncode == 0, result.stderr
