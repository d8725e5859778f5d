"""Runs as small Python files: the docstring gives command, hardware, time and result."""
