"""Commentary on held-out games in the published formats: Inf-Streams-Eval, LiveSports-3K-CC, and the file of truth.

Owns what stands in these files, and three fake baselines whose scores are known. Does not write. numpy only. Units: seconds.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from svlm_jax.eval import livesports_cc
from svlm_jax.eval.commentary import Utterance
from svlm_jax.eval.infstreams import answer_record
from svlm_jax.eval.truth import Mention, Truth, Value
from svlm_jax.touchline import commentary
from svlm_jax.touchline.commentary import CLAIM_PATTERNS, STATE_PATTERNS
from svlm_jax.touchline.eval_sets.games import Game, changes, text_between
from svlm_jax.touchline.match import TEAMS, Kind, second_of

SHIFT = 3  # seconds by which a baseline is late
ERRORS = 0.3  # share of the seconds with words in which a baseline is wrong
EVENT_SECONDS = (10, 60)  # shortest and longest event of the CC track
CLASS = "touchline"  # the sport
AFTER_GOAL, BEFORE_GOAL = 8, 14  # seconds of an event around a goal


def games_line(game: Game) -> dict[str, Any]:
    """A line of eval_all_metadata.jsonl."""
    return {"video": game.video, "title": game.title, "content": [list(word) for word in game.words]}


def truth(game: Game) -> Truth:
    """Every event with the span until the next one, and three states: the score, who scored first, and the cup."""
    seconds = [second_of(event.time) for event in game.events]
    ends = [*seconds[1:], game.seconds]
    values: dict[Kind, list[Value]] = {kind: [] for kind in CLAIM_PATTERNS}
    for event, start, end in zip(game.events, seconds, ends, strict=True):
        values[event.kind].append(Value(start, end, event.team))
    mentions = [Mention(str(kind), "event", CLAIM_PATTERNS[kind], tuple(spans)) for kind, spans in values.items()]
    for name, pattern in STATE_PATTERNS.items():
        mentions.append(Mention(name, "state", pattern, tuple(Value(*span) for span in _states(game, name))))
    return Truth(game.video, game.seconds, tuple(mentions), tuple(Utterance(*word) for word in game.words))


def _states(game: Game, name: str) -> Iterator[tuple[int, int, str]]:
    def value(second: int) -> str:
        facts = game.facts(second)
        return {"score": commentary.score(facts).rstrip("."), "first": facts.first or "Nobody", "cup": facts.cup}[name]

    return changes(((second, value(second)) for second in range(game.seconds)), game.seconds)


def wrong(text: str, random: np.random.Generator) -> str:
    """The same phrases with every team another one and every score a goal higher: no claim of a team or a score is true."""
    others = {team: str(random.choice([other for other in TEAMS if other != team])) for team in TEAMS}
    swapped = re.sub("|".join(TEAMS), lambda match: others[match[0]], text)
    return re.sub(r"(\d+)-", lambda match: f"{int(match[1]) + 1}-", swapped)


def with_errors(game: Game) -> dict[int, str]:
    """The true commentary with `ERRORS` of its seconds wrong."""
    random = np.random.default_rng([game.seed, 4])
    return {second: wrong(text, random) if random.random() < ERRORS else text for second, text in game.replies.items()}


def shifted(game: Game) -> dict[int, str]:
    """The true commentary, `SHIFT` seconds late."""
    return {second + SHIFT: text for second, text in game.replies.items() if second + SHIFT < game.seconds}


# What a baseline says, second -> words.
BASELINES: dict[str, Callable[[Game], dict[int, str]]] = {
    "truth": lambda game: game.replies,
    "errors": with_errors,
    "late": shifted,
    "silence": lambda game: {},
}


def cc_events(game: Game) -> list[livesports_cc.Event]:
    """The seconds around every goal, from the end of the event before at the earliest."""
    events, previous_end = [], 0
    for second, event in game.when(Kind.GOAL):
        start, end = max(previous_end, second - BEFORE_GOAL), min(second + AFTER_GOAL, game.seconds)
        if not EVENT_SECONDS[0] <= end - start <= EVENT_SECONDS[1]:
            continue
        previous_end = end
        title, previous, words = f"A goal for {event.team}", game.text(0, start), game.text(start, end)
        times = (float(start), float(end))
        about = (title, CLASS, previous, words, game.video)
        events.append(livesports_cc.Event(game.video_id, len(events), *times, *about))
    return events


def cc_entry(event: livesports_cc.Event) -> dict[str, Any]:
    """An entry of LiveSports-3K-CC.json."""
    return {
        "video_id": event.video_id,
        "url": "",
        "event_id": event.event_id,
        "begin": event.start,
        "end": event.end,
        "event_title": event.title,
        "event_type": 0,
        "class": event.sport,
        "video": event.video,
        "preasr_text": event.previous,
        "event_asr_text": event.reference,
    }


def cc_predictions(game: Game, replies: dict[int, str]) -> Iterator[dict[str, Any]]:
    """Lines of a published file of predictions, with times: what was said in each event of the game."""
    for event in cc_events(game):
        start, end = int(event.start), int(event.end)
        yield livesports_cc.prediction_record(event, text_between(replies, start, end), utterances(replies, start, end))


def infstreams_answers(game: Game, replies: dict[int, str]) -> dict[str, Any]:
    """A line of a published file of answers."""
    return answer_record(game.video, 0, game.seconds, utterances(replies, 0, game.seconds))


def utterances(replies: dict[int, str], start: int, end: int) -> list[Utterance]:
    """One a second, "" for silence."""
    return [Utterance(second, second + 1, replies.get(second, "")) for second in range(start, end)]
