"""What a run starts from: the model's config, its parameters on the mesh, and the examples it learns from."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from svlm_jax.checkpoint import convert
from svlm_jax.config import ModelConfig
from svlm_jax.data import annotation
from svlm_jax.data.fingerprint import fingerprint, looked_at, videos
from svlm_jax.data.frames import by_second, window_frames
from svlm_jax.data.pipeline import Examples, Window
from svlm_jax.data.records import Records
from svlm_jax.data.tfds import Prepared
from svlm_jax.errors import InputError
from svlm_jax.inputs import Clip, Sample
from svlm_jax.media.pixels import preprocess
from svlm_jax.media.processor import Processor
from svlm_jax.model.parameters import Parameters, shapes
from svlm_jax.sharding import make_mesh, shardings
from svlm_jax.spans import temporal_step
from svlm_jax.train.config import DataConfig, MeshConfig, TrainConfig
from svlm_jax.train.step import split

ADAPTERS = r".*\.lora_[ab]"
FEW = 32  # prepared windows, some MB each, that are looked at to see whether they are the same


def model_config(config: TrainConfig, shape: ModelConfig) -> ModelConfig:
    """A model in the form that is trained: decoder stacked, float32 masters of what is trained."""
    model = shape.compute(config.dtype, "float32")
    changes = {"remat": config.remat, "attention": config.attention}
    return replace(model, scan_layers=True, lora_rank=config.lora_rank, lora_alpha=config.lora_alpha, **changes)


def trained_paths(config: TrainConfig) -> str:
    """Regular expression of what is trained: the adapters, where there are any."""
    return ADAPTERS if config.lora_rank else config.trained


def mesh_of(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    return make_mesh(config.data, config.fsdp, config.context, config.tensor, devices)


def begin(config: TrainConfig, model: ModelConfig, directory: Path, mesh: Mesh) -> tuple[Parameters, Parameters]:
    """(trained, frozen) parameters on the mesh: the checkpoint's, in float32 what is trained and in the compute dtype what is
    frozen, and adapters that change nothing yet."""
    values = convert.load(directory, replace(model, lora_rank=0), mesh)
    missing = {path: leaf for path, leaf in shapes(model).items() if path not in values}
    places = shardings({path: leaf.shape for path, leaf in missing.items()}, mesh)
    for number, (path, leaf) in enumerate(sorted(missing.items())):
        key = jax.random.fold_in(jax.random.key(config.seed), number)
        make = _drawn if path.endswith("lora_a") else _zeros
        values[path] = jax.jit(make, static_argnums=1, out_shardings=places[path])(key, leaf.shape)
    trained, frozen = split(values, trained_paths(config))
    if not trained:
        raise InputError("trained", repr(config.trained), "an expression that matches parameters", r"text\..* is usual")
    cast = jax.jit(lambda x: x.astype(config.dtype), donate_argnums=0) if config.dtype != "float32" else lambda x: x
    return trained, {path: cast(frozen[path]) for path in sorted(frozen)}


def _drawn(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """A of an adapter: as large as the inputs' number allows [*stack, *ins, rank]."""
    return jax.random.normal(key, shape, jnp.float32) / np.sqrt(np.prod(shape[1:-1]))


def _zeros(_: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jnp.zeros(shape, jnp.float32)


class Annotated:
    """Windows from JSONL records and their video files."""

    def __init__(self, records: Records, fps: float | int, root: str) -> None:
        self.records, self.fps, self.root = records, fps, Path(root) if root else None

    def __len__(self) -> int:
        return len(self.records)

    def name(self, number: int) -> str:
        return self.records.name(number)

    def fingerprint(self) -> dict[str, Any]:
        lines = [self._line(number) for number in looked_at(len(self))]
        media = (Path(self.root or "", video) for video in videos(lines))
        return fingerprint(len(self), [self.records.lengths().tobytes(), *(line.rstrip() for line in lines)], media)

    def _line(self, number: int) -> bytes:
        try:
            return self.records[number].line
        except InputError:  # a bad sample, told as one when its turn comes
            return b""

    def __getitem__(self, number: int) -> Window:
        record = self.records[number]
        said = annotation.parse_line(record.line, record.id)
        return Window(record.id, said, window_frames(said, self.fps, self.root))


class Decoded:
    """Windows whose frames were decoded beforehand."""

    def __init__(self, prepared: Prepared, fps: float | int) -> None:
        self.prepared, self.fps = prepared, fps
        if prepared.fps != fps:
            raise InputError("data.fps", fps, f"{prepared.fps:g}, at which {prepared.directory} was made", "set it to that")

    def __len__(self) -> int:
        return len(self.prepared)

    def name(self, number: int) -> str:
        return f"{self.prepared.directory} window {number}"

    def fingerprint(self) -> dict[str, Any]:
        said = [self.prepared.said(number) for number in looked_at(len(self), FEW)]
        return fingerprint(len(self), said, self.prepared.files())

    def __getitem__(self, number: int) -> Window:
        id_, said, frames = self.prepared[number]
        return Window(id_, said, by_second(frames, self.fps))


class Make:
    """A window -> its sample and labels, as the original makes them."""

    def __init__(self, processor: Processor, data: DataConfig) -> None:
        self.processor, self.data = processor, data

    def __call__(self, window: Window) -> tuple[Sample, np.ndarray]:
        model, pixels = self.processor.config, self.processor.video_config
        step = temporal_step(model.vision.tokens_per_second, model.vision.temporal_patch_size, self.data.fps)
        clips = [Clip(*preprocess(frames, pixels, raw=True), step, video=True) for frames in window.frames]
        options = {name: getattr(self.data, name) for name in ("sink", "text_window", "as_streamed", "learn_previous")}
        return annotation.sample(window.annotation, clips, self.processor.tokenizer, model, **options)


def examples(paths: Sequence[str], data: DataConfig, processor: Processor) -> Examples:
    """What is learned from (or evaluated on)."""
    if not paths:
        raise InputError("data.paths", "nothing", "JSONL files, or a directory of svlm windows --tfds", "name them")
    if len(paths) == 1 and Path(paths[0]).is_dir():
        source: Any = Decoded(Prepared(paths[0]), data.fps)
    else:
        source = Annotated(Records(paths), data.fps, data.root)
    if not len(source):
        raise InputError("data.paths", f"no records in {', '.join(paths)}", "at least one", "check the files")
    return Examples(source, Make(processor, data), data.buckets[-1])
