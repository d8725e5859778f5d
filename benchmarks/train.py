"""A training step of a published shape: time, tokens a second and MFU on the devices at hand, or (--topology) the memory that
it takes on devices that are not there, beside what it would take without rematerialisation."""

import argparse
import json
import time
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.report import record
from svlm_jax.data.config import Bucket, DataConfig
from svlm_jax.train.config import MeshConfig, TrainConfig

WARM, REPEATS = 2, 5
MODELS = {"3b": "Qwen/Qwen2.5-VL-3B-Instruct", "7b": "Qwen/Qwen2.5-VL-7B-Instruct", "72b": "Qwen/Qwen2.5-VL-72B-Instruct"}


def bench(args: argparse.Namespace) -> None:
    bucket = Bucket(args.tokens, args.patches, args.labels)
    config = TrainConfig(
        data=DataConfig(buckets=(bucket,)), micro_batch_size=args.rows, batch_size=args.rows, attention=args.attention
    )
    config = replace(config, remat=args.remat)
    if args.topology is None:
        rows = [timed(args.shape, config)]
        what = (
            f"A step of full fine-tuning, {args.shape} shape, random weights, vision tower frozen, synthetic batch. {_FORMULA}"
        )
        record(args.name or f"train_{args.shape}", what + _FORMULA, rows, args.out)
        return
    from svlm_jax.train.dry_run import measure

    rows = []
    for shape in args.shape.split(","):
        for remat in ("full", "none"):
            chosen = replace(config, model=MODELS[shape], remat=remat, mesh=MeshConfig(fsdp=-1, tensor=args.tensor))
            for row in measure(chosen, args.topology):
                if row["function"] == "micro-step":
                    rows.append({"shape": shape, "remat": remat, "tensor": args.tensor} | row)
                    print(json.dumps(rows[-1]), flush=True)
    logits = 2 * 4 * args.tokens * 152064 / 1e9
    what = (
        f"Memory of one device of {args.topology} in a micro-step of full fine-tuning, {args.rows} sequences of {args.tokens} "
        f"tokens ({args.labels} learned, {args.patches} patches) over all devices, compiled ahead of time, nothing run. All "
        f"logits of a sequence and their gradient, which are never held, would be {logits:.1f} GB more (calculated)."
    )
    record(args.name or f"train_memory_{args.topology}", what, rows, args.out)


_FORMULA = (
    "MFU: model FLOPs (train/flops.py: no padding, no rematerialisation) over seconds, devices and the data sheet's peak."
)


def timed(shape: str, config: TrainConfig) -> dict[str, Any]:
    """One optimiser step of one micro-step, on all devices."""
    import jax
    from flax import nnx

    from benchmarks.shapes import shape as named
    from svlm_jax.data.pipeline import Example, pad_batch
    from svlm_jax.inputs import Clip, Sample
    from svlm_jax.model.parameters import parameters
    from svlm_jax.model.vlm import QwenVL
    from svlm_jax.spans import Kind, Span, vision_span
    from svlm_jax.train import flops
    from svlm_jax.train.optimizer import build_optimizer
    from svlm_jax.train.prefetch import host_rows, shard_batch
    from svlm_jax.train.setup import build_mesh
    from svlm_jax.train.step import TrainStep, split_parameters

    size, rows = config.data.buckets[0], config.micro_batch_size
    model = replace(named(shape, None), fused=False).compute(config.dtype, "float32")
    model = replace(model, scan_layers=True, remat=config.remat, attention=config.attention)
    mesh = build_mesh(MeshConfig())
    with jax.set_mesh(mesh):
        trainable, frozen = split_parameters(parameters(QwenVL(model, nnx.Rngs(0))), config.trainable)
        frozen = {path: value.astype(model.dtype) for path, value in frozen.items()}
        step = TrainStep(model, build_optimizer(config.optimizer, 100), mesh, trainable)
        indices = host_rows(mesh, rows)
        turns, grid = 24, _grid(size.patches // 24)
        patches = np.zeros((grid[1] * grid[2], model.vision.patch_dim), np.uint8)
        spans: list[Span] = []
        for turn in range(turns):
            spans += [vision_span(grid, model.vision.spatial_merge_size, turn, 1.0), Span(Kind.REPLY, 1, turn)]
        used = sum(span.length for span in spans)
        spans.append(Span(Kind.REPLY, size.tokens - used, turns))
        labels = np.full(size.tokens, -100, np.int32)
        labels[-size.labels :] = 1
        clips = tuple(Clip(patches, grid, 1.0, video=True) for _ in range(turns))
        example = Example("synthetic", Sample(np.ones(size.tokens, np.int32), tuple(spans), clips), labels, float(turns))
        synthetic = shard_batch(pad_batch([example] * len(indices), size, model), indices, rows, mesh)
        state, accumulator, durations = step.init_state(trainable), step.zero_grads(), []
        for _ in range(WARM + REPEATS):
            started = time.perf_counter()
            accumulator, _ = step.accumulate(state.trainable, accumulator, frozen, synthetic)
            state, accumulator, metrics = step.apply_gradients(state, accumulator)
            jax.block_until_ready(metrics)
            durations.append(time.perf_counter() - started)
    seconds, frame = float(np.median(durations[WARM:])), grid[1] * grid[2]
    needs = rows * flops.sample_flops(model, size.tokens, size.labels, turns * frame, frame, vision_trained=False)
    devices, best = jax.device_count(), flops.peak_flops(jax.devices()[0].device_kind)
    peak = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    row = {
        "shape": shape,
        "sequences": rows,
        "tokens": size.tokens,
        "step (s)": round(seconds, 3),
        "tokens/s": round(rows * size.tokens / seconds, 1),
        "TFLOP/s a device": round(needs / seconds / devices / 1e12, 2),
        "MFU (%)": "-" if best is None else round(100 * needs / seconds / devices / best, 1),
        "device memory, peak (GB)": "-" if peak is None else round(peak / 1e9, 2),
    }
    print(json.dumps(row), flush=True)
    return row


def _grid(patches: int) -> tuple[int, int, int]:
    """The frame pair nearest to a square with at most that many patches, sides a multiple of two."""
    side = int(patches**0.5) // 2 * 2
    return 1, side, patches // side // 2 * 2
