"""The per-second loop: chunks that are ready in, events out. The only caller of `Session.step`.

A second of video becomes text in four steps:

1. A thread reads the source and cuts the frames of the next chunk into patches (`Playback`). At the pace of a clock, chunks
   that wait too long are dropped, and a `Dropped` event says which.
2. `Runner.prepare` sends the frames of all streams to the vision tower. While it works, what has left the windows is evicted
   and the new turns are planned. A question for which there is no room is `Refused` and its chunk goes on without it; a chunk
   that cannot be watched at all ends its own stream, never the batch.
3. `Runner.step` does the rest for all streams at once: prefill the new turns into the KV cache, decode the replies.
4. Each reply is a `Caption`. With `on_token` its tokens come before it, one by one, as `TokenDelta`.

`Runner.tick` does 2 to 4 for chunks that the caller has. `Runner.run` repeats all four until every source has ended
(`watch.watch` does so for one source).

Streams join, change and leave between ticks, each with its own `StreamSettings` and KV cache; those without a chunk wait at
no cost.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from svlm_jax.config import StreamConfig
from svlm_jax.decode.detokenize import Detokenizer
from svlm_jax.decode.sampling import COMMENTARY, Sampling
from svlm_jax.errors import InputError, shortened
from svlm_jax.families.chat import Tokenizer
from svlm_jax.inputs import Clip
from svlm_jax.model.vlm import QwenVL
from svlm_jax.stream import state_io
from svlm_jax.stream.events import Caption, Ended, Event, Note, Refused, TokenDelta
from svlm_jax.stream.frames import frame_box
from svlm_jax.stream.playback import Playback, Ready
from svlm_jax.stream.results import Reply, caption_of
from svlm_jax.stream.sequence import Chunk, StreamSequence
from svlm_jax.stream.session import Session, StreamState
from svlm_jax.stream.speaking import Speaking
from svlm_jax.stream.step import Prepared, StageTimer
from svlm_jax.stream.stream_settings import DEFAULT_SETTINGS, StreamSettings
from svlm_jax.stream.warmup import OnProgress, warm

VIDEO = "video"  # the stream of `watch`, which has one
OnToken = Callable[[TokenDelta], object]
Cancelled = Callable[[str], bool]  # stream -> whether its reply has to end
Question = Callable[[str, float | int, float | int], str]  # stream, start and end of a chunk -> what is asked with it, or ""


class Runner:
    """Streams by name in the batch of a session, and their state. Belongs to one thread.

    batch_index: of each stream that has joined. state: of all of them; `tick` consumes it and puts the next one in its place.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.state: StreamState = session.init_state()
        self.batch_index: dict[str, int] = {}
        self.speaking: dict[str, Speaking] = {}
        self.timer = StageTimer()  # of the tick; begins in `prepare`, goes on in `step`

    @classmethod
    def compiled(
        cls,
        model: QwenVL,
        tokenizer: Tokenizer,
        config: StreamConfig,
        clip: Clip,
        *,
        sampling: Sampling = COMMENTARY,
        num_streams: int = 1,
        previous: str = "",
        tokens: bool = False,
        max_top_k: int | None = None,
        silence_rule: bool | None = None,
        choices: bool = False,
        progress: OnProgress | None = None,
    ) -> "Runner":
        """A runner whose programs are compiled, for chunks like `clip` (a first one or another). Takes as long as the compiler
        does.

        Args:
            sampling: of streams that join without their own.
            num_streams: batch size.
            previous: the text before streams that join without their own.
            tokens: compile what `on_token` needs, too.
            max_top_k, silence_rule, choices: what streams may ask for, as of `Session`.
            progress: called with (programs compiled so far, all of them).
        """
        options = {"sampling": sampling, "num_streams": num_streams, "previous": previous, "max_top_k": max_top_k}
        options |= {"silence_rule": silence_rule, "choices": choices, "frame_box": frame_box(clip, model.config.vision)}
        runner = cls(Session(model, tokenizer, config, clip.grid, **options))
        runner.state = warm(runner.session, runner.state, clip, tokens=tokens, progress=progress)
        return runner

    # streams come and go

    def join(self, stream: str, settings: StreamSettings = DEFAULT_SETTINGS) -> None:
        """Begin a stream in a free place of the batch.

        Raises:
            InputError: settings for which the session has no program or no slots (`admission`).
            ValueError: the stream has joined before, or the batch is full.
        """
        if stream in self.batch_index:
            raise ValueError(f"join: stream {stream!r} has joined before")
        free = [b for b, sequence in enumerate(self.state.streams) if sequence is None]
        if not free:
            raise ValueError(f"join: the batch is full, {len(self.batch_index)} streams")
        self.state = self.session.join(self.state, free[0], settings)
        self.batch_index[stream] = free[0]

    def change(self, stream: str, settings: StreamSettings) -> None:
        """Let a stream go on with other settings from its next chunk on, between two ticks.

        Raises:
            InputError: as `join`, or what cannot change while a stream plays; the stream is as it was.
        """
        self.state = self.session.change(self.state, self.batch_index[stream], settings)

    def leave(self, stream: str) -> None:
        """End a stream; its place in the batch is free for another. Nothing happens if it has not joined."""
        if stream in self.batch_index:
            self.state = self.session.leave(self.state, self.batch_index.pop(stream))
            self.speaking.pop(stream, None)

    def sequence(self, stream: str) -> StreamSequence:
        """What a stream retains, as the host knows it."""
        sequence = self.state.streams[self.batch_index[stream]]
        assert sequence is not None
        return sequence

    def _speaking(self, stream: str) -> Speaking:
        speaking = self.speaking.setdefault(stream, Speaking(self.session.turn_tokenizer))
        return speaking.follow(self.sequence(stream))

    # one tick

    def tick(
        self,
        chunks: Mapping[str, Chunk],
        *,
        on_token: OnToken | None = None,
        forced: Mapping[str, np.ndarray] | None = None,
        record: bool = False,
        wait: bool = False,
    ) -> list[Event]:
        """Watch one chunk of each stream in `chunks`; the other streams wait.

        Args:
            on_token: called with each token as it is decoded, at the cost of a round trip to the device a token. An Exception
                of it is the `callback_error` of the stream's `Caption`, and no token of that reply follows. When it raises what
                is no Exception (an interrupt), no stream has seen its chunk: tick again with the same chunks.
            forced: token ids that the replies of these streams begin with.
            record: put the logits into the captions.
            wait: for each program before the next is dispatched, so that `Caption.ms` is what each takes; for measurements.

        Returns:
            In order: what was refused, with `Ended` for a stream whose chunk cannot be watched; then for each stream its
            `Caption`, after the text that its tokens had not completed.
        """
        prepared, events = self.prepare(chunks, wait=wait)
        return [*events, *self.step(prepared, on_token=on_token, forced=forced, record=record)]

    def caption(self, stream: str, chunk: Chunk, *, forced: np.ndarray | None = None, record: bool = False) -> Caption:
        """`tick` for one stream, where anything that is refused is an error.

        Raises:
            InputError: why the chunk, or its question, cannot be watched; the stream is as it was.
        """
        prepared, refused = self.prepare({stream: chunk})
        for event in refused:
            if event.error is not None:
                raise event.error
        caption, *_ = self.step(prepared, forced=None if forced is None else {stream: forced}, record=record)
        assert isinstance(caption, Caption)
        return caption

    def prepare(self, chunks: Mapping[str, Chunk], *, wait: bool = False) -> tuple[dict[str, Prepared], list[Refused | Ended]]:
        """The first half of `tick`: send the frames to the vision tower and, while it works, plan chunks that `step` will not
        refuse; and events of what was refused."""
        self.timer = StageTimer(wait)
        if unknown := sorted(set(chunks) - set(self.batch_index)):
            raise ValueError(f"tick: got a chunk for {unknown[0]!r}, which has not joined")
        chunks = {stream: self._speaking(stream).chunk(chunk) for stream, chunk in chunks.items()}
        names = {self.batch_index[stream]: stream for stream in chunks}
        batch = [chunks[names[b]] if b in names else None for b in range(self.session.num_streams)]
        encoded = self.session.encode(self.state, batch, self.timer)

        def prepare(stream: str, chunk: Chunk) -> Prepared:
            b = self.batch_index[stream]
            return self.session.prepare(self.state, b, chunk, encoded[b])

        prepared: dict[str, Prepared] = {}
        events: list[Refused | Ended] = []
        for stream, chunk in chunks.items():
            span = {"stream": stream, "start": chunk.start, "end": chunk.end}
            if chunk.question:
                try:
                    prepared[stream] = prepare(stream, chunk)
                    continue
                except InputError as error:
                    events.append(Refused(**span, question=chunk.question, error=error))
            try:
                prepared[stream] = prepare(stream, chunk._replace(question="", choice=None))
            except InputError as error:
                events.append(Ended(stream=stream, reason=str(error), error=error))
        self.timer.lap("policy")
        return prepared, events

    def step(
        self,
        prepared: Mapping[str, Prepared],
        *,
        on_token: OnToken | None = None,
        cancelled: Cancelled | None = None,
        recoverable: bool = True,
        forced: Mapping[str, np.ndarray] | None = None,
        record: bool = False,
    ) -> list[Event]:
        """The second half of `tick`: watch what `prepare` has checked. Streams that have left since then are passed over.

        Args:
            cancelled: asked after each token of a stream's reply, which ends with that token where it says so.
            recoverable: with `on_token` or `cancelled`, whether one may tick again after an interrupt; this costs a copy of the
                cache. A server, which ends with an interrupt, says no.
        """
        self.timer.resume()
        prepared = {stream: item for stream, item in prepared.items() if stream in self.batch_index}
        # The session counts streams by their place in the batch, callers by name.
        names = {self.batch_index[stream]: stream for stream in prepared}
        detokenizers = {stream: Detokenizer(self.session.turn_tokenizer.tokenizer) for stream in prepared}
        speaking = {stream: self._speaking(stream) for stream in prepared}
        paused = {stream: speaking[stream].forced_ids(item.chunk) for stream, item in prepared.items()}
        forced_ids = {**paused, **(forced or {})}
        unheard = {stream for stream, item in prepared.items() if speaking[stream].asks(item.chunk)}

        def emit(b: int, token: int) -> None:
            now, chunk, text = time.monotonic(), prepared[names[b]].chunk, detokenizers[names[b]].add(token)
            if on_token is None or names[b] in unheard:
                return
            on_token(TokenDelta(stream=names[b], start=chunk.start, end=chunk.end, token=token, text=text, chosen_at=now))

        batch = range(self.session.num_streams)
        self.state, results = self.session.step(
            self.state,
            [prepared[names[b]] if b in names else None for b in batch],
            forced=[forced_ids.get(names.get(b, "")) for b in batch],
            record=record,
            on_token=None if on_token is None else emit,
            cancelled=None if cancelled is None else lambda b: cancelled(names[b]),
            recoverable=recoverable,
            timer=self.timer,
        )
        events: list[Event] = []
        for stream, item in prepared.items():
            reply = results[self.batch_index[stream]]
            assert isinstance(reply, Reply)  # `prepare` has checked its chunk
            # A callback that has raised was not called with the rest of the tokens either.
            is_streamed = on_token is not None and stream not in unheard and not reply.callback_error
            if is_streamed and (text := detokenizers[stream].flush()):
                span = {"stream": stream, "start": reply.start, "end": reply.end}
                events.append(TokenDelta(**span, token=None, text=text, chosen_at=time.monotonic()))
            caption = caption_of(stream, item.chunk.question, reply, self.state.cache.capacity)
            events += speaking[stream].after(caption, item.chunk)
        return events

    # many ticks

    def run(
        self,
        playback: Playback,
        *,
        ready: Mapping[str, Ready] | None = None,
        question: Question | None = None,
        on_token: OnToken | None = None,
    ) -> Iterator[Event]:
        """Watch every source of a playback until all have ended or it is stopped. Between two events the caller may open
        sources and join their streams. A stream that has ended can still be saved; its place is free when the caller lets it
        `leave`.

        Args:
            ready: chunks that were taken from the playback before.
            question: asked for every chunk.
            on_token: as in `tick`.
        """
        while True:
            yield from self._watch(playback, ready or {}, question, on_token)
            if playback.stopped or not playback.players:
                return
            playback.wait()
            ready, events = playback.poll()
            yield from events

    def _watch(
        self, playback: Playback, ready: Mapping[str, Ready], question: Question | None, on_token: OnToken | None
    ) -> Iterator[Event]:
        chunks: dict[str, Chunk] = {}
        for stream, item in ready.items():
            if stream not in playback and stream not in self.batch_index:
                continue  # closed by the caller since it was polled
            if item.note:
                yield Note(stream=stream, start=item.start, end=item.end, text=item.note)
            text = question(stream, item.start, item.end) if question is not None else ""
            chunks[stream] = Chunk(item.start, item.end, item.clip, text)
        # Two halves, not `tick`: a refusal is known before the tokens of the reply come.
        prepared, events = self.prepare(chunks)
        for event in events:
            if isinstance(event, Ended):
                playback.close(event.stream)
            yield event
        yield from self.step(prepared, on_token=on_token)

    # state in a file

    def save(self, writer: state_io.Writer, extra: dict[str, Any], first: Callable[[], object] = lambda: None) -> None:
        """Save all streams between two ticks; the runner goes on while the file is written.

        Args:
            extra: the caller's own JSON, for `state_io.peek`.
            first: done before the file takes its name.
        """
        names = {b: stream for stream, b in self.batch_index.items()}
        streams = [names.get(b) for b in range(self.session.num_streams)]
        speaking = {stream: self._speaking(stream).state() for stream in self.batch_index}
        writer.save(self.state, {**extra, "streams": streams, "speaking": speaking}, first)

    def resume(self, path: str | Path) -> None:
        """Go on from a saved state, in place of all streams. When it is refused, the runner has no state any more.

        Raises:
            InputError: as `state_io.load`.
        """
        saved = state_io.peek(path)
        names = saved.get("streams")
        del self.state  # its cache makes room for the saved one
        self.state = state_io.load(path, self.session)
        joined = [b for b, sequence in enumerate(self.state.streams) if sequence is not None]
        if not isinstance(names, list) or [b for b, name in enumerate(names) if isinstance(name, str)] != joined:
            got = "a state without the names of its streams"
            raise InputError(shortened(path), got, "one that a runner has saved", "begin the stream anew")
        self.batch_index = {names[b]: b for b in joined}
        self.speaking = {}
        for stream in self.batch_index:
            self._speaking(stream).restore(saved, stream, path)
