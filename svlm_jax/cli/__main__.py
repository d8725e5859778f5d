"""`python -m svlm_jax.cli NAME`: `svlm NAME` for processes that start others."""

from svlm_jax.cli import main

main()
