"""What several tests share. `ROOT` is the checkout, `FIXTURES` its small models, recordings and processor."""

import os
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
# Seconds after which a test has hung. No test that passes waits for them, and on a machine that is busy, or was suspended for a
# while, none that goes on is taken for hung.
HANG = 600.0
# What XLA is told in tests, and in commands that they start, unless programs shall be as users have them. Its emitters of
# fusions through MLIR take half of the time that a compilation for the CPU takes; the older ones compute the same.
QUICK = os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS", "1") == "1"
EMITTERS = "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters " if QUICK else ""
# XLA ends the process when the threads of eight devices do not meet within 40 s: busy machines take longer.
XLA_FLAGS = f"{EMITTERS}--xla_cpu_collective_call_warn_stuck_timeout_seconds=300"
XLA_FLAGS += f" --xla_cpu_collective_call_terminate_timeout_seconds={HANG:.0f}"


def wait_until(condition: Callable[[], object]) -> None:
    """For what another thread or process does; fails where it never comes."""
    until = time.monotonic() + HANG
    while not condition():
        assert time.monotonic() < until, "a condition that never came"
        time.sleep(0.01)
