"""Run a benchmark, judge it, or draw the table of several runs: `svlm evaluate BENCHMARK ...`.

Each benchmark is a module of this package with a `main`, which parses what follows its name.
"""

import difflib
import importlib
import sys

from svlm_jax.errors import InputError, shortened

BENCHMARKS = {
    "infstreams": "Inf-Streams-Eval: commentary on whole games, judged pairwise (segments, generate, judge)",
    "livesports": "LiveSports-3K: commentary on events (generate, judge) and questions with options (qa)",
    "ovo": "OVO-Bench: questions about what a stream has shown so far (generate, score)",
    "streamingbench": "StreamingBench: real-time, sequential and proactive questions (generate, score)",
    "timing": "when things were said: event F1, delay, silence, repetition, false alarms",
    "game": "make small sets of the generated game in the published formats, with their truth",
    "lmms": "task files for lmms-eval of local files in the form of OVO-Bench",
    "table": "one table of many runs, with intervals and plots",
}


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print(usage())
        return
    if name not in BENCHMARKS:
        near = difflib.get_close_matches(name, BENCHMARKS, 1)
        expected = near[0] if near else f"one of {', '.join(BENCHMARKS)}"
        raise InputError("svlm evaluate", shortened(name, 60), expected, "svlm evaluate --help lists them")
    sys.argv = [f"svlm evaluate {name}", *sys.argv[2:]]
    importlib.import_module(f"svlm_jax.cli.evaluate.{name}").main()


def usage() -> str:
    """What `svlm evaluate --help` prints."""
    width = max(map(len, BENCHMARKS))
    lines = [f"  {name:<{width}}  {text}" for name, text in BENCHMARKS.items()]
    return "\n".join(
        ["usage: svlm evaluate BENCHMARK ...", "", *lines, "", "svlm evaluate BENCHMARK --help lists its commands"]
    )
