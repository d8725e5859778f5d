"""The per-second loop: state in, chunk in; state out, reply out. Many streams at once, each with its own spans and clock.

`Session.step` reads top to bottom: decide on the host what is retained (`sequence`, `policy`), then three jitted calls on the
device: vision tower, prefill (in pieces of one static size), reply (a decode loop). Every static size is fixed when the session
is made, so nothing compiles after the first chunk, however long replies and questions are.

Axes: B streams, T tokens of a prefill piece, P patches, M vision rows, S slots, R longest reply, D width, V vocabulary.
"""

import math
import time
from collections.abc import Callable, Mapping
from collections.abc import Sequence as List
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float

from svlm_jax.config import ModelConfig, StreamConfig
from svlm_jax.data import chat
from svlm_jax.data.batch import Clip
from svlm_jax.data.chat import Tokenizer, plain
from svlm_jax.errors import InputError
from svlm_jax.inputs import TOKEN_BUCKETS, VisionInput, bucket
from svlm_jax.model.cache import Cache
from svlm_jax.model.vlm import Parameters, QwenVL, from_parameters, parameters
from svlm_jax.spans import total
from svlm_jax.stream import policy, sequence, tables
from svlm_jax.stream.decode import Loop, Plan, go_on, reply
from svlm_jax.stream.sampling import COMMENTARY, Sampling
from svlm_jax.stream.sequence import Chunk, Language, Sequence
from svlm_jax.stream.tables import Piece, Row

GROWTH = 64  # chunks by which the cache of a mode without bound grows
PIECE, TILE = 16, 128  # tokens and slots are rounded up to multiples of what kernels take at once
OnToken = Callable[[int, int], None]
CUT = " ..."  # how a reply of a trained model ends; not shown


class StreamState(NamedTuple):
    """All that goes from one chunk to the next. `step` consumes the cache it is given (it is donated to the device)."""

    cache: Cache
    streams: tuple[Sequence | None, ...]


class Reply(NamedTuple):
    """What a stream said about one chunk. tokens [n] int32 as generated; `ms`: milliseconds of the step by stage (shared by the
    streams of a batch); before, after: tokens held in the cache when the chunk began (evicted) and when the reply ended;
    logits [n, V] float32 if they were asked for."""

    start: float | int
    end: float | int
    text: str
    tokens: np.ndarray
    ms: Mapping[str, float]
    before: int
    after: int
    logits: np.ndarray | None = None


class Session:
    """A model ready to watch `rows` streams with frames of at most `grid` patches."""

    def __init__(
        self,
        model: QwenVL,
        tokenizer: Tokenizer,
        config: StreamConfig,
        grid: tuple[int, int, int],
        *,
        sampling: Sampling = COMMENTARY,
        rows: int = 1,
        previous: str = "",
        markup: bool = False,
    ) -> None:
        """Args:
        grid: (t, h, w) in patches of the largest chunk; frames of other shapes may be as many patches.
        sampling: chat and vision markup is suppressed on top of it, unless `markup` (a replay suppresses what the recorded
            run did).
        rows: streams at a time.
        previous: previous text that streams begin with, unless they say otherwise.
        """
        self.config, self.batch, self.grid = config, rows, grid
        self.values, self.model_config = parameters(model), model.config
        self.language = Language.of(tokenizer, model.config)
        self.sampling = replace(sampling, suppressed=())
        banned = np.zeros(model.config.text.vocab_size, bool)
        banned[[*sampling.suppressed, *(() if markup else self.language.never_said())]] = True
        self.banned = banned
        self.opening = chat.opening(previous, tokenizer)
        clips = config.vision_window if config.mode == "recompute" else 1
        self.patches = clips * math.prod(grid)
        self.turn = sequence.longest_turn(grid, tokenizer, model.config)
        self.capacity = _round(policy.capacity(config, self.opening.spans, self.turn, GROWTH), TILE)
        # A turn, the two tokens of the last reply that are not computed yet, its "\n", and a moved reply; more goes in pieces.
        moved = config.max_new_tokens if config.moved == "computed" else 0
        self.piece = _round(total(self.turn) + 3 + moved, PIECE)
        self.mesh = _mesh(self.values)

    def start(self, capacity: int | None = None) -> StreamState:
        """A state without streams, of `self.capacity` slots unless a mode without bound has grown it."""
        config = self.model_config
        cache = Cache.empty(config.text, self.batch, capacity or self.capacity, config.dtype, self.mesh)
        return StreamState(cache, (None,) * self.batch)

    def join(
        self, state: StreamState, row: int = 0, *, query: str = "", previous: str | None = None, seed: int = 0
    ) -> StreamState:
        """Begin a stream in a row, in place of what was there: `query` stands in its first turn, `previous` is the text that
        came before, `seed` that of its draws."""
        opening = self.opening if previous is None else chat.opening(plain(previous, "previous text"), self.language.tokenizer)
        need = policy.capacity(self.config, opening.spans, self.turn, GROWTH)
        if self.config.bounded and need > self.capacity:
            got = f"{len(opening.ids)} tokens, with which the stream needs {need} slots"
            raise InputError("previous text", got, f"{self.capacity} slots", "shorten it, or give it to the session")
        if not 0 <= seed < 2**32:
            raise InputError("seed", seed, "0 to 4294967295", "choose another")
        return self._with(state, row, sequence.start(opening, plain(query, "query"), seed))

    def warm(self, state: StreamState, clip: Clip, *, tokens: bool = False) -> StreamState:
        """Compile all that `step` runs, in a row that is then free again.

        Args:
            clip: one like those to come.
            tokens: also what `on_token` needs.
        """
        free = state.streams.index(None)
        state = self.join(state, free)
        chunks: list[Chunk | None] = [None] * self.batch
        chunks[free] = Chunk(0.0, float(self.config.chunk_seconds), clip)
        for on_token in (None, lambda row, token: None)[: 2 if tokens else 1]:
            state, _ = self.step(state, chunks, on_token=on_token)
        return self.leave(state, free)

    def leave(self, state: StreamState, row: int = 0) -> StreamState:
        """End the stream of a row."""
        return self._with(state, row, None)

    def _with(self, state: StreamState, row: int, stream: Sequence | None) -> StreamState:
        return state._replace(streams=tuple(stream if b == row else old for b, old in enumerate(state.streams)))

    def step(
        self,
        state: StreamState,
        chunks: List[Chunk | None],
        *,
        forced: List[np.ndarray | None] | None = None,
        record: bool = False,
        on_token: OnToken | None = None,
    ) -> tuple[StreamState, list[Reply | None]]:
        """One chunk for every stream that has one.

        Args:
            state: consumed; go on with the one that is returned (also nothing is lost when an InputError is raised).
            chunks: one a row; None for a row without a stream, or whose stream waits.
            forced: ids that replies are to hold, for replays; a reply goes on freely after them.
            record: give the raw logits back.
            on_token: called with (row, id) as each token comes, at the cost of a round trip a token.

        Raises:
            InputError: a frame larger than the session's grid, too many questions, a cache that is too small.
        """
        if all(chunk is None for chunk in chunks):
            return state, [None] * self.batch
        clock = _Clock()
        turns = [self._turn(stream, chunk) for stream, chunk in zip(state.streams, chunks, strict=True)]
        cache = self._room(state.cache, turns)
        longest, text = self.config.max_new_tokens, self.model_config.text
        rows = [turn and Row(turn, *policy.allocate(turn.slots, longest, cache.capacity)) for turn in turns]
        frames, where = tables.vision(rows, self.model_config, self.patches, math.prod(self.grid[1:]))
        described = tables.describe(rows, cache.capacity)
        size = self.piece
        if self.config.mode == "recompute":
            size = bucket(max((len(row.slots) for row in rows if row), default=1), TOKEN_BUCKETS, "retained tokens")
        plan = tables.plan(rows, forced or [None] * self.batch, longest, self.banned, self.language.end)
        clock.lap("policy")
        with jax.set_mesh(self.mesh) if self.mesh is not None else nullcontext():
            # Everything is given to the device at once, then waited for stage by stage: it never waits for the host.
            features = _see(self.values, frames, config=self.model_config)
            hidden = jnp.zeros((self.batch, text.hidden_size), self.model_config.dtype)
            for piece in tables.pieces(rows, where, size, cache.capacity):
                hidden, cache = _prefill(self.values, piece, features, described, hidden, cache, config=self.model_config)
            limit = 1 if on_token else longest
            loop = _reply(self.values, plan, hidden, cache, limit, **self._static, record=record)
            for stage, made in (("vision", features), ("prefill", hidden)):
                jax.block_until_ready(made)
                clock.lap(stage)
            if on_token is not None:
                loop = self._token_by_token(plan, loop, on_token)
            tokens, logits = np.asarray(loop.tokens), None if loop.logits is None else np.asarray(loop.logits)
            clock.lap("decode")
        streams = list(state.streams)
        replies: list[Reply | None] = [None] * self.batch
        for b, (row, chunk) in enumerate(zip(rows, chunks, strict=True)):
            if row is not None and chunk is not None:
                said = _until(tokens[b, : int(loop.count)], self.language.end)
                held = row.turn._replace(slots=row.slots)
                streams[b] = sequence.with_reply(held, said, row.ahead, self.config, self.language)
                replies[b] = self._said(row, chunk, said, clock.ms, None if logits is None else logits[b])
        clock.lap("text")
        return StreamState(loop.cache, tuple(streams)), replies

    def _turn(self, stream: Sequence | None, chunk: Chunk | None) -> Sequence | None:
        """What is retained when the reply begins; None for a row that has no chunk."""
        if chunk is None:
            return None
        if stream is None:
            raise ValueError("step: got a chunk for a row without a stream; join first")
        t, h, w = chunk.clip.grid
        most = math.prod(self.grid)
        if t * h * w > most or h * w > math.prod(self.grid[1:]):
            got, expected = f"{t} x {h}x{w} patches", f"at most {most}, {math.prod(self.grid[1:])} in a frame"
            raise InputError("frames of a chunk", got, expected, "make a session for them")
        return sequence.next_turn(stream, chunk, self.config, self.language)

    def _room(self, cache: Cache, turns: List[Sequence | None]) -> Cache:
        """The cache, grown when what is retained has no bound (which compiles anew)."""
        need = max((len(turn.ids) for turn in turns if turn), default=0) + self.config.max_new_tokens
        if self.config.bounded or need <= cache.capacity:
            return cache
        return _grow(cache, _round(max(need, 2 * cache.capacity), TILE))

    @property
    def _static(self) -> dict[str, Any]:
        return {"config": self.model_config, "sampling": self.sampling}

    def _token_by_token(self, plan: Plan, loop: Loop, on_token: OnToken) -> Loop:
        """The rest of replies that have their first token, each token told as it comes."""
        longest = self.config.max_new_tokens
        for limit in range(1, longest + 1):
            tokens = np.asarray(loop.tokens[:, :limit])
            for b in np.flatnonzero(~plan.done):
                if len(_until(tokens[b], self.language.end)) == limit:
                    on_token(int(b), int(tokens[b, limit - 1]))
            if limit == longest or np.asarray(loop.done).all():
                break
            loop = _more(self.values, plan, loop, limit + 1, **self._static)
        return loop

    def _said(self, row: Row, chunk: Chunk, tokens: np.ndarray, ms: Mapping[str, float], logits: np.ndarray | None) -> Reply:
        text = self.language.tokenizer.decode(tokens.tolist(), skip_special_tokens=True).removesuffix(CUT)
        after = len(row.slots) + len(tokens) - 1
        return Reply(
            chunk.start, chunk.end, text, tokens, ms, row.turn.cached, after, None if logits is None else logits[: len(tokens)]
        )


def _mesh(values: Parameters) -> Mesh | None:
    place = values["text.embedding"].sharding
    return place.mesh if isinstance(place, NamedSharding) and isinstance(place.mesh, Mesh) else None


class _Clock:
    """Milliseconds between laps."""

    def __init__(self) -> None:
        self.ms: dict[str, float] = {}
        self.last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.ms[name], self.last = 1000 * (now - self.last), now


def _round(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _until(tokens: np.ndarray, end: int) -> np.ndarray:
    """Tokens up to and including the first `end`."""
    ends = np.flatnonzero(tokens == end)
    return tokens[: ends[0] + 1] if len(ends) else tokens


@partial(jax.jit, static_argnames="config")
def _see(values: Parameters, frames: VisionInput, *, config: ModelConfig) -> Float[Array, "B M D"]:
    return from_parameters(config, values).vision(frames)


@partial(jax.jit, static_argnames="config", donate_argnames="cache")
def _prefill(values: Parameters, piece: Piece, features, described, hidden, cache: Cache, *, config: ModelConfig):
    """One piece of new tokens: (hidden state [B, D] of the newest token of each row so far, cache)."""
    model = from_parameters(config, values)
    states, cache = model.extend(piece.inputs, jnp.asarray(piece.slots), cache.arrange(*described), features)
    newest = jnp.take_along_axis(states, jnp.maximum(piece.newest, 0)[:, None, None], axis=1)[:, 0]
    return jnp.where((piece.newest >= 0)[:, None], newest, hidden), cache


@partial(jax.jit, static_argnames=("config", "sampling", "record"), donate_argnames="cache")
def _reply(values, plan: Plan, hidden, cache: Cache, limit, *, config: ModelConfig, sampling: Sampling, record: bool) -> Loop:
    return reply(from_parameters(config, values), hidden, cache, plan, limit, sampling, record)


@partial(jax.jit, static_argnames=("config", "sampling"), donate_argnames="loop")
def _more(values, plan: Plan, loop: Loop, limit, *, config: ModelConfig, sampling: Sampling) -> Loop:
    return go_on(from_parameters(config, values), loop, plan, limit, sampling)


@partial(jax.jit, static_argnames="capacity")
def _grow(cache: Cache, capacity: int) -> Cache:
    more = capacity - cache.capacity
    wide = [(0, 0), (0, 0), (0, more), (0, 0)]
    keys, values = (tuple(jnp.pad(one, wide) for one in held) for held in (cache.keys, cache.values))
    index = jnp.pad(cache.index, wide[1:3], constant_values=-1)
    return Cache(keys, values, index, jnp.pad(cache.positions, wide[:3]))
