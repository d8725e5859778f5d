"""Two models on Inf-Streams-Eval: the segments that both were run on, and what the votes on them amount to.

Owns which segments are compared, and the two published files of scores: score_segments.jsonl and score_results.json. Does not
know how a judge decides. Host side, never jax. Units: seconds of the video; rates are shares of 1, rounded to four digits.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from svlm_jax import json_lines
from svlm_jax.eval import win_rate
from svlm_jax.eval.infstreams import Segment
from svlm_jax.eval.infstreams_answers import SEAM, Answers
from svlm_jax.eval.judging import Judgement, Pair, served
from svlm_jax.eval.result import Metric, Result, Series, write_result

RESULTS = "score_results.json"
SEGMENTS = "score_segments.jsonl"
SKIPPED = "skipped.jsonl"
FIFTHS = 5
DIGITS = 4


class Skipped(NamedTuple):
    """A segment that is not judged: why A has no answer, why B has none; "" for one that has."""

    segment: Segment
    a: str
    b: str


class Comparison(NamedTuple):
    """What is judged. ends: by video, the length of the game as far as segments and answers tell."""

    label: str
    pairs: list[Pair]
    skipped: list[Skipped]
    ends: dict[str, float]

    @property
    def reasons(self) -> dict[str, int]:
        """How many segments are skipped for which reason: "A: no answers for this game"."""
        reasons = [f"{name}: {reason}" for each in self.skipped for name, reason in (("A", each.a), ("B", each.b)) if reason]
        return dict(Counter(reasons).most_common())


def compare(segments: Sequence[Segment], a: Answers, b: Answers) -> Comparison:
    """A pair for each segment on which both models were run."""
    pairs: list[Pair] = []
    skipped: list[Skipped] = []
    ends: dict[str, float] = {}
    for segment in segments:
        answered = [run.games[segment.video].end for run in (a, b) if segment.video in run.games]
        ends[segment.video] = max([float(segment.end), *answered, ends.get(segment.video, 0.0)])
        (candidate_a, why_a), (candidate_b, why_b) = a.candidate(segment), b.candidate(segment)
        if candidate_a.missing or candidate_b.missing:
            skipped.append(Skipped(segment, why_a, why_b))
            continue
        span = float(segment.start), float(segment.end)
        pairs.append(Pair(segment.key, segment.video, *span, segment.reference, candidate_a, candidate_b, segment.title))
    return Comparison(f"{a.name} vs {b.name}", pairs, skipped, ends)


def faults(segments: Sequence[Segment], answers: Answers) -> Iterator[str]:
    """What is odd about answers, a line each: their files, and games that they end before."""
    yield from answers.faults
    ends = {video: game.end for video, game in answers.games.items() if game.spans and not game.broken}
    late = Counter(each.video for each in segments if each.end > ends.get(each.video, float("inf")) + SEAM)
    for video, number in late.items():
        yield f"{video}: answers end at {ends[video]:g} s; {number} segments end later, and what is not said there is silence"


def scores(judgements: Sequence[Judgement], comparison: Comparison) -> dict[str, Any]:
    """score_results.json but for the judge: `per_video`, `global` and `fifths`. A rate without a vote is None."""
    by_video = win_rate.grouped(judgements, lambda judgement: judgement.pair.video)
    ci95, totals = win_rate.interval(judgements), win_rate.votes(judgements)
    return {
        "per_video": {video: _rates(win_rate.votes(group)) for video, group in sorted(by_video.items())},
        "global": {
            **_rates(totals),
            "invalid": totals.invalid,
            "segments": len(judgements),
            "skipped": len(comparison.skipped),
            "inconsistent": _rounded(win_rate.inconsistent(judgements)),
            "ci95": None if ci95 is None else [_rounded(bound) for bound in ci95],
        },
        "fifths": [_rounded(rate) for rate in fifths(judgements, comparison.ends)],
    }


def fifths(judgements: Sequence[Judgement], ends: Mapping[str, float]) -> list[float | None]:
    """The win rate of A in each fifth of the games' stream time. A segment is where its middle is."""

    def fifth(judgement: Judgement) -> int:
        pair = judgement.pair
        return min(FIFTHS - 1, int(FIFTHS * (pair.start + pair.end) / 2 / ends[pair.video]))

    groups = win_rate.grouped(judgements, fifth)
    return [win_rate.votes(groups.get(number, ())).rate for number in range(FIFTHS)]


def result(judgements: Sequence[Judgement], comparison: Comparison) -> Result:
    """The same as a column of `svlm evaluate table`."""
    totals, number, skipped = win_rate.votes(judgements), len(judgements), len(comparison.skipped)
    decided = sum(not judgement.rule for judgement in judgements)
    metrics = (
        Metric("win_rate", totals.rate, win_rate.interval(judgements), number),
        Metric("inconsistent", win_rate.inconsistent(judgements), None, decided),
        Metric("invalid_votes", totals.invalid / (2 * number) if number else None, None, 2 * number),
        Metric("skipped_segments", skipped / (skipped + number) if skipped + number else None, None, skipped + number),
    )
    middles = [(index + 0.5) * 100 / FIFTHS for index in range(FIFTHS)]
    points = tuple(zip(middles, fifths(judgements, comparison.ends), strict=True))
    return Result("infstreams", comparison.label, metrics, (Series("win_rate", "share of the game (%)", points),))


def write_scores(
    folder: Path, judgements: Sequence[Judgement], comparison: Comparison, judge: dict[str, Any], data: dict[str, Any]
) -> dict[str, Any]:
    """Write score_segments.jsonl and score_results.json; returns what `scores` says.

    Args:
        judge: its settings. `judging.served` of the votes is added.
        data: of what the scores are: hashes of files, settings of the two runs.
    """
    model = str(judge.get("model") or judge.get("judge") or "")
    json_lines.write(folder / SEGMENTS, (segment_record(judgement, model) for judgement in judgements))
    score_values = scores(judgements, comparison)
    details = {**score_values, "judge": {**judge, **served(judgements)}, "skipped_because": comparison.reasons, "data": data}
    write_result(folder / RESULTS, result(judgements, comparison), details)
    return score_values


def segment_record(judgement: Judgement, judge: str) -> dict[str, Any]:
    """A line of score_segments.jsonl, with the published keys, and the rule by which a pair was decided without a judge."""
    pair, votes = judgement.pair, win_rate.votes([judgement])
    winner = "equal" if votes.a == votes.b else "A" if votes.a > votes.b else "B"
    return {
        "video": pair.video,
        "title": pair.title,
        "start": int(pair.start),
        "end": int(pair.end),
        "winner": winner,
        "votes": {"A": votes.a, "B": votes.b},
        "judge": {"model": judge, "vote_ab": judgement.ab.vote, "vote_ba": judgement.ba.vote},
        "rule": judgement.rule,
    }


def skipped_record(skipped: Skipped) -> dict[str, Any]:
    """A line of skipped.jsonl."""
    segment = skipped.segment
    return {"video": segment.video, "start": segment.start, "end": segment.end, "a": skipped.a, "b": skipped.b}


def _rates(votes: win_rate.Votes) -> dict[str, Any]:
    other = votes._replace(a=votes.b, b=votes.a)
    return {"A": votes.a, "B": votes.b, "win_rate_A": _rounded(votes.rate), "win_rate_B": _rounded(other.rate)}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, DIGITS)
