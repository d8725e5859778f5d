"""Samples of a step, and how fast: counted on this host's rows, reported for the rows of all hosts.

Hosts may hold the same rows (tensor or context over hosts): the total is this host's count times all rows over its own rows,
not times the number of hosts. Units: seconds, samples.
"""

import re
from collections.abc import Iterable
from typing import Any

import jax
from jax.sharding import Mesh

from svlm_jax.config import ModelConfig
from svlm_jax.data.pipeline import Example
from svlm_jax.train import flops

MATRICES = r"text\.layers\..*\.kernel"  # if one of them is trainable, FLOPs are counted as if all had gradients


class Workload:
    """What converts counts of samples to FLOPs and totals: the same for all steps of a run."""

    def __init__(self, model: ModelConfig, trainable: Iterable[str], mesh: Mesh, host_rows: int, micro_batch_size: int) -> None:
        """Args:
        trainable: paths of trainable parameters.
        host_rows: rows of a micro-batch that this host holds.
        """
        paths = list(trainable)
        # Rows of all hosts over rows of this one: what counts on this host are multiplied with.
        self.model, self.mesh, self.rows_ratio = model, mesh, micro_batch_size / host_rows
        self.gradients = {
            "vision_trained": any(path.startswith("vision.") for path in paths),
            "text_trained": any(re.fullmatch(MATRICES, path) for path in paths),
        }


class StepStats:
    """Counts over the micro-batches of one step on this host, without padding except `padded_tokens`."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self.tokens = self.padded_tokens = self.labels = 0
        self.video_seconds = self.flops = 0.0
        self.ids: list[str] = []

    def add(self, examples: list[Example], padded_tokens: int) -> None:
        self.padded_tokens += padded_tokens
        self.ids += [example.id for example in examples]
        for example in examples:
            if example.sample is None:
                continue
            # The first token is predicted from nothing: a label of it has no loss.
            tokens, labels = len(example.sample.ids), int((example.labels[1:] >= 0).sum())
            grids = [clip.grid for clip in example.sample.clips]
            patches, frame_patches = sum(t * h * w for t, h, w in grids), max((h * w for _, h, w in grids), default=0)
            workload = self.workload
            self.flops += flops.sample_flops(workload.model, tokens, labels, patches, frame_patches, **workload.gradients)
            self.tokens, self.labels = self.tokens + tokens, self.labels + labels
            self.video_seconds += example.seconds

    def rates(self, seconds: float | int) -> dict[str, Any]:
        """Metrics of a step that took so long: of all hosts together; TFLOP/s and MFU of a device of the mesh."""
        ratio, devices = self.workload.rows_ratio, self.workload.mesh.devices.flat
        achieved = ratio * self.flops / seconds / self.workload.mesh.size
        peak_flops = flops.peak_flops(devices[0].device_kind)
        return {
            "tokens_per_second": round(ratio * self.tokens / seconds, 1),
            "labels_per_second": round(ratio * self.labels / seconds, 1),
            "video_seconds_per_second": round(ratio * self.video_seconds / seconds, 3),
            "padding_fraction": round(1 - self.tokens / max(1, self.padded_tokens), 4),
            "tflops_per_device": round(achieved / 1e12, 4),
            "mfu": None if peak_flops is None else round(achieved / peak_flops, 4),
            "peak_memory_bytes": (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use"),
        }
