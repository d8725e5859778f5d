"""The compiled session of a server: for frames of any shape that fits into a box, and for streams with settings of their own.

Owns which programs are compiled before the first viewer comes. Knows no stream. Units: pixels. Axes: H, W pixels.
"""

import math

import numpy as np

from svlm_jax.config import ResizeOn, StreamConfig
from svlm_jax.decode.sampling import Sampling
from svlm_jax.inputs import Clip
from svlm_jax.media.pixels import PixelConfig, smart_resize
from svlm_jax.media.resize_weights import FrameBox
from svlm_jax.pretrained import Pretrained
from svlm_jax.serve.sources.images import MAX_ASPECT_RATIO, Box
from svlm_jax.stream.frames import resizes_on_device
from svlm_jax.stream.session import Session
from svlm_jax.stream.warmup import OnProgress, warm

MAX_TOP_K = 50  # the largest top_k that a client may ask for


def session_for(
    vlm: Pretrained,
    config: StreamConfig,
    box: Box,
    num_streams: int,
    sampling: Sampling,
    *,
    resize_on: ResizeOn = "auto",
    max_top_k: int = MAX_TOP_K,
    progress: OnProgress | None = None,
) -> tuple[Session, Clip]:
    """A compiled session for frames that fit into the box, and a black clip of that size.

    Streams may have windows, sampling, rules of silence and alerts of their own without another compilation: the programs do
    what each row of the batch asks for, as long as nothing is larger than here.

    Compiles only the programs for one stream, so that the server is ready early. The engine compiles those for larger batches
    in a thread of its own. Over a mesh all are compiled here.

    Args:
        max_top_k: the largest top_k that a stream may sample with; 0: the whole vocabulary. It is the length of what is sorted
            for each token, so it costs all streams, also those that ask for less. At least that of `sampling`.
    """
    black = np.zeros((config.chunk_frames, box.height, box.width, 3), np.uint8)
    pixels, frame_box = vlm.processor.video_config, None
    if resizes_on_device(resize_on, vlm.processor, config):
        clip = vlm.processor.frames(black, fps=config.fps)
        # Sides are rounded when a picture is fitted into the box: a small one may be a little longer than it was.
        frame_box = FrameBox.largest(len(black), box.height, box.width, pixels, max_aspect_ratio=1.5 * MAX_ASPECT_RATIO)
    else:
        clip = vlm.processor.video(black, fps=config.fps, raw=True)
    grid = (clip.grid[0], 2, max_frame_patches(pixels, box) // 2)
    max_top_k = max(max_top_k, sampling.top_k) if max_top_k and sampling.top_k else 0
    options = {"sampling": sampling, "num_streams": num_streams, "frame_box": frame_box}
    options |= {"max_top_k": max_top_k, "silence_rule": True, "choices": True}
    session = Session(vlm.model, vlm.tokenizer, config, grid, **options)
    if session.mesh is None:
        session.batch_sizes = session.batch_sizes[:1]
    warm(session, session.init_state(), clip, tokens=True, progress=progress)
    return session, clip


def max_frame_patches(config: PixelConfig, box: Box) -> int:
    """The most patches that a frame can have which fits into the box, whatever its aspect ratio (up to 1:4)."""
    height, width = (max(1, round(side / config.factor)) * config.factor for side in (box.height, box.width))
    full_size = math.prod(smart_resize(box.height, box.width, config))
    # A frame below min_pixels is enlarged, and each of its sides rounded up to a multiple of the factor.
    side = math.sqrt(config.min_pixels)
    enlarged = math.prod(
        side * scale + config.factor for scale in (math.sqrt(MAX_ASPECT_RATIO), 1 / math.sqrt(MAX_ASPECT_RATIO))
    )
    pixels = max(min(height * width, config.max_pixels), enlarged, full_size)
    patches = math.ceil(pixels / config.patch_size**2)
    return patches + -patches % config.merge_size**2
