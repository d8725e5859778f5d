"""Claims about `launch.tiny`: from nothing to a model that streams, by commands alone."""

from itertools import pairwise

import pytest

from launch.tiny import STEPS, Amount
from tests.test_launch import command


def test_no_step_is_done_by_the_one_before_it():
    """A step is skipped when its result is there: what two steps share is made by the last of them."""
    shared = [step.result for step, after in pairwise(STEPS) if step.result == after.result]
    assert shared == [*"123456"] and len({step.result for step in STEPS}) == len(STEPS) - len(shared)
    assert all(step.command.format(out="runs/tiny", **Amount()._asdict()) for step in STEPS)


@pytest.mark.slow
def test_from_nothing_to_a_stream(tmp_path):
    out = tmp_path / "tiny"
    assert command("tiny", "--out", out, "--quick").returncode == 0
    again = command("tiny", "--out", out, "--quick")
    assert again.stdout.count("there: ") == len(STEPS)
    told = command("stream", "match:1000000", "--model", out / "6", "--duration", "3")
    assert told.returncode == 0, told.stderr
