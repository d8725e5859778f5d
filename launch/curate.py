"""`svlm curate`, from a checkout."""

from svlm_jax.cli import main

if __name__ == "__main__":
    main("curate")
