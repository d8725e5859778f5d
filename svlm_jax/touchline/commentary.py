"""The commentary on a game, word by word, with questions and answers; and the inverse: from words to the events they claim.

Owns the phrases and their times. Does not know frames. numpy only for random questions. Units: seconds.

An event is mentioned in the second that first shows it (`match.second_of`), in words that end within that second; its second
phrase, if any, comes in the next one. All other seconds are silent.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from svlm_jax.data.annotation import Question, Word
from svlm_jax.touchline.match import CUPS, TEAMS, Event, Facts, Kind, World, second_of

FIRST_WORD, LAST_WORD = 0.2, 0.95  # within a second: start of its first word, latest end of its last
MAX_WORD_SECONDS = 0.25
# Questions of viewers, and their weights. No frame answers the first three.
QUESTIONS = {
    "score": ("What is the score?", 0.4),
    "first": ("Who scored first?", 0.15),
    "cup": ("Which cup is it?", 0.15),
    "playing": ("Who is playing?", 0.05),
    "ball": ("Who has the ball?", 0.2),
}
MEMORY_QUESTIONS = tuple(QUESTIONS[name][0] for name in ("score", "first", "cup"))


def score(facts: Facts) -> str:
    return f"{facts.teams[0]} {facts.goals[0]}-{facts.goals[1]} {facts.teams[1]}."


def phrases(event: Event) -> list[str]:
    """The phrases for an event, one a second. A score follows its event in the same phrase."""
    team, facts = event.team, event.facts
    current_score = score(facts)
    by_kind = {
        Kind.OPENING: [f"Welcome to the {facts.cup} Cup."],
        Kind.HOME: [f"Home: {team}."],
        Kind.AWAY: [f"Away: {team}."],
        Kind.KICK_OFF: [f"Kick-off, {team}." + (f" {current_score}" if facts.goals == (0, 0) else "")],
        Kind.PASS: [f"{team} pass."],
        Kind.WIN: [f"{team} win it."],
        Kind.SHOT: [f"{team} shoot!"],
        Kind.GOAL: [f"GOAL for {team}! {current_score}"],
        Kind.SAVE: [f"Saved by {team}!"],
        Kind.WIDE: ["Wide!"],
        Kind.CORNER: [f"Corner, {team}. {current_score}"],
        Kind.FOUL: [f"Foul by {team}."],
        Kind.FULL_TIME: [f"Full time! {current_score}", f"{facts.first or 'Nobody'} scored first."],
    }
    return by_kind[event.kind]


def words(events: Iterable[Event]) -> Iterator[Word]:
    """The commentary, in order of time."""
    for event in events:
        for number, phrase in enumerate(phrases(event)):
            second, parts = second_of(event.time) + number, phrase.split()
            each = min(MAX_WORD_SECONDS, (LAST_WORD - FIRST_WORD) / len(parts))
            for index, part in enumerate(parts):
                start = second + FIRST_WORD + index * each
                yield Word(round(start, 3), round(start + each, 3), part)


def answer(question: str, facts: Facts, holder: str) -> str:
    """The correct answer. holder: the team that has the ball, or ""."""
    return {
        "What is the score?": score(facts),
        "Who scored first?": f"{facts.first} did." if facts.first else "Nobody yet.",
        "Which cup is it?": f"The {facts.cup} Cup.",
        "Who is playing?": f"{facts.teams[0]} and {facts.teams[1]}.",
        "Who has the ball?": f"{holder}." if holder else "Nobody.",
    }[question]


def questions(world: World, seconds: int, rate: float, kinds: Sequence[str] = tuple(QUESTIONS)) -> Iterator[Question]:
    """Random questions in the first `seconds` of a game that was played at least so far, with their answers. A question that no
    frame answers comes only after the commentary has given its answer.

    Args:
        rate: share of seconds with a question.
        kinds: names of QUESTIONS.
    """
    random = np.random.default_rng([world.seed, 1])
    texts, weights = zip(*(QUESTIONS[name] for name in kinds), strict=True)
    odds = np.array(weights) / sum(weights)
    for second in range(seconds):
        if random.random() >= rate:
            continue
        text = texts[random.choice(len(texts), p=odds)]
        if text != QUESTIONS["ball"][0] and is_unannounced(world.events, second):
            continue
        yield Question(second + 0.5, text, answer(text, latest_event(world.events, second).facts, world.holders[second]))


def latest_event(events: Sequence[Event], second: int) -> Event:
    """The last event that frames up to this second show; before any, the first one."""
    return events[max(bisect_right(events, second, key=lambda event: second_of(event.time)) - 1, 0)]


def is_unannounced(events: Sequence[Event], second: int) -> bool:
    """Whether the commentary mentions the newest goal, or the teams, only in this second or later."""
    event = latest_event(events, second)
    return event.kind in (Kind.OPENING, Kind.HOME) or (event.kind in (Kind.AWAY, Kind.GOAL) and second == second_of(event.time))


class Claim(NamedTuple):
    """An event that words claim: its kind and team ("" where the phrase names none)."""

    kind: Kind
    team: str


class Score(NamedTuple):
    """A score that words claim."""

    teams: tuple[str, str]
    goals: tuple[int, int]


# The inverse of `phrases`: group 1 of a pattern is the team, empty where the phrase names none; of a state it is its value.
_TEAM = "|".join(TEAMS)
_SCORE = re.compile(rf"({_TEAM}) (\d+)-(\d+) ({_TEAM})\.")
CLAIM_PATTERNS = {
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
STATE_PATTERNS = {
    "score": rf"((?:{_TEAM}) \d+-\d+ (?:{_TEAM}))\.",
    "first": rf"({_TEAM}|Nobody) scored first\.",
    "cup": rf"({'|'.join(CUPS)}) Cup\b",
}
_FIRST = re.compile(STATE_PATTERNS["first"])
_CLAIM = {kind: re.compile(pattern) for kind, pattern in CLAIM_PATTERNS.items()}


def claims(text: str) -> list[Claim]:
    """The events that a reply claims, in order of its words."""
    located = [(match.start(), Claim(kind, match[1])) for kind, pattern in _CLAIM.items() for match in pattern.finditer(text)]
    return [claim for _, claim in sorted(located)]


def scores(text: str) -> list[Score]:
    """The scores that a reply claims."""
    return [Score((m[1], m[4]), (int(m[2]), int(m[3]))) for m in _SCORE.finditer(text)]


def first_scorers(text: str) -> list[str]:
    """The teams that scored first according to a reply; "" for nobody."""
    return [m[1].replace("Nobody", "") for m in _FIRST.finditer(text)]
