"""Measure, and keep the numbers: every figure in docs/ comes from here; `python -m benchmarks --help` lists the benchmarks.

A benchmark is a file of its own with a `bench(args)` that hands its rows to `report.record`; `__main__` names its flags. What
is compared is measured in the same run on the same machine, and stated as a ratio.
"""
