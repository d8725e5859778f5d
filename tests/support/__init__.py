"""What several tests share. `ROOT` is the checkout, `FIXTURES` its small models, recordings and processor."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
