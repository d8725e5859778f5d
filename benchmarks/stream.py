"""Streaming against stream time: latency, stages, cache slots and memory, for each mode, fps and number of streams.

The video is one encoded file, a clip that repeats, decoded like any other. All replies have the maximum length (their end token
is suppressed), so every chunk takes as long as the slowest one. `stream_run` measures; here are the video and the rows.
"""

import argparse
import itertools
import json
import math
import tempfile
from pathlib import Path
from typing import Any, get_args

import numpy as np

from benchmarks import trace
from benchmarks.model_configs import SHAPES, model_config
from benchmarks.report import record
from benchmarks.stream_run import DISPATCH, MEASURED_CHUNKS, StreamRun, device_memory
from benchmarks.torch_baseline import measure_in_subprocess
from svlm_jax.cli.flags import integer
from svlm_jax.cli.progress import Progress
from svlm_jax.cli.stream_flags import resize_flag
from svlm_jax.config import Attention, StreamConfig, Weights
from svlm_jax.errors import InputError
from svlm_jax.touchline.film import Film

MIN_FPS = 10  # of the clip
CLIP_SECONDS = 10
NOT_MODEL = ("video", "frames", "policy", "text")  # stages on the host
ALONE = "one by one: "  # columns of stages that were waited for
MODES = ("full", "window", "recompute", "streaming")


def bench(args: argparse.Namespace) -> None:
    from flax import nnx

    from svlm_jax.model.vlm import QwenVL

    modes, counts, rates = args.modes.split(","), _numbers("--num-streams", args.num_streams), _numbers("--fps", args.fps)
    if unknown := sorted(set(modes) - set(MODES)):
        raise InputError("--modes", ", ".join(unknown), f"some of {', '.join(MODES)}", "separate them by commas")
    settings = {"weights": args.weights, "attention": args.attention, "fused_decode": args.fused_decode}
    model = QwenVL(model_config(args.shape, args.dtype, **settings), nnx.Rngs(0))
    subject = f"{args.shape} shape (random weights, {model.config.dtype}), {args.height}x{args.width} video"
    results = Results(args, subject)
    with tempfile.TemporaryDirectory() as directory:
        video = write_film(Path(directory), (args.width, args.height), math.ceil(max(MIN_FPS, *rates)), args.seconds)
        for mode, fps, streams in itertools.product(modes, rates, counts):
            name = f"{mode}, {fps:g} fps" + (f", {streams:g} streams" if streams > 1 else "")
            run = StreamRun(model, StreamConfig(mode=mode, fps=fps), video, int(streams), resize_on=args.resize_on)
            timings = run.run(args.seconds, Progress(name, "chunks"))
            results.add(name, run_row(name, run, timings), timings)
            if args.profile:
                results.add_profile(name, *run.profile())
            if args.torch and streams == 1 and mode == "streaming":
                session = run.runner.session
                sizes = (model.config.dtype, session.grid, session.prefill_size, session.capacity)
                del run, session  # torch needs the memory that the next run does not
                results.add_columns(measure_in_subprocess(args.shape, *sizes, StreamConfig().max_new_tokens))


class Results:
    """Rows of the runs so far, on disk after each: a run that is killed loses only itself."""

    def __init__(self, args: argparse.Namespace, subject: str) -> None:
        self.args, self.subject = args, subject
        self.rows: list[dict[str, Any]] = []
        self.kernels: list[dict[str, Any]] = []
        self.series: dict[str, np.ndarray] = {}

    def add(self, name: str, row: dict[str, Any], timings: np.ndarray) -> None:
        self.rows.append(row)
        self.series[name] = timings
        self._write()

    def add_columns(self, baseline: dict[str, Any]) -> None:
        """What plain torch takes, in the last row."""
        self.rows[-1] |= baseline_columns(self.rows[-1], baseline)
        self._write()

    def add_profile(self, name: str, profile: trace.Profile, chunks: int) -> None:
        """Time of the device in the last row, and kernels in an entry of their own."""
        total, busy = self.rows[-1]["ms/chunk"], profile.busy_ms / chunks
        self.rows[-1] |= {"device busy (ms)": round(busy, 1), "device idle (%)": round(max(0.0, 100 * (1 - busy / total)), 1)}
        self._write()
        self.kernels += [{"run": name} | row for row in trace.rows(profile, chunks)]
        description = (
            f"What the device does in a chunk: {self.subject}; means of {chunks} traced chunks, by named scope (layers "
            "taken together) and by kernel, the longest 40, without the numbers in their names. A trace turns CUDA graphs "
            f"off, so gaps between kernels are not those of an undisturbed chunk: `device idle` in {self.args.name} is."
        )
        record(f"{self.args.name}_profile", description, self.kernels, self.args.out)

    def _write(self) -> None:
        print(json.dumps(self.rows[-1]), flush=True)
        plot = f"benchmarks/{self.args.name}.svg" if self.args.plot else None
        if plot is not None:
            draw(self.series, self.args.out / plot, self.subject)
        description = (
            f"Streaming: {self.subject}, {self.args.seconds} s of it, every reply of {StreamConfig().max_new_tokens} tokens. "
            "ms/chunk: from encoded video to caption with nothing beside it, median of the last fifth of an undisturbed run; "
            "ms/token: ms/chunk over the tokens of all streams, as in the paper. "
            f"`{ALONE.strip()}` stages in {MEASURED_CHUNKS} chunks after it, each waited for before the next begins, so they "
            "add up to more (dispatch is part of its program). First chunk: from the model to the first caption, compiled."
        )
        record(self.args.name, description, self.rows, self.args.out, plot)


def run_row(name: str, run: StreamRun, timings: np.ndarray) -> dict[str, Any]:
    """One row: the undisturbed run, then what is measured after it."""
    last = timings[-max(1, len(timings) // 5) :]
    total, tokens = float(np.median(last["total"])), last["tokens"][-1]
    stages, first_token, peak_bytes = run.stages(), run.time_to_first_token(), device_memory("peak_bytes_in_use")
    by_token = run.token_by_token()
    alone = sum(ms for stage, ms in stages.items() if not stage.endswith(DISPATCH))
    row = {
        "run": name,
        "streams": run.num_streams,
        "ms/chunk": round(total, 1),
        "ms/token": round(total / tokens / run.num_streams, 2),
        "time to first token (ms)": round(first_token, 1),
        "token by token (x)": round(by_token, 2),
        "real time x streams": round(1000 * run.config.chunk_seconds * run.num_streams / total, 2),
        "first chunk (s)": round(run.first_chunk.seconds, 1),
        "programs compiled": run.first_chunk.compiled,
        "programs from the cache": run.first_chunk.cached,
        **{f"{ALONE}{stage} (ms)": round(ms, 1) for stage, ms in stages.items()},
        f"{ALONE}decode (ms/token)": round(stages["decode"] / tokens, 2),
        f"{ALONE}outside the model (%)": round(100 * sum(stages.get(stage, 0.0) for stage in NOT_MODEL) / alone, 1),
        "slots used": int(last["slots"][-1]),
        "slots": run.runner.state.cache.capacity,
        "memory (MB)": round(last["memory"][-1] / 1e6),
        "device memory, peak (GB)": "-" if np.isnan(peak_bytes) else round(peak_bytes / 1e9, 2),
        "compiled after chunk 3": int(timings["compiled"][3:].sum()),
    }
    return row | growth(timings) if len(timings) >= 400 else row


def growth(timings: np.ndarray) -> dict[str, Any]:
    """Columns of a long stream: does anything grow?"""
    end = timings[-100:]
    row = {
        "last 100 / chunks 100-200": round(float(np.median(end["total"]) / np.median(timings["total"][100:200])), 3),
        "memory, end / chunk 200": round(float(timings["memory"][-1] / timings["memory"][200]), 4),
        "compiled after chunk 20": int(timings["compiled"][20:].sum()),
        "largest position, last 100": float(end["position"].max()),
        "slots used, last 100": f"{end['slots'].min():.0f}-{end['slots'].max():.0f}",
        "last second": float(timings["second"][-1]),
    }
    if not np.isnan(timings["device"]).any():
        row["device memory, end / chunk 200"] = round(float(timings["device"][-1] / timings["device"][200]), 4)
    return row


def write_film(directory: Path, size: tuple[int, int], rate: int, seconds: int) -> Path:
    """A video of at least `seconds`: a clip of a generated game, repeated. size: width, height."""
    from svlm_jax.media.video import write_video

    path, film, length = directory / "clip.mp4", Film(0, size=size).frames(rate), min(seconds, CLIP_SECONDS)
    write_video(path, itertools.islice(film, length * rate), rate)
    return repeated(path, length, -(-seconds // length))


def repeated(path: Path, length: int, times: int) -> Path:
    """Write a video that repeats a clip of `length` seconds, by copying packets: encoding hours takes as long as watching."""
    import av

    target = path.with_name("long.mp4")
    with av.open(str(target), "w") as out:
        out_stream = None
        for number in range(times):
            with av.open(str(path)) as clip:
                stream = clip.streams.video[0]
                out_stream = out_stream or out.add_stream_from_template(stream)
                offset = round(number * length / (stream.time_base or 1))
                for packet in clip.demux(stream):
                    if packet.dts is not None and packet.pts is not None:
                        packet.pts, packet.dts, packet.stream = packet.pts + offset, packet.dts + offset, out_stream
                        out.mux(packet)
    return target


def baseline_columns(row: dict[str, Any], baseline: dict[str, Any]) -> dict[str, Any]:
    """Milliseconds of plain torch in the same stages, with their ratio to those in `row`."""
    graph, eager = baseline["one token, CUDA graph (ms)"], baseline["one token (ms)"]
    alone = {name: row[ALONE + name] for name in ("vision (ms)", "prefill (ms)", "decode (ms/token)")}
    theirs = {name: baseline[name] for name in ("vision (ms)", "prefill (ms)", "ms/chunk")}
    theirs["decode (ms/token)"] = eager if graph is None else min(graph, eager)
    alone["ms/chunk"] = row["ms/chunk"]
    ratios = {f"torch: {name}": f"{ms} ({ms / alone[name]:.2f}x)" for name, ms in theirs.items()}
    return ratios | {"torch": f"{baseline['torch']}, transformers {baseline['transformers']}, {baseline['device']}"}


def draw(series: dict[str, np.ndarray], path: Path, title: str) -> None:
    """Plot milliseconds a token (of a whole chunk) and slots in use against stream time."""
    try:
        import matplotlib
    except ImportError:
        raise InputError("--plot", "no matplotlib", "the bench extra", "pip install 'svlm-jax[bench]'") from None
    matplotlib.use("svg")
    from matplotlib import pyplot

    path.parent.mkdir(parents=True, exist_ok=True)
    figure, (latency_axes, slots_axes) = pyplot.subplots(2, 1, sharex=True, figsize=(8, 6), layout="constrained")
    for name, timings in series.items():
        second, ms = timings["second"], timings["total"] / timings["tokens"]
        width = max(1, len(ms) // 200)  # medians of neighbours, so that the noise of one chunk does not hide the trend
        latency_axes.plot(
            second[width - 1 :: width], [np.median(ms[i : i + width]) for i in range(0, len(ms) - width + 1, width)], label=name
        )
        slots_axes.plot(second, timings["slots"], label=name)
    latency_axes.set(ylabel="ms a token", title=title, yscale="log")
    slots_axes.set(ylabel="slots in use", xlabel="stream time (s)")
    latency_axes.legend(loc="upper center", ncols=2)
    for axes in (latency_axes, slots_axes):
        axes.grid(alpha=0.3)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _numbers(flag: str, text: str) -> list[float]:
    try:
        return [float(number) for number in text.split(",")]
    except ValueError:
        raise InputError(flag, text, "numbers", "separate them by commas") from None


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shape", default="mid", help=f"{SHAPES} (default mid: 42 M parameters)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: float32 on a CPU, otherwise bfloat16")
    parser.add_argument("--weights", choices=get_args(Weights), default="full", help="of the decoder (default full)")
    parser.add_argument("--attention", choices=get_args(Attention), default="auto", help="kernels (default auto)")
    fused_help = "fused kernels of a decode step (default: no)"
    parser.add_argument("--fused-decode", action=argparse.BooleanOptionalAction, default=False, help=fused_help)
    resize_flag(parser)
    parser.add_argument("--profile", action="store_true", help="also add up what the device does by named scope and kernel")
    parser.add_argument("--torch", action="store_true", help="also plain torch on the same device, as ratios")
    parser.add_argument("--modes", default="streaming", help="some of full,window,recompute,streaming (default streaming)")
    parser.add_argument("--fps", default="2", help="frames a second; several separated by commas (default 2)")
    parser.add_argument("--num-streams", default="1", help="streams of a batch; several separated by commas (default 1)")
    parser.add_argument("--seconds", type=integer(1), default=60, help="of video (default 60)")
    parser.add_argument("--height", type=integer(1), default=252, help="of frames (default 252)")
    parser.add_argument("--width", type=integer(1), default=448, help="of frames (default 448)")
    parser.add_argument("--name", default="stream", help="of the entry in docs/benchmarks (default stream)")
    parser.add_argument("--plot", action="store_true", help="draw latency and slots against stream time")
