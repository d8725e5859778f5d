"""Claims about `benchmarks host`, and about `benchmarks memory`, which has its session."""

import pytest

from benchmarks import host, memory


@pytest.mark.slow
def test_a_step_of_stand_ins_is_a_step_of_all_streams(monkeypatch):
    """Else the host's milliseconds are those of other work than a session does."""
    monkeypatch.setattr(host, "FILLED", 2)
    row = host.measure(2, 1)
    assert row["streams"] == 2
    # Three turns of two frames of 720p (720 tokens each), with their replies and the opening.
    assert 3 * 720 < row["tokens a stream"] < 3 * 850
    assert {f"{part} (ms)" for part in host.PARTS} < set(row)


@pytest.mark.slow
def test_the_memory_of_a_stream_is_that_of_its_cache():
    """Else docs/performance.md plans for other streams than fit."""
    row, kib = memory.memory_row("qwen3-vl-8b"), 144
    assert row["KV cache a token (KiB)"] == kib and row["vision tokens a chunk"] == 720
    assert row["slots"] > 16 * 720 + 1024
    assert row["KV cache (GB)"] == pytest.approx(row["slots"] * kib * 1024 / 1e9, abs=0.01)
