"""What several tests share. `ROOT` is the checkout, `FIXTURES` its small models, recordings and processor."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
# What XLA is told in tests, and in commands that they start, unless programs shall be as users have them. Its emitters of
# fusions through MLIR take half of the time that a compilation for the CPU takes; the older ones compute the same.
QUICK = os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS", "1") == "1"
XLA_FLAGS = "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters" if QUICK else ""
