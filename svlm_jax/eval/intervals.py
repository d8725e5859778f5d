"""How certain a rate is: bootstrap intervals over clusters (games, videos), because segments of one game are not independent.

numpy only, and reproducible: the random numbers have a fixed seed, and the order of clusters does not matter.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

RESAMPLES = 10_000
SEED = 0
COVERAGE = 0.95


def ratio_interval(parts: ArrayLike, totals: ArrayLike) -> tuple[float, float] | None:
    """The 95 % interval of sum(parts) / sum(totals), by resampling clusters with replacement; each has one part and one total.

    None where there are fewer than two clusters with a total: one cluster says nothing about another.
    """
    part, total = np.asarray(parts, np.float64), np.asarray(totals, np.float64)
    part, total = part[total > 0], total[total > 0]
    if len(total) < 2:
        return None
    ranks = np.lexsort((total, part))
    part, total = part[ranks], total[ranks]
    index = np.random.default_rng(SEED).integers(len(total), size=(RESAMPLES, len(total)))
    rates = part[index].sum(axis=1) / total[index].sum(axis=1)
    low, high = np.quantile(rates, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return float(low), float(high)


def macro_interval(parts: ArrayLike, totals: ArrayLike, groups: Sequence[Sequence[int]]) -> tuple[float, float] | None:
    """The 95 % interval of a mean over groups of the mean over tasks of part / total, by resampling clusters.

    Args:
        parts, totals: of each cluster (rows), for each task (columns).
        groups: the columns of each group. A task that a resample has nothing of is left out of it, as is an empty group.

    None as in `ratio_interval`.
    """
    part, total = np.asarray(parts, np.float64), np.asarray(totals, np.float64)
    columns = np.unique([column for group in groups for column in group])
    clusters = total[:, columns].sum(axis=1) > 0 if total.size else np.zeros(0, bool)
    part, total = part[clusters], total[clusters]
    if len(total) < 2:
        return None
    ranks = np.lexsort(np.concatenate([part, total], axis=1).T)
    part, total = part[ranks], total[ranks]
    # How often each cluster is drawn, instead of which: the sums of all resamples are then two products of matrices.
    drawn = np.random.default_rng(SEED).multinomial(len(total), np.full(len(total), 1 / len(total)), size=RESAMPLES)
    part, total = drawn @ part, drawn @ total
    rates = np.divide(part, total, out=np.full_like(part, np.nan), where=total > 0)
    means = _mean_of_known(np.stack([_mean_of_known(rates[:, list(group)]) for group in groups], axis=1))
    low, high = np.nanquantile(means, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return float(low), float(high)


def _mean_of_known(values: np.ndarray) -> np.ndarray:
    """The mean of each row without its NaNs; NaN where it has nothing else."""
    known = ~np.isnan(values)
    count = known.sum(axis=1)
    return np.where(count > 0, np.where(known, values, 0).sum(axis=1) / np.maximum(count, 1), np.nan)
