"""`svlm evaluate`, from a checkout."""

from svlm_jax.cli import main

if __name__ == "__main__":
    main("evaluate")
