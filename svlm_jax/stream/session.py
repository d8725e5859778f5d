"""The per-second loop: state in, chunk in; state out, reply out. Many streams at once, each with its own spans and clock.

`Session.step` reads top to bottom: decide on the host what is retained (`sequence`, `policy`), then three jitted calls on the
device (`programs`): vision tower, prefill (in pieces of one static size), reply (a decode loop), for the streams that have a
chunk (`groups`). Every static size is fixed when the session is made, so nothing compiles after `warm`, however long replies
and questions are and whichever streams have a chunk.

Axes: B streams, T tokens of a prefill piece, P patches, S slots, R longest reply, V vocabulary.
"""

import math
import time
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as List
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from svlm_jax.config import StreamConfig
from svlm_jax.decode.detokenize import raw_text, reply_text
from svlm_jax.decode.loop import DecodeInputs, DecodeState
from svlm_jax.decode.sampling import COMMENTARY, Sampling
from svlm_jax.errors import InputError
from svlm_jax.families import chat
from svlm_jax.families.chat import Tokenizer, Tokens, plain
from svlm_jax.inputs import TOKEN_BUCKETS, Clip, VisionInput, bucket
from svlm_jax.model.cache import KVCache, kv_cache_dtype
from svlm_jax.model.parameters import parameters
from svlm_jax.model.vlm import QwenVL
from svlm_jax.sharding import RULES, mesh_of, on_mesh
from svlm_jax.spans import Span, total
from svlm_jax.stream import batch, policy, programs, sequence
from svlm_jax.stream.batch import Piece, Row, Rows
from svlm_jax.stream.groups import batch_sizes, gather, groups, scatter
from svlm_jax.stream.results import OnToken, Refusal, Reply, StepResult, TokenCallbacks
from svlm_jax.stream.sequence import Chunk, Language, Sequence

GROWTH = 64  # chunks by which the cache of a mode without bound grows
PIECE, TILE = 16, 128  # tokens and slots are rounded up to multiples of what kernels take at once


class StreamState(NamedTuple):
    """All that goes from one chunk to the next. `step` consumes the cache it is given (it is donated to the device)."""

    cache: KVCache
    streams: tuple[Sequence | None, ...]


class Prepared(NamedTuple):
    """A chunk that `step` will not refuse, with what is retained when the reply begins; `stream`: what it goes on from;
    evicted: spans of the tokens that leave for it."""

    stream: Sequence
    chunk: Chunk
    row: Row
    evicted: tuple[Span, ...]


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
        max_top_k: int | None = None,
    ) -> None:
        """Args:
        grid: (t, h, w) in patches of the largest chunk; frames of other shapes may be as many patches.
        sampling: of streams that have none of their own. Chat and vision markup is suppressed on top of it, unless `markup` (a
            replay suppresses what the recorded run did).
        rows: streams at a time.
        previous: previous text that streams begin with, unless they say otherwise.
        max_top_k: the largest top_k that a stream may sample with, a static size of the programs; 0: the whole vocabulary,
            whose sort takes longer. That of `sampling` by default.
        """
        self.config, self.batch, self.grid = config, rows, grid
        self.values, self.model_config = parameters(model), model.config
        self.language = Language.of(tokenizer, model.config)
        self.sampling = sampling
        self.max_top_k = sampling.top_k if max_top_k is None else max_top_k
        self.check_sampling(sampling)
        self.suppressed = np.zeros(model.config.text.vocab_size, bool)
        self.suppressed[[] if markup else list(self.language.suppressed_ids())] = True
        self.opening = chat.opening(previous, tokenizer, model.config)
        clips = config.vision_window if config.mode == "recompute" else 1
        self.patches = clips * math.prod(grid)
        self.turn = sequence.longest_turn(grid, tokenizer, model.config)
        self.capacity = _round(policy.capacity(config, self.opening.spans, self.turn, GROWTH), TILE)
        # A turn, the two tokens of the last reply that are not computed yet, its "\n", and a moved reply; more goes in pieces.
        moved = config.max_new_tokens if config.moved_reply_kv == "recompute" else 0
        self.piece = _round(total(self.turn) + 3 + moved, PIECE)
        self.mesh = mesh_of(self.values)
        # Streams at a time that a step may be compiled for. Where devices share the streams each has its own: all or none.
        self.sizes = batch_sizes(rows) if rows % _ways(self.mesh) or _ways(self.mesh) == 1 else (rows,)

    def start(self, capacity: int | None = None) -> StreamState:
        """A state without streams, of `self.capacity` slots unless a mode without bound has grown it."""
        config, dtype = self.model_config, kv_cache_dtype(self.model_config, self.values)
        cache = KVCache.empty(config.text, self.batch, capacity or self.capacity, dtype, self.mesh)
        return StreamState(cache, (None,) * self.batch)

    def check_query(self, query: str) -> None:
        """Refuse a query for which there is no room, or that holds special tokens (`sequence.check_query`).

        Raises:
            InputError: in a line that names the query.
        """
        sequence.check_query(query, self.config, self.language)

    def check_sampling(self, sampling: Sampling, max_new_tokens: int = 1) -> None:
        """Refuse settings of a stream for which this session has no program (`sequence.check_sampling`)."""
        sequence.check_sampling(sampling, max_new_tokens, self.max_top_k, self.config, self.language)

    def join(
        self,
        state: StreamState,
        row: int = 0,
        *,
        query: str = "",
        previous: str | None = None,
        seed: int = 0,
        sampling: Sampling | None = None,
        max_new_tokens: int | None = None,
    ) -> StreamState:
        """Begin a stream in a row, in place of what was there.

        Args:
            query: stands in its first turn.
            previous: the text that came before; the session's by default.
            seed: of its random numbers.
            sampling: how its tokens are chosen; the session's by default.
            max_new_tokens: its longest reply; the config's by default.

        Raises:
            InputError: a query or previous text that is too long or holds special tokens, a seed that is no 32 bits, sampling
                settings or a reply length that the session has no program for.
        """
        sampling = self.sampling if sampling is None else sampling
        max_new_tokens = self.config.max_new_tokens if max_new_tokens is None else max_new_tokens
        self.check_sampling(sampling, max_new_tokens)
        opening = self.opening if previous is None else self._opening(previous)
        self.check_query(query)
        need = policy.capacity(self.config, opening.spans, self.turn, GROWTH)
        if self.config.bounded and need > self.capacity:
            got = f"{len(opening.ids)} tokens, with which the stream needs {need} slots"
            raise InputError("previous text", got, f"{self.capacity} slots", "shorten it, or give it to the session")
        if not 0 <= seed < 2**32:
            raise InputError("seed", seed, "0 to 4294967295", "choose another")
        return self._with(state, row, sequence.start(opening, query, seed, sampling, max_new_tokens))

    def _opening(self, previous: str) -> Tokens:
        return chat.opening(plain(previous, "previous text"), self.language.tokenizer, self.model_config)

    def leave(self, state: StreamState, row: int = 0) -> StreamState:
        """End the stream of a row."""
        return self._with(state, row, None)

    def _with(self, state: StreamState, row: int, stream: Sequence | None) -> StreamState:
        return state._replace(streams=tuple(stream if b == row else old for b, old in enumerate(state.streams)))

    def warm(self, state: StreamState, clip: Clip, *, tokens: bool = False, sizes: List[int] | None = None) -> StreamState:
        """Compile all that `step` runs, in a row that is then free again.

        Args:
            clip: one like those to come.
            tokens: also what `on_token` needs.
            sizes: streams at a time; by default `self.sizes`.
        """
        free, usual = state.streams.index(None), self.sizes
        chunks: list[Chunk | None] = [None] * self.batch
        try:
            for size in usual if sizes is None else sizes:
                self.sizes = (size,)
                # Twice: over a mesh what the first step has made lies otherwise than what it was given.
                for on_token in (None, None, lambda row, token: None)[: 3 if tokens else 2]:
                    state = self.join(state, free)
                    chunks[free] = Chunk(0.0, float(self.config.chunk_seconds), clip)
                    state, _ = self.step(state, chunks, on_token=on_token)
        finally:
            self.sizes = usual
        return self.leave(state, free)

    def compile(self, size: int, state: StreamState, clip: Clip) -> None:
        """Compile what `step` runs for `size` streams at a time, without running it: beside steps, from any thread. For
        parameters that lie on no mesh; `warm` is for those too.

        Args:
            state: of which shapes alone are looked at.
            clip: one like those to come.
        """
        whole = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state.cache)
        some = jax.tree.map(lambda x: jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype), whole)
        stream = sequence.start(self.opening, "", 0, self.sampling, self.config.max_new_tokens)
        begun = StreamState(whole, (stream,))
        row = self.prepare(begun, 0, Chunk(0.0, float(self.config.chunk_seconds), clip)).row
        frames, pieces, slots, decode_inputs = self._inputs([row] + [None] * (size - 1), None, whole.capacity)
        static, longest = {"config": self.model_config}, self.config.max_new_tokens
        features = jax.eval_shape(partial(programs.encode_vision, **static), self.values, frames)
        hidden = jax.ShapeDtypeStruct((size, self.model_config.text.hidden_size), self.model_config.dtype)
        lowered = [programs.encode_vision.lower(self.values, frames, **static)]
        lowered += [programs.prefill.lower(self.values, next(pieces), features, hidden, some._replace(**slots), **static)]
        lowered += [programs.decode.lower(self.values, decode_inputs, hidden, some, longest, **self._static, record=False)]
        if size < self.batch:
            group = np.arange(size, dtype=np.int32)
            lowered += [gather.lower(whole, group), scatter.lower(whole, some, group)]
        for program in lowered:
            program.compile()

    def prepare(self, state: StreamState, row: int, chunk: Chunk) -> Prepared:
        """A chunk for the stream of a row, checked: what one stream is refused is no matter of the others of a step.

        Raises:
            InputError: a frame larger than the session's grid, too many questions, a cache that is too small.
        """
        stream = state.streams[row]
        if stream is None:
            raise ValueError("step: got a chunk for a row without a stream; join first")
        t, h, w = chunk.clip.grid
        most = math.prod(self.grid)
        if t * h * w > most or h * w > math.prod(self.grid[1:]):
            got, expected = f"{t} x {h}x{w} patches", f"at most {most}, {math.prod(self.grid[1:])} in a frame"
            raise InputError("frames of a chunk", got, expected, "make a session for them")
        turn, evicted = sequence.next_turn(stream, chunk, self.config, self.language)
        slots = policy.allocate(turn.slots, self.config.max_new_tokens, self._slots(state.cache, turn))
        return Prepared(stream, chunk, Row(turn, *slots), evicted)

    def step(
        self,
        state: StreamState,
        chunks: List[Chunk | Prepared | None],
        *,
        forced: List[np.ndarray | None] | None = None,
        record: bool = False,
        on_token: OnToken | None = None,
    ) -> tuple[StreamState, list[StepResult]]:
        """One chunk for every stream that has one. A chunk that one stream cannot take is `Refusal` in its place, and the other
        streams go on.

        Args:
            state: consumed; go on with the one that is returned. With `on_token` it is still good when an interrupt (what is no
                Exception) leaves the step.
            chunks: one a stream; None for a free place, or a stream that waits: it costs nothing. What `prepare` gave is not
                decided again.
            forced: ids that replies are to hold, for replays; a reply goes on freely after them.
            record: give the raw logits back.
            on_token: called with (stream_id, token id) as each token comes, at the cost of a round trip a token and of a copy
                of the streams' part of the cache. An Exception that it raises stands in the `Reply` of that stream.
        """
        clock = _Clock()
        if len(chunks) != self.batch:
            raise ValueError(f"step: got {len(chunks)} chunks for {self.batch} rows")
        prepared, results = self._prepare_all(state, chunks)
        if not prepared:
            return state, results
        streams: list[Sequence | None] = list(state.streams)
        cache, slots = state.cache, max(self._slots(state.cache, chunk.row.turn) for chunk in prepared.values())
        if slots > cache.capacity:
            cache = programs.grow(cache, slots)  # which compiles anew
        callbacks = None if on_token is None else TokenCallbacks(on_token)
        # All in one group when there are callbacks: an interrupt in one of them finds no stream of the batch written back.
        sizes = batch_sizes(self.batch) if callbacks and len(self.sizes) > 1 else self.sizes
        for members, group in groups(list(prepared), sizes, self.batch):
            rows = [prepared[b].row if b in members else None for b in group]
            dictated = None if forced is None else [forced[b] for b in group]
            call = callbacks and (lambda index, token, group=group: callbacks(group[index], token))
            in_place = len(group) == self.batch and callbacks is None
            with on_mesh(self.mesh):
                part = cache if in_place else gather(cache, np.array(group, np.int32))
                part, replies, logits = self._run(part, rows, dictated, record, call, clock)
                cache = part if in_place else scatter(cache, part, np.array(group, np.int32))
            for b in members:
                index, row = group.index(b), prepared[b].row
                held = row.turn._replace(slots=row.slots)
                streams[b] = sequence.with_reply(held, replies[index], row.ahead, self.config, self.language)
                reply = self._reply(prepared[b], replies[index], clock.ms, None if logits is None else logits[index])
                results[b] = reply._replace(callback_error=callbacks and callbacks.errors.get(b))
            clock.lap("text")
        return StreamState(cache, tuple(streams)), results

    def _prepare_all(
        self, state: StreamState, chunks: List[Chunk | Prepared | None]
    ) -> tuple[dict[int, Prepared], list[StepResult]]:
        """The chunks that are taken, by stream, and the results so far: `Refusal` where one is not."""
        prepared: dict[int, Prepared] = {}
        results: list[StepResult] = [None] * self.batch
        for b, chunk in enumerate(chunks):
            if isinstance(chunk, Prepared):
                if chunk.stream is not state.streams[b]:
                    raise ValueError("step: got a chunk that was prepared for another stream, or for another second of it")
                prepared[b] = chunk
            elif chunk is not None:
                try:
                    prepared[b] = self.prepare(state, b, chunk)
                except InputError as error:
                    results[b] = Refusal(error)
        return prepared, results

    def _slots(self, cache: KVCache, turn: Sequence) -> int:
        """Slots that the cache must have: more than it has when what is retained has no bound."""
        need = len(turn.ids) + self.config.max_new_tokens
        if self.config.bounded or need <= cache.capacity:
            return cache.capacity
        return _round(max(need, 2 * cache.capacity), TILE)

    def _run(
        self, cache: KVCache, rows: Rows, forced, record: bool, on_token: OnToken | None, clock: "_Clock"
    ) -> tuple[KVCache, list[np.ndarray], np.ndarray | None]:
        """The three calls for a group, whose rows of the cache these are (they are donated): the cache, the tokens of each
        reply, and logits [B, R, V] if they are recorded."""
        frames, pieces, slots, decode_inputs = self._inputs(rows, forced, cache.capacity)
        clock.lap("policy")
        # Everything is given to the device at once, then waited for stage by stage: it never waits for the host.
        features = programs.encode_vision(self.values, frames, config=self.model_config)
        hidden = np.zeros((len(rows), self.model_config.text.hidden_size), jnp.dtype(self.model_config.dtype))
        for piece in pieces:
            cache = cache._replace(**slots)
            hidden, cache = programs.prefill(self.values, piece, features, hidden, cache, config=self.model_config)
        limit = 1 if on_token else self.config.max_new_tokens
        decoded = programs.decode(self.values, decode_inputs, hidden, cache, limit, **self._static, record=record)
        for stage, made in (("vision", features), ("prefill", hidden)):
            jax.block_until_ready(made)
            clock.lap(stage)
        if on_token is not None:
            decoded = self._token_by_token(decode_inputs, decoded, on_token)
        logits = None if decoded.logits is None else np.asarray(decoded.logits)
        replies = [ids[:count] for ids, count in zip(np.asarray(decoded.tokens), np.asarray(decoded.count), strict=True)]
        clock.lap("decode")
        return decoded.cache._replace(rotated_keys=()), replies, logits

    def _inputs(
        self, rows: Rows, forced: List[np.ndarray | None] | None, capacity: int
    ) -> tuple[VisionInput, Iterator[Piece], dict[str, np.ndarray], DecodeInputs]:
        """What the device is told: frames, prompt pieces, index and positions of every slot, the replies to come."""
        config, size = self.config, self.piece
        frames, where = batch.vision(rows, self.model_config, self.patches, math.prod(self.grid[1:]))
        if config.mode == "recompute":
            size = bucket(max((len(row.slots) for row in rows if row), default=1), TOKEN_BUCKETS, "retained tokens")
        index, positions = batch.describe(rows, capacity)
        merge = self.model_config.vision.spatial_merge_size
        slots, end = {"index": index, "positions": positions}, self.language.end
        inputs = batch.decode_inputs(rows, forced or [None] * len(rows), config.max_new_tokens, self.suppressed, end)
        return frames, batch.pieces(rows, where, size, capacity, merge), slots, inputs

    @property
    def _static(self) -> dict[str, Any]:
        return {"config": self.model_config, "max_top_k": self.max_top_k}

    def _token_by_token(self, inputs: DecodeInputs, decoded: DecodeState, on_token: OnToken) -> DecodeState:
        """The rest of replies that have their first token; calls `on_token` with each token as it comes."""
        inputs = jax.device_put(inputs)  # once, not for every token
        for limit in range(1, self.config.max_new_tokens + 1):
            tokens = np.asarray(decoded.tokens)
            for b in np.flatnonzero(np.asarray(decoded.count) >= limit):
                on_token(int(b), int(tokens[b, limit - 1]))
            if np.asarray(decoded.done).all():
                break
            decoded = programs.resume_decode(self.values, inputs, decoded, limit + 1, **self._static)
        return decoded

    def _reply(self, one: Prepared, tokens: np.ndarray, ms: Mapping[str, float], logits: np.ndarray | None) -> Reply:
        ids, chunk, row = tokens.tolist(), one.chunk, one.row
        after = len(row.slots) + len(tokens) - 1
        words = {"text": reply_text(ids, self.language.tokenizer), "raw": raw_text(ids, self.language.tokenizer)}
        held = {"before": row.turn.cached, "after": after, "logits": None if logits is None else logits[: len(tokens)]}
        return Reply(chunk.start, chunk.end, tokens=tokens, ms=ms, evicted=one.evicted, **words, **held)


def _ways(mesh: Mesh | None) -> int:
    return 1 if mesh is None else math.prod(mesh.shape[axis] for axis in RULES["batch"])


class _Clock:
    """Milliseconds between laps, added up by name."""

    def __init__(self) -> None:
        self.ms: dict[str, float] = {}
        self.last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.ms[name], self.last = self.ms.get(name, 0.0) + 1000 * (now - self.last), now


def _round(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
