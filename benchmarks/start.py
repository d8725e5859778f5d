"""How long a session takes until its first caption, with an empty and with a filled compilation cache, and what a call of each
of its programs costs the host. Each start is a process of its own."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.model_configs import SHAPES, model_config
from benchmarks.report import record
from svlm_jax.cli.flags import integer
from svlm_jax.cli.progress import compiling
from svlm_jax.errors import InputError

FIXTURES = Path(__file__).parents[1] / "tests" / "fixtures"
CALLS = 30  # of each program, of which the fastest counts
EVENTS = {  # of jax.monitoring -> column
    "/jax/core/compile/jaxpr_trace_duration": "trace (s)",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lower (s)",
    "/jax/core/compile/backend_compile_duration": "compile, all programs added up (s)",
}


def bench(args: argparse.Namespace) -> None:
    if args.child:
        print(json.dumps(measure(args)))
        return
    description = (
        f"A session of the {args.shape} shape (random weights), {args.height}x{args.width} frames, {args.num_streams} streams: "
        "seconds from the model in memory to the first caption, and CPU seconds of all cores until then; microseconds of the "
        "calling thread in a call of a program. Tracing and lowering take one thread; programs are compiled side by side."
    )
    rows = []
    with tempfile.TemporaryDirectory() as cache:
        for name in ("empty", "filled"):
            rows.append({"compilation cache": name} | _measure_in_subprocess(args, cache))
            print(json.dumps(rows[-1]), flush=True)
            record(args.name, description, rows, args.out)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """One row, in this process."""
    import jax
    from flax import nnx

    from svlm_jax.config import StreamConfig
    from svlm_jax.media.processor import Processor, load_tokenizer
    from svlm_jax.model.vlm import QwenVL
    from svlm_jax.stream.runner import VIDEO, Runner
    from svlm_jax.stream.sequence import Chunk

    model = QwenVL(model_config(args.shape, args.dtype), nnx.Rngs(0))
    tokenizer, config = load_tokenizer(FIXTURES / "processor"), StreamConfig()
    frames = np.zeros((config.chunk_frames, args.height, args.width, 3), np.uint8)
    clip = Processor(model.config, tokenizer).video(frames, fps=config.fps, raw=True)
    jax.block_until_ready(nnx.state(model))
    seconds: dict[str, float] = defaultdict(float)

    def add_duration(event: str, duration_secs: float, **_: Any) -> None:
        seconds[event] += duration_secs

    jax.monitoring.register_event_duration_secs_listener(add_duration)
    started, cpu = time.monotonic(), time.process_time()
    with compiling() as progress:
        runner = Runner.compiled(model, tokenizer, config, clip, num_streams=args.num_streams, tokens=True, progress=progress)
    runner.join(VIDEO)
    runner.caption(VIDEO, Chunk(0.0, float(config.chunk_seconds), clip))
    row = {"first caption (s)": round(time.monotonic() - started, 1), "of all cores (s)": round(time.process_time() - cpu, 1)}
    row |= {column: round(seconds[event], 1) for event, column in EVENTS.items()}
    return row | {f"{name}, a call (us)": microseconds for name, microseconds in dispatch(runner.session, clip).items()}


def dispatch(session: Any, clip: Any) -> dict[str, int]:
    """Microseconds of the calling thread in a call of each program for all streams; the device does nothing else."""
    import jax

    from svlm_jax.stream import programs
    from svlm_jax.stream.sequence import Chunk

    config, static = session.model_config, session.static_args
    state = session.init_state()
    for stream in range(session.num_streams):
        state = session.join(state, stream)
    chunk = Chunk(0.0, float(session.config.chunk_seconds), clip)
    scheduled = [session.prepare(state, stream, chunk).scheduled for stream in range(session.num_streams)]
    frames, tower_rows = session.vision_input([[clip]] * session.num_streams)
    inputs = session.program_inputs(scheduled, None, session.capacity, tower_rows)
    batch, cache, frames = next(inputs.prefill_batches), state.cache, jax.device_put(frames)
    features = programs.encode_vision(session.vision_params, frames, config=config)
    hidden = np.zeros((session.num_streams, config.text.hidden_size), features.rows.dtype)

    def prefill(cache: Any) -> Any:
        return programs.prefill(session.text_params, batch, features, hidden, cache._replace(**inputs.slots), config=config)[1]

    reached = np.ones(session.num_streams, np.int32)  # up to a limit that is reached: no token

    def resume_decode(decoded: Any) -> Any:
        return programs.resume_decode(session.text_params, inputs.decode, decoded, reached, **static)

    times = {"encode_vision": _fastest(lambda _: programs.encode_vision(session.vision_params, frames, config=config), None)[0]}
    times["prefill"], cache = _fastest(prefill, cache)
    decoded = programs.decode(session.text_params, inputs.decode, hidden, cache, 1, **static, record=False)
    times["resume_decode"], _ = _fastest(resume_decode, decoded)
    return times


def _fastest(call: Callable[[Any], Any], state: Any) -> tuple[int, Any]:
    """(microseconds of the fastest of several calls, each of which consumes what the one before it gave; the last state)."""
    import jax

    seconds = []
    for _ in range(CALLS):
        jax.block_until_ready(state)
        started = time.thread_time()  # not the clock: other threads of a CPU compute meanwhile
        state = call(state)
        seconds.append(time.thread_time() - started)
    return round(1e6 * min(seconds)), state


def _measure_in_subprocess(args: argparse.Namespace, cache: str) -> dict[str, Any]:
    flags = {name: getattr(args, name) for name in ("shape", "height", "width", "num_streams")}
    flags |= {} if args.dtype is None else {"dtype": args.dtype}
    words = [word for name, value in flags.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    # Programs that compile fast are kept too, as `enable_compile_cache` does it.
    env = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    command = [sys.executable, "-m", "benchmarks", "start", "--child", *words]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=env)
    if result.returncode:
        raise InputError("start", f"exit code {result.returncode}", "a first caption", "see its message above")
    return json.loads(result.stdout.splitlines()[-1])


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shape", default="deep", help=f"deep (the layers of 7b, tiny ones), {SHAPES} (default deep)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: float32 on a CPU, otherwise bfloat16")
    parser.add_argument("--num-streams", type=integer(1), default=1, help="of the batch (default 1)")
    parser.add_argument("--height", type=integer(28), default=112, help="of frames (default 112)")
    parser.add_argument("--width", type=integer(28), default=168, help="of frames (default 168)")
    parser.add_argument("--name", default="start", help="of the entry in docs/benchmarks (default start)")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)  # one start, printed as JSON
