"""Small evaluation sets of held-out games, in the formats of the published benchmarks, with known answers."""
