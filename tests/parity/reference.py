"""The other side of every parity test: small transformers models, prompts that both libraries take, what torch makes of them.

A test module that imports this one is skipped where torch is missing. Prompts are written as a tuple of pieces: a number is
that many random text tokens, a `Picture` an image or a clip. Token structure is known from the pieces, never from the ids.

Axes: B batch, T tokens, P patches, E vision width, D width, V vocabulary.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from svlm_jax.checkpoint import huggingface
from svlm_jax.config import ModelConfig, VisionConfig
from svlm_jax.families import FAMILIES, config_json
from svlm_jax.inputs import Clip, Grid, Inputs, Sample, window_order
from svlm_jax.model.parameters import from_parameters
from svlm_jax.model.vlm import QwenVL
from svlm_jax.spans import Kind, Span, positions, vision_span

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from transformers.vision_utils import get_vision_window_index  # noqa: E402

TOLERANCE = 2e-5  # largest difference as a share of the largest torch value, float32; ten times what rounding gives
VISION_START, VISION_END, IMAGE, VIDEO = 306, 307, 308, 309  # in the vocabulary of 313 of the random models
TEXT_IDS = 300  # text tokens are below

_TEXT = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")


class Shape(NamedTuple):
    """A random model: its family, sizes of its text model in the order of `_TEXT`, rotary sections, and its vision section as
    the library writes it. head_dim: where it is not hidden_size / num_attention_heads."""

    family: str
    text: tuple[int, ...]
    sections: list[int]
    vision: dict[str, Any]
    tied: bool = False
    head_dim: int = 0


def _qwen2_5(width: int, mlp: int, depth: int, heads: int, window: int, full: list[int], out: int) -> dict[str, Any]:
    vision = {"hidden_size": width, "intermediate_size": mlp, "depth": depth, "num_heads": heads, "window_size": window}
    return vision | {"fullatt_block_indexes": full, "out_hidden_size": out, "tokens_per_second": 2}


def _qwen2(width: int, ratio: int, depth: int, heads: int, out: int) -> dict[str, Any]:
    return {"embed_dim": width, "mlp_ratio": ratio, "depth": depth, "num_heads": heads, "hidden_size": out}


def _qwen3(width: int, mlp: int, depth: int, heads: int, side: int, deepstack: list[int], out: int) -> dict[str, Any]:
    vision = {"hidden_size": width, "intermediate_size": mlp, "depth": depth, "num_heads": heads, "out_hidden_size": out}
    return vision | {"num_position_embeddings": side**2, "deepstack_visual_indexes": deepstack}


# Grouped queries 7:1, head_dim 8 and 16, vision head_dim 20, MLP widths and a vocabulary that do not divide by 8.
SHAPES = {
    "seven_to_one": Shape("qwen2_5_vl", (56, 90, 3, 7, 1), [1, 2, 1], _qwen2_5(40, 54, 3, 2, 112, [1], 56)),
    "tied_wide_heads": Shape("qwen2_5_vl", (224, 300, 2, 14, 2), [2, 3, 3], _qwen2_5(60, 50, 3, 3, 56, [0, 2], 224), tied=True),
    "wide_256": Shape("qwen2_5_vl", (256, 500, 4, 8, 2), [4, 6, 6], _qwen2_5(160, 300, 4, 2, 112, [1, 3], 256)),
    "qwen2_vl": Shape("qwen2_vl", (56, 90, 2, 7, 1), [1, 2, 1], _qwen2(40, 3, 2, 2, 56)),
    "qwen2_vl_tied": Shape("qwen2_vl", (96, 130, 2, 6, 2), [2, 3, 3], _qwen2(48, 2, 3, 3, 96), tied=True),
    "qwen2_vl_256": Shape("qwen2_vl", (256, 500, 4, 8, 2), [4, 6, 6], _qwen2(160, 2, 4, 2, 256)),
    # A decoder layer without DeepStack after two with it, a tower with head_dim 72, tables of 8 x 8 and 5 x 5 positions.
    "qwen3_vl": Shape("qwen3_vl", (56, 90, 3, 4, 2), [6, 3, 3], _qwen3(144, 150, 3, 2, 8, [0, 1], 56), head_dim=24),
    "qwen3_vl_tied": Shape("qwen3_vl", (96, 130, 2, 6, 2), [6, 5, 5], _qwen3(40, 90, 3, 2, 5, [1], 96), True, head_dim=32),
    "qwen3_vl_256": Shape("qwen3_vl", (256, 500, 4, 8, 2), [8, 8, 8], _qwen3(160, 300, 4, 2, 8, [0, 1, 3], 256), head_dim=48),
}


class Pair(NamedTuple):
    """One set of weights in both libraries, and the directory they were read from."""

    torch: Any
    model: QwenVL
    config: ModelConfig
    directory: Path


def library_config(name: str) -> Any:
    """The transformers config of a random model."""
    shape = SHAPES[name]
    rope = {"type": "mrope", "mrope_section": shape.sections, "rope_theta": 1e6}
    text = dict(zip(_TEXT, shape.text, strict=True))
    text |= {"vocab_size": 313, "rms_norm_eps": 1e-6, "rope_scaling": rope, "dtype": "float32"}
    if shape.family == "qwen3_vl":
        rope = {"mrope_interleaved": True, "mrope_section": shape.sections, "rope_theta": 5e6, "rope_type": "default"}
        text |= {"rope_scaling": rope, "head_dim": shape.head_dim}
        text |= {"tie_word_embeddings": True} if shape.tied else {}  # as in the published files
    return getattr(transformers, FAMILIES[shape.family].architecture.replace("ForConditionalGeneration", "Config"))(
        text_config=text | {"bos_token_id": 310, "eos_token_id": 311},
        vision_config=shape.vision | {"dtype": "float32"},
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
        tie_word_embeddings=shape.tied,
        dtype="float32",
    )


def library_class(model_type: str) -> Any:
    """The library's class of the models of a family."""
    return getattr(transformers, FAMILIES[model_type].architecture)


def randomise(model: Any, seed: int) -> None:
    """Weights that show every mistake: outputs of order 1, norms off 1, biases off 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("bias"):
                parameter.copy_(0.2 * noise)
            elif parameter.ndim == 1:
                parameter.copy_(1 + 0.2 * noise)
            else:
                parameter.copy_(noise * min(0.2, max(0.05, parameter[0].numel() ** -0.5)))


def read_torch(directory: Path, dtype: Any = None) -> Any:
    """A checkpoint in transformers, with plain softmax attention; float32 unless said otherwise."""
    options = {"dtype": dtype or torch.float32, "attn_implementation": "eager", "local_files_only": True}
    return library_class(config_json.read(directory).model_type).from_pretrained(directory, **options).eval()


def read_jax(directory: Path, **changes: Any) -> tuple[QwenVL, ModelConfig]:
    """A checkpoint here; `changes` to its config by name."""
    config = replace(config_json.read(directory), **changes)
    return from_parameters(config, huggingface.load(directory, config)), config


def random_checkpoint(name: str, directory: Path, seed: int = 0) -> Path:
    """A random model of `SHAPES`, written by transformers."""
    model = library_class(SHAPES[name].family)(library_config(name))
    randomise(model, seed)
    model.save_pretrained(directory)
    return directory


class Picture(NamedTuple):
    """An image, or a clip taken at `fps`: grid (t, h, w) in patches."""

    grid: tuple[int, int, int]
    fps: float | None = None


Piece = int | Picture


def image(h: int, w: int) -> Picture:
    return Picture((1, h, w))


def video(t: int, h: int, w: int, fps: float = 2.0) -> Picture:
    return Picture((t, h, w), fps)


def make_sample(pieces: Sequence[Piece], config: ModelConfig, seed: int) -> Sample:
    """Random tokens and random patches of standard deviation 1, with vision markers around every picture; in a family with time
    stamps around each temporal patch of a clip, with three random tokens for its stamp."""
    rng = np.random.default_rng(seed)
    ids: list[int] = []
    spans: list[Span] = []
    clips: list[Clip] = []

    def say(tokens: Sequence[int]) -> None:
        ids.extend(tokens)
        spans.append(Span(Kind.USER_TEXT, len(tokens)))

    for piece in pieces:
        if isinstance(piece, int):
            say(rng.integers(0, TEXT_IDS, piece).tolist())
            continue
        step = 1.0 if piece.fps is None else config.vision.temporal_step(piece.fps)
        patches = rng.normal(size=(int(np.prod(piece.grid)), config.vision.patch_dim)).astype(np.float32)
        clips.append(Clip(patches, piece.grid, step, video=piece.fps is not None))
        blocks = _blocks(clips[-1], config)
        for grid in blocks:
            stamp = rng.integers(0, TEXT_IDS, 3 if piece.fps and _has_stamps(config) else 0).tolist()
            span = vision_span(grid, step=step)
            say([*stamp, config.vision_start_token_id])
            ids.extend([config.image_token_id if piece.fps is None else config.video_token_id] * span.length)
            spans.append(span)
            say([config.vision_end_token_id])
    return Sample(np.array(ids, np.int32), tuple(spans), tuple(clips))


def _has_stamps(config: ModelConfig) -> bool:
    return FAMILIES[config.model_type].chat.frame_text is not None


def _blocks(clip: Clip, config: ModelConfig) -> list[Grid]:
    """Grids of the vision blocks of an image or a clip."""
    t, h, w = clip.grid
    return [(1, h, w)] * t if clip.video and _has_stamps(config) else [clip.grid]


def make_samples(prompts: Sequence[Sequence[Piece]], config: ModelConfig, seed: int = 0) -> list[Sample]:
    return [make_sample(pieces, config, seed=100 * seed + number) for number, pieces in enumerate(prompts)]


def our_positions(samples: Sequence[Sample], side: str) -> Any:
    """Positions of the spans, as torch takes them: float32 [3, B, T], padded to the longest."""
    size = max(len(sample.ids) for sample in samples)
    place = np.zeros((3, len(samples), size), np.float32)
    for b, sample in enumerate(samples):
        place[:, b, _where(len(sample.ids), size, side)] = positions(sample.spans)
    return torch.from_numpy(place)


def their_positions(model: Any, samples: Sequence[Sample], config: ModelConfig, side: str = "right") -> list[np.ndarray]:
    """Positions that the library gives, [n, 3] a sample."""
    inputs = torch_inputs(samples, config, side)
    names = ("input_ids", "image_grid_thw", "video_grid_thw", "second_per_grid_ts", "attention_mask")
    types = inputs.get("mm_token_type_ids", torch.zeros_like(inputs["input_ids"]))
    found = model.model.get_rope_index(mm_token_type_ids=types, **{name: inputs.get(name) for name in names})[0]
    return real_tokens(found.permute(1, 2, 0), samples, side)


def torch_inputs(samples: Sequence[Sample], config: ModelConfig, side: str = "right", dtype: Any = None) -> dict[str, Any]:
    """What the library's forward and generate take for these samples, padded to the longest."""
    size = max(len(sample.ids) for sample in samples)
    ids, mask, types = (torch.zeros((len(samples), size), dtype=torch.long) for _ in range(3))
    for b, sample in enumerate(samples):
        here = _where(len(sample.ids), size, side)
        ids[b, here] = torch.from_numpy(sample.ids).long()
        mask[b, here] = 1
        flags = iter(2 if clip.video else 1 for clip in sample.clips for _ in _blocks(clip, config))
        kinds = np.concatenate([np.full(span.length, 0 if span.grid is None else next(flags)) for span in sample.spans])
        types[b, here] = torch.from_numpy(kinds).long()
    result = {"input_ids": ids, "attention_mask": mask}
    for video_, pixels, grids in ((False, "pixel_values", "image_grid_thw"), (True, "pixel_values_videos", "video_grid_thw")):
        clips = [clip for sample in samples for clip in sample.clips if clip.video == video_]
        if clips:
            result[pixels] = torch.from_numpy(np.concatenate([clip.patches for clip in clips])).to(dtype or torch.float32)
            result[grids] = torch.tensor([clip.grid for clip in clips])
            result["mm_token_type_ids"] = types.int()
        if clips and video_ and config.vision.tokens_per_second:
            result["second_per_grid_ts"] = torch.tensor([clip.step / config.vision.tokens_per_second for clip in clips])
    return result


def _where(length: int, size: int, side: str) -> slice:
    return slice(size - length, size) if side == "left" else slice(0, length)


def real_tokens(values: Any, samples: Sequence[Sample], side: str) -> list[np.ndarray]:
    """[B, T, ...] of either library, padded on `side` -> one array without padding a sample."""
    values = as_numpy(values)
    return [values[b, _where(len(sample.ids), values.shape[1], side)] for b, sample in enumerate(samples)]


def as_numpy(values: Any) -> np.ndarray:
    return values.detach().float().numpy() if isinstance(values, torch.Tensor) else np.asarray(values, np.float32)


def pad_tokens(values: Sequence[np.ndarray], inputs: Inputs) -> np.ndarray:
    """One array a sample -> float32 [B, T, ...] where `inputs` has its tokens, zeros elsewhere."""
    out = np.zeros((*inputs.ids.shape, *values[0].shape[1:]), np.float32)
    out[inputs.index >= 0] = np.concatenate(values)
    return out


@dataclass
class Trace:
    """What torch hooks saw in one forward: inputs and outputs of every call, by module name. deepstack: [B, T, D] that is added
    after each of the first decoder layers. rotary: cosines and sines of the decoder, [B, T, H]."""

    inputs: dict[str, list[np.ndarray]]
    outputs: dict[str, list[np.ndarray]]
    logits: Any
    deepstack: list[np.ndarray]
    rotary: np.ndarray | None


def trace(model: Any, inputs: dict[str, Any]) -> Trace:
    """One forward of the library with every rung of the ladder recorded."""
    seen = Trace(defaultdict(list), defaultdict(list), None, [], None)
    visual, text = model.model.visual, model.model.language_model
    modules = {"patch_embed": visual.patch_embed, "merger": visual.merger, "norm": text.norm}
    modules |= {f"block{i}": block for i, block in enumerate(visual.blocks)}
    modules |= {f"layer{i}": layer for i, layer in enumerate(text.layers)}
    modules |= {f"deepstack{i}": merger for i, merger in enumerate(getattr(visual, "deepstack_merger_list", ()))}

    def record(name: str):
        def hook(_module, args, kwargs, out):
            first = args[0] if args else kwargs["hidden_states"]
            seen.inputs[name].append(as_numpy(first))
            seen.outputs[name].append(as_numpy(out[0] if isinstance(out, tuple) else out))

        return hook

    def tower(_module, _args, _kwargs, out):
        seen.outputs["tower"].append(as_numpy(out.pooler_output))

    def rotary(_module, _args, _kwargs, out):
        seen.rotary = np.concatenate([as_numpy(part)[..., : part.shape[-1] // 2] for part in out], axis=-1)

    def decoder(_module, _args, kwargs, out):
        for features in kwargs.get("deepstack_visual_embeds") or ():
            added = torch.zeros_like(out.last_hidden_state)
            added[kwargs["visual_pos_masks"]] = features
            seen.deepstack.append(as_numpy(added))

    handles = [module.register_forward_hook(record(name), with_kwargs=True) for name, module in modules.items()]
    hooks = ((visual, tower), (text, decoder), (text.rotary_emb, rotary))
    handles += [module.register_forward_hook(hook, with_kwargs=True) for module, hook in hooks]
    try:
        with torch.no_grad():
            seen.logits = model(**inputs, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()
    return seen


def by_clip(calls: Sequence[np.ndarray], samples: Sequence[Sample], patches_a_row: int) -> list[list[np.ndarray]]:
    """Outputs of the library's tower (one call for all images, then one for all clips) -> [sample][clip] rows."""
    order = [
        (b, c) for flag in (False, True) for b, s in enumerate(samples) for c, clip in enumerate(s.clips) if clip.video == flag
    ]
    counts = [len(samples[b].clips[c].patches) // patches_a_row for b, c in order]
    parts = dict(zip(order, np.split(np.concatenate(calls), np.cumsum(counts)[:-1]), strict=True))
    return [[parts[b, c] for c in range(len(sample.clips))] for b, sample in enumerate(samples)]


def from_their_windows(rows: np.ndarray, grid: tuple[int, int, int], config: VisionConfig) -> np.ndarray:
    """Rows (patches or merged units) in the library's window order -> patchify order."""
    if not config.window_size:
        return rows
    sizes = config.spatial_merge_size, config.window_size, config.patch_size
    return _scatter(rows, get_vision_window_index(torch.tensor([grid]), *sizes)[0].numpy())


def from_our_windows(rows: np.ndarray, grid: tuple[int, int, int], config: VisionConfig) -> np.ndarray:
    """Rows in the order of `inputs.window_order` -> patchify order."""
    return _scatter(rows, window_order(grid, config)[0])


def to_our_windows(rows: np.ndarray, grid: tuple[int, int, int], config: VisionConfig) -> np.ndarray:
    """The inverse of `from_our_windows`."""
    units = window_order(grid, config)[0]
    return rows.reshape(len(units), -1, rows.shape[-1])[units].reshape(rows.shape)


def _scatter(rows: np.ndarray, units: np.ndarray) -> np.ndarray:
    grouped = rows.reshape(len(units), -1, rows.shape[-1])
    out = np.empty_like(grouped)
    out[units] = grouped
    return out.reshape(rows.shape)


def ratio(ours: Any, theirs: Any) -> float:
    """Largest difference as a share of the largest value of the reference; nan when ours has one."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape, f"shape {ours.shape} instead of {theirs.shape}"
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())
