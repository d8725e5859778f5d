"""Benchmarks: every number in docs/ comes from here; `python -m benchmarks --help` lists them.

A benchmark is a module with `add_flags(parser)` and `bench(args)`, which gives its rows to `report.record`; `__main__` lists
them. Comparisons are measured in the same run on the same machine, and stated as ratios.
"""
