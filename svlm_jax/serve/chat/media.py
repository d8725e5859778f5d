"""Images and videos of a chat request: from a data: URI, or from the web where the operator allows it, to clips.

Owns what one may cost before it is decoded. Never opens a file of this machine. For threads that may wait. Units: bytes,
pixels, vision tokens.
"""

import re
from collections.abc import Callable

import numpy as np

from svlm_jax.errors import InputError, shortened
from svlm_jax.inputs import Clip
from svlm_jax.media.image import load_image
from svlm_jax.media.paths import masked
from svlm_jax.media.processor import Processor, limited
from svlm_jax.media.video_bytes import VideoBounds, read_video_bytes
from svlm_jax.serve.chat.limits import ChatLimits
from svlm_jax.serve.chat.request import Media
from svlm_jax.serve.json_fields import RequestError, decode_base64
from svlm_jax.serve.limits import Limits
from svlm_jax.serve.sources.images import decoder, read_header, upright

LOW_DETAIL_TOKENS = 256  # of an image with "detail": "low"
DATA_URI = re.compile(r"data:[\w.+/-]*(?:;[\w.+=-]+)*;base64,", re.IGNORECASE)
FPS = 2.0  # of a video, unless the request says otherwise

Fetch = Callable[[str, str], bytes]  # (URL, field) -> what is there


class MediaReader:
    """Clips of media, as small as the limits of the server want them. Threads may share it."""

    def __init__(self, processor: Processor, limits: ChatLimits, fetch: Fetch | None = None) -> None:
        """fetch: for http and https URLs; None: they are refused."""
        self.fetch, self.limits = fetch, limits
        self.image_limits = Limits(max_image_bytes=limits.max_image_bytes, max_image_pixels=limits.max_image_pixels)
        self.video_bounds = VideoBounds(
            max_frames=limits.max_video_frames,
            max_seconds=limits.max_video_seconds,
            max_pixels=limits.max_video_pixels,
            timeout=limits.media_timeout,
        )
        self.processor, self.low_detail = (
            bounded_processor(processor, tokens, limits.max_prompt_tokens // 2)
            for tokens in (limits.max_image_tokens, min(LOW_DETAIL_TOKENS, limits.max_image_tokens))
        )
        # Raw pixels are a quarter of the bytes, but all clips of a prompt have to be of one kind.
        self.is_raw = processor.tower_normalises and processor.image_config.has_norm_of(processor.config.vision)

    def clip(self, media: Media) -> Clip:
        """Raises:
        InputError: under the field of the media: what it is not, or costs too much.
        """
        try:
            data = self._bytes(media)
            if media.is_video:
                video = read_video_bytes(data, fps=media.fps or FPS, bounds=self.video_bounds)
                return self.processor.video(video.frames, fps=video.fps, raw=self.is_raw)
            processor = self.low_detail if media.is_small else self.processor
            return processor.image(read_image(data, self.image_limits), raw=self.is_raw)
        except InputError as error:
            code = "invalid_video" if media.is_video else "invalid_image"
            raise RequestError(media.field, error.got, error.expected, error.remedy, code=code) from None

    def _bytes(self, media: Media) -> bytes:
        limits, url = self.limits, media.url
        max_bytes = limits.max_body_bytes if media.is_video else limits.max_image_bytes
        if match := DATA_URI.match(url[:200]):
            return decode_base64(url[match.end() :], media.field, max_bytes)
        if not url[:8].lower().startswith(("http://", "https://")):
            got, expected = (
                shortened(masked(url[:200]), 60),
                "a data: URI" if self.fetch is None else "a data:, http or https URI",
            )
            raise InputError(media.field, got or "nothing", expected, "send the file itself, in base64")
        if self.fetch is None:
            remedy = "send it as a data: URI, or start the server with --allow-media-urls"
            raise InputError(media.field, "an address on the web", "a data: URI", remedy)
        return self.fetch(url, media.field)


def bounded_processor(processor: Processor, image_tokens: int, video_tokens: int) -> Processor:
    """The same with at most so many vision tokens an image, and so many a video."""
    image = limited(processor.image_config, image_tokens)
    video_pixels = min(processor.video_pixels, video_tokens * processor.video_config.factor**2)
    return Processor(processor.config, processor.tokenizer, image, processor.video_config, video_pixels)


def read_image(data: bytes, limits: Limits) -> np.ndarray:
    """An image file as uint8 [H, W, 3], upright. Its header is checked before a pixel is decoded.

    Raises:
        InputError: as `sources.images.read_header` does; or the pixels cannot be decoded.
    """
    header = read_header(data, limits)
    with decoder(header) as image:
        return np.asarray(upright(load_image(image), header))
