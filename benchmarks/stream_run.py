"""One run of `benchmarks stream`: a session whose streams all watch the same video, and what can be measured of it.

The undisturbed run comes first (`StreamRun.run`): nothing in it waits for a stage. Stages are then waited for one by one, in
chunks of their own (`stages`): dispatching a decode loop holds the host until the loop ends, because the host reads its
predicate, so laps of the undisturbed run say when the host was free, and not what a stage takes. Units: milliseconds.
"""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.trace import Profile, profile
from svlm_jax.config import ResizeOn, StreamConfig
from svlm_jax.stream.stream_settings import StreamSettings

FIXTURES = Path(__file__).parents[1] / "tests" / "fixtures"
QUERY = "Commentate on this match"
MEASURED_CHUNKS = 5  # of each measurement after the run
DISPATCH = " dispatch"  # ends the name of what the call of a program takes
FIELDS = ("total", "second", "tokens", "slots", "position", "memory", "device", "compiled")


class FirstChunk(NamedTuple):
    """seconds: from the model to the first caption. compiled: programs; cached: how many more came from the cache on disk."""

    seconds: float
    compiled: int
    cached: int


class StreamRun:
    """A session of `num_streams` streams, compiled, that has watched one chunk (`first_chunk`)."""

    def __init__(
        self, model: Any, config: StreamConfig, video: Path, num_streams: int, *, resize_on: ResizeOn = "auto"
    ) -> None:
        from svlm_jax.decode.sampling import Sampling
        from svlm_jax.families import family_of
        from svlm_jax.media.processor import Processor, load_tokenizer
        from svlm_jax.stream.frames import frame_box, resizes_on_device
        from svlm_jax.stream.runner import Runner
        from svlm_jax.stream.session import Session
        from svlm_jax.stream.warmup import warm

        self.config, self.video, self.num_streams, self.chunks = config, video, num_streams, 0
        tokenizer = load_tokenizer(FIXTURES / "processor")
        self.processor = Processor(model.config, tokenizer)
        self.on_device = resizes_on_device(resize_on, self.processor, config)
        (end,) = tokenizer.encode(family_of(model.config).chat.turn_end, add_special_tokens=False)
        sampling = Sampling(0.9, repetition_penalty=1.05, suppressed=(end,))  # as the original samples
        first, _ = next(self.watch())
        started = time.perf_counter()
        with Compilations() as compilations:
            clip = self.clip(first)
            options = {"sampling": sampling, "num_streams": num_streams, "frame_box": frame_box(clip, model.config.vision)}
            session = Session(model, tokenizer, config, clip.grid, **options)
            self.runner = Runner(session)
            self.runner.state = warm(session, self.runner.state, clip, sizes=(num_streams,))
            self.streams = [str(number) for number in range(num_streams)]
            for stream in self.streams:
                self.runner.join(stream, StreamSettings(query=QUERY, seed=int(stream)))
            self.tick(first)
        self.first_chunk = FirstChunk(time.perf_counter() - started, compilations.compiled, compilations.cached)

    def watch(self) -> Iterator[tuple[np.ndarray, float]]:
        """(frames [F, H, W, 3], milliseconds to decode them) of each chunk of the video."""
        from svlm_jax.media.video import sample_video

        frames, started = [], time.perf_counter()
        for _, frame in sample_video(self.video, self.config.fps):
            frames.append(frame)
            if len(frames) == self.config.chunk_frames:
                yield np.stack(frames), 1000 * (time.perf_counter() - started)
                frames, started = [], time.perf_counter()

    def clip(self, frames: np.ndarray) -> Any:
        """Patches that the host has made, or the frames, for a device that makes them."""
        if self.on_device:
            return self.processor.frames(frames, fps=self.config.fps)
        return self.processor.video(frames, fps=self.config.fps, raw=True)

    def tick(self, frames: np.ndarray, **options: Any) -> Any:
        """The caption of the next chunk, the first stream's. options: of `Runner.tick`."""
        from svlm_jax.stream.events import Caption
        from svlm_jax.stream.sequence import Chunk

        start, seconds = self.chunks * self.config.chunk_seconds, self.config.chunk_seconds
        chunk = Chunk(start, start + seconds, self.runner.session.upload(self.clip(frames)))
        self.chunks += 1
        events = self.runner.tick(dict.fromkeys(self.streams, chunk), **options)
        return next(event for event in events if isinstance(event, Caption))

    def run(self, chunks: int, progress: Callable[[int, int], None]) -> np.ndarray:
        """FIELDS of every chunk, as a structured array [chunks]. total: from encoded video to caption."""
        timings = np.zeros(chunks, [(name, np.float64) for name in FIELDS])
        with Compilations() as compilations:  # a chunk of a new shape would compile: none may after the first ones
            for number, (frames, decoding) in zip(range(chunks), self.watch(), strict=False):
                before, started = compilations.compiled, time.perf_counter()
                caption = self.tick(frames)
                total = decoding + 1000 * (time.perf_counter() - started)
                position = float(self.runner.sequence(self.streams[0]).positions.max())
                memory, compiled = (resident_bytes(), device_memory("bytes_in_use")), compilations.compiled - before
                counts = len(caption.tokens), caption.used_slots, position
                timings[number] = (total, caption.end, *counts, *memory, compiled)
                progress(number + 1, chunks)
        return timings

    def stages(self) -> dict[str, float]:
        """Milliseconds of each stage, each waited for before the next one begins; medians of the next chunks. A program's stage
        includes its dispatch: "vision dispatch" is part of "vision"."""
        import jax

        measured: list[dict[str, float]] = []
        for _, (frames, decoding) in zip(range(MEASURED_CHUNKS), self.watch(), strict=False):
            started = time.perf_counter()
            jax.block_until_ready(self.runner.session.upload(self.clip(frames)).frames)
            prepared = 1000 * (time.perf_counter() - started)  # as patches, or on the device
            ms = dict(self.tick(frames, wait=True).ms)
            for program in ("vision", "prefill", "decode"):
                ms[program] += ms[f"{program}{DISPATCH}"]
            measured.append({"video": decoding, "frames": prepared} | ms)
        return {stage: float(np.median([ms[stage] for ms in measured])) for stage in measured[0]}

    def time_to_first_token(self) -> float:
        """Milliseconds from the last frame of a chunk to its first token, as the median of the next chunks."""
        delays = []
        for _, (frames, _) in zip(range(MEASURED_CHUNKS + 1), self.watch(), strict=False):
            token_times: list[float] = []
            started = time.perf_counter()
            self.tick(frames, on_token=lambda delta, times=token_times: times.append(time.perf_counter()))
            delays.append(1000 * (token_times[0] - started))
        return float(np.median(delays[1:]))  # the first one compiles

    def token_by_token(self) -> float:
        """What a chunk takes whose tokens are told one by one, over one whose reply comes at once: medians of the next chunks,
        which alternate."""
        ms: dict[bool, list[float]] = {False: [], True: []}
        for number, (frames, _) in zip(range(4 * MEASURED_CHUNKS + 2), self.watch(), strict=False):
            options = {"on_token": lambda delta: None} if number % 2 else {}
            started = time.perf_counter()
            self.tick(frames, **options)
            if number > 1:  # which may compile
                ms[bool(options)].append(1000 * (time.perf_counter() - started))
        return float(np.median(ms[True]) / np.median(ms[False]))

    def profile(self) -> tuple[Profile, int]:
        """What the device did in the next chunks, and how many these were."""
        frames = [frames for _, (frames, _) in zip(range(MEASURED_CHUNKS), self.watch(), strict=False)]
        return profile(lambda: [self.tick(item) for item in frames]), len(frames)


class Compilations:
    """Counts the programs that XLA compiles, and those that come from the compilation cache, while it is entered."""

    def __init__(self) -> None:
        self.cached, self._requests = 0, 0

    @property
    def compiled(self) -> int:
        return self._requests - self.cached

    def _on_duration(self, event: str, duration_secs: float, **_: Any) -> None:
        self._requests += event == "/jax/core/compile/backend_compile_duration"  # of a cached program too

    def _on_event(self, event: str, **_: Any) -> None:
        self.cached += event == "/jax/compilation_cache/cache_hits"

    def __enter__(self) -> "Compilations":
        import jax

        jax.monitoring.register_event_duration_secs_listener(self._on_duration)
        jax.monitoring.register_event_listener(self._on_event)
        return self

    def __exit__(self, *_: object) -> None:
        import jax

        jax.monitoring.unregister_event_duration_listener(self._on_duration)
        jax.monitoring.unregister_event_listener(self._on_event)


def resident_bytes() -> int:
    """Resident memory of this process (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def device_memory(name: str) -> float:
    """A value of the device's memory statistics (bytes); nan on a CPU, which has none."""
    import jax

    return float((jax.devices()[0].memory_stats() or {}).get(name, np.nan))
