"""Benchmarks of streaming video: their files, how a model is run on them, how it is judged, and what the numbers mean."""
