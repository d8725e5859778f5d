"""How certain a rate is: bootstrap intervals over clusters (games, videos), because segments of one game are not independent.

numpy only, and reproducible: the random numbers have a fixed seed.
"""

from collections.abc import Sequence

import numpy as np

RESAMPLES = 10_000
SEED = 0
COVERAGE = 0.95


def ratio_interval(parts: Sequence[float], totals: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % interval of sum(parts) / sum(totals), by resampling clusters with replacement; each has one part and one total.

    None where there are fewer than two clusters with a total: one cluster says nothing about another.
    """
    part, total = np.asarray(parts, np.float64), np.asarray(totals, np.float64)
    part, total = part[total > 0], total[total > 0]
    if len(total) < 2:
        return None
    index = np.random.default_rng(SEED).integers(len(total), size=(RESAMPLES, len(total)))
    rates = part[index].sum(axis=1) / total[index].sum(axis=1)
    low, high = np.quantile(rates, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return float(low), float(high)
