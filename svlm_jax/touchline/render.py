"""Frames of the game at any size (3:2 shows the pitch without bars).

Owns the drawing of one moment. Does not know other moments. Host side: Pillow and numpy. Units: sizes in pixels, positions as
in `match`.
"""

import colorsys
import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from svlm_jax.touchline.match import LENGTH, TEAM_SIZE, WIDTH, Kind, Moment

Colour = tuple[int, int, int]
SUPERSAMPLING = 2  # frames are drawn larger by this factor, then averaged: Pillow's shapes have hard edges
MARGIN_X, MARGIN_TOP, MARGIN_BOTTOM = 0.3, 0.36, 0.2  # around the pitch; the stand is at the top
BOARD = 0.14  # height of the boards around the pitch
SEGMENT = 0.15  # length of a segment of one colour on the boards
COLOURS: dict[str, Colour] = {
    "Reds": (214, 36, 40),
    "Blues": (36, 70, 214),
    "Yellows": (246, 208, 30),
    "Whites": (245, 245, 245),
    "Blacks": (24, 24, 28),
    "Pinks": (246, 110, 196),
}
CUPS: dict[str, Colour] = {
    "Gold": (255, 196, 30),
    "Silver": (200, 205, 215),
    "Bronze": (190, 110, 50),
    "Emerald": (20, 200, 150),
}
SKIN: tuple[Colour, ...] = ((255, 219, 172), (224, 172, 105), (141, 85, 36), (198, 134, 66))
# Colours of the boards next to the colour of a team; no team has one of them.
GREEN, ORANGE, CYAN, PURPLE, LILAC = (70, 255, 80), (255, 130, 0), (0, 235, 255), (140, 40, 225), (190, 170, 255)
GOLD, PEACH, GREY, OFF = (255, 205, 60), (255, 190, 140), (115, 115, 115), (34, 36, 42)
Weather = str  # "sun", "rain", "night", "snow"


class Look(NamedTuple):
    """Look of a match. stripes: the two colours of the pitch; pattern: "columns", "rows", "checks" or "plain"; shade: factors
    of all team colours; zoom, pan: of the camera."""

    stripes: tuple[Colour, Colour]
    pattern: str
    weather: Weather
    shade: tuple[float, float, float]
    zoom: float
    pan: tuple[float, float]


# Half of the pitches in training films are green. The others have any hue in HUES, which leave out those of the unseen pitches:
# clay (0.07) and blue (0.59).
PITCHES: tuple[tuple[Colour, Colour], ...] = (
    ((58, 140, 62), (66, 154, 70)),
    ((42, 118, 60), (50, 130, 66)),
    ((96, 150, 60), (106, 162, 66)),
    ((60, 128, 92), (68, 140, 100)),
)
HUES = ((0.14, 0.53), (0.67, 1.0))
UNSEEN_PITCHES: tuple[tuple[Colour, Colour], ...] = (((176, 120, 82), (188, 132, 92)), ((70, 110, 160), (78, 120, 172)))


def match_look(seed: int, number: int, unseen: bool = False) -> Look:
    """The look of match `number`. unseen: pitches and shades that no training film has."""
    random = np.random.default_rng([seed, number, 2])
    spread = 0.15 if unseen else 0.1
    shade = random.uniform(1 - spread, 1 + spread, 3)
    return Look(
        _stripes(random, unseen),
        str(random.choice(["columns", "rows", "checks", "plain"])),
        str(random.choice(["sun", "rain", "night", "snow"], p=[0.4, 0.2, 0.25, 0.15])),
        (float(shade[0]), float(shade[1]), float(shade[2])),
        float(random.uniform(0.97, 1.04)),
        (float(random.uniform(-0.03, 0.03)), float(random.uniform(-0.03, 0.03))),
    )


def _stripes(random: np.random.Generator, unseen: bool) -> tuple[Colour, Colour]:
    pitches = UNSEEN_PITCHES if unseen else PITCHES
    if unseen or random.random() < 0.5:
        return pitches[random.integers(len(pitches))]
    hue = random.uniform(*HUES[random.integers(len(HUES))])
    levels = np.array(colorsys.hsv_to_rgb(hue, random.uniform(0.2, 0.6), random.uniform(0.4, 0.65)))
    first, second = ((round(255 * r), round(255 * g), round(255 * b)) for r, g, b in (levels, 1.08 * levels))
    return first, second


class Renderer:
    """Draws a moment as a frame, uint8 [H, W, 3]. unseen: as for `match_look`."""

    def __init__(self, seed: int, width: int, height: int, unseen: bool = False) -> None:
        self.seed, self.size, self.unseen = seed, (width, height), unseen
        self.large = (width * SUPERSAMPLING, height * SUPERSAMPLING)
        self.background = lru_cache(maxsize=2)(self._background)

    def __call__(self, moment: Moment) -> np.ndarray:
        look = match_look(self.seed, moment.facts.number, self.unseen)
        brush = _Brush(self.background(look).copy(), look)
        _draw(brush, moment)
        image = _apply_weather(brush, moment, self.size)
        return np.asarray(image)

    def _background(self, look: Look) -> Image.Image:
        brush = _Brush(Image.new("RGB", self.large, (52, 56, 66)), look)
        _stand(brush, np.random.default_rng([self.seed, 3]))
        _pitch(brush)
        return brush.image


class _Brush:
    """Draws shapes that are given in positions on the pitch. unit: pixels of a unit of length."""

    def __init__(self, image: Image.Image, look: Look) -> None:
        self.image, self.match_look = image, look
        self.draw = ImageDraw.Draw(image, "RGBA")
        width, height = image.size
        tall = 2 * WIDTH + MARGIN_TOP + MARGIN_BOTTOM
        self.unit = min(width / (2 * LENGTH + 2 * MARGIN_X), height / tall) * look.zoom
        self.centre = (
            width / 2 + look.pan[0] * self.unit,
            height / 2 + (MARGIN_TOP - MARGIN_BOTTOM) / 2 * self.unit + look.pan[1] * self.unit,
        )

    def pixel(self, position) -> tuple[float, float]:
        return self.centre[0] + float(position[0]) * self.unit, self.centre[1] + float(position[1]) * self.unit

    def disc(self, position, radius: float, fill=None, outline=None, width: float = 0.02, squash: float = 1.0) -> None:
        (x, y), r = self.pixel(position), radius * self.unit
        line = max(1, round(width * self.unit)) if outline else 0
        self.draw.ellipse((x - r, y - r * squash, x + r, y + r * squash), fill=fill, outline=outline, width=line)

    def line(self, positions, fill, width: float) -> None:
        self.draw.line(
            [self.pixel(position) for position in positions], fill=fill, width=max(1, round(width * self.unit)), joint="curve"
        )

    def shape(self, positions, fill, outline=None) -> None:
        self.draw.polygon([self.pixel(position) for position in positions], fill=fill, outline=outline)

    def box(self, left: float, top: float, right: float, bottom: float, fill=None, outline=None, width: float = 0.0) -> None:
        line = max(1, round(width * self.unit)) if width else 0
        self.draw.rectangle((*self.pixel((left, top)), *self.pixel((right, bottom))), fill=fill, outline=outline, width=line)


def _stand(brush: _Brush, random: np.random.Generator) -> None:
    """Rows of spectators along the top."""
    for row in range(2):
        y = -WIDTH - MARGIN_TOP + 0.03 + 0.08 * row
        for x in np.arange(-LENGTH - 0.3, LENGTH + 0.3, 0.07):
            shade = random.integers(70, 190, 3)
            brush.disc((x + random.uniform(-0.02, 0.02), y), 0.026, tuple(int(level) for level in shade))


def _pitch(brush: _Brush) -> None:
    first, second = brush.match_look.stripes
    edge = tuple(int(0.85 * level) for level in first)
    brush.box(-LENGTH - 0.6, -WIDTH - 0.05 - BOARD, LENGTH + 0.6, WIDTH + 0.6, edge)
    for column in range(10):
        for row in range(6):
            odd = {"columns": column, "rows": row, "checks": column + row, "plain": 0}[brush.match_look.pattern] % 2
            x, y = -LENGTH + column * 0.3, -WIDTH + row / 3
            brush.box(x, y, x + 0.3, y + 1 / 3, second if odd else first)
    chalk, width = (255, 255, 255, 190), 0.014
    brush.box(-LENGTH, -WIDTH, LENGTH, WIDTH, outline=chalk, width=width)
    brush.line([(0, -WIDTH), (0, WIDTH)], chalk, width)
    brush.disc((0, 0), 0.3, outline=chalk, width=width)
    for side in (-1, 1):
        x = sorted((side * LENGTH, side * (LENGTH - 0.36)))
        brush.box(x[0], -0.55, x[1], 0.55, outline=chalk, width=width)
        net = sorted((side * LENGTH, side * (LENGTH + 0.11)))
        brush.box(net[0], -0.3, net[1], 0.3, (235, 235, 240, 120), (255, 255, 255, 255), 0.02)
        for y in np.linspace(-0.24, 0.24, 7):
            brush.line([(net[0], y), (net[1], y)], (255, 255, 255, 150), 0.008)


def _draw(brush: _Brush, moment: Moment) -> None:
    age = moment.time - moment.since
    colours = [_shaded(COLOURS[team], brush.match_look.shade) for team in moment.facts.teams]
    _boards(brush, moment, colours)
    if moment.scene is Kind.KICK_OFF:
        for radius in (0.3, 0.36):
            brush.disc((0, 0), radius, (255, 255, 255, 70), (255, 255, 255, 230), 0.03)
    if moment.carrier is not None:  # a light in the team's colour below the player with the ball
        brush.disc(moment.players[moment.carrier], 0.27, (*colours[moment.carrier[0]], 150))
    for side, player in sorted(np.ndindex(2, TEAM_SIZE), key=lambda who: moment.players[who][1]):
        _player(brush, moment, (side, player), colours[side])
    _ball(brush, moment)
    extras = {
        Kind.OPENING: _trophy,
        Kind.HOME: _shirt,
        Kind.AWAY: _shirt,
        Kind.GOAL: _confetti,
        Kind.SAVE: _burst,
        Kind.WIDE: _cross,
        Kind.CORNER: _flag,
        Kind.FOUL: _card,
    }
    if moment.scene in extras:
        extras[moment.scene](brush, moment, age)


def _boards(brush: _Brush, moment: Moment, colours: list[Colour]) -> None:
    """Lights around the pitch, as stadiums have them: the colour of the team that has the ball or sent it, in a pattern for
    each kind of scene. At low resolution they tell more than the players do."""
    top, end = -WIDTH - 0.05 - BOARD, LENGTH + 0.14
    pattern = _pattern(moment, colours)
    shift = math.floor(3 * moment.time)
    for number in range(math.ceil(2 * (end + BOARD) / SEGMENT)):
        colour, x = pattern[(number + shift) % len(pattern)], -end - BOARD + number * SEGMENT
        end_x = min(x + SEGMENT, end + BOARD)
        brush.box(x, top, end_x, top + BOARD, colour)
        brush.box(x, WIDTH + 0.05, end_x, WIDTH + 0.05 + BOARD, colour)
    for number in range(math.ceil((2 * WIDTH + 0.1) / SEGMENT)):
        y, colour = -WIDTH - 0.05 + number * SEGMENT, pattern[(number + shift) % len(pattern)]
        for left in (-end - BOARD, end):
            brush.box(left, y, left + BOARD, min(y + SEGMENT, WIDTH + 0.05), colour)


def _pattern(moment: Moment, colours: list[Colour]) -> list[Colour]:
    """The colours of the boards' segments, to be repeated."""
    if moment.scene is Kind.OPENING:
        return [CUPS[moment.facts.cup]]
    if moment.scene is Kind.FULL_TIME:
        return [OFF]
    side = moment.carrier[0] if moment.scene is Kind.PLAY and moment.carrier else moment.side
    team = colours[side]
    return {
        Kind.HOME: [team, PEACH],
        Kind.AWAY: [team, team, PEACH],
        Kind.KICK_OFF: [team, team, LILAC],
        Kind.PASS: [team, GREEN],
        Kind.SHOT: [team, ORANGE],
        Kind.GOAL: [team, GOLD, (255, 255, 255)],
        Kind.SAVE: [team, CYAN],
        Kind.WIDE: [GREY],
        Kind.CORNER: [team, PURPLE],
        Kind.FOUL: [team, GREY],
    }.get(moment.scene, [team])


def _player(brush: _Brush, moment: Moment, index: tuple[int, int], colour: Colour) -> None:
    x, y = moment.players[index]
    has_ball = moment.carrier == index
    brush.disc((x + 0.015, y + 0.095), 0.085, (0, 0, 0, 80), squash=0.45)
    if has_ball:
        brush.disc((x, y), 0.15, None, (255, 255, 255, 255), 0.03)
    step = 0.03 * math.sin(9 * moment.time + 2 * index[1])
    for foot in (-1, 1):
        brush.disc((x + 0.04 * foot, y + 0.085 + foot * step * 0.6), 0.03, (20, 20, 20))
    brush.disc((x, y), 0.1, colour, _darker(colour), 0.018)
    if not index[1]:  # the keeper's gloves
        for hand in (-1, 1):
            brush.disc((x, y + 0.11 * hand), 0.036, (90, 255, 120), (20, 90, 30), 0.01)
    brush.disc((x, y - 0.075), 0.052, SKIN[(index[0] * 3 + index[1]) % len(SKIN)], (40, 30, 20), 0.01)
    if has_ball:
        top = y - 0.2 - 0.015 * math.sin(6 * moment.time)
        brush.shape([(x - 0.05, top - 0.07), (x + 0.05, top - 0.07), (x, top)], (255, 255, 255), (0, 0, 0))


def _ball(brush: _Brush, moment: Moment) -> None:
    x, y = moment.ball
    if moment.scene in (Kind.PASS, Kind.SHOT):  # a tail in the colour of the side that sent it, with fire behind a shot
        team, shot = _shaded(COLOURS[moment.facts.teams[moment.side]], brush.match_look.shade), moment.scene is Kind.SHOT
        path = np.asarray(moment.ball - moment.origin)
        tail = path * min(1.0, 0.55 / max(float(np.linalg.norm(path)), 1e-6))
        for share in np.linspace(0, 1, 9):
            position = moment.ball - tail * (1 - share)
            if shot:
                brush.disc(position, 0.05 + 0.13 * share, (255, 120 + int(100 * share), 20))
            else:
                brush.disc(position, 0.03 + 0.09 * share, team, (255, 255, 255, 120), 0.01)
        brush.disc(moment.ball, 0.145, team, (255, 230, 60) if shot else (255, 255, 255), 0.02)
    brush.disc((x + 0.01, y + 0.045), 0.05, (0, 0, 0, 90), squash=0.5)
    brush.disc((x, y), 0.055, (255, 255, 255), (15, 15, 15), 0.014)
    angle = 8 * (x + y)
    brush.disc((x + 0.02 * math.cos(angle), y + 0.02 * math.sin(angle)), 0.018, (20, 20, 20))


def _flag(brush: _Brush, moment: Moment, age: float) -> None:
    x, y = math.copysign(LENGTH - 0.02, moment.ball[0]), math.copysign(WIDTH - 0.04, moment.ball[1])
    colour = _shaded(COLOURS[moment.facts.teams[moment.side]], brush.match_look.shade)
    brush.disc((x, y), 0.3 + 0.02 * math.sin(5 * age), (*colour, 130), (255, 240, 60, 255), 0.035)
    y += 0.34 * (y < 0)  # a flag at the top hangs into the picture
    brush.line([(x, y), (x, y - 0.34)], (250, 250, 250), 0.025)
    wave = 0.03 * math.sin(8 * age)
    side = -math.copysign(0.2, x)
    brush.shape([(x, y - 0.36), (x + side, y - 0.28 + wave), (x, y - 0.2)], colour, (255, 255, 255))


def _confetti(brush: _Brush, moment: Moment, age: float) -> None:
    colour = _shaded(COLOURS[moment.facts.teams[moment.side]], brush.match_look.shade)
    direction = 1 - 2 * moment.side
    for ring in range(3):
        brush.disc(
            (direction * LENGTH, 0), 0.25 + 0.16 * ring + 0.05 * math.sin(6 * age), None, (255, 255, 255, 220 - 60 * ring), 0.04
        )
    random = np.random.default_rng(round(moment.since * 10))
    x, y = random.uniform(-1.5, 1.5, 90), random.uniform(-1.1, 1.0, 90)
    for number, (left, top) in enumerate(zip(x, (y + 0.35 * age + 1.1) % 2.1 - 1.1, strict=True)):
        position = (left + 0.04 * math.sin(4 * age + number), top)
        brush.disc(position, 0.036, (255, 220, 40) if number % 3 == 0 else colour)


def _burst(brush: _Brush, moment: Moment, age: float) -> None:
    x, y = moment.ball
    for ray in range(10):
        angle = ray * math.pi / 5 + 0.4 * age
        inner, outer = 0.17, 0.36 + 0.03 * math.sin(6 * age + ray)
        ends = [(x + r * math.cos(angle), y + r * math.sin(angle)) for r in (inner, outer)]
        brush.line(ends, (80, 255, 235), 0.045)


def _cross(brush: _Brush, moment: Moment, age: float) -> None:
    x, y = np.clip(moment.ball, (-1.45, -0.9), (1.45, 0.9))
    for slope in (-1, 1):
        brush.line([(x - 0.14, y - 0.14 * slope), (x + 0.14, y + 0.14 * slope)], (255, 60, 220), 0.05)


def _card(brush: _Brush, moment: Moment, age: float) -> None:
    x, y = moment.players[moment.side, max(moment.player, 0)]
    lift = 0.02 * math.sin(6 * age)
    colour = _shaded(COLOURS[moment.facts.teams[moment.side]], brush.match_look.shade)
    brush.disc((x, y), 0.19, None, (255, 240, 0), 0.035)
    brush.box(x - 0.11, y - 0.5 + lift, x + 0.11, y - 0.2 + lift, colour, (255, 240, 0), 0.035)


def _trophy(brush: _Brush, moment: Moment, age: float) -> None:
    colour = CUPS[moment.facts.cup]
    dark = _darker(colour)
    brush.disc((0, 0), 0.62, (20, 24, 40, 200), (255, 255, 255, 255), 0.03)
    for ear in (-1, 1):
        brush.disc((0.27 * ear, -0.2), 0.13, None, colour, 0.05)
    brush.shape([(-0.28, -0.38), (0.28, -0.38), (0.2, 0.0), (0.06, 0.12), (-0.06, 0.12), (-0.2, 0.0)], colour, dark)
    brush.box(-0.05, 0.1, 0.05, 0.28, colour)
    brush.box(-0.22, 0.27, 0.22, 0.4, dark)
    brush.disc((-0.12 + 0.05 * math.sin(2 * age), -0.24), 0.04, (255, 255, 255, 180))


# Outline of the right half of a shirt, from the collar around; the left half is its mirror image.
SHIRT = ((0.18, -0.6), (0.38, -0.63), (0.84, -0.27), (0.6, 0.06), (0.45, -0.09), (0.45, 0.66))


def _shirt(brush: _Brush, moment: Moment, age: float) -> None:
    """A shirt as large as the team's half of the pitch."""
    x, colour = 0.75 * (2 * moment.side - 1), _shaded(COLOURS[moment.facts.teams[moment.side]], brush.match_look.shade)
    half = [(x + offset, y) for offset, y in SHIRT]
    brush.shape(half + [(2 * x - offset, y) for offset, y in reversed(half)], colour, (255, 255, 255))


def _apply_weather(brush: _Brush, moment: Moment, size: tuple[int, int]) -> Image.Image:
    """Draw the weather, reduce to the final size, and dim."""
    weather, (width, height) = brush.match_look.weather, brush.image.size
    if weather in ("rain", "snow"):
        random = np.random.default_rng([7, brush.match_look.stripes[0][0]])
        fall = {"rain": 2.6, "snow": 0.5}[weather]
        drops = random.random((60, 2))
        drops[:, 1] = (drops[:, 1] + fall * moment.time) % 1
        for x, y in drops * (width, height):
            if weather == "rain":
                brush.draw.line((x, y, x - 0.012 * width, y + 0.045 * height), fill=(200, 215, 255, 110), width=SUPERSAMPLING)
            else:
                r = 0.004 * width
                brush.draw.ellipse((x - r, y - r, x + r, y + r), fill=(255, 255, 255, 210))
    image = brush.image.reduce(SUPERSAMPLING)
    dim = {"night": 0.74, "rain": 0.9}.get(weather, 1.0) * (0.42 if moment.scene is Kind.FULL_TIME else 1.0)
    return image if dim == 1.0 else image.point([round(level * dim) for level in range(256)] * 3)


def _shaded(colour: Colour, shade: tuple[float, float, float]) -> Colour:
    r, g, b = (min(255, round(level * factor)) for level, factor in zip(colour, shade, strict=True))
    return r, g, b


def _darker(colour: Colour) -> Colour:
    r, g, b = (round(0.45 * level) for level in colour)
    return (r, g, b) if sum(colour) > 150 else (150, 150, 150)
