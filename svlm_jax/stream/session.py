"""The per-second loop: state in, chunk in; state out, reply out. Many streams at once, each with its own spans and clock.

`Session.step` reads top to bottom, for the streams that have a chunk (`groups`). The device never waits for the host:

1. `encode`: the frames go to the vision tower, the first of three jitted programs (`programs`), which needs nothing else;
2. `prepare`, while it works: the rule of `policy` decides what stays in the KV cache, the new turn is appended, slots are
   allocated (`sequence.next_turn`);
3. prefill the new tokens, decode the replies;
4. append each reply to its sequence (`sequence.with_reply`).

Every static size is fixed when the session is made, so nothing compiles after `warmup`, however long replies and questions are
and whichever streams have a chunk.
Axes: B streams, T tokens of a prefill batch, P patches, S slots, R longest reply, V vocabulary.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from svlm_jax.config import StreamConfig
from svlm_jax.decode.sampling import COMMENTARY, Sampling, SilenceTokens
from svlm_jax.errors import InputError
from svlm_jax.families.chat import Tokenizer, Tokens
from svlm_jax.inputs import TOKEN_BUCKETS, Clip, VisionInput, bucket
from svlm_jax.media.resize_weights import FrameBox
from svlm_jax.model.cache import KVCache, kv_cache_dtype
from svlm_jax.model.parameters import parameters, part_of
from svlm_jax.model.vision import Features
from svlm_jax.model.vlm import QwenVL
from svlm_jax.sharding import batch_shards, mesh_of, on_mesh
from svlm_jax.spans import total
from svlm_jax.stream import batch, frames, policy, programs, sequence
from svlm_jax.stream.admission import Admission
from svlm_jax.stream.batch import Batch, ScheduledSequence
from svlm_jax.stream.groups import batch_sizes, gather, groups, scatter
from svlm_jax.stream.results import Cancelled, OnToken, Refusal, Reply, StepResult, TokenCallbacks
from svlm_jax.stream.sequence import Chunk, StreamSequence
from svlm_jax.stream.sizes import ChunkSize, chunk_sizes, round_up, size_index
from svlm_jax.stream.step import EncodedGroup, GroupReplies, Prepared, ProgramInputs, StageTimer, StreamState, reply_of
from svlm_jax.stream.stream_settings import DEFAULT_SETTINGS, StreamSettings
from svlm_jax.stream.turn_tokenizer import TurnTokenizer, opening_of

TOKEN_MULTIPLE, SLOT_MULTIPLE = 16, 128  # sizes are rounded up to multiples of what kernels take at once
ForcedIds = Sequence[np.ndarray | None]


class Session:
    """A model ready to watch `num_streams` streams with frames of at most `grid` patches."""

    def __init__(
        self,
        model: QwenVL,
        tokenizer: Tokenizer,
        config: StreamConfig,
        grid: tuple[int, int, int],
        *,
        sampling: Sampling = COMMENTARY,
        num_streams: int = 1,
        previous: str | Tokens = "",
        markup: bool = False,
        max_top_k: int | None = None,
        silence_rule: bool | None = None,
        choices: bool = False,
        frame_box: FrameBox | None = None,
    ) -> None:
        """Args:
        grid: (t, h, w) in patches of the largest chunk; frames of other shapes may be as many patches. t is that of the config
            where it gives the first chunk a length of its own.
        sampling: of streams that have none of their own. Chat and vision markup is suppressed on top of it, unless `markup` (a
            replay suppresses what the recorded run did).
        num_streams: batch size.
        previous: previous text of streams that have none of their own.
        max_top_k: the largest top_k that a stream may sample with, a static size of the programs; 0: the whole vocabulary,
            whose sort takes longer. That of `sampling` by default.
        silence_rule: whether streams may have a rule of silence, for which the programs then look at each token. By default
            whether `sampling` has one.
        choices: whether chunks may have answers to choose from (`Chunk.choice`), for which the programs then look.
        frame_box: of frames that the device resizes and cuts into patches; by default clips have patches.
        """
        self.config, self.num_streams = config, num_streams
        self.params, self.model_config = parameters(model), model.config
        self.sizes = chunk_sizes(config, grid, model.config.vision, frame_box)
        frames.check_box(self.sizes[-1].box)
        self.grid, self.max_patches, self.frame_box = self.sizes[0]  # of all chunks but the first
        self.vision_params, self.text_params = part_of(self.params, "vision"), part_of(self.params, "text")
        self.turn_tokenizer = TurnTokenizer.of(tokenizer, model.config)
        self.sampling = sampling
        self.max_top_k = sampling.top_k if max_top_k is None else max_top_k
        self.silence_rule = sampling.silence_rule if silence_rule is None else silence_rule
        self.choices = choices
        self.suppressed = np.zeros(model.config.text.vocab_size, bool)
        self.suppressed[[] if markup else list(self.turn_tokenizer.suppressed_ids())] = True
        opening = opening_of(previous, config, self.turn_tokenizer)
        limits = config, sampling, self.turn_tokenizer, self.sizes, self.max_top_k, self.silence_rule, choices, opening
        admission = Admission(*limits, capacity=0)
        self.capacity = round_up(admission.slots_for(config, opening), SLOT_MULTIPLE)
        self.admission = admission._replace(capacity=self.capacity)
        self.check(DEFAULT_SETTINGS)
        longest_turn, _ = admission.longest_turns(config)
        # A turn, the two tokens of the last reply that are not computed yet, its "\n", and a moved reply; a first turn or one
        # with a question may be longer and takes several prefill batches.
        moved = config.max_new_tokens if config.moved_reply_kv == "recompute" else 0
        self.prefill_size = round_up(total(longest_turn) + 3 + moved, TOKEN_MULTIPLE)
        self.mesh = mesh_of(self.params)
        # Where devices share the streams each device has its own, so a step is of all streams.
        shards = batch_shards(self.mesh)
        self.batch_sizes = batch_sizes(num_streams) if num_streams % shards or shards == 1 else (num_streams,)

    def init_state(self, capacity: int | None = None) -> StreamState:
        """A state without streams, of `self.capacity` slots unless a mode without bound has grown it."""
        config, dtype = self.model_config, kv_cache_dtype(self.model_config, self.params)
        cache = KVCache.empty(config.text, self.num_streams, capacity or self.capacity, dtype, self.mesh)
        return StreamState(cache, (None,) * self.num_streams)

    def check(self, settings: StreamSettings) -> None:
        """Refuse settings with which no stream can join, as `join` would; may be called from any thread."""
        self.admission.new_stream(settings)

    def join(self, state: StreamState, stream_id: int = 0, settings: StreamSettings = DEFAULT_SETTINGS) -> StreamState:
        """Start a stream at a place of the batch, instead of the stream that was there.

        Raises:
            InputError: settings for which the session has no program or no slots (`admission`).
        """
        return _with_stream(state, stream_id, self.admission.new_stream(settings))

    def change(self, state: StreamState, stream_id: int, settings: StreamSettings) -> StreamState:
        """Let a stream go on with other settings, from its next chunk on; between two steps. Nothing is forgotten but what the
        new windows do not hold.

        Raises:
            InputError: as `join`, or what cannot change while a stream plays; the stream is as it was.
        """
        return _with_stream(state, stream_id, self.admission.changed(_stream(state, stream_id), settings))

    def leave(self, state: StreamState, stream_id: int = 0) -> StreamState:
        """End a stream; its place of the batch is free."""
        return _with_stream(state, stream_id, None)

    def upload(self, clip: Clip) -> Clip:
        """Send the frames of a clip to the device before its step, from any thread. Patches stay, and so do frames for a mesh:
        they are divided by stream when they are stacked."""
        box = self._size([clip]).box
        return clip if box is None or self.mesh is not None else frames.upload(clip, box)

    def encode(
        self, state: StreamState, chunks: Sequence[Chunk | Prepared | None], timer: StageTimer
    ) -> list[EncodedGroup | None]:
        """The first part of `step`: send frames to the vision tower, and do not wait for it.

        Returns:
            For each stream the group of its frames; None: no chunk, frames that `prepare` refuses or that were sent before.
        """
        clips: dict[int, Sequence[Clip]] = {}
        for b, item in enumerate(chunks):
            chunk = item.chunk if isinstance(item, Prepared) and item.encoded is None else item
            if isinstance(chunk, Chunk):
                try:
                    self._check_clip(chunk.clip)
                except InputError:
                    continue
                clips[b] = [clip for _, clip in sequence.clips_to_encode(_stream(state, b), chunk)]
        encoded: list[EncodedGroup | None] = [None] * self.num_streams
        by_size = [[b for b in clips if size_index(self.sizes, clips[b]) == number] for number in range(len(self.sizes))]
        for members, group in chain.from_iterable(groups(ids, self.batch_sizes, self.num_streams) for ids in by_size):
            vision, tower_rows = self.vision_input([clips[b] if b in members else () for b in group])
            with on_mesh(self.mesh):
                features = programs.encode_vision(self.vision_params, vision, config=self.model_config)
            timer.dispatched("vision", features)
            together = EncodedGroup(group, features, tower_rows)
            for b in members:
                encoded[b] = together
        return encoded

    def prepare(self, state: StreamState, stream_id: int, chunk: Chunk, encoded: EncodedGroup | None = None) -> Prepared:
        """The second part of `step`, for one stream: check the chunk, evict, append the new turn, allocate slots.

        Raises:
            InputError: a frame larger than the session's grid, too many questions, a cache that is too small.
        """
        stream = _stream(state, stream_id)
        self._check_clip(chunk.clip)
        seq, evicted = sequence.next_turn(stream, chunk, self.turn_tokenizer)
        slots, reply_slots = policy.allocate(seq.slots, seq.config.max_new_tokens, self._capacity_for(state.cache, seq))
        longest = min(seq.config.max_new_tokens, chunk.max_new_tokens or seq.config.max_new_tokens)
        scheduled = ScheduledSequence(seq, slots, reply_slots, bool(chunk.question), chunk.choice, longest)
        return Prepared(stream, chunk, scheduled, evicted, encoded)

    def step(
        self,
        state: StreamState,
        chunks: Sequence[Chunk | Prepared | None],
        *,
        forced: ForcedIds | None = None,
        record: bool = False,
        on_token: OnToken | None = None,
        cancelled: Cancelled | None = None,
        recoverable: bool = True,
        timer: StageTimer | None = None,
    ) -> tuple[StreamState, list[StepResult]]:
        """One chunk for every stream that has one. A chunk that one stream cannot take is a `Refusal` in its place, and the
        other streams go on.

        Args:
            state: consumed; go on with the one that is returned.
            chunks: one a stream; None for a free place, or a stream that waits: it costs nothing. What `prepare` returned is
                not decided again.
            forced: ids that replies have to begin with, for replays.
            record: return the raw logits.
            on_token: called with (stream_id, token id) as each token comes, at the cost of a round trip a token. An Exception
                that it raises is in the `Reply` of that stream.
            cancelled: called with a stream_id after each token of its reply, at the same cost; where it is True the reply ends
                with that token. The stream retains what was generated.
            recoverable: with these two the state is still good when an interrupt (what is no Exception) leaves the step, at the
                cost of a copy of the streams' part of the cache.
            timer: of what came before; by default a new one.
        """
        timer = timer or StageTimer()
        if len(chunks) != self.num_streams:
            raise ValueError(f"step: got {len(chunks)} chunks for {self.num_streams} streams")
        encoded = self.encode(state, chunks, timer)
        prepared, results = self._prepare_all(state, chunks, encoded)
        timer.lap("policy")
        if not prepared:
            return state, results
        by_token = on_token is not None or cancelled is not None
        callbacks = TokenCallbacks(on_token, cancelled, recoverable=recoverable) if by_token else None
        streams, cache = list(state.streams), self._grown(state.cache, prepared)
        batches = dict.fromkeys(item.encoded for item in prepared.values() if item.encoded)
        if callbacks and recoverable and len(batches) > 1:  # an interrupt in a callback must find no stream written back
            cache = jax.tree.map(jnp.copy, cache)
        for group in batches:
            members = {b: item for b, item in prepared.items() if item.encoded is group}
            cache, replies = self._step_group(cache, group, members, forced, record, callbacks, timer)
            for b, item in members.items():
                streams[b], reply = self._commit(item, replies, group.stream_ids.index(b), timer)
                results[b] = reply._replace(callback_error=callbacks and callbacks.errors.get(b))
            timer.lap("text")
        return StreamState(cache, tuple(streams)), results

    def _size(self, clips: Sequence[Clip]) -> ChunkSize:
        return self.sizes[size_index(self.sizes, clips)]

    def _check_clip(self, clip: Clip) -> None:
        size = self._size([clip])
        frames.check_clip(clip, size.grid, size.box, self.model_config)

    def _prepare_all(
        self, state: StreamState, chunks: Sequence[Chunk | Prepared | None], encoded: Sequence[EncodedGroup | None]
    ) -> tuple[dict[int, Prepared], list[StepResult]]:
        """The chunks that are taken, by stream, and the results so far: `Refusal` where one is not."""
        prepared: dict[int, Prepared] = {}
        results: list[StepResult] = [None] * self.num_streams
        for b, chunk in enumerate(chunks):
            if isinstance(chunk, Prepared):
                if chunk.prev is not state.streams[b]:
                    raise ValueError("step: got a chunk that was prepared for another stream, or for another second of it")
                prepared[b] = chunk._replace(encoded=chunk.encoded or encoded[b])
            elif chunk is not None:
                try:
                    prepared[b] = self.prepare(state, b, chunk, encoded[b])
                except InputError as error:
                    results[b] = Refusal(error)
        return prepared, results

    def _step_group(
        self,
        cache: KVCache,
        group: EncodedGroup,
        members: Mapping[int, Prepared],
        forced: ForcedIds | None,
        record: bool,
        callbacks: TokenCallbacks | None,
        timer: StageTimer,
    ) -> tuple[KVCache, GroupReplies]:
        """Prefill and decode for a group of streams, on their part of the cache."""
        stream_ids = group.stream_ids
        scheduled = [members[b].scheduled if b in members else None for b in stream_ids]
        inputs = self.program_inputs(scheduled, forced and [forced[b] for b in stream_ids], cache.capacity, group.tower_rows)
        timer.lap("policy")
        on_token = callbacks and (lambda index, token: callbacks(stream_ids[index], token))
        # The programs donate their cache: where the state has to outlive an interrupt they get a copy, even of all streams.
        in_place = len(stream_ids) == self.num_streams and not (callbacks and callbacks.recoverable)
        rows = np.array(stream_ids, np.int32)
        with on_mesh(self.mesh):
            part = cache if in_place else gather(cache, rows)
            part, replies = self._run_programs(part, group.features, inputs, record, on_token, timer)
            return part if in_place else scatter(cache, part, rows), replies

    def _run_programs(
        self,
        cache: KVCache,
        features: Features,
        inputs: ProgramInputs,
        record: bool,
        on_token: Callable[[int, int], bool] | None,
        timer: StageTimer,
    ) -> tuple[KVCache, GroupReplies]:
        """Prefill, decode. The cache is donated."""
        hidden = np.zeros((len(inputs.decode.index), self.model_config.text.hidden_size), jnp.dtype(self.model_config.dtype))
        for prefill_batch in inputs.prefill_batches:
            cache = cache._replace(**inputs.slots)
            hidden, cache = programs.prefill(self.text_params, prefill_batch, features, hidden, cache, config=self.model_config)
        timer.dispatched("prefill", hidden)
        limit = 1 if on_token else self.config.max_new_tokens
        decoded = programs.decode(self.text_params, inputs.decode, hidden, cache, limit, **self.static_args, record=record)
        timer.dispatched("decode", decoded.count)
        # All programs are dispatched, and only now waited for, stage by stage.
        timer.wait_for("vision", features)
        timer.wait_for("prefill", hidden)
        cancelled = np.zeros(len(inputs.decode.index), bool)
        if on_token is not None:
            rest = self.text_params, inputs.decode, decoded, on_token, self.config.max_new_tokens
            decoded, cancelled = programs.decode_token_by_token(*rest, **self.static_args)
        logits = None if decoded.logits is None else np.asarray(decoded.logits)
        tokens = [ids[:count] for ids, count in zip(np.asarray(decoded.tokens), np.asarray(decoded.count), strict=True)]
        timer.lap("decode")
        return decoded.cache._replace(rotated_keys=()), GroupReplies(tokens, logits, np.asarray(decoded.probability), cancelled)

    def vision_input(self, clips: Sequence[Sequence[Clip]]) -> tuple[VisionInput, list[np.ndarray]]:
        """What the vision tower is given for the clips of each stream (`batch.vision_input`), in the smallest of the session's
        sizes that holds them."""
        size = self._size([clip for stream in clips for clip in stream])
        limits, on_mesh = (size.max_patches, math.prod(size.grid[1:])), self.mesh is not None
        return batch.vision_input(clips, self.model_config, *limits, size.box, on_mesh=on_mesh)

    def program_inputs(
        self, scheduled: Batch, forced: ForcedIds | None, capacity: int, tower_rows: Sequence[np.ndarray]
    ) -> ProgramInputs:
        """What the decoder is given; tower_rows: as `vision_input` returns them."""
        config, size, end = self.config, self.prefill_size, self.turn_tokenizer.end_of_turn
        if config.mode == "recompute":  # all retained tokens at once
            size = bucket(max((len(item.slots) for item in scheduled if item), default=1), TOKEN_BUCKETS, "retained tokens")
        index, positions = batch.slot_metadata(scheduled, capacity)
        merge = self.model_config.vision.spatial_merge_size
        return ProgramInputs(
            prefill_batches=batch.prefill_batches(scheduled, tower_rows, size, capacity, merge),
            slots={"index": index, "positions": positions},
            decode=batch.decode_inputs(scheduled, forced, config.max_new_tokens, self.suppressed, end, choices=self.choices),
        )

    def _commit(self, prepared: Prepared, replies: GroupReplies, index: int, timer: StageTimer) -> tuple[StreamSequence, Reply]:
        """The sequence after the reply at an index of the group, and the reply."""
        scheduled, reply = prepared.scheduled, reply_of(prepared, replies, index, timer, self.turn_tokenizer)
        seq = scheduled.seq._replace(slots=scheduled.slots)
        return sequence.with_reply(seq, reply.tokens, scheduled.reply_slots, self.turn_tokenizer), reply

    def _capacity_for(self, cache: KVCache, seq: StreamSequence) -> int:
        """Slots that the cache must have: more than it has when what is retained has no bound."""
        slots = len(seq.ids) + seq.config.max_new_tokens
        if self.config.bounded or slots <= cache.capacity:
            return cache.capacity
        return round_up(max(slots, 2 * cache.capacity), SLOT_MULTIPLE)

    def _grown(self, cache: KVCache, prepared: dict[int, Prepared]) -> KVCache:
        """A cache with room for all prepared chunks. Only a mode without bound grows; its programs are compiled anew then."""
        capacity = max(self._capacity_for(cache, chunk.scheduled.seq) for chunk in prepared.values())
        return programs.grow(cache, capacity) if capacity > cache.capacity else cache

    @property
    def static_args(self) -> dict[str, Any]:
        """Static arguments of the decode programs."""
        turns = self.turn_tokenizer
        silence = SilenceTokens(turns.silence, int(turns.newline[-1])) if self.silence_rule else None
        return {"config": self.model_config, "max_top_k": self.max_top_k, "silence": silence}


def _stream(state: StreamState, stream_id: int) -> StreamSequence:
    stream = state.streams[stream_id]
    if stream is None:
        raise ValueError("step: got a chunk for a place without a stream; join first")
    return stream


def _with_stream(state: StreamState, stream_id: int, stream: StreamSequence | None) -> StreamState:
    return state._replace(streams=tuple(stream if b == stream_id else other for b, other in enumerate(state.streams)))
