"""Questions about a game with options, of which one is right, and the seconds at which they can be asked.

Owns the questions, the wrong options and their order. Does not know files. numpy only. Units: seconds.

A model that is asked at second t has seen the seconds before t. A state that is asked about does not change around t, so that
it does not matter to which side t belongs. What the shipped model can answer is asked in its words: "What is the score?" "Reds
1-0 Blues."
"""

import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from svlm_jax.touchline import commentary
from svlm_jax.touchline.commentary import is_unannounced
from svlm_jax.touchline.eval_sets.commentaries import wrong
from svlm_jax.touchline.eval_sets.games import Game
from svlm_jax.touchline.match import CUPS, TEAMS, Event, Kind, second_of

FIRST, LAST = 15, 3  # no question in the first seconds of a game, when nobody has played yet, nor in the last
APART = 10  # seconds between two questions of a kind
LETTERS = "ABCD"
UNABLE = "Unable to answer"
OUTCOMES = (Kind.GOAL, Kind.SAVE, Kind.WIDE, Kind.CORNER)  # of a shot
SCENES = (Kind.PASS, Kind.WIN, Kind.SHOT, *OUTCOMES)
NOT_AT = 8  # seconds around which there is no goal when it is said that there was none
SUMMARY_SECONDS = 10


class Choice(NamedTuple):
    """A question asked at a second; options[answer] is correct."""

    second: int
    text: str
    options: tuple[str, ...]
    answer: int

    @property
    def letter(self) -> str:
        return LETTERS[self.answer]


def find(game: Game, kind: str, count: int) -> list[Choice]:
    """Up to `count` questions of a kind, at seconds all over the game, in order."""
    random = np.random.default_rng([game.seed, zlib.crc32(kind.encode())])
    choices: list[Choice] = []
    for second in random.permutation(np.arange(FIRST, game.seconds - LAST)).tolist():
        if len(choices) == count:
            break
        if any(abs(choice.second - second) < APART for choice in choices):
            continue
        if parts := KINDS[kind](game, second, random):
            text, correct, others = parts
            choices.append(_shuffled(second, text, correct, others, random))
    return sorted(choices)


def _shuffled(second: int, text: str, correct: str, others: Sequence[str], random: np.random.Generator) -> Choice:
    wrong_options = [option for option in dict.fromkeys(others) if option != correct]
    chosen = [wrong_options[index] for index in random.permutation(len(wrong_options))[: len(LETTERS) - 1]]
    if len(chosen) != len(LETTERS) - 1:
        raise ValueError(f"{text} has {len(chosen)} wrong options, expected {len(LETTERS) - 1} or more")
    options = [correct, *chosen]
    permutation = random.permutation(len(options)).tolist()
    return Choice(second, text, tuple(options[index] for index in permutation), permutation.index(0))


def shout(event: Event) -> str:
    """The commentary of an event, without the score."""
    return commentary.phrases(event)[0].removesuffix(commentary.score(event.facts)).strip()


QuestionParts = tuple[str, str, Sequence[str]]  # question, correct option, others
Ask = Callable[[Game, int, np.random.Generator], QuestionParts | None]


def _from_commentary(kind: str) -> Ask:
    """A question of viewers, with wrong options of the same form."""
    text = commentary.QUESTIONS[kind][0]

    def ask(game: Game, second: int, random: np.random.Generator) -> QuestionParts | None:
        seconds = (second - 2, second - 1, second)
        correct_answers = {commentary.answer(text, game.facts(each), game.holder(each)) for each in seconds}
        if len(correct_answers) > 1 or any(is_unannounced(game.events, each) for each in seconds):
            return None
        facts = game.facts(second)
        (home, away), (home_team, away_team) = facts.goals, facts.teams
        strangers = [team for team in TEAMS if team not in facts.teams]
        others = {
            "score": [f"{home_team} {h}-{a} {away_team}." for h in _near(home) for a in _near(away)],
            "first": [f"{home_team} did.", f"{away_team} did.", "Nobody yet.", f"{random.choice(strangers)} did."],
            "cup": [f"The {cup} Cup." for cup in CUPS],
            "playing": [f"{a} and {b}." for a, b in combinations(TEAMS, 2) if {a, b} != {home_team, away_team}],
            "ball": [f"{home_team}.", f"{away_team}.", "Nobody.", f"{random.choice(strangers)}."],
        }[kind]
        return text, correct_answers.pop(), others

    return ask


def _near(goals: int) -> range:
    return range(max(goals - 1, 0), goals + 3)


def _holder(game: Game, second: int) -> str:
    """The team that has the ball around a second; "" where that changes."""
    teams = {game.holder(each) for each in (second - 2, second - 1, second)}
    return teams.pop() if len(teams) == 1 else ""


def _colour(game: Game, second: int, random: np.random.Generator) -> QuestionParts | None:
    team = _holder(game, second)
    colours = [f"{each.removesuffix('s')}." for each in TEAMS]
    return ("What is the colour of the team with the ball?", f"{team.removesuffix('s')}.", colours) if team else None


def _side(game: Game, second: int, random: np.random.Generator) -> QuestionParts | None:
    team = _holder(game, second)
    sides = ("To the right.", "To the left.", "Upwards.", "Downwards.")
    if not team:
        return None
    return "To which side does the team with the ball play?", sides[game.facts(second).teams.index(team)], sides


def _shouts(game: Game, second: int, *but: str) -> list[str]:
    """What could be said in this match, but for what is true."""
    facts = game.facts(second)
    events = (Event(0.0, kind, team, facts) for kind in SCENES for team in facts.teams)
    return [text for text in map(shout, events) if text not in but]


def _now(game: Game, second: int, random: np.random.Generator) -> QuestionParts | None:
    event = game.event_at(second - 1)
    if event is None or event.kind not in SCENES:
        return None
    return "What happens right now?", shout(event), _shouts(game, second)


def _last(game: Game, second: int, random: np.random.Generator) -> QuestionParts | None:
    event = game.event_before(second - 1)
    if event is None or event.kind not in SCENES or game.event_at(second - 1) or game.event_at(second):
        return None
    return "What happened last?", shout(event), _shouts(game, second)


def _next(game: Game, second: int, random: np.random.Generator) -> QuestionParts | None:
    shot, outcome = game.event_at(second - 1), game.event_after(second - 1)
    if shot is None or shot.kind is not Kind.SHOT or outcome is None or outcome.kind not in OUTCOMES:
        return None
    facts = outcome.facts
    keeper = facts.teams[1 - facts.teams.index(shot.team)]
    teams = {Kind.GOAL: shot.team, Kind.SAVE: keeper, Kind.WIDE: shot.team, Kind.CORNER: shot.team}
    return "What comes next?", shout(outcome), [shout(Event(0.0, kind, team, facts)) for kind, team in teams.items()]


def _why(game: Game, second: int, random: np.random.Generator) -> QuestionParts | None:
    event = game.event_at(second - 1)
    if event is None or event.kind is not Kind.KICK_OFF or not sum(event.facts.goals):
        return None
    other = event.facts.teams[1 - event.facts.teams.index(event.team)]
    others = (f"{event.team} scored.", f"{other} shot wide.", f"{event.team} were fouled.")
    return "Why do they begin at the centre again?", f"{other} scored.", others


def _summary(game: Game, second: int, random: np.random.Generator) -> QuestionParts | None:
    true_words = game.text(second - SUMMARY_SECONDS, second)
    if len(true_words.split()) < 6:
        return None
    others = {wrong(true_words, random) for _ in range(8)}
    return (
        (f"Which commentary is that of the last {SUMMARY_SECONDS} seconds?", true_words, sorted(others))
        if len(others) > 3
        else None
    )


def _at_second(game: Game, second: int, random: np.random.Generator) -> QuestionParts | None:
    past = [(when, event) for when, event in game.when(*SCENES) if when < second - APART]
    if not past:
        return None
    when, event = past[random.integers(len(past))]
    return f"What happened at second {when}?", shout(event), _shouts(game, when)


def _after(game: Game, second: int, random: np.random.Generator) -> QuestionParts | None:
    """The first event after a kick-off, which its score names."""
    kick_offs = [(when, event) for when, event in _new_scores(game, Kind.KICK_OFF) if when < second - APART]
    if not kick_offs:
        return None
    when, event = kick_offs[random.integers(len(kick_offs))]
    first = game.event_after(when)
    if first is None or first.kind not in SCENES or second_of(first.time) >= second - 1:
        return None
    text = f"What happened first after the kick-off at {commentary.score(event.facts).rstrip('.')}?"
    return text, shout(first), _shouts(game, when)


def _when(game: Game, second: int, random: np.random.Generator) -> QuestionParts | None:
    """The second of a goal, which the score names."""
    goals = [(when, event) for when, event in _new_scores(game, Kind.GOAL) if when < second - APART]
    if not goals:
        return None
    when, event = goals[random.integers(len(goals))]
    others = [f"At second {other}." for other in range(when % 20, second, 20) if abs(other - when) >= APART]
    others += [f"At second {when + offset}." for offset in (-11, 11, 22)]
    return f"When did it become {commentary.score(event.facts).rstrip('.')}?", f"At second {when}.", others


def _new_scores(game: Game, kind: Kind) -> Iterator[tuple[int, Event]]:
    """Events of a kind at a score that is there for the first time in the film."""
    known = set()
    for second, event in game.when(kind):
        score = commentary.score(event.facts)
        if score not in known and any(event.facts.goals):
            yield second, event
        known.add(score)


def _never(game: Game, second: int, random: np.random.Generator) -> QuestionParts | None:
    """A question that takes a goal for granted that was not scored."""
    free = [
        when for when in range(FIRST, second - APART) if not any(abs(when - goal) < NOT_AT for goal, _ in game.when(Kind.GOAL))
    ]
    if not free:
        return None
    when = free[random.integers(len(free))]
    stranger = random.choice([team for team in TEAMS if team not in game.facts(when).teams])
    return f"Who scored the goal at second {when}?", UNABLE, [f"{team}." for team in (*game.facts(when).teams, stranger)]


KINDS: dict[str, Ask] = {
    **{kind: _from_commentary(kind) for kind in commentary.QUESTIONS},
    "colour": _colour,
    "side": _side,
    "now": _now,
    "last": _last,
    "next": _next,
    "why": _why,
    "summary": _summary,
    "at": _at_second,
    "after": _after,
    "when": _when,
    "never": _never,
}


def lettered(options: Sequence[str]) -> list[str]:
    """["A. ...", "B. ...", ...]"""
    return [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=True)]


def each(games: Sequence[Game], kinds: dict[str, int]) -> Iterator[tuple[Game, str, Choice]]:
    """(game, kind, choice) of so many questions of each kind, game by game, in order of time."""
    for game in games:
        questions = [(choice, kind) for kind, count in kinds.items() for choice in find(game, kind, count)]
        yield from ((game, kind, choice) for choice, kind in sorted(questions))
