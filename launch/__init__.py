"""Cluster recipes, and `python -m launch.NAME` for every command `svlm NAME`: a checkout's way to run them."""
