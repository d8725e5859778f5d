"""Pacing: how much a stream talks is bounded, whatever its model would say."""

import pytest

from svlm_jax.errors import InputError
from svlm_jax.stream.pacing import Pacing, Talk, talk_after


def spoken(pacing: Pacing, wants: str, seconds: float = 1.0) -> str:
    """Which chunks a stream speaks in ("x") when its model wants to speak in these."""
    talk: Talk | None = None
    result = ""
    for number, want in enumerate(wants):
        start, end = number * seconds, (number + 1) * seconds
        speaks = want == "x" and not (talk and talk.must_pause(pacing, start, end))
        talk = talk_after(talk, start, end) if speaks else talk
        result += "x" if speaks else "."
    return result


@pytest.mark.parametrize(
    ("pacing", "wants", "expected"),
    [
        (Pacing(), "xx.xxx..x", "xx.xxx..x"),
        (Pacing(max_talk=2), "xxxxxxx", "xx.xx.x"),
        (Pacing(max_talk=0.5), "xxxx", "x.x."),  # a chunk in any case
        (Pacing(min_gap=2), "xxx.xxxxx", "xxx..xxxx"),  # a talk is not cut
        (Pacing(min_gap=2, max_talk=1), "xxxxxxxx", "x..x..x."),
        (Pacing(min_gap=3), "x..xx", "x...x"),
    ],
)
def test_talks_are_cut_and_kept_apart(pacing, wants, expected):
    """Else a listener who asked for a pause gets none, or loses the words of a talk that had not to end."""
    assert spoken(pacing, wants) == expected


def test_a_tenth_of_a_second_adds_up():
    """Else a gap is a chunk longer than what was asked for, by an error of rounding."""
    assert spoken(Pacing(min_gap=0.3, max_talk=0.3), "x" * 12, seconds=0.1) == "xxx...xxx..."


@pytest.mark.parametrize("setting", [{"min_gap": -1}, {"min_gap": float("inf")}, {"max_talk": 0}, {"max_talk": float("nan")}])
def test_limits_are_seconds(setting):
    with pytest.raises(InputError, match=f"^{next(iter(setting))}: "):
        Pacing(**setting)
