"""From uint8 frames to the patches that a vision tower reads: size rule, resize, normalise, patchify.

Owns every number that decides which pixels the model sees. Does not know files, time, tokens or devices (numpy and PIL
only). Units: raw pixels (0..255) before `normalise`, standard deviations after; sizes in pixels, height before width.
Axes: F frames · H, W pixels · P = t*h*w patches · C = 3 * temporal_patch_size * patch_size**2 numbers a patch (1176 or 1536).
"""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from einops import rearrange
from PIL import Image

from svlm_jax.config import CLIP_MEAN, CLIP_STD, VisionConfig
from svlm_jax.errors import InputError

_KEYS = {"mean": "image_mean", "std": "image_std", "rescale": "rescale_factor"}  # a field's name in the files
SMALL = 1 << 20  # bytes of frames that are resized faster than threads start
MAX_ASPECT_RATIO = 200  # the Qwen rule: beyond it one side of the resized frame has nothing left to show
# Bounds on what a file may ask for: more pixels than the model takes at once, beyond any patch. A larger min_pixels would
# enlarge every frame until it fills the memory.
MAX_BOUNDS = {"min_pixels": 1 << 25, "max_pixels": 1 << 40}
MAX_SIZE = 256  # of a patch or a merge
PIL_BICUBIC = 3  # `resample` in the JSON files is PIL's enumeration
STREAM_TOKENS = (100, 768)  # StreamingVLM: least and most of a frame of video


@dataclass(frozen=True)
class PixelConfig:
    """How pixels are prepared. The sides of a resized frame are multiples of `factor` = patch_size * merge_size: 28 pixels in
    Qwen2-VL and Qwen2.5-VL, 32 in Qwen3-VL.

    Attributes:
        min_pixels, max_pixels: bounds on height * width of one resized frame.
        patch_size: pixels on a side of a patch.
        merge_size: patches on a side of one vision token.
        temporal_patch_size: frames in a patch.
        mean, std: per channel (R, G, B), after rescaling.
        rescale: factor on raw pixels, before mean and std.
    """

    min_pixels: int
    max_pixels: int
    patch_size: int = 14
    merge_size: int = 2
    temporal_patch_size: int = 2
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    rescale: float | int = 1 / 255

    def __post_init__(self) -> None:
        _validate({f.name: getattr(self, f.name) for f in fields(self)}, "PixelConfig", {})

    @property
    def factor(self) -> int:
        return self.patch_size * self.merge_size

    @classmethod
    def of(cls, vision: VisionConfig, min_pixels: int, max_pixels: int) -> "PixelConfig":
        """The patches and the normalisation of a model."""
        patches = (vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size)
        return cls(min_pixels, max_pixels, *patches, mean=vision.image_mean, std=vision.image_std)

    def has_norm_of(self, vision: VisionConfig) -> bool:
        """Whether the model's vision tower normalises raw uint8 patches as this says."""
        return (self.mean, self.std) == (vision.image_mean, vision.image_std) and abs(self.rescale * 255 - 1) < 1e-9

    def to_dict(self) -> dict[str, Any]:
        """What `from_dict` reads."""
        return {_KEYS.get(f.name, f.name): getattr(self, f.name) for f in fields(self)}

    @classmethod
    def from_dict(cls, d: object, source: str) -> "PixelConfig":
        """Read a Hugging Face `preprocessor_config.json`, `video_preprocessor_config.json`, or half of a
        `processor_config.json`.

        The pixel bounds are `min_pixels`/`max_pixels`, else `size: {shortest_edge, longest_edge}` (areas, whatever the
        names say). Patch sizes and `rescale_factor` may be absent, as in older files. `source` is the file's name.

        Raises:
            InputError: bounds, mean or std missing, a wrong value, or a step asked for that is not the one taken here.
        """
        if not isinstance(d, dict):
            raise InputError(source, f"a JSON {type(d).__name__}", "a JSON object", "copy the file from the model's repository")
        for key in ("do_resize", "do_rescale", "do_normalize"):
            if d.get(key) is False:
                raise InputError(f"{source}: {key}", "false", "true", "remove the key: this step is always taken")
        if d.get("resample") not in (None, PIL_BICUBIC):
            raise InputError(f"{source}: resample", repr(d["resample"]), "3 (bicubic)", "set it to 3 or remove the key")
        size = d["size"] if isinstance(d.get("size"), dict) else {}
        keys = dict(_KEYS)
        settings = {f.name: d.get(keys.get(f.name, f.name)) for f in fields(cls)}
        for name, edge in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")):
            if settings[name] is None:
                settings[name], keys[name] = size.get(edge), f"{name} (or size.{edge})"
        required = ("min_pixels", "max_pixels", "mean", "std")
        values: dict = {k: v for k, v in settings.items() if v is not None or k in required}
        _validate(values, source, keys)
        values["mean"], values["std"] = (tuple(map(float, values[k])) for k in ("mean", "std"))
        return cls(**values)


def _validate(values: dict, source: str, keys: dict[str, str]) -> None:
    """Raise InputError for the first wrong value; `keys` maps a field to its name in the user's file."""
    for name, value in values.items():
        if name in ("mean", "std"):
            ok = isinstance(value, (tuple, list)) and len(value) == 3 and all(_is_number(v) for v in value)
            ok, expected = ok and (name == "mean" or all(v > 0 for v in value)), "3 numbers (std above 0)"
        elif name == "rescale":
            ok, expected = _is_number(value) and value > 0, "a number above 0, normally 1/255"
        else:
            bound = MAX_BOUNDS.get(name, MAX_SIZE)
            ok = isinstance(value, int) and _is_number(value) and 0 < value <= bound
            expected = f"a whole number above 0, at most {bound}"
        if not ok:
            field, got = f"{source}: {keys.get(name, name)}", "nothing" if value is None else repr(value)
            raise InputError(field, got, expected, "use the value of the model's own file")
    if values["min_pixels"] > values["max_pixels"]:
        raise InputError(f"{source}: min_pixels", values["min_pixels"], f"<= {values['max_pixels']}", "raise max_pixels")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1 << 60  # finite, and no NaN


def stream_frame(vision: VisionConfig) -> PixelConfig:
    """StreamingVLM's bounds on a frame of video. They are tokens: for patches of 14 pixels that are merged 2 by 2, 100 to 768
    times 28 * 28 pixels; for patches of 16, times 32 * 32."""
    pixels = (vision.patch_size * vision.spatial_merge_size) ** 2
    return PixelConfig.of(vision, *(tokens * pixels for tokens in STREAM_TOKENS))


def smart_resize(height: int, width: int, config: PixelConfig) -> tuple[int, int]:
    """The (height, width) that a frame is resized to: multiples of `factor`, area within the bounds, shape kept.

    Each side goes to the nearest multiple (ties to the even one); when that leaves the bounds, the frame is scaled to
    the bound and the sides rounded down (too large) or up (too small). Source: `smart_resize` of Qwen2-VL.
    Raises InputError for a side below 1 px or an aspect ratio above 200.
    """
    if min(height, width) < 1:
        raise InputError("frame size", f"{width}x{height} px", "at least 1x1 px", "leave this frame out")
    if (ratio := max(height, width) / min(height, width)) > MAX_ASPECT_RATIO:
        got = f"{width}x{height} px (aspect ratio {ratio:g})"
        raise InputError("frame size", got, f"an aspect ratio of at most {MAX_ASPECT_RATIO}", "crop or pad it")
    factor = config.factor
    rows, columns = round(height / factor) * factor, round(width / factor) * factor
    if rows * columns > config.max_pixels:
        shrink = math.sqrt(height * width / config.max_pixels)
        rows = max(factor, math.floor(height / shrink / factor) * factor)
        columns = max(factor, math.floor(width / shrink / factor) * factor)
    elif rows * columns < config.min_pixels:
        grow = math.sqrt(config.min_pixels / (height * width))
        rows, columns = math.ceil(height * grow / factor) * factor, math.ceil(width * grow / factor) * factor
    return rows, columns


def resize(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 [H, W, 3] -> uint8 [height, width, 3], antialiased bicubic as PIL does it; the same array if it fits.

    Columns, then rows, as two calls: each pass rounds to uint8, and which comes first depends on PIL's version and the size
    (13 takes rows first for 640x480). So the pixels are the same with every PIL.
    """
    if frame.shape[:2] == (height, width):
        return frame
    narrowed = Image.fromarray(frame).resize((width, frame.shape[0]), Image.Resampling.BICUBIC)
    return np.asarray(narrowed.resize((width, height), Image.Resampling.BICUBIC))


def normalise(frames: np.ndarray, config: PixelConfig) -> np.ndarray:
    """Raw uint8 [F, H, W, 3] -> float32 [F, H, W, 3] standard deviations.

    Bit-equal to transformers' `Qwen2VLImageProcessorPil`: pixel * rescale in float64, rounded to float32, then minus
    mean and divided by std in float32. The torch processors (so the video one) fold rescale into mean and std instead,
    `(pixel - mean * 255) / (std * 255)`, which rounds once less: the two differ by less than 1e-6.
    """
    mean, std = (np.tile(np.asarray(v, np.float32), (frames.shape[2], 1)) for v in (config.mean, config.std))
    return _standardise(frames, mean, std, config)  # tiled to [W, 3]: numpy is slow with an inner axis of 3


def _standardise(raw: np.ndarray, mean: np.ndarray, std: np.ndarray, config: PixelConfig) -> np.ndarray:
    out = np.empty(raw.shape, np.float32)
    np.multiply(raw, config.rescale, out=out, dtype=np.float64, casting="unsafe")  # in blocks: no float64 copy
    out -= mean
    out /= std
    return out


def patchify(frames: np.ndarray, config: PixelConfig) -> tuple[np.ndarray, tuple[int, int, int]]:
    """[F, H, W, 3] of any dtype -> (patches [P, C] of that dtype, grid (t, h, w) counted in patches).

    Patches go by (t, h/2, w/2, 2, 2), so that the four of one vision token are neighbours; the numbers in a patch by
    (channel, frame, row, column). An odd last frame is repeated, as is a lone image.

    Raises:
        InputError: no frames.
        ValueError: not [F, H, W, 3], or a side that is no multiple of `factor`.
    """
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.shape[1] % config.factor or frames.shape[2] % config.factor:
        raise ValueError(f"frames: got {frames.shape}, expected [F, H, W, 3] with H, W multiples of {config.factor}")
    if not len(frames):
        raise InputError("frames", "none", "at least 1", "check the start and the duration of the video")
    pairs, merge, patch = config.temporal_patch_size, config.merge_size, config.patch_size
    if missing := -len(frames) % pairs:
        frames = np.concatenate([frames, np.repeat(frames[-1:], missing, axis=0)])
    pattern = "(t a) (h m p) (w n q) c -> (t h w m n) (c a p q)"
    patches = rearrange(frames, pattern, a=pairs, m=merge, n=merge, p=patch, q=patch)
    return patches, (len(frames) // pairs, frames.shape[1] // patch, frames.shape[2] // patch)


def preprocess(frames: np.ndarray, config: PixelConfig, *, raw: bool = False) -> tuple[np.ndarray, tuple[int, int, int]]:
    """One image (F = 1) or one clip, uint8 [F, H, W, 3] -> (patches float32 [P, C], grid (t, h, w)).

    Equal to resize, normalise, patchify in this order; patchify runs first on bytes because that moves a quarter.

    Args:
        raw: leave the patches as uint8 pixels, a quarter of the bytes, for a vision tower to normalise
            (`PixelConfig.has_norm_of`).

    Raises:
        InputError: no frames, not uint8 [F, H, W, 3], or a size that `smart_resize` refuses.
    """
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or not len(frames):
        got = f"{frames.dtype} {list(frames.shape)}"
        raise InputError("frames", got, "uint8 [F, H, W, 3] with F >= 1", "read them with svlm_jax.media.video")
    height, width = smart_resize(frames.shape[1], frames.shape[2], config)
    if frames.shape[1:3] != (height, width):
        if frames.size < SMALL:
            frames = np.stack([resize(frame, height, width) for frame in frames])
        else:  # PIL releases the interpreter lock; this is most of the cost
            with ThreadPoolExecutor() as pool:
                frames = np.stack(list(pool.map(lambda frame: resize(frame, height, width), frames)))
    patches, grid = patchify(frames, config)
    if raw:
        return patches, grid
    mean, std = (np.asarray(v, np.float32)[:, None] for v in (config.mean, config.std))
    by_channel = rearrange(patches, "p (c n) -> p c n", c=3)
    return _standardise(by_channel, mean, std, config).reshape(patches.shape), grid
