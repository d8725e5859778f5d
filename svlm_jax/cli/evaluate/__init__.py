"""Run a benchmark, judge it, or draw the table of several runs: `svlm evaluate BENCHMARK ...`.

Each benchmark is a module of this package with a `main`, which parses what follows its name.
"""

from svlm_jax.cli.subcommands import dispatch

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
    dispatch("evaluate", "BENCHMARK", BENCHMARKS, "svlm evaluate BENCHMARK --help lists its commands")
