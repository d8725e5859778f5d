"""The numbers that are made of counts of timing, with intervals over videos, whole and against stream time.

Owns what each number is called and divided by. Host side, never jax. Units: those of each metric.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from svlm_jax.eval.intervals import ratio_interval
from svlm_jax.eval.result import Metric, Series
from svlm_jax.eval.timing import Counts, Observations, count

FIFTHS = 5
HOUR = 3600
MENTION_COUNTS = ("events", "claims", "matches", "states", "right_states", "expected_states")  # what one pattern can tell
MENTION_RATIOS = (
    "event_f1", "event_precision", "event_recall", "timing_error", "timely", "timely_delay", "false_alarms",
    "state_accuracy", "state_recall",
)  # fmt: skip


class Ratio(NamedTuple):
    """A metric: part / total of counts. of: how many things it is a mean of."""

    unit: str
    part: Callable[[Counts], float]
    total: Callable[[Counts], float]
    of: Callable[[Counts], int]


RATIOS: dict[str, Ratio] = {
    "event_f1": Ratio("%", lambda c: 2 * c.matches, lambda c: c.events + c.claims, lambda c: c.events),
    "event_precision": Ratio("%", lambda c: c.matches, lambda c: c.claims, lambda c: c.claims),
    "event_recall": Ratio("%", lambda c: c.matches, lambda c: c.events, lambda c: c.events),
    "timing_error": Ratio("s", lambda c: c.error, lambda c: c.matches, lambda c: c.matches),
    "absolute_timing_error": Ratio("s", lambda c: c.absolute_error, lambda c: c.matches, lambda c: c.matches),
    "timely": Ratio("%", lambda c: c.timely_events, lambda c: c.events, lambda c: c.events),
    "timely_delay": Ratio("s", lambda c: c.delay, lambda c: c.timely_events, lambda c: c.timely_events),
    "false_alarms": Ratio("/h", lambda c: c.claims - c.matches, lambda c: c.seconds / HOUR, lambda c: c.claims),
    "state_accuracy": Ratio("%", lambda c: c.right_states, lambda c: c.states, lambda c: c.states),
    "state_recall": Ratio("%", lambda c: c.right_states, lambda c: c.expected_states, lambda c: c.expected_states),
    "silence_precision": Ratio("%", lambda c: c.matched_silences, lambda c: c.silences, lambda c: c.silences),
    "silence_recall": Ratio("%", lambda c: c.matched_silences, lambda c: c.true_silences, lambda c: c.true_silences),
    "repetition": Ratio("%", lambda c: c.repetitions, lambda c: c.spoken, lambda c: c.spoken),
    "words_per_second": Ratio("words/s", lambda c: c.words, lambda c: c.seconds, lambda c: c.words),
}


def value(ratio: Ratio, counts: Counts) -> float | None:
    """None where there was nothing to count."""
    total = ratio.total(counts)
    return ratio.part(counts) / total if total else None


def metrics(videos: Sequence[Counts]) -> tuple[Metric, ...]:
    """All numbers over some videos; each interval is of a bootstrap over them."""
    total = sum(videos, Counts())
    all_metrics = []
    for name, ratio in RATIOS.items():
        ci95 = ratio_interval([ratio.part(counts) for counts in videos], [ratio.total(counts) for counts in videos])
        all_metrics.append(Metric(name, value(ratio, total), ci95, ratio.of(total), ratio.unit))
    return tuple(all_metrics)


def fifths(observed: Observations) -> list[Counts]:
    """Of five equal parts of what is covered."""
    first, end = observed.covered[0], observed.covered[-1] + 1
    bounds = [first + (end - first) * number / FIFTHS for number in range(FIFTHS + 1)]
    return [count(observed, start, stop) for start, stop in pairwise(bounds)]


def series(videos: Sequence[Observations]) -> tuple[Series, ...]:
    """Every number against stream time: for each fifth of a video, over all videos."""
    parts = [sum(counts, Counts()) for counts in zip(*map(fifths, videos), strict=True)]
    middles = [100 * (number + 0.5) / FIFTHS for number in range(FIFTHS)]
    all_series = []
    for name, ratio in RATIOS.items():
        points = tuple((x, value(ratio, counts)) for x, counts in zip(middles, parts, strict=True))
        all_series.append(Series(name, "% of the stream", points, ratio.unit))
    return tuple(all_series)


def details(videos: Mapping[str, Observations]) -> dict[str, Any]:
    """What a result has beside its metrics: each video, each kind of mention, and how late claims were, by fifth."""
    names = dict.fromkeys(
        entry.name for observed in videos.values() for entry in (*observed.events, *observed.claims, *observed.states)
    )
    by_name = {name: sum((count(observed, names=[name]) for observed in videos.values()), Counts()) for name in names}
    by_fifth = [sum(parts, Counter()) for parts in zip(*map(_errors, videos.values()), strict=True)]
    return {
        "per_video": {video: _numbers(count(observed)) for video, observed in videos.items()},
        "per_mention": {name: _numbers(counts, MENTION_COUNTS, MENTION_RATIOS) for name, counts in by_name.items()},
        "timing_error_histogram": _histogram(sum(by_fifth, Counter())),
        "timing_error_histogram_by_fifth": [_histogram(each) for each in by_fifth],
    }


def _numbers(counts: Counts, names: Sequence[str] = (), ratios: Sequence[str] = tuple(RATIOS)) -> dict[str, float | None]:
    counted = vars(counts)
    return {name: counted[name] for name in names or counted} | {name: value(RATIOS[name], counts) for name in ratios}


def _errors(observed: Observations) -> list[Counter]:
    """Seconds late -> number of events, for each fifth."""
    first, length = observed.covered[0], observed.covered[-1] + 1 - observed.covered[0]
    histograms = [Counter() for _ in range(FIFTHS)]
    for event in observed.events:
        if event.error is not None:
            histograms[int(FIFTHS * (event.second - first) / length)][event.error] += 1
    return histograms


def _histogram(errors: Counter) -> dict[str, int]:
    return {f"{late:+d}" if late else "0": errors[late] for late in sorted(errors)}
