"""The driver of the per-second loop: which events come and in which order, and what one stream, question or callback that fails
costs the others. No test waits for a clock."""

import threading
from collections.abc import Iterator

import numpy as np
import pytest

import svlm_jax
from svlm_jax.config import StreamConfig
from svlm_jax.errors import InputError
from svlm_jax.media.chunks import Source, Timing
from svlm_jax.stream import state_io
from svlm_jax.stream.events import Caption, Dropped, Ended, Event, Note, Refused, Started, TokenDelta
from svlm_jax.stream.playback import Playback
from svlm_jax.stream.runner import VIDEO, Runner
from svlm_jax.stream.sequence import Chunk
from svlm_jax.stream.stream_settings import StreamSettings
from svlm_jax.stream.watch import watch
from tests.support import HANG

CONFIG = StreamConfig(vision_window=2, text_rounds=2, sink=6, text_window=6, max_new_tokens=6)
TOO_LONG = "ж" * 300  # as a question


class Film(Source):
    """So many frames of noise at 2 a second; of a live one all have come before the first can be watched."""

    def __init__(self, frames: int, seed: int = 0, *, live: bool = False, error: Exception | None = None) -> None:
        super().__init__(f"film {seed}", Timing(2, 1))
        self.count, self.seed, self.live, self.error = frames, seed, live, error
        self.read, self.closed = threading.Event(), threading.Event()

    def frames(self) -> Iterator[np.ndarray]:
        rng = np.random.default_rng(self.seed)
        for _ in range(self.count):
            yield rng.integers(0, 256, (56, 84, 3), np.uint8)
        if self.error is not None:
            raise self.error

    def __iter__(self):
        yield from super().__iter__()
        self.read.set()

    def close(self) -> None:
        self.closed.set()


@pytest.fixture(scope="module")
def vlm(shallow_dir, processor_dir):
    return svlm_jax.from_pretrained(shallow_dir, processor=processor_dir)


@pytest.fixture(scope="module")
def runner_for(vlm):
    """Runners of so many streams; the session of each batch size is compiled once."""
    sessions = {}

    def runner(streams: int = 1) -> Runner:
        if streams not in sessions:
            clip = vlm.processor.video(np.zeros((2, 56, 84, 3), np.uint8), fps=2, raw=True)
            sessions[streams] = Runner.compiled(vlm.model, vlm.tokenizer, CONFIG, clip, num_streams=streams).session
        return Runner(sessions[streams])

    return runner


def watched(vlm, runner: Runner, film: Film, **options) -> list[Event]:
    """The events of one film, watched by a runner without streams."""

    def start(clip) -> Runner:
        runner.join(VIDEO)
        return runner

    with Playback(vlm.processor) as playback:
        return list(watch(playback, film, start, **options))


def chunks(vlm, film: Film) -> list[Chunk]:
    return [Chunk(c.start, c.end, vlm.processor.video(c.frames, fps=2, raw=True)) for c in film]


def tokens(events, stream: str = VIDEO) -> list[list[int]]:
    return [event.tokens.tolist() for event in events if isinstance(event, Caption) and event.stream == stream]


def kinds(events) -> list[type]:
    return [type(event) for event in events]


def test_events_of_a_film_come_in_order(vlm, runner_for):
    """Else who writes captions, a status or a state as events come writes something that was never so."""
    film = Film(5)  # the third second has one frame only
    events = watched(vlm, runner_for(), film)
    assert kinds(events) == [Started, Caption, Caption, Note, Caption, Ended]
    assert [(event.start, event.end) for event in events if isinstance(event, Caption)] == [(0, 1), (1, 2), (2, 3)]
    assert "ends 0.5 s early" in events[3].text and events[-1].error is None
    assert events[0].capacity == events[1].capacity >= events[1].used_slots > 0
    assert film.closed.wait(HANG)


def test_texts_of_tokens_are_the_text_of_the_caption(vlm, runner_for):
    """Else the words that are shown as they come are others than those that are kept."""
    deltas: list[TokenDelta] = []
    runner = runner_for()
    runner.join(VIDEO)
    for chunk in chunks(vlm, Film(8)):
        *rest, caption = runner.tick({VIDEO: chunk}, on_token=deltas.append)
        assert isinstance(caption, Caption) and all(delta.token is None for delta in rest)
        assert [delta.token for delta in deltas] == caption.tokens.tolist()
        assert "".join(delta.text for delta in [*deltas, *rest]) == caption.text
        assert {(delta.stream, delta.start, delta.end) for delta in deltas} == {(VIDEO, chunk.start, chunk.end)}
        deltas.clear()


def test_a_refused_question_loses_nothing(vlm, runner_for):
    """Else one question that is too long costs a second of the video."""
    ask = {(1, 2): TOO_LONG, (2, 3): "who scored?"}
    events = watched(vlm, runner_for(), Film(8), question=lambda stream, start, end: ask.get((start, end), ""))
    assert kinds(events) == [Started, Caption, Refused, Caption, Caption, Caption, Ended]
    refused, answered = events[2], events[4]
    assert refused.question == TOO_LONG and "question" in str(refused.error) and (refused.start, refused.end) == (1, 2)
    assert events[3].question == "" and answered.question == "who scored?"
    assert tokens(events)[:2] == tokens(watched(vlm, runner_for(), Film(8)))[:2]


def test_sources_of_different_length_share_a_batch_and_their_rows(vlm, runner_for):
    """Else the longest of many games decides when the next one can begin."""
    runner, films = runner_for(2), {"short": Film(4, 1), "long": Film(12, 2), "next": Film(4, 3)}
    events: list[Event] = []
    with Playback(vlm.processor) as playback:
        for name in ("short", "long"):
            runner.join(name)
            playback.open(name, films[name])
        for event in runner.run(playback):
            events.append(event)
            if isinstance(event, Ended) and event.stream == "short":
                runner.leave("short")
                runner.join("next")
                playback.open("next", films["next"])
    assert [event.stream for event in events if isinstance(event, Ended)] == ["short", "next", "long"]
    for name, film in films.items():
        assert tokens(events, name) == tokens(watched(vlm, runner_for(), Film(film.count, film.seed)))


def test_a_chunk_that_cannot_be_watched_ends_its_own_stream(vlm, runner_for):
    """Else one camera with a larger picture takes all the others with it."""
    runner, (chunk, *_) = runner_for(2), chunks(vlm, Film(2))
    large = vlm.processor.video(np.zeros((2, 448, 448, 3), np.uint8), fps=2, raw=True)
    runner.join("good")
    runner.join("bad")
    events = runner.tick({"bad": Chunk(0, 1, large), "good": chunk})
    assert [(type(event), event.stream) for event in events] == [(Ended, "bad"), (Caption, "good")]
    assert "frames of a chunk" in str(events[0].error)
    runner.leave("bad")
    runner.join("other")
    assert kinds(runner.tick({"other": chunk})) == [Caption]
    with pytest.raises(ValueError, match="has not joined"):
        runner.tick({"bad": chunk})


class Interrupt(BaseException):
    pass


def test_a_callback_that_raises_changes_no_word(vlm, runner_for):
    """Else a client that goes away in the middle of a reply costs its stream the second, or other streams theirs."""
    film = chunks(vlm, Film(6))
    expected = runner_for(2)
    for name in "ab":
        expected.join(name)
    plain = [event for chunk in film for event in expected.tick({"a": chunk, "b": chunk})]
    runner = runner_for(2)
    for name in "ab":
        runner.join(name)

    def fail(delta: TokenDelta) -> None:
        if delta.stream == "a":
            raise (Interrupt if delta.start == 1 else OSError)("gone")

    events = runner.tick({"a": film[0], "b": film[0]}, on_token=fail)
    captions = {event.stream: event for event in events if isinstance(event, Caption)}
    assert isinstance(captions["a"].callback_error, OSError) and captions["b"].callback_error is None
    with pytest.raises(Interrupt):
        runner.tick({"a": film[1], "b": film[1]}, on_token=fail)
    for chunk in film[1:]:  # the second one again
        events += runner.tick({"a": chunk, "b": chunk})
    assert [tokens(events, name) for name in "ab"] == [tokens(plain, name) for name in "ab"]


def test_watch_raises_what_a_callback_raised_after_its_caption(vlm, runner_for):
    def fail(delta: TokenDelta) -> None:
        raise OSError("gone")

    events: list[Event] = []
    runner = runner_for()
    with Playback(vlm.processor) as playback, pytest.raises(OSError, match="gone"):
        for event in watch(playback, Film(8), lambda clip: runner.join(VIDEO) or runner, on_token=fail):
            events.append(event)
    assert kinds(events) == [Started, Caption]


def test_saved_and_resumed_it_says_what_it_would_have_said(vlm, runner_for, tmp_path):
    """By name: streams that have joined and left lie in other rows than they joined in."""
    films = {name: chunks(vlm, Film(12, seed)) for seed, name in enumerate("abc")}
    runner = runner_for(2)
    runner.join("b")
    runner.join("a", StreamSettings(query="Commentate", seed=3))
    runner.leave("b")
    runner.join("c")
    for number in range(3):
        runner.tick({name: films[name][number] for name in "ac"})
    with state_io.Writer(tmp_path / "a.state", runner.session) as writer:
        runner.save(writer, {"next": 3.0})
    assert writer.failure() is None and state_io.peek(tmp_path / "a.state")["next"] == 3.0
    again = runner_for(2)
    again.resume(tmp_path / "a.state")
    events, others = [], []
    for number in range(3, 6):
        events += runner.tick({name: films[name][number] for name in "ac"})
        others += again.tick({name: films[name][number] for name in "ac"})
    assert [tokens(events, name) for name in "ac"] == [tokens(others, name) for name in "ac"]
    assert np.array_equal(again.sequence("a").ids, runner.sequence("a").ids)


@pytest.mark.parametrize("first", [0, 6])
def test_what_a_live_source_loses_is_reported_before_what_follows_it(vlm, runner_for, monkeypatch, first):
    """Else captions of a camera seem to be of every second when some were never watched. The device is busy until all has come:
    from the first chunk on, or before it is looked at."""
    film, runner, wait = Film(18, live=True), runner_for(), Playback.wait
    frames, started = film.frames, threading.Event()

    def held():
        for number, frame in enumerate(frames()):
            assert number != 2 or first or started.wait(HANG)
            yield frame

    def start(clip) -> Runner:
        started.set()
        assert film.read.wait(HANG)
        runner.join(VIDEO)
        return runner

    film.frames = held
    if first:
        monkeypatch.setattr(Playback, "wait", lambda self, timeout=None: film.read.wait(HANG) and wait(self, timeout))
    with Playback(vlm.processor, max_delay=3) as playback:
        events = list(watch(playback, film, start))
    spans = [(type(event), event.start, event.end) for event in events if isinstance(event, Caption | Dropped)]
    last = [(Caption, second, second + 1) for second in (6, 7, 8)]
    assert spans == ([(Dropped, 0, 6)] if first else [(Caption, 0, 1), (Dropped, 1, 6)]) + last
    assert sum(event.chunks for event in events if isinstance(event, Dropped)) == (6 if first else 5)


def test_a_source_that_breaks_gives_what_came_before(vlm, runner_for):
    events: list[Event] = []
    film, runner = Film(4, error=InputError("film", "a broken frame", "a whole one", "copy it again")), runner_for()
    with Playback(vlm.processor) as playback, pytest.raises(InputError, match="a broken frame"):
        for event in watch(playback, film, lambda clip: runner.join(VIDEO) or runner):
            events.append(event)
    assert kinds(events) == [Started, Caption, Caption]
    assert runner.sequence(VIDEO).chunk == 2  # which can still be saved


def test_a_playback_that_is_stopped_ends_the_run_after_the_chunk(vlm, runner_for):
    events: list[Event] = []
    runner = runner_for()
    with Playback(vlm.processor) as playback:
        for event in watch(playback, Film(20), lambda clip: runner.join(VIDEO) or runner):
            events.append(event)
            if isinstance(event, Caption) and event.start == 1:
                playback.stop()
    assert kinds(events) == [Started, Caption, Caption]
