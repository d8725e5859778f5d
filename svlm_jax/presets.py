"""Protocols of streams by name: the settings with which a published model is run (`--preset`, `from_pretrained(preset=)`).

Plain values, so that every layer can read them. A single flag or argument goes over a preset. Sources: docs/streaming.md.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from svlm_jax.errors import InputError


class Preset(NamedTuple):
    """stream, sampling: fields of `StreamConfig` and `Sampling`. max_frame_tokens: vision tokens of a frame at most. query: of
    a stream that a command starts without one."""

    stream: Mapping[str, Any]
    sampling: Mapping[str, Any]
    max_frame_tokens: int
    query: str


# LiveCC (arXiv 2504.16030), as `live_cc` in demo/infer.py of showlab/livecc streams it; greedy, as its inference.md does.
LIVECC = Preset(
    stream={
        "mode": "full",
        "rope_positions": "contiguous",
        "mrope_axes": 3,
        "mrope_turns": "first",
        "fps": 2.0,
        "chunk_seconds": 1.0,
        "first_chunk_seconds": 3.0,
        "previous_text_turn": False,
        "question_after_frames": True,
        "max_new_tokens": 16,
        "cut_reply": "drop_last",
    },
    sampling={"temperature": 0.0, "repetition_penalty": 1.05},
    max_frame_tokens=384,
    query="Please describe the video.",
)
# One axis of positions: the `all_text` of StreamingVLM's code, whose authors found that LiveCC was trained so.
LIVECC_1D = LIVECC._replace(stream={**LIVECC.stream, "mrope_axes": 1, "mrope_turns": "all"})

PRESETS: Mapping[str, Preset] = {"livecc": LIVECC, "livecc-1d": LIVECC_1D}


def preset_of(name: Any, field: str = "preset") -> Preset:
    """The preset of that name.

    Raises:
        InputError: there is none.
    """
    if not isinstance(name, str) or name not in PRESETS:
        raise InputError(field, f"{name!r:.40}", f"one of {', '.join(PRESETS)}", "choose one of them, or leave it out")
    return PRESETS[name]
