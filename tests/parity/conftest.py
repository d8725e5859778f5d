"""Models that exist in both libraries, built once a process."""

from functools import cache
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory, data_dir):
    """Directory of a model by name: a recorded one of tests/fixtures, or a random one of `reference.SHAPES`."""
    from tests.parity import reference

    @cache
    def find(name: str) -> Path:
        recorded = data_dir / "models" / name
        return recorded if recorded.is_dir() else reference.random_checkpoint(name, tmp_path_factory.mktemp(name))

    return find


@pytest.fixture(scope="session")
def pair(checkpoint):
    """`reference.Pair` of a model by name, float32."""
    from tests.parity import reference

    @cache
    def load(name: str) -> reference.Pair:
        model, config = reference.read_jax(checkpoint(name))
        return reference.Pair(reference.read_torch(checkpoint(name)), model, config, checkpoint(name))

    return load


@pytest.fixture
def measure():
    """Check a difference against a tolerance and say which rung it was; `pytest -rP` shows the numbers."""
    from tests.parity import reference

    def check(rung: str, ours, theirs, tolerance: float = reference.TOLERANCE) -> None:
        got = reference.ratio(ours, theirs)
        print(f"{rung}: {got:.1e}")
        assert got <= tolerance, f"{rung}: largest difference {got:.2e} of the largest value, allowed {tolerance:.0e}"

    return check
