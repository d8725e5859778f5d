"""Counters and histograms of the server as Prometheus text (exposition format 0.0.4). Knows no server. Units: seconds, bytes.

The engine's thread and the event loop both write; a lock keeps a histogram's buckets and sum consistent.
"""

from bisect import bisect_left
from collections.abc import Mapping
from threading import Lock

BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)  # upper bounds in seconds
_HISTOGRAMS = {
    "svlm_step_seconds": "Time of one step of the batch, all its streams together.",
    "svlm_latency_seconds": "Time from the last frame of a chunk to its reply.",
    "svlm_slice_seconds": "Time of one slice of one-shot work, between two steps.",
}
_COUNTERS = {  # name -> (help, name of its label or None)
    "svlm_chunks_total": ("Chunks processed.", None),
    "svlm_dropped_chunks_total": ("Chunks dropped because the device was late.", None),
    "svlm_sent_bytes_total": ("Bytes sent to viewers, by kind of message.", "kind"),
    "svlm_dropped_frames_total": ("Frames not sent because a viewer was slow.", None),
    "svlm_webhook_events_total": ("Events for webhooks, by what became of them.", "result"),
    "svlm_chat_requests_total": ("Chat completions, by how they ended.", "outcome"),
    "svlm_chat_tokens_total": ("Tokens of chat completions: of prompts and of replies.", "kind"),
    "svlm_refused_total": ("Connections, sockets and messages refused, by reason.", "reason"),
    "svlm_source_chunks_total": ("Chunks processed, by source.", "source"),
    "svlm_source_dropped_chunks_total": ("Chunks dropped because the device was late, by source.", "source"),
    "svlm_source_lost_total": ("How often a source broke off, by source.", "source"),
    "svlm_source_missed_chunks_total": ("Chunks that passed while a source was away, by source.", "source"),
}
_SUMMARIES = {  # sum and count, by source
    "svlm_source_latency_seconds": "Time from the last frame of a chunk to its reply, by source.",
}
_GAUGES = {  # by source
    "svlm_source_up": "1 while a source gives frames to a stream.",
    "svlm_source_last_frame_timestamp_seconds": "When the last frame of its newest chunk was there, in Unix time.",
}


class Metrics:
    """Counters and histograms; gauges are read when the text is made."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.counters: dict[tuple[str, str], float] = {(name, ""): 0.0 for name, (_, label) in _COUNTERS.items() if not label}
        self.buckets = {name: [0] * (len(BUCKETS) + 1) for name in _HISTOGRAMS}
        self.sums = dict.fromkeys(_HISTOGRAMS, 0.0)
        self.summaries: dict[tuple[str, str], tuple[float, int]] = {}
        self.gauges: dict[tuple[str, str], float] = {}

    def count(self, name: str, by: float = 1, label: str = "") -> None:
        """Add to a counter. label: one of a few constants, never text of a client: each value is one more time series."""
        with self.lock:
            self.counters[name, label] = self.counters.get((name, label), 0.0) + by

    def set(self, name: str, value: float, label: str) -> None:
        """The value of a gauge by source."""
        with self.lock:
            self.gauges[name, label] = value

    def observe(self, name: str, seconds: float, label: str = "") -> None:
        """Add to a histogram, or to the summary of a source."""
        with self.lock:
            if name in _SUMMARIES:
                total, count = self.summaries.get((name, label), (0.0, 0))
                self.summaries[name, label] = total + seconds, count + 1
                return
            self.buckets[name][bisect_left(BUCKETS, seconds)] += 1
            self.sums[name] += seconds

    def value(self, name: str, label: str = "") -> float:
        """The value of a counter."""
        with self.lock:
            return self.counters.get((name, label), 0.0)

    def text(self, gauges: Mapping[str, tuple[str, float]]) -> str:
        """All metrics as text. gauges: name -> (help, value)."""
        lines = []
        for name, (description, value) in gauges.items():
            lines += [f"# HELP {name} {description}", f"# TYPE {name} gauge", f"{name} {value:g}"]
        with self.lock:
            for name, (description, label) in _COUNTERS.items():
                lines += [f"# HELP {name} {description}", f"# TYPE {name} counter"]
                for (counter, label_value), count in sorted(self.counters.items()):
                    if counter == name:
                        lines.append(f"{name}{_labels(label, label_value)} {count:.0f}")
            for name, description in _GAUGES.items():
                lines += [f"# HELP {name} {description}", f"# TYPE {name} gauge"]
                gauge_values = sorted((source, value) for (gauge, source), value in self.gauges.items() if gauge == name)
                lines += [f"{name}{_labels('source', source)} {value:.15g}" for source, value in gauge_values]
            for name, description in _SUMMARIES.items():
                lines += [f"# HELP {name} {description}", f"# TYPE {name} summary"]
                for (summary, source), (total, count) in sorted(self.summaries.items()):
                    if summary == name:
                        labels = _labels("source", source)
                        lines += [f"{name}_sum{labels} {total:.6f}", f"{name}_count{labels} {count}"]
            for name, description in _HISTOGRAMS.items():
                lines += [f"# HELP {name} {description}", f"# TYPE {name} histogram"]
                cumulative = 0  # Prometheus buckets count all observations up to their bound
                for bound, count in zip([*BUCKETS, "+Inf"], self.buckets[name], strict=True):
                    cumulative += count
                    lines.append(f'{name}_bucket{{le="{bound}"}} {cumulative}')
                lines += [f"{name}_sum {self.sums[name]:.6f}", f"{name}_count {cumulative}"]
        return "\n".join(lines) + "\n"


def _labels(name: str | None, value: str) -> str:
    """A label as the format escapes it; a title may hold anything."""
    if not name:
        return ""
    escaped = value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return f'{{{name}="{escaped}"}}'
