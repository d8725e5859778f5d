"""An endless ball game from a seed: matches of a few minutes, two teams of five, and what happens when.

Owns the rules, the events and where everybody stands. Does not know pictures (`render`) or words (`commentary`). numpy only.
Units: seconds; places on a pitch of x -1.5 .. 1.5 (a goal at each end) and y -1 .. 1 (down).

What happens begins 0.2 s before a half second, so that whoever looks twice a second sees it begun, and no two events lie in the
same second (`second_of`).
"""

import math
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import NamedTuple

import numpy as np

TICK = 0.1  # seconds
HALF = (5, 10)  # ticks of half a second, and of one
LEAD = 0.2  # seconds that an event lies before the half second at which it is looked at
TEAMS = ("Reds", "Blues", "Yellows", "Whites", "Blacks", "Pinks")
CUPS = ("Gold", "Silver", "Bronze", "Emerald")
LENGTH, WIDTH = 1.5, 1.0  # half the pitch
SIZE = 5  # players of a team, the keeper first
RUN, SPRINT = 0.32, 0.6  # largest speeds, a second
MATCH = (170, 230)  # seconds of a match; it ends when the ball next stands still
MOST_GOALS = 9  # of a team: a score is a digit
# Where a team that plays to the right stands when the ball is in the middle.
FORMATION = np.array([[-1.4, 0.0], [-0.75, -0.45], [-0.7, 0.45], [0.15, -0.5], [0.2, 0.5]])
KICK_OFF = np.array([[-1.4, 0.0], [-0.8, -0.45], [-0.8, 0.45], [-0.3, -0.35], [-0.1, 0.0]])


class Kind(StrEnum):
    """What happens, and what a picture shows of it."""

    OPENING = "opening"  # the cup is shown, once a stream
    HOME = "home"  # the shirt of the left team is shown, before its match
    AWAY = "away"  # that of the right one
    KICK_OFF = "kick-off"
    PLAY = "play"  # somebody has the ball: a picture, and no event
    PASS = "pass"
    WIN = "win"  # the other team takes the ball: an event, and no picture of its own
    SHOT = "shot"
    GOAL = "goal"
    SAVE = "save"
    WIDE = "wide"
    CORNER = "corner"
    FOUL = "foul"
    FULL_TIME = "full time"


class Rules(StrEnum):
    """How it is played. What is rare in a match is learned from the others."""

    MATCH = "match"
    PRACTICE = "practice"  # they shoot from everywhere and score more
    DRILL = "drill"  # goals and nothing else, one after another: to count


class Facts(NamedTuple):
    """What is true of a match. teams: the left one, the right one; goals of each; first: the team that scored first, or ""."""

    cup: str
    number: int
    teams: tuple[str, str]
    goals: tuple[int, int] = (0, 0)
    first: str = ""


class Event(NamedTuple):
    """At `time`; `team` did it ("" for both), and `facts` are true from then on."""

    time: float
    kind: Kind
    team: str
    facts: Facts


class Moment(NamedTuple):
    """A picture's content. players [2, SIZE, 2], ball [2]; carrier: (side, player) or None; scene, since when, of which side
    and player (-1: none); origin [2]: where the ball was when the scene began."""

    time: float
    players: np.ndarray
    ball: np.ndarray
    origin: np.ndarray
    carrier: tuple[int, int] | None
    scene: Kind
    since: float
    side: int
    player: int
    facts: Facts


def second_of(time: float) -> int:
    """The second in which an event is first seen by one who looks at s and s + 0.5, and spoken of."""
    return math.floor(time + 0.5)


class World:
    """The game of a seed. `moments` is gone through once; `events` holds what has happened so far, in order, and `holders` the
    team that has the ball at s + 0.5, for every second s ("" for nobody)."""

    def __init__(self, seed: int, rules: Rules = Rules.MATCH) -> None:
        self.seed, self.rules = seed, rules
        self.random = np.random.default_rng(seed)
        self.events: list[Event] = []
        self.holders: list[str] = []
        self.tick = 0
        self.players = np.stack([FORMATION, FORMATION * (-1, 1)])
        self.ball = np.zeros(2)
        self.carrier: tuple[int, int] | None = None
        self.facts = Facts(CUPS[self.random.integers(len(CUPS))], 0, (TEAMS[0], TEAMS[1]))

    def forget(self) -> None:
        """Drop what has happened, so that a game can go on for ever; the rules look at the newest event alone."""
        del self.events[:-1], self.holders[:-1]

    @property
    def time(self) -> float:
        return self.tick * TICK

    def moments(self) -> Iterator[Moment]:
        """A moment each TICK, from 0 s on, without end."""
        self._new_match()
        self._event(Kind.OPENING, None)
        yield from self._scene(Kind.OPENING, 4 - LEAD)
        while True:
            yield from self._match()

    # what happens

    def _match(self) -> Iterator[Moment]:
        began, length = self.time, self.random.integers(*MATCH)
        for side, kind in enumerate((Kind.HOME, Kind.AWAY)):
            self._event(kind, side)
            yield from self._scene(kind, 2.0, side)
        yield from self._kick_off(int(self.random.integers(2)))
        while self.time - began < length and max(self.facts.goals) < MOST_GOALS:
            yield from self._drill() if self.rules is Rules.DRILL else self._attack()
        self.carrier = None
        if self.events[-1].time == round(self.time, 3):  # a ball won as the whistle blows is nobody's
            self.events.pop()
        self._event(Kind.FULL_TIME, None)
        yield from self._scene(Kind.FULL_TIME, 5.0)
        self._new_match()

    def _new_match(self) -> None:
        one, other = self.random.permutation(len(TEAMS))[:2]
        self.facts = Facts(self.facts.cup, self.facts.number + 1, (TEAMS[one], TEAMS[other]))

    def _kick_off(self, side: int) -> Iterator[Moment]:
        self.ball, self.carrier = np.zeros(2), (side, SIZE - 1)
        self._event(Kind.KICK_OFF, side)
        yield from self._scene(Kind.KICK_OFF, 2.5, side)

    def _attack(self) -> Iterator[Moment]:
        """What the player with the ball does next; he has it again, or another has, when this ends."""
        assert self.carrier is not None
        side, _ = self.carrier
        yield from self._dribble(self._any(1.0, 1.5, 2.0, 2.5, 3.0))
        near = self.rules is Rules.PRACTICE or self.ball[0] * self._way(side) > 0.45
        draw = self.random.random()
        if near and draw < 0.62:
            yield from self._shoot(side)
        elif draw < 0.07:
            yield from self._foul(side)
        elif draw < 0.2:
            yield from self._tackle(side)
        else:
            yield from self._pass(side)

    def _dribble(self, seconds: float) -> Iterator[Moment]:
        assert self.carrier is not None
        side, player = self.carrier
        home = self.players[side, player].copy()
        reach = 0.5 if player else 0.05  # a keeper stays
        to = home + np.array([self._way(side) * reach, self.random.uniform(-0.35, 0.35)])
        to = np.clip(to, (-1.25, -0.85), (1.25, 0.85))
        yield from self._scene(Kind.PLAY, seconds, carried=to)

    def _pass(self, side: int) -> Iterator[Moment]:
        assert self.carrier is not None
        mates = [player for player in range(1, SIZE) if player != self.carrier[1]]
        ahead = self.players[side, mates, 0] * self._way(side)
        share = np.exp(1.2 * (ahead - ahead.max()))
        mate = int(self.random.choice(mates, p=share / share.sum()))
        to = (side, mate)
        if self.random.random() < 0.22:
            to = (1 - side, self._nearest(1 - side, self.players[side, mate]))
        yield from self._send(side, to)

    def _send(self, side: int, to: tuple[int, int]) -> Iterator[Moment]:
        self.carrier = None
        self._event(Kind.PASS, side)
        seconds = 1.0 if np.linalg.norm(self.players[to] - self.ball) < 1.2 else 1.5
        yield from self._scene(Kind.PASS, seconds, side, flight=lambda: self.players[to])
        self._take(side, to)

    def _take(self, side: int, to: tuple[int, int]) -> None:
        """The ball of `side` is another's now."""
        self.carrier = to
        if to[0] != side:
            self._event(Kind.WIN, to[0])

    def _tackle(self, side: int) -> Iterator[Moment]:
        thief = (1 - side, self._nearest(1 - side, self.ball))
        yield from self._scene(Kind.PLAY, 1.0, chased=thief)
        self._take(side, thief)

    def _foul(self, side: int) -> Iterator[Moment]:
        sinner = self._nearest(1 - side, self.ball)
        yield from self._scene(Kind.PLAY, 1.0, chased=(1 - side, sinner))
        self._event(Kind.FOUL, 1 - side)
        yield from self._scene(Kind.FOUL, 3.0, 1 - side, player=sinner)
        yield from self._pass(side)

    def _shoot(self, side: int) -> Iterator[Moment]:
        way, aim = self._way(side), self.random.uniform(-0.2, 0.2)
        odds = (0.6, 0.1, 0.05, 0.25) if self.rules is Rules.PRACTICE else (0.36, 0.34, 0.12, 0.18)
        fate = self.random.choice(["goal", "save", "wide", "corner"], p=odds)
        mouth = np.array([way * (LENGTH + 0.05), aim if fate == "goal" else math.copysign(0.42, aim)])
        keeper = (1 - side, 0)
        self.carrier = None
        self._event(Kind.SHOT, side)
        to = (lambda: self.players[keeper]) if fate == "save" else (lambda: mouth)
        yield from self._scene(Kind.SHOT, 1.0, side, flight=to)
        if fate == "goal":
            yield from self._goal(side, 4.0)
            yield from self._kick_off(1 - side)
        elif fate == "corner":
            yield from self._corner(side)
        elif fate == "wide":
            self._event(Kind.WIDE, side)
            yield from self._scene(Kind.WIDE, 2.5, side)
            self.carrier = keeper
        else:
            self.carrier = keeper
            self._event(Kind.SAVE, 1 - side)
            yield from self._scene(Kind.SAVE, 2.5, 1 - side, player=0)
            yield from self._pass(1 - side)

    def _drill(self) -> Iterator[Moment]:
        """A goal of one team or the other, from nowhere."""
        side = int(self.random.integers(2))
        self.ball, self.carrier = np.array([self._way(side) * (LENGTH + 0.05), self.random.uniform(-0.2, 0.2)]), None
        yield from self._goal(side, 2.0)

    def _goal(self, side: int, seconds: float) -> Iterator[Moment]:
        goals = [*self.facts.goals]
        goals[side] += 1
        first = self.facts.first or self.facts.teams[side]
        self.facts = self.facts._replace(goals=(goals[0], goals[1]), first=first)
        self._event(Kind.GOAL, side)
        yield from self._scene(Kind.GOAL, seconds, side)

    def _corner(self, side: int) -> Iterator[Moment]:
        way, up = self._way(side), math.copysign(1.0, self.ball[1])
        self.ball, taker = np.array([way * 1.44, up * 0.93]), SIZE - 2
        self.players[side, taker] = self.ball - (way * 0.06, up * 0.02)
        self._event(Kind.CORNER, side)
        yield from self._scene(Kind.CORNER, 3.0, side)
        self.carrier = (side, taker)
        yield from self._send(side, (side, SIZE - 1))

    # how it looks

    def _scene(
        self,
        scene: Kind,
        seconds: float,
        side: int = -1,
        *,
        player: int = -1,
        carried: np.ndarray | None = None,
        chased: tuple[int, int] | None = None,
        flight: Callable[[], np.ndarray] | None = None,
    ) -> Iterator[Moment]:
        """Moments of a scene: everybody walks to where the scene wants him; the ball flies to `flight()`, or is carried."""
        since, origin, count = self.time, self.ball.copy(), round(seconds / TICK)
        for number in range(count):
            targets, speed = self._targets(scene, side)
            if self.carrier is not None:
                targets[self.carrier] = carried if carried is not None else self.players[self.carrier]
            if chased is not None:
                targets[chased] = self.ball
            step = targets - self.players
            far = np.maximum(np.linalg.norm(step, axis=-1, keepdims=True), 1e-9)
            self.players = self.players + step * np.minimum(1.0, speed * TICK / far)
            if flight is not None:
                share = (number + 1) / count
                self.ball = origin + (flight() - origin) * share
            elif self.carrier is not None:
                self.ball = self.players[self.carrier] + (0.07 * self._way(self.carrier[0]), 0.03)
            if self.tick % HALF[1] == HALF[0]:
                self.holders.append("" if self.carrier is None else self.facts.teams[self.carrier[0]])
            places = (self.players.copy(), self.ball.copy(), origin)
            yield Moment(self.time, *places, self.carrier, scene, since, side, player, self.facts)
            self.tick += 1

    def _targets(self, scene: Kind, side: int) -> tuple[np.ndarray, float]:
        """Where everybody wants to be [2, SIZE, 2], and how fast he goes there."""
        base = KICK_OFF if scene in (Kind.OPENING, Kind.HOME, Kind.AWAY, Kind.KICK_OFF) else FORMATION
        targets = np.stack([base, base * (-1, 1)])
        if base is KICK_OFF:
            if scene is Kind.KICK_OFF:
                targets[1 - side, SIZE - 1, 0] = -self._way(1 - side) * 0.45
            return targets, 1.2
        if scene is Kind.FULL_TIME:
            spread = np.linspace(-0.6, 0.6, SIZE)
            return np.stack([np.stack([np.full(SIZE, x), spread], -1) for x in (-0.15, 0.15)]), SPRINT
        if scene is Kind.FOUL:
            return self.players.copy(), RUN
        if scene is Kind.GOAL:
            targets = self.players.copy()
            targets[side, 1:] = (self._way(side) * 1.1, 0.7) + 0.12 * FORMATION[1:]
            return targets, SPRINT
        sway = np.sin(self.time * np.array([0.7, 0.9, 1.1, 0.8, 1.0]) + np.arange(SIZE) * 1.3)
        targets[..., 1:, 0] += 0.62 * self.ball[0]
        targets[..., 1:, 1] += 0.3 * self.ball[1] + 0.15 * sway[1:]
        targets[..., 0, 1] = 0.25 * np.clip(self.ball[1], -0.8, 0.8)
        if scene is Kind.CORNER:
            targets[side, 1:, 0] = self._way(side) * np.array([0.3, 0.5, 1.38, 1.0])
            targets[side, SIZE - 2] = self.players[side, SIZE - 2]
        return np.clip(targets, (-1.45, -0.92), (1.45, 0.92)), RUN

    # small things

    def _event(self, kind: Kind, side: int | None) -> None:
        self.events.append(Event(round(self.time, 3), kind, "" if side is None else self.facts.teams[side], self.facts))

    def _any(self, *choices: float) -> float:
        return float(self.random.choice(choices))

    def _nearest(self, side: int, place: np.ndarray) -> int:
        """The field player of a side who is nearest."""
        return 1 + int(np.argmin(np.linalg.norm(self.players[side, 1:] - place, axis=-1)))

    @staticmethod
    def _way(side: int) -> int:
        """Where a side plays to."""
        return 1 - 2 * side
