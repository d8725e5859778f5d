"""Attention kernels in Pallas: each an api, a reference and a kernel. Needs jax and numpy only."""
