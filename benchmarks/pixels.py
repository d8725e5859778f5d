"""Frames to patches, on the host and on the device: whether they are equal, and what each way costs.

With --target h100 nothing runs: the vision tower is compiled ahead of time, from patches and from raw frames.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from benchmarks.aot import abstract_array, compile_stats
from benchmarks.model_configs import published_config, with_layers
from benchmarks.report import record
from svlm_jax.cli.flags import integer

Row = dict[str, Any]
# (height, width, streams) of chunks of two frames
SIZES = ((720, 1280, 1), (1080, 1920, 1), (2160, 3840, 1), (720, 1280, 16))
SMALL = ((120, 160, 1), (120, 160, 2))
UNEQUAL = 1  # exit code
RUNS = 20  # on an accelerator; their launches overlap, so that what is left is the device's time


def bench(args: argparse.Namespace) -> None:
    if args.target == "h100":
        measurements, name = compiled_for_h100(args.layers), "pixels_h100"
        description = (
            "The vision tower of 7B in bfloat16 compiled ahead of time for an H100, nothing run: from patches that the host "
            "has made of 1280x720 frames, and from the frames."
        )
    else:
        measurements, name = measured(SMALL if args.small else SIZES), "pixels"
        description = (
            "A chunk of two frames of noise for each stream: resized, cut into patches and laid out on the host (PIL, two "
            "threads), and the same pixels on the device. Each is waited for; the device's time is that of one of many "
            "programs in a row. Milliseconds are of the clock, and of all cores together; the fewest of a few."
        )
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > 2 * cores:
        description += (
            f" Other programs shared the machine (load {load:.0f} on {cores} cores): times of the clock are too long."
        )
    rows: list[Row] = []
    for row in measurements:
        print(json.dumps(row), flush=True)
        rows.append(row)
        record(args.name or name, description, rows, args.out)  # a run that is cut short keeps what it has
    if not all(row.get("equal", True) for row in rows):
        raise SystemExit(UNEQUAL)


def measured(sizes: tuple[tuple[int, int, int], ...]) -> Iterator[Row]:
    import jax

    from svlm_jax.model.pixels import PASSES, Formulation, patches_of

    vision = published_config("7b").vision
    on_cpu = jax.default_backend() == "cpu"
    # Gathers and products are for accelerators: on a CPU they take seconds.
    formulations: list[Formulation] = ["take"] if on_cpu and sizes != SMALL else list(PASSES)
    runs = 2 if on_cpu else RUNS
    for height, width, streams in sizes:
        rng = np.random.default_rng(0)
        chunks = [rng.integers(0, 256, (2, height, width, 3), dtype=np.uint8) for _ in range(streams)]
        on_host, raw = partial(host_patches, chunks), raw_frames(chunks)
        patches = on_host()
        row = {"frames": f"{width}x{height}", "streams": streams, "patches": patches.shape[1]}
        row["host (ms)"], row["host, all cores (ms)"] = timed(on_host, 5), timed(on_host, 5, time.process_time)
        for name_of, arrays in (("frames", chunks), ("patches", patches)):
            row[f"{name_of} to the device (ms)"] = timed(lambda arrays=arrays: jax.block_until_ready(jax.device_put(arrays)), 9)
            row[f"{name_of} (MB)"] = round(sum(array.nbytes for array in arrays) / 1e6, 2)
        raw, row["equal"] = jax.device_put(raw), True
        for formulation in formulations:
            program = jax.jit(partial(patches_of, config=vision, formulation=formulation))
            row["equal"] &= bool((np.asarray(program(raw)) == patches).all())
            many = lambda program=program, raw=raw: jax.block_until_ready([program(raw) for _ in range(runs)])  # noqa: E731
            row[f"{formulation} (ms)"] = round(timed(many, 3) / runs, 3)
            if on_cpu:
                row[f"{formulation}, all cores (ms)"] = round(timed(many, 3, time.process_time) / runs, 3)
        yield row


def timed(run: Callable[[], object], times: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """The fewest milliseconds: on a machine that does other work, what is above them is its."""
    durations = []
    for _ in range(times):
        started = clock()
        run()
        durations.append(1000 * (clock() - started))
    return round(min(durations), 3)


def host_patches(chunks: list[np.ndarray]) -> np.ndarray:
    """Patches of a batch [B, P, C], as a session without raw frames is given them."""
    from svlm_jax.inputs import pack_vision
    from svlm_jax.media.pixels import preprocess, stream_frame

    vision = published_config("7b").vision
    clips = [[preprocess(frames, stream_frame(vision), raw=True)] for frames in chunks]
    return pack_vision(clips, vision, len(clips[0][0][0]))[0].patches


def raw_frames(chunks: list[np.ndarray]) -> Any:
    """The same chunks as `RawFrames`."""
    from svlm_jax.inputs import Clip, Frames
    from svlm_jax.media.pixels import smart_resize, stream_frame
    from svlm_jax.stream.frames import frame_box, raw_vision_input

    vision, (height, width) = published_config("7b").vision, chunks[0].shape[1:3]
    h, w = (side // vision.patch_size for side in smart_resize(height, width, stream_frame(vision)))
    none = np.zeros((0, vision.patch_dim), np.uint8)
    clips = [Clip(none, (1, h, w), video=True, frames=Frames(frames, height, width)) for frames in chunks]
    box = frame_box(clips[0], vision)
    assert box is not None
    return raw_vision_input(clips, box, vision, h * w, h * w, on_mesh=False)[0].patches


def compiled_for_h100(layers: int | None) -> Iterator[Row]:
    """Rows of the vision tower, from patches and from raw frames."""
    import jax

    from svlm_jax.inputs import blank_vision
    from svlm_jax.model.parameters import shapes
    from svlm_jax.stream.programs import encode_vision

    config = replace(published_config("7b"), attention="mosaic_gpu", fused=True)
    if layers is not None:
        config = with_layers(config, 1, layers)
    params = tuple(shape for path, shape in sorted(shapes(config).items()) if path.startswith("vision."))
    raw = raw_frames([np.zeros((2, 720, 1280, 3), np.uint8)])
    _, num_patches = raw.patch_index.shape
    blank = replace(blank_vision(1, config.vision, num_patches), frame_span=num_patches)
    blank, frames = jax.tree.map(lambda x: abstract_array(*x.shape, dtype=x.dtype), (blank, raw))
    for name_of, pixels in (("patches", blank.patches), ("raw frames", frames)):
        vision = replace(blank, patches=pixels)
        program = lambda params, vision, unused: encode_vision(params, vision, config=config)  # noqa: E731
        stats = compile_stats((program, (params, vision, abstract_array(1))), "h100", 1 << 40, config.vision.depth)
        yield {"vision tower from": name_of, "layers": config.vision.depth} | stats


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--small", action="store_true", help="tiny frames, all formulations: seconds on a CPU")
    parser.add_argument("--target", choices=("this", "h100"), default="this", help="h100 needs no GPU (default: this device)")
    layers = "with --target h100, of the tower: fewer tell the structure (default: all)"
    parser.add_argument("--layers", type=integer(1), help=layers)
    parser.add_argument("--name", help="of the entry in docs/benchmarks (default: pixels, or pixels_h100)")
