"""The picture of a stream's KV cache that the page draws, as JSON.

Owns the format. Knows no model and no device. Units: tokens, seconds of the video.
"""

from collections.abc import Iterable
from typing import Any

from svlm_jax.config import StreamConfig
from svlm_jax.spans import Span
from svlm_jax.stream.cache_view import KINDS, TURN_KINDS, CacheRun, cache_runs, evicted_runs

__all__ = ["KINDS", "picture"]


def picture(
    retained: Iterable[Span], evicted: Iterable[Span], seconds: dict[int, float], config: StreamConfig
) -> dict[str, Any]:
    """{"retained": [[kind, tokens, second], ...], "evicted": the same} for JSON: kinds as indices into KINDS; the second at
    which the turn began, or null.

    Args:
        retained: spans of the stream after a step.
        evicted: spans of the tokens that left for it (`Reply.evicted`).
        seconds: when turns began; those of which nothing is retained any more are removed from it.
    """
    runs, left = cache_runs(retained, config), evicted_runs(evicted)
    payload = {"retained": _rows(runs, seconds), "evicted": _rows(left, seconds)}
    turns = {run.turn for run in [*left, *runs]}
    for turn in [turn for turn in seconds if turn not in turns]:
        del seconds[turn]
    return payload


def _rows(runs: list[CacheRun], seconds: dict[int, float]) -> list[list[Any]]:
    return [[KINDS.index(run.kind), run.length, seconds.get(run.turn) if run.kind in TURN_KINDS else None] for run in runs]
