"""Claims about `benchmarks host`."""

import pytest

from benchmarks import host


@pytest.mark.slow
def test_a_step_of_stand_ins_is_a_step_of_all_streams(monkeypatch):
    """Else the host's milliseconds are those of other work than a session does."""
    monkeypatch.setattr(host, "FILLED", 2)
    row = host.measure(2, 1)
    assert row["streams"] == 2
    # Three turns of two frames of 720p (720 tokens each), with their replies and the opening.
    assert 3 * 720 < row["tokens a stream"] < 3 * 850
    assert {f"{part} (ms)" for part in host.PARTS} < set(row)
