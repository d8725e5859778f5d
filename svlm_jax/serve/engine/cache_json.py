"""The field `cache` of a caption: tokens of the KV cache that a stream retains, and those just evicted, for the page to draw.

Owns the format. Knows no model and no device. Units: tokens, seconds of the video.
"""

from collections.abc import Iterable
from typing import Any

from svlm_jax.config import StreamConfig
from svlm_jax.spans import Span
from svlm_jax.stream.cache_view import KINDS, TURN_KINDS, CacheRun, cache_runs, evicted_runs


def cache_json(
    retained: Iterable[Span], evicted: Iterable[Span], turn_starts: dict[int, float], config: StreamConfig
) -> dict[str, Any]:
    """{"retained": [[kind, tokens, second], ...], "evicted": the same}. kind: an index into KINDS; second: at which the turn
    started, or None for tokens of no turn.

    Args:
        retained: spans of the stream after a step.
        evicted: spans of the tokens that the step evicted (`Caption.evicted`).
        turn_starts: second at which each turn started; turns without tokens in either list are removed from it.
    """
    runs_retained, runs_evicted = cache_runs(retained, config), evicted_runs(evicted)
    message = {"retained": _triples(runs_retained, turn_starts), "evicted": _triples(runs_evicted, turn_starts)}
    turns = {run.turn for run in [*runs_evicted, *runs_retained]}
    # without this the dictionary grows by one entry a chunk for as long as the stream runs
    for turn in [turn for turn in turn_starts if turn not in turns]:
        del turn_starts[turn]
    return message


def _triples(runs: list[CacheRun], turn_starts: dict[int, float]) -> list[list[Any]]:
    return [[KINDS.index(run.kind), run.length, turn_starts.get(run.turn) if run.kind in TURN_KINDS else None] for run in runs]
