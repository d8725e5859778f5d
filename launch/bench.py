"""`python -m benchmarks`, by the name that it had."""

from benchmarks.__main__ import main
from svlm_jax.cli.main import run

if __name__ == "__main__":
    run(main)
