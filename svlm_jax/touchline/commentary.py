"""What a commentator says of a game, word by word, and what he answers; and the way back, from words to what they claim.

Owns the phrases and when they are said. Does not know pictures. numpy for the draws of questions only. Units: seconds.

An event is spoken of in the second in which it is first seen (`match.second_of`), in words that end before the second does;
what takes longer goes on in the next seconds. All other seconds are silent.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from svlm_jax.data.annotation import Question, Word
from svlm_jax.touchline.match import CUPS, TEAMS, Event, Facts, Kind, World, second_of

FIRST_WORD, LAST_WORD = 0.2, 0.95  # of a second: when its first word begins, its last ends at the latest
LONGEST_WORD = 0.25
# What viewers ask, and how often. No picture answers the first three.
QUESTIONS = {
    "score": ("What is the score?", 0.4),
    "first": ("Who scored first?", 0.15),
    "cup": ("Which cup is it?", 0.15),
    "playing": ("Who is playing?", 0.05),
    "ball": ("Who has the ball?", 0.2),
}
REMEMBERED = tuple(QUESTIONS[name][0] for name in ("score", "first", "cup"))


def score(facts: Facts) -> str:
    return f"{facts.teams[0]} {facts.goals[0]}-{facts.goals[1]} {facts.teams[1]}."


def phrases(event: Event) -> list[str]:
    """What is said of an event: a phrase a second. The score comes in the breath of what it is about."""
    team, facts = event.team, event.facts
    now = score(facts)
    said = {
        Kind.OPENING: [f"Welcome to the {facts.cup} Cup."],
        Kind.HOME: [f"Home: {team}."],
        Kind.AWAY: [f"Away: {team}."],
        Kind.KICK_OFF: [f"Kick-off, {team}." + (f" {now}" if facts.goals == (0, 0) else "")],
        Kind.PASS: [f"{team} pass."],
        Kind.WIN: [f"{team} win it."],
        Kind.SHOT: [f"{team} shoot!"],
        Kind.GOAL: [f"GOAL for {team}! {now}"],
        Kind.SAVE: [f"Saved by {team}!"],
        Kind.WIDE: ["Wide!"],
        Kind.CORNER: [f"Corner, {team}. {now}"],
        Kind.FOUL: [f"Foul by {team}."],
        Kind.FULL_TIME: [f"Full time! {now}", f"{facts.first or 'Nobody'} scored first."],
    }
    return said[event.kind]


def words(events: Iterable[Event]) -> Iterator[Word]:
    """The commentary, in order of time."""
    for event in events:
        for number, phrase in enumerate(phrases(event)):
            second, parts = second_of(event.time) + number, phrase.split()
            each = min(LONGEST_WORD, (LAST_WORD - FIRST_WORD) / len(parts))
            for place, part in enumerate(parts):
                start = second + FIRST_WORD + place * each
                yield Word(round(start, 3), round(start + each, 3), part)


def answer(question: str, facts: Facts, holder: str) -> str:
    """What is right to say; `holder`: the team that has the ball, or ""."""
    return {
        "What is the score?": score(facts),
        "Who scored first?": f"{facts.first} did." if facts.first else "Nobody yet.",
        "Which cup is it?": f"The {facts.cup} Cup.",
        "Who is playing?": f"{facts.teams[0]} and {facts.teams[1]}.",
        "Who has the ball?": f"{holder}." if holder else "Nobody.",
    }[question]


def questions(world: World, seconds: int, rate: float, ask: Sequence[str] = tuple(QUESTIONS)) -> Iterator[Question]:
    """Questions that viewers might ask in the first `seconds` of a game that has gone so far, `rate` of all seconds, with their
    answers; what no picture answers, not before it has been said.

    Args:
        ask: names of QUESTIONS.
    """
    random = np.random.default_rng([world.seed, 1])
    texts, weights = zip(*(QUESTIONS[name] for name in ask), strict=True)
    odds = np.array(weights) / sum(weights)
    for second in range(seconds):
        if random.random() >= rate:
            continue
        text = texts[random.choice(len(texts), p=odds)]
        if text != QUESTIONS["ball"][0] and unsaid(world.events, second):
            continue
        yield Question(second + 0.5, text, answer(text, newest(world.events, second).facts, world.holders[second]))


def newest(events: Sequence[Event], second: int) -> Event:
    """What happened last, as far as it is seen in a second; the first of all before that."""
    return events[max(bisect_right(events, second, key=lambda event: second_of(event.time)) - 1, 0)]


def unsaid(events: Sequence[Event], second: int) -> bool:
    """Whether what has happened, or who is playing, is only told in this second or later."""
    event = newest(events, second)
    return event.kind in (Kind.OPENING, Kind.HOME) or (event.kind in (Kind.AWAY, Kind.GOAL) and second == second_of(event.time))


class Claim(NamedTuple):
    """What words say happened: an event's kind and team ("" where the phrase names none)."""

    kind: Kind
    team: str


class Score(NamedTuple):
    """What words say the score is."""

    teams: tuple[str, str]
    goals: tuple[int, int]


_TEAM = "|".join(TEAMS)
_SCORE = re.compile(rf"({_TEAM}) (\d+)-(\d+) ({_TEAM})\.")
_FIRST = re.compile(rf"({_TEAM}|Nobody) scored first\.")
_CLAIMS = {
    Kind.OPENING: rf"Welcome to the (?:{'|'.join(CUPS)}) Cup\.()",
    Kind.HOME: rf"Home: ({_TEAM})\.",
    Kind.AWAY: rf"Away: ({_TEAM})\.",
    Kind.KICK_OFF: rf"Kick-off, ({_TEAM})\.",
    Kind.PASS: rf"({_TEAM}) pass\.",
    Kind.WIN: rf"({_TEAM}) win it\.",
    Kind.SHOT: rf"({_TEAM}) shoot!",
    Kind.GOAL: rf"GOAL for ({_TEAM})!",
    Kind.SAVE: rf"Saved by ({_TEAM})!",
    Kind.WIDE: r"Wide!()",
    Kind.CORNER: rf"Corner, ({_TEAM})\.",
    Kind.FOUL: rf"Foul by ({_TEAM})\.",
    Kind.FULL_TIME: r"Full time!()",
}
_CLAIM = {kind: re.compile(pattern) for kind, pattern in _CLAIMS.items()}


def claims(text: str) -> list[Claim]:
    """The events that a reply tells of."""
    found = [(match.start(), Claim(kind, match[1])) for kind, one in _CLAIM.items() for match in one.finditer(text)]
    return [claim for _, claim in sorted(found)]


def scores(text: str) -> list[Score]:
    """The scores that a reply tells."""
    return [Score((m[1], m[4]), (int(m[2]), int(m[3]))) for m in _SCORE.finditer(text)]


def first_scorers(text: str) -> list[str]:
    """Who a reply says scored first; "" for nobody."""
    return [m[1].replace("Nobody", "") for m in _FIRST.finditer(text)]
