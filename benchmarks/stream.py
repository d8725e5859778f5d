"""Streaming against stream time: latency by stage, cache slots and memory, for each mode, fps and number of streams.

The video is one encoded file, a clip that repeats, decoded like any other. All replies have the maximum length (their end token
is suppressed), so every chunk takes as long as the slowest one.
"""

import argparse
import itertools
import json
import math
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np

from benchmarks.model_configs import model_config
from benchmarks.report import record
from benchmarks.torch_baseline import measure_in_subprocess
from svlm_jax.cli.flags import integer
from svlm_jax.cli.progress import Progress
from svlm_jax.config import Attention, StreamConfig, Weights
from svlm_jax.errors import InputError
from svlm_jax.touchline.film import Film

FIXTURES = Path(__file__).parents[1] / "tests" / "fixtures"
QUERY = "Commentate on this match"
MIN_FPS = 10  # of the clip
CLIP_SECONDS = 10
TTFT_CHUNKS = 5  # chunks whose time to first token is measured
STAGES = ("video", "patches", "policy", "vision", "prefill", "decode", "text")
FIELDS = (*STAGES, "total", "second", "tokens", "slots", "position", "memory", "device", "compiled")
NOT_MODEL = ("video", "patches", "policy", "text")
MODES = ("full", "window", "recompute", "streaming")


class Run:
    """A session of `num_streams` streams that all watch the same video."""

    def __init__(self, model: Any, config: StreamConfig, video: Path, num_streams: int) -> None:
        from svlm_jax.decode.sampling import Sampling
        from svlm_jax.families import family_of
        from svlm_jax.media.pixels import STREAM_FRAME
        from svlm_jax.media.processor import Processor, image_bounds, load_tokenizer
        from svlm_jax.stream.runner import Runner
        from svlm_jax.stream.session import Session

        self.config, self.video, self.num_streams = config, video, num_streams
        tokenizer = load_tokenizer(FIXTURES / "processor")
        self.processor = Processor(model.config, tokenizer, image_bounds(model.config), STREAM_FRAME)
        (end,) = tokenizer.encode(family_of(model.config).chat.turn_end, add_special_tokens=False)
        sampling = Sampling(0.9, repetition_penalty=1.05, suppressed=(end,))  # as the original samples
        first, _ = next(self.watch())
        grid = self.processor.video(first, fps=config.fps).grid
        self.runner = Runner(Session(model, tokenizer, config, grid, sampling=sampling, num_streams=num_streams))
        self.session, self.streams = self.runner.session, [str(number) for number in range(num_streams)]
        for stream in self.streams:
            self.runner.join(stream, query=QUERY, seed=int(stream))

    def watch(self) -> Iterator[tuple[np.ndarray, float]]:
        """(frames [F, H, W, 3], milliseconds to decode them) of each chunk."""
        from svlm_jax.media.video import sample_video

        frames, started = [], time.perf_counter()
        for _, frame in sample_video(self.video, self.config.fps):
            frames.append(frame)
            if len(frames) == self.config.chunk_frames:
                yield np.stack(frames), 1000 * (time.perf_counter() - started)
                frames, started = [], time.perf_counter()

    def run(self, chunks: int, progress: Progress) -> np.ndarray:
        """FIELDS of every chunk, as a structured array [chunks]: milliseconds by stage, slots in use, memory and so on."""
        from svlm_jax.stream.events import Caption
        from svlm_jax.stream.sequence import Chunk

        seconds, timings = self.config.chunk_seconds, np.zeros(chunks, [(name, np.float64) for name in FIELDS])
        with Compilations() as compiled:  # a chunk of a new shape would compile: none may after the first ones
            for number, (frames, decoding) in zip(range(chunks), self.watch(), strict=False):
                started, before = time.perf_counter(), compiled.count
                clip = self.processor.video(frames, fps=self.config.fps, raw=True)
                patches = 1000 * (time.perf_counter() - started)
                chunk = Chunk(number * seconds, (number + 1) * seconds, clip)
                caption = self.runner.tick(dict.fromkeys(self.streams, chunk))[0]
                assert isinstance(caption, Caption)
                ms = [decoding, patches, *(caption.ms[stage] for stage in STAGES[2:])]
                position, compiles = float(self.runner.sequence(self.streams[0]).positions.max()), compiled.count - before
                memory = resident_bytes(), device_memory("bytes_in_use")
                timings[number] = (
                    *ms,
                    sum(ms),
                    chunk.end,
                    len(caption.tokens),
                    caption.used_slots,
                    position,
                    *memory,
                    compiles,
                )
                progress(number + 1, chunks)
        return timings

    def time_to_first_token(self, after: int) -> float:
        """Milliseconds from the last frame of a chunk to the first token, as the median of a few chunks that follow."""
        from svlm_jax.stream.sequence import Chunk

        seconds, delays = self.config.chunk_seconds, []
        for number, (frames, _) in zip(range(TTFT_CHUNKS + 1), self.watch(), strict=False):
            token_times: list[float] = []
            started = time.perf_counter()
            clip = self.processor.video(frames, fps=self.config.fps, raw=True)
            chunk = Chunk((after + number) * seconds, (after + number + 1) * seconds, clip)
            on_token = lambda delta, times=token_times: times.append(time.perf_counter())  # noqa: E731
            self.runner.tick(dict.fromkeys(self.streams, chunk), on_token=on_token)
            delays.append(1000 * (token_times[0] - started))
        return float(np.median(delays[1:]))  # the first one compiles


def repeated(path: Path, times: int) -> Path:
    """Write a video that repeats a clip, by copying packets: encoding two hours would take as long as watching them."""
    import av

    target = path.with_name("long.mp4")
    with av.open(str(target), "w") as out:
        out_stream = None
        for number in range(times):
            with av.open(str(path)) as clip:
                stream = clip.streams.video[0]
                out_stream = out_stream or out.add_stream_from_template(stream)
                offset = round(number * CLIP_SECONDS / (stream.time_base or 1))
                for packet in clip.demux(stream):
                    if packet.dts is not None and packet.pts is not None:
                        packet.pts, packet.dts, packet.stream = packet.pts + offset, packet.dts + offset, out_stream
                        out.mux(packet)
    return target


class Compilations:
    """Counts the programs that XLA compiles while it is entered."""

    def __init__(self) -> None:
        self.count = 0

    def _on_event(self, event: str, duration_secs: float, **_: Any) -> None:
        self.count += event == "/jax/core/compile/backend_compile_duration"

    def __enter__(self) -> "Compilations":
        import jax

        jax.monitoring.register_event_duration_secs_listener(self._on_event)
        return self

    def __exit__(self, *_: object) -> None:
        import jax

        jax.monitoring.unregister_event_duration_listener(self._on_event)


def resident_bytes() -> int:
    """Resident memory of this process (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def device_memory(name: str) -> float:
    """A value of the device's memory statistics (bytes); nan on a CPU, which has none."""
    import jax

    return float((jax.devices()[0].memory_stats() or {}).get(name, np.nan))


def summary(name: str, run: Run, timings: np.ndarray) -> dict[str, Any]:
    """One row: medians over the last fifth of the chunks, and ratios of the end to the beginning."""
    peak_bytes = device_memory("peak_bytes_in_use")
    last = timings[-max(1, len(timings) // 5) :]
    total = float(np.median(last["total"]))
    stages = {stage: float(np.median(last[stage])) for stage in STAGES}
    outside = sum(stages[stage] for stage in NOT_MODEL)
    row = {
        "run": name,
        "streams": run.num_streams,
        "ms/chunk": round(total, 1),
        "ms/token": round(total / last["tokens"][-1] / run.num_streams, 2),
        "time to first token (ms)": round(run.time_to_first_token(len(timings)), 1),
        "real time x streams": round(1000 * run.config.chunk_seconds * run.num_streams / total, 2),
        **{f"{stage} (ms)": round(ms, 1) for stage, ms in stages.items()},
        "decode (ms/token)": round(stages["decode"] / last["tokens"][-1], 2),
        "outside the model (%)": round(100 * outside / total, 1),
        "slots used": int(last["slots"][-1]),
        "slots": run.runner.state.cache.capacity,
        "memory (MB)": round(last["memory"][-1] / 1e6),
        "device memory, peak (GB)": "-" if np.isnan(peak_bytes) else round(peak_bytes / 1e9, 2),
    }
    if len(timings) >= 400:  # a long stream: does anything grow?
        end = timings[-100:]
        row["last 100 / chunks 100-200"] = round(float(np.median(end["total"]) / np.median(timings["total"][100:200])), 3)
        row["memory, end / chunk 200"] = round(float(timings["memory"][-1] / timings["memory"][200]), 4)
        if not np.isnan(peak_bytes):
            row["device memory, end / chunk 200"] = round(float(timings["device"][-1] / timings["device"][200]), 4)
        row["compiled after chunk 20"] = int(timings["compiled"][20:].sum())
        row["largest position, last 100"] = float(end["position"].max())
        row["slots used, last 100"] = f"{end['slots'].min():.0f}-{end['slots'].max():.0f}"
        row["last second"] = float(timings["second"][-1])
    return row


def bench(args: argparse.Namespace) -> None:
    from flax import nnx

    from svlm_jax.media.video import write_video
    from svlm_jax.model.vlm import QwenVL

    modes, counts, rates = args.modes.split(","), _numbers("--num-streams", args.num_streams), _numbers("--fps", args.fps)
    if unknown := sorted(set(modes) - set(MODES)):
        raise InputError("--modes", ", ".join(unknown), f"some of {', '.join(MODES)}", "separate them by commas")
    model = QwenVL(model_config(args.shape, args.dtype, weights=args.weights, attention=args.attention), nnx.Rngs(0))
    rows: list[dict[str, Any]] = []
    series: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as directory:
        path, rate = Path(directory) / "clip.mp4", math.ceil(max(MIN_FPS, *rates))
        film = Film(0, size=(args.width, args.height)).frames(rate)
        write_video(path, itertools.islice(film, CLIP_SECONDS * rate), rate)
        path = repeated(path, -(-args.seconds // CLIP_SECONDS))
        for mode, fps, streams in itertools.product(modes, rates, counts):
            name = f"{mode}, {fps:g} fps" + (f", {streams:g} streams" if streams > 1 else "")
            run = Run(model, StreamConfig(mode=mode, fps=fps), path, int(streams))
            series[name] = run.run(args.seconds, Progress(name, "chunks"))
            rows.append(summary(name, run, series[name]))
            print(json.dumps(rows[-1]), flush=True)
            if args.torch and streams == 1 and mode == "streaming":
                sizes = (model.config.dtype, run.session.grid, run.session.prefill_size, run.session.capacity)
                baseline = measure_in_subprocess(args.shape, *sizes, StreamConfig().max_new_tokens)
                rows[-1] |= baseline_columns(rows[-1], baseline)
                print(json.dumps(rows[-1]), flush=True)
    plot = f"benchmarks/{args.name}.svg" if args.plot else None
    if plot is not None:
        draw(series, args.out / plot, f"{args.shape}, {args.height}x{args.width}, {model.config.dtype}")
    description = (
        f"Streaming, {args.shape} shape (random weights, {model.config.dtype}), on {args.height}x{args.width} video "
        f"for {args.seconds} s, every reply of {StreamConfig().max_new_tokens} tokens. Milliseconds are medians over the last "
        "fifth; ms/token is ms/chunk over the tokens of all streams, as in the paper."
    )
    record(args.name, description, rows, args.out, plot)


def baseline_columns(row: dict[str, Any], baseline: dict[str, Any]) -> dict[str, Any]:
    """Milliseconds of plain torch in the same stages, with their ratio to those in `row`."""
    graph, eager = baseline["one token, CUDA graph (ms)"], baseline["one token (ms)"]
    stages = {name: baseline[name] for name in ("vision (ms)", "prefill (ms)", "ms/chunk")}
    stages["decode (ms/token)"] = eager if graph is None else min(graph, eager)
    ratios = {f"torch: {name}": f"{ms} ({ms / row[name]:.2f}x)" for name, ms in stages.items()}
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
    parser.add_argument("--shape", default="mid", help="tiny, mid, 3b, 7b, 32b or 72b (default mid: 42 M parameters)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: float32 on a CPU, otherwise bfloat16")
    parser.add_argument("--weights", choices=get_args(Weights), default="full", help="of the decoder (default full)")
    parser.add_argument("--attention", choices=get_args(Attention), default="auto", help="kernels (default auto)")
    parser.add_argument("--torch", action="store_true", help="also plain torch on the same device, as ratios")
    parser.add_argument("--modes", default="streaming", help="some of full,window,recompute,streaming (default streaming)")
    parser.add_argument("--fps", default="2", help="frames a second; several separated by commas (default 2)")
    parser.add_argument("--num-streams", default="1", help="streams of a batch; several separated by commas (default 1)")
    parser.add_argument("--seconds", type=integer(1), default=60, help="of video (default 60)")
    parser.add_argument("--height", type=integer(1), default=252, help="of frames (default 252)")
    parser.add_argument("--width", type=integer(1), default=448, help="of frames (default 448)")
    parser.add_argument("--name", default="stream", help="of the entry in docs/benchmarks (default stream)")
    parser.add_argument("--plot", action="store_true", help="draw latency and slots against stream time")
