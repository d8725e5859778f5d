"""What went through a step, and how fast: of this host's rows, told for the rows of all.

Hosts may hold the same rows (tensor or context over hosts): what a step took is this host's share times the rows of all over
its own, not times the hosts. Units: seconds, samples.
"""

import re
from collections.abc import Iterable
from typing import Any

import jax
from jax.sharding import Mesh

from svlm_jax.config import ModelConfig
from svlm_jax.data.pipeline import Batch, Example
from svlm_jax.train import flops

MATRICES = r"text\.layers\..*\.kernel"  # one of them trained, and all are given gradients, as far as FLOPs are counted


class Work:
    """How what a step takes is counted: the same for all steps of a run."""

    def __init__(self, model: ModelConfig, trained: Iterable[str], mesh: Mesh, rows: int, micro_batch: int) -> None:
        """Args:
        trained: paths of trained parameters.
        rows: of a micro-batch, that this host holds.
        """
        paths = list(trained)
        self.model, self.mesh, self.share = model, mesh, micro_batch / rows
        self.trained = {
            "vision_trained": any(path.startswith("vision.") for path in paths),
            "text_trained": any(re.fullmatch(MATRICES, path) for path in paths),
        }


class Seen:
    """What went through one step on this host."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.tokens = self.room = self.learned = 0
        self.seconds = self.flops = 0.0
        self.ids: list[str] = []

    def add(self, examples: list[Example], padded: Batch) -> None:
        self.room += padded.inputs.ids.size
        self.ids += [example.id for example in examples]
        for example in examples:
            if example.sample is None:
                continue
            tokens, learned = len(example.sample.ids), int((example.labels[1:] >= 0).sum())
            grids = [clip.grid for clip in example.sample.clips]
            patches, frame = sum(t * h * w for t, h, w in grids), max((h * w for _, h, w in grids), default=0)
            needs = flops.sample_flops(self.work.model, tokens, learned, patches, frame, **self.work.trained)
            self.tokens, self.learned = self.tokens + tokens, self.learned + learned
            self.seconds, self.flops = self.seconds + example.seconds, self.flops + needs

    def rates(self, seconds: float | int) -> dict[str, Any]:
        """Of all hosts together; TFLOP/s and MFU a device of the mesh."""
        share, devices = self.work.share, self.work.mesh.devices.flat
        achieved = share * self.flops / seconds / self.work.mesh.size
        best = flops.peak(devices[0].device_kind)
        return {
            "tokens_per_s": round(share * self.tokens / seconds, 1),
            "learned_tokens_per_s": round(share * self.learned / seconds, 1),
            "video_seconds_per_s": round(share * self.seconds / seconds, 3),
            "padding": round(1 - self.tokens / max(1, self.room), 4),
            "tflops_per_device": round(achieved / 1e12, 4),
            "mfu": None if best is None else round(achieved / best, 4),
            "device_memory_peak": (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use"),
        }
