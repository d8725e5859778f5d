"""A training step of a published shape: time, tokens a second and MFU on the devices of this machine; or, with --topology, its
memory on devices that need not exist, with and without rematerialisation."""

import argparse
import itertools
import json
import os
import time
from dataclasses import replace
from typing import Any, get_args

import numpy as np

from benchmarks.model_configs import SHAPES, model_config, published_name
from benchmarks.report import record
from svlm_jax.cli.flags import integer
from svlm_jax.config import Attention, ModelConfig, Remat
from svlm_jax.data.config import Bucket, DataConfig
from svlm_jax.topology import MEMORY_FRACTION
from svlm_jax.train.config import MeshConfig, TrainConfig

WARM_UP, REPEATS = 2, 6  # steps
CUDNN_CALLS = {"forward": "__cudnn$fmhaSoftmax", "backward": "__cudnn$fmhaSoftmaxBackward"}
TURNS = 24  # of a synthetic sample, each with one frame pair


def bench(args: argparse.Namespace) -> None:
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", str(MEMORY_FRACTION))  # as `svlm train` does
    data = DataConfig(buckets=(Bucket(args.tokens, args.patches, args.labels),))
    config = TrainConfig(
        data=data, micro_batch_size=args.batch_size, batch_size=args.batch_size, attention=args.attention, remat=args.remat
    )
    if args.topology is not None:
        description = (
            f"Memory of one device of {args.topology} in a micro-step of full fine-tuning, {args.batch_size} sequences of "
            f"{args.tokens} tokens ({args.labels} labels, {args.patches} patches) over all devices, compiled ahead of time, "
            "nothing run. All logits of a sequence and their gradient, which this code never materialises, would be "
            f"{2 * 4 * args.tokens * 152064 / 1e9:.1f} GB more (calculated). Recomputed: FLOPs of the decoder's layers that a "
            "policy computes twice, as a share of the model's (calculated)."
        )
        rows = memory_rows(args.shape.split(","), config, args.topology, args.tensor)
        record(args.name or f"train_memory_{args.topology}", description, rows, args.out)
        return
    description = (
        f"A step of full fine-tuning, {args.shape} shape, random weights, vision tower frozen, synthetic batch. MFU: model "
        "FLOPs (train/flops.py: no padding, no rematerialisation) over seconds, devices and the data sheet's peak."
    )
    record(args.name or f"train_{args.shape}", description, [measure_step(args.shape, config)], args.out)


def memory_rows(shapes: list[str], config: TrainConfig, topology: str, tensor: int) -> list[dict[str, Any]]:
    """A row for each shape and policy of rematerialisation, from the least memory on."""
    from svlm_jax.train import flops
    from svlm_jax.train.dry_run import columns, read_shape, target
    from svlm_jax.train.memory import AbstractStep
    from svlm_jax.train.setup import build_mesh, training_model_config

    rows, bucket = [], config.data.buckets[0]
    policies = get_args(Remat)[::-1] if config.remat == "auto" else (config.remat,)
    for shape, remat in itertools.product(shapes, policies):
        variant = replace(config, model=published_name(shape), remat=remat, mesh=MeshConfig(fsdp=-1, tensor=tensor))
        with target(topology) as devices:
            model = training_model_config(variant, read_shape(variant.model))
            memory = AbstractStep(variant, model, build_mesh(variant.mesh, devices)).micro_step()
        row = {"shape": shape, "tensor": tensor} | columns("micro-step", model, memory)
        model_flops = flops.sample_flops(model, *sample_sizes(bucket), vision_trained=False)
        again = flops.recomputed_flops(model, bucket.tokens, remat)
        row |= {"recomputed (%)": round(100 * again / model_flops, 1)}
        # Of the decoder: layers are scanned, so a call stands for all layers.
        row |= {f"cuDNN attention, {name}": memory.hlo.count(f'"{target}"') for name, target in CUDNN_CALLS.items()}
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def measure_step(shape: str, config: TrainConfig) -> dict[str, Any]:
    """One row: optimizer steps of one micro-step each, on all devices."""
    import jax
    from flax import nnx

    from svlm_jax.model.parameters import parameters
    from svlm_jax.model.vlm import QwenVL
    from svlm_jax.train.optimizer import build_optimizer
    from svlm_jax.train.remat import choose_remat, local_capacity
    from svlm_jax.train.setup import build_mesh
    from svlm_jax.train.step import TrainStep, split_parameters

    bucket, num_sequences = config.data.buckets[0], config.micro_batch_size
    model = replace(model_config(shape, None), fused=False).compute(config.dtype, "float32")
    mesh = build_mesh(MeshConfig())
    model = replace(model, scan_layers=True, attention=config.attention)
    model = replace(model, remat=choose_remat(config, model, mesh, local_capacity(), print))
    with jax.set_mesh(mesh):
        trainable, frozen = split_parameters(parameters(QwenVL(model, nnx.Rngs(0))), config.trainable)
        frozen = {path: value.astype(model.dtype) for path, value in frozen.items()}
        step = TrainStep(model, build_optimizer(config.optimizer, 100), mesh, trainable)
        batch = synthetic_batch(model, bucket, num_sequences, mesh)
        state, accumulator, previous, ends = step.init_state(trainable), step.zero_grads(), None, []
        for _ in range(WARM_UP + REPEATS):
            accumulator, _ = step.accumulate(state.trainable, accumulator, frozen, batch)
            state, accumulator, metrics = step.apply_gradients(state, accumulator)
            jax.block_until_ready(previous)  # as a run does: when the step after it has been dispatched
            previous = metrics
            ends.append(time.perf_counter())
    seconds = float(np.median(np.diff(ends[WARM_UP:])))
    row = {"shape": shape, "remat": model.remat} | step_columns(model, bucket, num_sequences, seconds)
    print(json.dumps(row), flush=True)
    return row


def synthetic_batch(model: ModelConfig, bucket: Bucket, num_sequences: int, mesh: Any) -> Any:
    """A batch on the devices that fills its bucket: TURNS frame pairs, and text up to the bucket's tokens."""
    from svlm_jax.data.pipeline import Example, pad_batch
    from svlm_jax.inputs import Clip, Sample
    from svlm_jax.spans import Kind, Span, vision_span
    from svlm_jax.train.prefetch import host_rows, shard_batch

    indices, grid = host_rows(mesh, num_sequences), frame_grid(bucket.patches // TURNS)
    patches = np.zeros((grid[1] * grid[2], model.vision.patch_dim), np.uint8)
    spans: list[Span] = []
    for turn in range(TURNS):
        spans += [vision_span(grid, model.vision.spatial_merge_size, turn, 1.0), Span(Kind.REPLY, 1, turn)]
    spans.append(Span(Kind.REPLY, bucket.tokens - sum(span.length for span in spans), TURNS))
    labels = np.full(bucket.tokens, -100, np.int32)
    labels[-bucket.labels :] = 1
    clips = tuple(Clip(patches, grid, 1.0, video=True) for _ in range(TURNS))
    example = Example("synthetic", Sample(np.ones(bucket.tokens, np.int32), tuple(spans), clips), labels, float(TURNS))
    return shard_batch(pad_batch([example] * len(indices), bucket, model), indices, num_sequences, mesh)


def step_columns(model: ModelConfig, bucket: Bucket, num_sequences: int, seconds: float) -> dict[str, Any]:
    import jax

    from svlm_jax.train import flops

    sample_flops = flops.sample_flops(model, *sample_sizes(bucket), vision_trained=False)
    device_flops = num_sequences * sample_flops / seconds / jax.device_count()
    peak_flops = flops.peak_flops(jax.devices()[0].device_kind)
    peak_bytes = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return {
        "sequences": num_sequences,
        "tokens": bucket.tokens,
        "step (s)": round(seconds, 3),
        "tokens/s": round(num_sequences * bucket.tokens / seconds, 1),
        "TFLOP/s per device": round(device_flops / 1e12, 2),
        "MFU (%)": "-" if peak_flops is None else round(100 * device_flops / peak_flops, 1),
        "device memory, peak (GB)": "-" if peak_bytes is None else round(peak_bytes / 1e9, 2),
    }


def sample_sizes(bucket: Bucket) -> tuple[int, int, int, int]:
    """Tokens, labels, patches and patches of a frame of a synthetic sample."""
    _, height, width = frame_grid(bucket.patches // TURNS)
    return bucket.tokens, bucket.labels, TURNS * height * width, height * width


def frame_grid(max_patches: int) -> tuple[int, int, int]:
    """(t, h, w) of the frame pair nearest to a square, with even sides."""
    side = int(max_patches**0.5) // 2 * 2
    return 1, side, max_patches // side // 2 * 2


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--shape", default="3b", help=f"{SHAPES}; with --topology several with commas, no small ones (default 3b)"
    )
    parser.add_argument("--topology", help="memory on these devices instead, which need not exist: h100x8, v5p-64 ...")
    parser.add_argument("--tokens", type=integer(1), default=20480, help="of a sequence (default 20480)")
    parser.add_argument("--patches", type=integer(1), default=69120, help="of a sequence (default 69120: 24 s of 720p)")
    parser.add_argument("--labels", type=integer(1), default=1024, help="tokens with loss of a sequence (default 1024)")
    parser.add_argument("--batch-size", type=integer(1), default=1, help="sequences of a step, over all devices (default 1)")
    parser.add_argument("--tensor", type=integer(1), default=1, help="size of the mesh axis tensor (with --topology)")
    remat_help = "rematerialisation (default auto; with --topology that is a row for each policy)"
    parser.add_argument("--remat", choices=("auto", *get_args(Remat)), default="auto", help=remat_help)
    parser.add_argument("--attention", choices=get_args(Attention), default="auto", help="kernels (default auto)")
    parser.add_argument("--name", help="of the entry in docs/benchmarks")
