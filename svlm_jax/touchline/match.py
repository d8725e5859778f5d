"""An endless ball game from a seed: matches of a few minutes between two teams of five, with a list of events.

Owns the rules, the events and the positions of players and ball. Does not know frames (`render`) or words (`commentary`).
numpy only. Units: seconds; positions on a pitch of x -1.5 .. 1.5 (a goal at each end) and y -1 .. 1 (down).

An event starts 0.2 s before a half second, so that a stream of 2 frames a second always shows it. No two events lie in the same
second (`second_of`).
"""

import math
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import NamedTuple

import numpy as np

TICK = 0.1  # seconds
TICKS_PER_HALF_SECOND, TICKS_PER_SECOND = 5, 10
LEAD = 0.2  # seconds between an event and the first frame (at a half second) that shows it
TEAMS = ("Reds", "Blues", "Yellows", "Whites", "Blacks", "Pinks")
CUPS = ("Gold", "Silver", "Bronze", "Emerald")
LENGTH, WIDTH = 1.5, 1.0  # half the pitch
TEAM_SIZE = 5  # players of a team, the keeper first
RUN_SPEED, SPRINT_SPEED = 0.32, 0.6  # units of the pitch a second
MATCH_SECONDS = (170, 230)  # seconds of a match; it ends when the ball next stands still
MAX_GOALS = 9  # of a team: a score is a digit
# Positions of a team that plays to the right while the ball is in the middle.
FORMATION = np.array([[-1.4, 0.0], [-0.75, -0.45], [-0.7, 0.45], [0.15, -0.5], [0.2, 0.5]])
KICK_OFF = np.array([[-1.4, 0.0], [-0.8, -0.45], [-0.8, 0.45], [-0.3, -0.35], [-0.1, 0.0]])


class Kind(StrEnum):
    """Kinds of events and of scenes."""

    OPENING = "opening"  # the cup is shown, once a stream
    HOME = "home"  # the shirt of the left team is shown, before its match
    AWAY = "away"  # that of the right one
    KICK_OFF = "kick-off"
    PLAY = "play"  # a player has the ball: a scene without an event
    PASS = "pass"
    WIN = "win"  # the other team takes the ball: an event without a scene
    SHOT = "shot"
    GOAL = "goal"
    SAVE = "save"
    WIDE = "wide"
    CORNER = "corner"
    FOUL = "foul"
    FULL_TIME = "full time"


class Rules(StrEnum):
    """Rules of a game. Practice and drills have more of the events that are rare in a match, for training."""

    MATCH = "match"
    PRACTICE = "practice"  # teams shoot from everywhere and score more
    DRILL = "drill"  # goals only, one after another: training data for counting


class Facts(NamedTuple):
    """State of a match. teams: left, right; goals: of each; first: the team that scored first, or ""."""

    cup: str
    number: int
    teams: tuple[str, str]
    goals: tuple[int, int] = (0, 0)
    first: str = ""


class Event(NamedTuple):
    """team: who caused it ("" for both); facts: the state of the match right after it."""

    time: float
    kind: Kind
    team: str
    facts: Facts


class Moment(NamedTuple):
    """All that a frame shows. players [2, TEAM_SIZE, 2], ball [2]: positions; carrier: (side, player) with the ball, or None;
    scene: since when, and of which side and player (-1: none); origin [2]: position of the ball when the scene started."""

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
    """The second of a stream (frames at s and s + 0.5) that first shows an event, and in which the commentary mentions it."""
    return math.floor(time + 0.5)


class World:
    """The game of a seed. `moments` can be iterated once. events: all events so far, in order of time; holders: for every
    second s the team that has the ball at s + 0.5 ("" for none)."""

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

    def drop_history(self) -> None:
        """Drop all events but the newest, which the rules need: an endless game uses constant memory."""
        del self.events[:-1], self.holders[:-1]

    @property
    def time(self) -> float:
        return self.tick * TICK

    def moments(self) -> Iterator[Moment]:
        """A moment every TICK, from 0 s, without end."""
        self._new_match()
        self._event(Kind.OPENING, None)
        yield from self._scene(Kind.OPENING, 4 - LEAD)
        while True:
            yield from self._match()

    # rules: each method yields the moments of what it plays

    def _match(self) -> Iterator[Moment]:
        start, length = self.time, self.random.integers(*MATCH_SECONDS)
        for side, kind in enumerate((Kind.HOME, Kind.AWAY)):
            self._event(kind, side)
            yield from self._scene(kind, 2.0, side)
        yield from self._kick_off(int(self.random.integers(2)))
        while self.time - start < length and max(self.facts.goals) < MAX_GOALS:
            yield from self._drill() if self.rules is Rules.DRILL else self._attack()
        self.carrier = None
        if self.events[-1].time == round(self.time, 3):  # no two events share a second
            self.events.pop()
        self._event(Kind.FULL_TIME, None)
        yield from self._scene(Kind.FULL_TIME, 5.0)
        self._new_match()

    def _new_match(self) -> None:
        home, away = self.random.permutation(len(TEAMS))[:2]
        self.facts = Facts(self.facts.cup, self.facts.number + 1, (TEAMS[home], TEAMS[away]))

    def _kick_off(self, side: int) -> Iterator[Moment]:
        self.ball, self.carrier = np.zeros(2), (side, TEAM_SIZE - 1)
        self._event(Kind.KICK_OFF, side)
        yield from self._scene(Kind.KICK_OFF, 2.5, side)

    def _attack(self) -> Iterator[Moment]:
        """The player with the ball dribbles, then shoots, is fouled or tackled, or passes; at the end a player has the ball."""
        assert self.carrier is not None
        side, _ = self.carrier
        yield from self._dribble(self._choose(1.0, 1.5, 2.0, 2.5, 3.0))
        in_range = self.rules is Rules.PRACTICE or self.ball[0] * self._direction(side) > 0.45
        chance = self.random.random()
        if in_range and chance < 0.62:
            yield from self._shoot(side)
        elif chance < 0.07:
            yield from self._foul(side)
        elif chance < 0.2:
            yield from self._tackle(side)
        else:
            yield from self._pass(side)

    def _dribble(self, seconds: float) -> Iterator[Moment]:
        assert self.carrier is not None
        side, player = self.carrier
        start = self.players[side, player].copy()
        reach = 0.5 if player else 0.05  # a keeper stays in the goal
        target = start + np.array([self._direction(side) * reach, self.random.uniform(-0.35, 0.35)])
        target = np.clip(target, (-1.25, -0.85), (1.25, 0.85))
        yield from self._scene(Kind.PLAY, seconds, carried=target)

    def _pass(self, side: int) -> Iterator[Moment]:
        assert self.carrier is not None
        mates = [player for player in range(1, TEAM_SIZE) if player != self.carrier[1]]
        progress = self.players[side, mates, 0] * self._direction(side)
        weights = np.exp(1.2 * (progress - progress.max()))  # a softmax: players further forward are likelier
        mate = int(self.random.choice(mates, p=weights / weights.sum()))
        receiver = (side, mate)
        if self.random.random() < 0.22:
            receiver = (1 - side, self._nearest(1 - side, self.players[side, mate]))
        yield from self._send(side, receiver)

    def _send(self, side: int, receiver: tuple[int, int]) -> Iterator[Moment]:
        self.carrier = None
        self._event(Kind.PASS, side)
        seconds = 1.0 if np.linalg.norm(self.players[receiver] - self.ball) < 1.2 else 1.5
        yield from self._scene(Kind.PASS, seconds, side, flight=lambda: self.players[receiver])
        self._take(side, receiver)

    def _take(self, side: int, receiver: tuple[int, int]) -> None:
        """The receiver gets the ball of `side`; a win if he plays for the other team."""
        self.carrier = receiver
        if receiver[0] != side:
            self._event(Kind.WIN, receiver[0])

    def _tackle(self, side: int) -> Iterator[Moment]:
        tackler = (1 - side, self._nearest(1 - side, self.ball))
        yield from self._scene(Kind.PLAY, 1.0, chased=tackler)
        self._take(side, tackler)

    def _foul(self, side: int) -> Iterator[Moment]:
        offender = self._nearest(1 - side, self.ball)
        yield from self._scene(Kind.PLAY, 1.0, chased=(1 - side, offender))
        self._event(Kind.FOUL, 1 - side)
        yield from self._scene(Kind.FOUL, 3.0, 1 - side, player=offender)
        yield from self._pass(side)

    def _shoot(self, side: int) -> Iterator[Moment]:
        direction, aim = self._direction(side), self.random.uniform(-0.2, 0.2)
        odds = (0.6, 0.1, 0.05, 0.25) if self.rules is Rules.PRACTICE else (0.36, 0.34, 0.12, 0.18)
        outcome = self.random.choice(["goal", "save", "wide", "corner"], p=odds)
        mouth = np.array([direction * (LENGTH + 0.05), aim if outcome == "goal" else math.copysign(0.42, aim)])
        keeper = (1 - side, 0)
        self.carrier = None
        self._event(Kind.SHOT, side)
        target = (lambda: self.players[keeper]) if outcome == "save" else (lambda: mouth)
        yield from self._scene(Kind.SHOT, 1.0, side, flight=target)
        if outcome == "goal":
            yield from self._goal(side, 4.0)
            yield from self._kick_off(1 - side)
        elif outcome == "corner":
            yield from self._corner(side)
        elif outcome == "wide":
            self._event(Kind.WIDE, side)
            yield from self._scene(Kind.WIDE, 2.5, side)
            self.carrier = keeper
        else:
            self.carrier = keeper
            self._event(Kind.SAVE, 1 - side)
            yield from self._scene(Kind.SAVE, 2.5, 1 - side, player=0)
            yield from self._pass(1 - side)

    def _drill(self) -> Iterator[Moment]:
        """A goal of a random team, without a match around it."""
        side = int(self.random.integers(2))
        self.ball, self.carrier = np.array([self._direction(side) * (LENGTH + 0.05), self.random.uniform(-0.2, 0.2)]), None
        yield from self._goal(side, 2.0)

    def _goal(self, side: int, seconds: float) -> Iterator[Moment]:
        goals = [*self.facts.goals]
        goals[side] += 1
        first = self.facts.first or self.facts.teams[side]
        self.facts = self.facts._replace(goals=(goals[0], goals[1]), first=first)
        self._event(Kind.GOAL, side)
        yield from self._scene(Kind.GOAL, seconds, side)

    def _corner(self, side: int) -> Iterator[Moment]:
        direction, vertical = self._direction(side), math.copysign(1.0, self.ball[1])
        self.ball, taker = np.array([direction * 1.44, vertical * 0.93]), TEAM_SIZE - 2
        self.players[side, taker] = self.ball - (direction * 0.06, vertical * 0.02)
        self._event(Kind.CORNER, side)
        yield from self._scene(Kind.CORNER, 3.0, side)
        self.carrier = (side, taker)
        yield from self._send(side, (side, TEAM_SIZE - 1))

    # movement

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
        """Moments of a scene: players move towards their targets; the ball flies to `flight()`, or its carrier carries it.

        Args:
            side, player: whom the scene is about (-1: none).
            carried: target of the carrier.
            chased: (side, player) who runs to the ball.
            flight: current target of the ball, which may move.
        """
        since, origin, count = self.time, self.ball.copy(), round(seconds / TICK)
        for index in range(count):
            targets, speed = self._targets(scene, side)
            if self.carrier is not None:
                targets[self.carrier] = carried if carried is not None else self.players[self.carrier]
            if chased is not None:
                targets[chased] = self.ball
            step = targets - self.players
            distance = np.maximum(np.linalg.norm(step, axis=-1, keepdims=True), 1e-9)
            self.players = self.players + step * np.minimum(1.0, speed * TICK / distance)
            if flight is not None:
                fraction = (index + 1) / count
                self.ball = origin + (flight() - origin) * fraction
            elif self.carrier is not None:
                self.ball = self.players[self.carrier] + (0.07 * self._direction(self.carrier[0]), 0.03)
            if self.tick % TICKS_PER_SECOND == TICKS_PER_HALF_SECOND:
                self.holders.append("" if self.carrier is None else self.facts.teams[self.carrier[0]])
            positions = (self.players.copy(), self.ball.copy(), origin)
            yield Moment(self.time, *positions, self.carrier, scene, since, side, player, self.facts)
            self.tick += 1

    def _targets(self, scene: Kind, side: int) -> tuple[np.ndarray, float]:
        """Target positions [2, TEAM_SIZE, 2], and the speed of the players."""
        base = KICK_OFF if scene in (Kind.OPENING, Kind.HOME, Kind.AWAY, Kind.KICK_OFF) else FORMATION
        targets = np.stack([base, base * (-1, 1)])
        if base is KICK_OFF:
            if scene is Kind.KICK_OFF:
                targets[1 - side, TEAM_SIZE - 1, 0] = -self._direction(1 - side) * 0.45
            return targets, 1.2
        if scene is Kind.FULL_TIME:
            spread = np.linspace(-0.6, 0.6, TEAM_SIZE)
            return np.stack([np.stack([np.full(TEAM_SIZE, x), spread], -1) for x in (-0.15, 0.15)]), SPRINT_SPEED
        if scene is Kind.FOUL:
            return self.players.copy(), RUN_SPEED
        if scene is Kind.GOAL:
            targets = self.players.copy()
            targets[side, 1:] = (self._direction(side) * 1.1, 0.7) + 0.12 * FORMATION[1:]
            return targets, SPRINT_SPEED
        sway = np.sin(self.time * np.array([0.7, 0.9, 1.1, 0.8, 1.0]) + np.arange(TEAM_SIZE) * 1.3)
        targets[..., 1:, 0] += 0.62 * self.ball[0]
        targets[..., 1:, 1] += 0.3 * self.ball[1] + 0.15 * sway[1:]
        targets[..., 0, 1] = 0.25 * np.clip(self.ball[1], -0.8, 0.8)
        if scene is Kind.CORNER:
            targets[side, 1:, 0] = self._direction(side) * np.array([0.3, 0.5, 1.38, 1.0])
            targets[side, TEAM_SIZE - 2] = self.players[side, TEAM_SIZE - 2]
        return np.clip(targets, (-1.45, -0.92), (1.45, 0.92)), RUN_SPEED

    def _event(self, kind: Kind, side: int | None) -> None:
        self.events.append(Event(round(self.time, 3), kind, "" if side is None else self.facts.teams[side], self.facts))

    def _choose(self, *choices: float) -> float:
        return float(self.random.choice(choices))

    def _nearest(self, side: int, position: np.ndarray) -> int:
        """The field player of a side (never the keeper, 0) who is nearest to a position."""
        return 1 + int(np.argmin(np.linalg.norm(self.players[side, 1:] - position, axis=-1)))

    @staticmethod
    def _direction(side: int) -> int:
        """Sign of x of the goal that a side shoots at."""
        return 1 - 2 * side
