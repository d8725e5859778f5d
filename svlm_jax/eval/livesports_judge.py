"""LiveSports-3K CC, judged: two captions of each event, which is nearer to what the commentator said, and the rates of it.

Owns pairs and what is counted. A ballot is one vote in one order of reading; each event has two. Does not know who judges.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from svlm_jax.errors import shortened
from svlm_jax.eval.intervals import ratio_interval
from svlm_jax.eval.judging import Candidate, Judgement, Pair
from svlm_jax.eval.livesports_cc import Event, Prediction
from svlm_jax.eval.result import Metric, Result

OUTCOMES = ("wins", "losses", "ties", "inconsistent", "invalid")
VOTES = ("A", "B", "tie", "invalid")


class Compared(NamedTuple):
    """An event and both orders of its pair."""

    event: Event
    judgement: Judgement


def pairs(events: Iterable[Event], a: Mapping[str, Prediction], b: Mapping[str, Prediction]) -> list[Pair]:
    """One pair an event, in the order of the events. A model without a prediction for an event is marked as missing there: it
    does not win, and the other keeps its text (a published script drops it)."""
    event_pairs = []
    for event in events:
        candidates = _candidate(event, a), _candidate(event, b)
        video = event.video or event.video_id
        event_pairs.append(Pair(event.key, video, event.start, event.end, event.reference, *candidates, title=event.title))
    return event_pairs


def _candidate(event: Event, predictions: Mapping[str, Prediction]) -> Candidate:
    prediction = predictions.get(event.key)
    if prediction is None:
        return Candidate("", missing=True)
    return Candidate(prediction.text, prediction.utterances)


def outcome(judgement: Judgement) -> str:
    """Of A, from both ballots: one of OUTCOMES. What differs between the orders says nothing of the candidates."""
    votes = {judgement.ab.vote, judgement.ba.vote}
    if "invalid" in votes:
        return "invalid"
    if len(votes) == 2:
        return "inconsistent"
    return {"A": "wins", "B": "losses", "tie": "ties"}[votes.pop()]


def compare(events: Sequence[Event], judgements: Sequence[Judgement], label: str) -> tuple[Result, dict[str, Any]]:
    """The numbers, and the details that `write_result` puts beside them. Events without a judgement (no prediction of A or B,
    or a judge who did not answer) are listed and not counted.

    Args:
        judgements: one an event, in their order (`judging.judge_pairs`).
        label: what the row of a table is called.
    """
    compared = [Compared(event, judgement) for event, judgement in zip(events, judgements, strict=True)]
    counted = [each for each in compared if each.judgement.rule != "missing" and not each.judgement.error]
    words = [_mean_words(counted, lambda pair: pair.a.text), _mean_words(counted, lambda pair: pair.b.text)]
    words.append(_mean_words(counted, lambda pair: pair.reference))
    names = ("words_A", "words_B", "words_reference")
    metrics = (
        *rates(counted),
        *(Metric(name, value, None, len(counted), "") for name, value in zip(names, words, strict=True)),
    )
    details = {
        **_counts(counted),
        "by_rule": sum(each.judgement.rule == "empty" for each in counted),
        "without_words": {
            "A": _keys(counted, lambda judgement: not judgement.pair.a.text),
            "B": _keys(counted, lambda judgement: not judgement.pair.b.text),
        },
        "missing": {
            "A": _keys(compared, lambda judgement: judgement.pair.a.missing),
            "B": _keys(compared, lambda judgement: judgement.pair.b.missing),
        },
        "unresolved": {each.event.key: shortened(each.judgement.error) for each in compared if each.judgement.error},
        "position": position(counted),
        "answered_by": sorted(_judges(counted)),
        "per_sport": _per_sport(counted),
    }
    return Result("livesports-cc", label, metrics), details


def rates(compared: Sequence[Compared]) -> tuple[Metric, Metric]:
    """The published win rate of A, ballots for A of all, in which a tie is lost by both; and ballots for A of those that are
    for one of the two. Intervals are over videos."""
    votes: dict[str, Counter[str]] = defaultdict(Counter)
    for each in compared:
        votes[each.event.video_id].update((each.judgement.ab.vote, each.judgement.ba.vote))
    for_a = [count["A"] for count in votes.values()]
    every, decided = [count.total() for count in votes.values()], [count["A"] + count["B"] for count in votes.values()]
    return (
        Metric("win_rate_published", _ratio(for_a, every), ratio_interval(for_a, every), len(compared)),
        Metric("win_rate_decided", _ratio(for_a, decided), ratio_interval(for_a, decided), len(compared)),
    )


def _ratio(parts: Sequence[int], totals: Sequence[int]) -> float | None:
    return sum(parts) / sum(totals) if sum(totals) else None


def _counts(compared: Sequence[Compared]) -> dict[str, Any]:
    outcomes = Counter(outcome(each.judgement) for each in compared)
    ballots = Counter(vote for each in compared for vote in (each.judgement.ab.vote, each.judgement.ba.vote))
    return {
        "events": {"judged": len(compared), **{name: outcomes[name] for name in OUTCOMES}},
        "ballots": {name: ballots[name] for name in VOTES},
    }


def position(compared: Iterable[Compared]) -> dict[str, int]:
    """How often a judge chose by the place: events that it decided in both orders, those in which it chose what it read first
    both times, and second both times."""
    by_judge = [each.judgement for each in compared if not each.judgement.rule]
    choices = Counter((judgement.ab.vote, judgement.ba.vote) for judgement in by_judge)
    decided = sum(count for (ab, ba), count in choices.items() if {ab, ba} <= {"A", "B"})
    return {"decided": decided, "first_both_times": choices["A", "B"], "second_both_times": choices["B", "A"]}


def _judges(compared: Iterable[Compared]) -> set[str]:
    """Who answered, as the server of a judge names it: a dated version, where the request had another name."""
    ballots = (ballot for each in compared for ballot in (each.judgement.ab, each.judgement.ba))
    return {str(ballot.details["model"]) for ballot in ballots if ballot.details.get("model")}


def _per_sport(compared: Sequence[Compared]) -> dict[str, Any]:
    by_sport: dict[str, list[Compared]] = defaultdict(list)
    for each in compared:
        by_sport[each.event.sport or "unknown"].append(each)
    table = {}
    for sport, members in sorted(by_sport.items()):
        published, decided = rates(members)
        table[sport] = {
            **_counts(members),
            "win_rate_published": published.value,
            "win_rate_decided": decided.value,
            "ci95": published.ci95,
        }
    return table


def _mean_words(compared: Sequence[Compared], text: Callable[[Pair], str]) -> float | None:
    """Words a caption, parted by blanks, as the length of published captions is stated."""
    return sum(len(text(each.judgement.pair).split()) for each in compared) / len(compared) if compared else None


def _keys(compared: Iterable[Compared], chosen: Callable[[Judgement], bool]) -> list[str]:
    return [each.event.key for each in compared if chosen(each.judgement)]


def published_judgements(judgements: Iterable[Judgement], a: str, b: str) -> list[dict[str, str]]:
    """The lines of the published judge files: who won in each order, by name. An invalid ballot is a tie there."""
    names = {"A": a, "B": b}
    return [
        {
            "video_event_id": each.pair.key,
            "ab_winner": names.get(each.ab.vote, "tie"),
            "ba_winner": names.get(each.ba.vote, "tie"),
        }
        for each in judgements
        if each.rule != "missing" and not each.error
    ]
