"""What streaming must do, told slowly: a list of tokens that is cut and extended one token at a time.

Owns the semantics that the engine is compared with: which tokens are retained, which are computed when, what each computed
token could see and where everything stood at that moment. Written from the description of the original alone: it imports
nothing of svlm_jax and knows no cache slots, spans or weights. Units: tokens, rotary positions, chunks.

A user turn and the reply to it share a number; turns are chunks. Tokens are labelled by who builds a turn, so no id is ever
looked for (the two ids that the stream itself adds, <|im_end|> and the "\\n" after it, are given to the constructor).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

SYSTEM, PREVIOUS, USER, REPLY = "system", "previous", "user", "reply"  # roles
# Parts of turns. HEAD opens one, END is its <|im_end|>, NEWLINE the "\n" after that. A system turn is all WORDS, a user turn
# has TIME (with a question), VISION (both markers and the pads) and QUERY between HEAD and END; whatever the model says, its
# <|im_end|> too, is SAID. Families with a time stamp before each frame pair have no time in TIME: their stamps are VISION.
HEAD, WORDS, TIME, VISION, QUERY, SAID, END, NEWLINE = "head", "words", "time", "vision", "query", "said", "end", "newline"

Place = tuple[float, float, float]  # position on the axes (t, h, w)


class Part(NamedTuple):
    """A labelled run of ids. Pads are a run of their own with their patch grid (t, h, w) and `step`, the temporal positions
    from one t to the next: tokens_per_second * 2 / fps, not truncated. `keep` says of each merged cell of the grid whether it
    has a pad (None: every one has). `cell` numbers the first of them among the cells of all frames of the turn."""

    role: str
    part: str
    ids: list[int]
    grid: tuple[int, int, int] | None = None
    step: float = 1.0
    keep: list[bool] | None = None
    cell: int = 0


def opening_parts(encode: Callable[[str], list[int]], previous: str, *, system: bool = True) -> list[Part]:
    """The system turn, if there is one, and the previous-text turn; `encode` is the tokenizer's."""
    return [
        Part(SYSTEM, WORDS, encode("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n") if system else []),
        Part(PREVIOUS, HEAD, encode("<|im_start|>previous text\n")),
        Part(PREVIOUS, WORDS, encode(previous)),
        Part(PREVIOUS, END, encode("<|im_end|>")),
        Part(PREVIOUS, NEWLINE, encode("\n")),
    ]


def turn_parts(
    encode: Callable[[str], list[int]],
    start: float,
    end: float,
    grid: tuple[int, int, int],
    *,
    step: float,
    query: str = "",
    merge: int = 2,
    keep: list[bool] | None = None,
    stamped: bool = False,
) -> list[Part]:
    """A user turn (seconds `start` to `end`, patch grid (t, h, w)) and the head of the reply to it. `stamped`: each frame pair
    is a block of its own, after the mean of the times of its two frames; there is no other time."""
    vision: list[Part] = []
    pairs = grid[0] if stamped else 1
    cells = grid[0] * (grid[1] // merge) * (grid[2] // merge) // pairs
    for pair in range(pairs):
        second = start + (2 * pair + 0.5) * (end - start) / (2 * pairs)
        block = (1, *grid[1:]) if stamped else grid
        kept = None if keep is None else keep[pair * cells : (pair + 1) * cells]
        pads = encode("<|video_pad|>") * (cells if kept is None else sum(kept))
        vision.append(Part(USER, VISION, encode(f"<{second:.1f} seconds>") if stamped else []))
        vision.append(Part(USER, VISION, encode("<|vision_start|>")))
        vision.append(Part(USER, VISION, pads, block, step, kept, pair * cells))
        vision.append(Part(USER, VISION, encode("<|vision_end|>")))
    return [
        Part(USER, HEAD, encode("<|im_start|>user\n")),
        Part(USER, TIME, [] if stamped else encode(f"Time={start:.1f}-{end:.1f}s")),
        *vision,
        Part(USER, QUERY, encode(query)),
        Part(USER, END, encode("<|im_end|>")),
        Part(USER, NEWLINE, encode("\n")),
        Part(REPLY, HEAD, encode("<|im_start|>assistant\n")),
    ]


class Pad(NamedTuple):
    """A pad's cell in its vision block: `index` counts the cells of the turn's frames, frame, row and column are coordinates in
    the block in merged units. `first`: no pad of the block comes before it. `extent`: from the block's corner to its largest
    position on any axis, a cell without a pad counted."""

    index: int
    frame: int
    row: int
    column: int
    step: float
    first: bool
    extent: float


@dataclass(eq=False)  # two tokens are never the same token
class Token:
    """A token that was made once and has this serial number for ever. `seen` is None until it is computed; from then on it
    lists (serial, place) of all that it could see, itself last, where each of them stood at that moment."""

    serial: int
    id: int
    role: str
    part: str
    turn: int
    pad: Pad | None = None
    place: Place | None = None
    seen: list[tuple[int, Place]] | None = None


@dataclass(frozen=True)
class Windows:
    """What a stream keeps. vision_window, text_rounds and window_chunks in chunks, sink and text_window in tokens of previous
    text (text_window None: never cut); rope_positions, mrope_axes and mode as in `Oracle`. recompute_moved: the words of a
    reply that moved are computed again with the next turn, where they stand then."""

    vision_window: int = 16
    text_rounds: int = 16
    sink: int = 512
    text_window: int | None = 512
    rope_positions: Literal["contiguous", "native"] = "contiguous"
    mrope_axes: Literal[1, 3] = 3
    mode: Literal["streaming", "full", "window", "recompute"] = "streaming"
    window_chunks: int = 100
    recompute_moved: bool = False


class Computed(NamedTuple):
    """One computation of a token, as it was then (a token can be computed again, moved and deleted later)."""

    serial: int
    id: int
    turn: int
    pad: Pad | None
    seen: list[tuple[int, Place]]


class Step(NamedTuple):
    """What one call computed, in order, and how many retained tokens were computed already."""

    cached_before: int
    computed: list[Computed]


@dataclass
class Oracle:
    """A stream: `begin`, then `turn` and `reply` by turns.

    Positions: "contiguous" counts afresh over what is retained, every chunk; "native" counts on: a computed token never moves.
    Modes: "streaming" evicts; "full" never does; "window" keeps all for `window_chunks` chunks and then begins anew with the
    opening; "recompute" evicts as streaming does and computes whatever is retained again every chunk.
    """

    windows: Windows
    im_end: int
    newline: int
    merge: int = 2
    retained: list[Token] = field(init=False, default_factory=list)
    opening: list[Part] = field(init=False, default_factory=list)
    chunk: int = field(init=False, default=-1)  # number of the turn at hand
    made: int = field(init=False, default=0)  # tokens so far, for serial numbers
    latest: float = field(
        init=False, default=-1.0
    )  # temporal position of the token computed last, retained or not; for "native"

    @property
    def ids(self) -> list[int]:
        return [token.id for token in self.retained]

    @property
    def cached(self) -> int:
        """Retained tokens that are computed. The others, the newest of a reply, stand at the end."""
        return len([token for token in self.retained if token.seen is not None])

    @property
    def positions(self) -> np.ndarray:
        """float32 [3, cached]: where the computed tokens stand."""
        places = [token.place for token in self.retained if token.seen is not None]
        return np.array(places, np.float32).reshape(-1, 3).T

    def begin(self, opening: Iterable[Part]) -> None:
        """The system turn and the previous-text turn; computed with the first user turn."""
        assert not self.retained
        self.opening = list(opening)
        self._append(self.opening)

    def turn(self, parts: Iterable[Part]) -> Step:
        """Make room, append a user turn and the head of the reply to it, and compute all that is not computed."""
        self.chunk += 1
        window = self.windows.mode == "window"
        if window and self.chunk > 0 and self.chunk % self.windows.window_chunks == 0:
            self.retained = []
            self.latest = -1.0
            self._append(self.opening)
        elif self.windows.mode in ("streaming", "recompute"):
            self._evict()
        if self.windows.mode == "recompute":
            for token in self.retained:
                token.seen = None
            self.latest = -1.0
        before = self.cached
        if self.retained[-1].part != NEWLINE:  # a reply, and its turn is not closed yet
            assert self.retained[-1].role == REPLY
            self._append([Part(REPLY, NEWLINE, [self.newline])], self.chunk - 1)
        self._append(parts)
        return Step(before, self._compute(pending=0))

    def reply(self, ids: Iterable[int]) -> Step:
        """The tokens that were generated, each of which was computed to get the next one; the newest was not."""
        before = self.cached
        said = list(ids)
        assert said and self.im_end not in said[:-1]
        self._append([Part(REPLY, SAID, said)])
        pending = 1
        if said[-1] != self.im_end:
            self._append([Part(REPLY, SAID, [self.im_end])])
            pending = 2
        return Step(before, self._compute(pending))

    def _append(self, parts: Iterable[Part], turn: int | None = None) -> None:
        for part in parts:
            pads = [None] * len(part.ids) if part.grid is None else self._pads(part)
            for id, pad in zip(part.ids, pads, strict=True):
                number = self.chunk if turn is None else turn
                self.retained.append(Token(self.made, id, part.role, part.part, number, pad))
                self.made += 1

    def _pads(self, part: Part) -> list[Pad]:
        """The cells that have a pad, one by one."""
        assert part.grid is not None
        frames, rows, columns = part.grid[0], part.grid[1] // self.merge, part.grid[2] // self.merge
        extent = max((frames - 1) * part.step, rows - 1, columns - 1)
        assert part.keep is None or len(part.keep) == frames * rows * columns
        pads: list[Pad] = []
        for frame in range(frames):
            for row in range(rows):
                for column in range(columns):
                    index = (frame * rows + row) * columns + column
                    if part.keep is None or part.keep[index]:
                        pads.append(Pad(part.cell + index, frame, row, column, part.step, not pads, extent))
        return pads

    # Eviction: section "Eviction" of the description, step by step.

    def _evict(self) -> None:
        vision, rounds = self.windows.vision_window, self.windows.text_rounds
        if self.chunk >= rounds:
            oldest = self._oldest(REPLY)
            self._move_words(oldest)
            if vision > rounds:
                self._delete(USER, oldest, TIME)
            self._delete(REPLY, oldest)
        if self.chunk >= vision and vision < rounds:
            self._delete(USER, self._oldest(USER, VISION), VISION)
        if self.chunk >= max(vision, rounds):
            self._delete(USER, self._oldest(USER))
        if self.chunk > 0 and self.windows.text_window is not None:
            self._truncate(self.windows.sink, self.windows.text_window)

    def _oldest(self, role: str, part: str | None = None) -> int:
        """Number of the oldest turn of this role that (still) has such a part."""
        return min(token.turn for token in self.retained if token.role == role and part in (None, token.part))

    def _delete(self, role: str, turn: int, part: str | None = None) -> None:
        for token in list(self.retained):
            if (token.role, token.turn) == (role, turn) and part in (None, token.part):
                self.retained.remove(token)

    def _move_words(self, turn: int) -> None:
        """Words of a reply, all that was said but the last two tokens, to the end of the previous text. They stay computed,
        unless they are to be computed again."""
        said = [token for token in self.retained if (token.role, token.turn, token.part) == (REPLY, turn, SAID)]
        for token in said[:-2]:
            self.retained.remove(token)
            end = [other for other in self.retained if (other.role, other.part) == (PREVIOUS, END)]
            self.retained.insert(self.retained.index(end[0]), token)
            token.role, token.part, token.turn = PREVIOUS, WORDS, end[0].turn
            if self.windows.recompute_moved:
                token.seen = None

    def _truncate(self, sink: int, text_window: int) -> None:
        """Of the previous text's words keep the first `sink` and the last `text_window` - 1: with <|im_end|> and "\\n" those
        are the last `text_window` + 1 tokens. A word in either stays, so the two never cross."""
        assert text_window >= 1
        words = [token for token in self.retained if (token.role, token.part) == (PREVIOUS, WORDS)]
        for index, token in enumerate(words):
            if index >= sink and index < len(words) - (text_window - 1):
                self.retained.remove(token)

    # Positions and what is seen.

    def _compute(self, pending: int) -> list[Computed]:
        """Compute what is not computed but the `pending` last tokens, each seeing all retained tokens before it and itself."""
        native = self.windows.rope_positions == "native"
        ready = self.retained[: len(self.retained) - pending]
        walked = [token for token in ready if token.seen is None] if native else ready
        for token, place in zip(walked, self._walk(walked, self.latest + 1 if native else 0.0), strict=True):
            token.place = place
        computed: list[Computed] = []
        visible: list[tuple[int, Place]] = []
        for token in ready:
            assert token.place is not None
            visible.append((token.serial, token.place))
            if token.seen is None:
                token.seen = list(visible)
                self.latest = token.place[0]
                computed.append(Computed(token.serial, token.id, token.turn, token.pad, token.seen))
        return computed

    def _walk(self, tokens: list[Token], start: float) -> list[Place]:
        """Positions of a sequence from `start` on."""
        places: list[Place] = []
        following = corner = start  # `corner` is where the vision block at hand begins
        for token in tokens:
            if token.pad is None or self.windows.mrope_axes == 1:
                place = (following, following, following)
            else:
                corner = following if token.pad.first else corner
                place = (corner + token.pad.frame * token.pad.step, corner + token.pad.row, corner + token.pad.column)
            places.append(place)
            flat = token.pad is None or self.windows.mrope_axes == 1
            following = max(place) + 1 if flat else corner + token.pad.extent + 1
        return places
