"""Counts and times of the server as Prometheus text (exposition format 0.0.4). Knows no server. Units: seconds, bytes.

Written from the engine's thread and the event loop alike; a lock keeps sums whole.
"""

from bisect import bisect_left
from collections.abc import Mapping
from threading import Lock

BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)  # seconds
_HISTOGRAMS = {
    "svlm_step_seconds": "Time of one step of the session, all rows of the batch.",
    "svlm_latency_seconds": "From the last frame of a chunk until its reply.",
}
_COUNTERS = {
    "svlm_chunks_total": ("Chunks watched.", None),
    "svlm_dropped_chunks_total": ("Chunks dropped because they came too late.", None),
    "svlm_sent_bytes_total": ("Bytes given to viewers, by kind.", "kind"),
    "svlm_dropped_pictures_total": ("Pictures that slow viewers did not get.", None),
    "svlm_refused_total": ("Connections and messages refused, by reason.", "reason"),
}


class Metrics:
    """All that /metrics tells; gauges are given when it is asked for."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.counters: dict[tuple[str, str], float] = {(name, ""): 0.0 for name, (_, label) in _COUNTERS.items() if not label}
        self.buckets = {name: [0] * (len(BUCKETS) + 1) for name in _HISTOGRAMS}
        self.sums = dict.fromkeys(_HISTOGRAMS, 0.0)

    def count(self, name: str, by: float = 1, label: str = "") -> None:
        """Add to a counter; `label` is the value of its label, one of a few words of ours, never a client's."""
        with self.lock:
            self.counters[name, label] = self.counters.get((name, label), 0.0) + by

    def observe(self, name: str, seconds: float) -> None:
        """Add to a histogram."""
        with self.lock:
            self.buckets[name][bisect_left(BUCKETS, seconds)] += 1
            self.sums[name] += seconds

    def value(self, name: str, label: str = "") -> float:
        """A counter as it stands."""
        with self.lock:
            return self.counters.get((name, label), 0.0)

    def text(self, gauges: Mapping[str, tuple[str, float]]) -> str:
        """Everything, with gauges: name -> (help, value)."""
        lines = []
        for name, (told, value) in gauges.items():
            lines += [f"# HELP {name} {told}", f"# TYPE {name} gauge", f"{name} {value:g}"]
        with self.lock:
            for name, (told, label) in _COUNTERS.items():
                lines += [f"# HELP {name} {told}", f"# TYPE {name} counter"]
                for (own, value), number in sorted(self.counters.items()):
                    if own == name:
                        lines.append(f'{name}{{{label}="{value}"}} {number:.0f}' if label else f"{name} {number:.0f}")
            for name, told in _HISTOGRAMS.items():
                lines += [f"# HELP {name} {told}", f"# TYPE {name} histogram"]
                seen = 0
                for bound, number in zip([*BUCKETS, "+Inf"], self.buckets[name], strict=True):
                    seen += number
                    lines.append(f'{name}_bucket{{le="{bound}"}} {seen}')
                lines += [f"{name}_sum {self.sums[name]:.6f}", f"{name}_count {seen}"]
        return "\n".join(lines) + "\n"
