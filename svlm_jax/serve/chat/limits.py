"""Every limit of chat completions in one frozen dataclass; those of connections and streams are in `limits`.

Units: seconds, bytes, pixels, tokens; otherwise counts.
"""

from dataclasses import dataclass

from svlm_jax.errors import InputError


@dataclass(frozen=True)
class ChatLimits:
    """Attributes:
    max_requests, max_requests_per_address: at a time, those that wait included.
    max_open_bytes: of the bodies of all of them.
    max_running_requests: whose media are decoded and that are in device memory; the others wait as they were sent.
    timeout: for one to be answered, from its last byte on.
    media_timeout: to fetch and decode the images and videos of one.
    max_prompt_tokens, max_reply_tokens: of one; a request that needs more is refused.
    max_body_bytes, max_media: of one with all its images and videos, and how many these may be.
    max_image_bytes, max_image_pixels: of an image; larger ones are refused.
    max_image_tokens: of an image; one with more is made smaller. A slice of the vision tower has at least one image.
    max_video_seconds: of a video; longer ones are refused.
    max_video_frames, max_video_pixels: that are sampled from a video: of a long one the frames are farther apart.
    """

    max_requests: int = 32
    max_requests_per_address: int = 8
    max_open_bytes: int = 200_000_000
    max_running_requests: int = 2
    timeout: float = 300.0
    media_timeout: float = 20.0
    max_prompt_tokens: int = 8192
    max_reply_tokens: int = 2048
    max_body_bytes: int = 24_000_000
    max_media: int = 64
    max_image_bytes: int = 12_000_000
    max_image_pixels: int = 4096 * 4096
    max_image_tokens: int = 2048
    max_video_seconds: float = 1200.0
    max_video_frames: int = 64
    max_video_pixels: int = 150_000_000

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value <= 0:
                raise InputError(name, value, "more than 0", "raise it")
