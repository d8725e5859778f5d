"""Processes: from the environment to `jax.distributed`, and several of them on one machine."""
