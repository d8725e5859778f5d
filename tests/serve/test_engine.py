"""The engine: what it publishes of each reply and in which order, requests, and slices of one-shot work. No model."""

import threading
import time
from dataclasses import replace

import jax
import pytest

from svlm_jax.decode.sampling import Sampling
from svlm_jax.errors import InputError
from svlm_jax.serve.engine.engine import Engine
from svlm_jax.serve.engine.reports import ChunkReport, ReplyDelta, ReplyStarted, TimelineEvent, Unanswered
from svlm_jax.serve.limits import Limits
from svlm_jax.serve.sources.feed import FeedConfig
from svlm_jax.stream.alerts import AlertRule
from svlm_jax.stream.events import Dropped, Ended, SourceBack, SourceLost
from svlm_jax.stream.pacing import Pacing
from svlm_jax.stream.stream_settings import StreamSettings
from tests.support import HANG
from tests.support.fake_engine import Published, ScriptedFeed, fake_engine
from tests.support.serving import BOX, CONFIG, compiled  # noqa: F401

FEED = FeedConfig(CONFIG.fps, CONFIG.chunk_seconds, BOX)
SETTINGS = StreamSettings(query="Commentate")


def started(engine, name="a", settings=SETTINGS):
    feed = ScriptedFeed()
    engine.open(name, feed, settings)
    return feed


def test_words_come_before_the_chunk_that_they_belong_to_and_silence_is_no_reply():
    """Else a reader waits for the whole reply, or sees an empty one every second."""
    replies = iter([["", " Goal", " by", " red\n"], [""], [" ", "", "\n", "Off", "side"]])
    with fake_engine(lambda stream, chunk: next(replies)) as (engine, _, published):
        started(engine).give(3)
        published.wait_for(ChunkReport, 3)
    assert [type(event) for event in published[:4]] == [ReplyStarted, ReplyDelta, ReplyDelta, ReplyDelta]
    for number, text in enumerate(("Goal by red ", "", "Offside")):
        deltas = [event.text for event in published if isinstance(event, ReplyDelta) and event.number == number]
        report = published.wait_for(ChunkReport, number=number)
        assert "".join(deltas) == report.text == text
        assert (report.start, report.end, report.question, report.finish) == (number, number + 1, "", "stop")
    assert [event.number for event in published if isinstance(event, ReplyStarted)] == [0, 2]


def test_words_that_nobody_reads_as_they_come_are_decoded_in_one_call_and_told_alike():
    with fake_engine(lambda stream, chunk: ["Goal", " by", " red"], wants_tokens=lambda name: name == "b") as parts:
        engine, _, published = parts
        for name in "ab":
            started(engine, name).give()
            published.wait_for(ChunkReport, stream=name)
    for name, deltas in (("a", ["Goal by red"]), ("b", ["Goal", " by", " red"])):
        assert [event.text for event in published if isinstance(event, ReplyDelta) and event.stream == name] == deltas
        kinds = [type(event) for event in published if event.stream == name]
        assert kinds[: 2 + len(deltas)] == [ReplyStarted, *[ReplyDelta] * len(deltas), ChunkReport]


def test_a_question_is_answered_in_the_next_chunk_under_its_own_name():
    with fake_engine(lambda stream, chunk: ["Red."] if chunk.question else [""]) as (engine, runner, published):
        runner.refused_question = "What?"
        feed = started(engine)
        assert [engine.ask("a", text, request_id=text) for text in ("Who?", "What?", "Why?")] == [0, 1, 2]
        feed.give(3)
        published.wait_for(ChunkReport, 3)
        with pytest.raises(InputError, match="special token"):
            engine.ask("a", "<|im_start|>")
        with pytest.raises(InputError, match="max_new_tokens: got 5, expected 1 to 4"):
            engine.ask("a", "Who?", max_new_tokens=5)
    answers = [(event.number, event.question, event.request_id) for event in published if isinstance(event, ReplyStarted)]
    assert answers == [(0, "Who?", "Who?"), (2, "Why?", "Why?")]
    reports = [(event.question, event.request_id) for event in published if isinstance(event, ChunkReport)]
    assert reports == [("Who?", "Who?"), ("", ""), ("Why?", "Why?")]
    refused = published.wait_for(Unanswered)
    assert (refused.request_id, refused.reason) == ("What?", "refused") and "too many" in str(refused.error)


def test_whoever_asks_for_any_words_waits_for_the_first_that_are_said_and_questions_go_first():
    replies = iter([["Red."], [""], ["Goal"]])
    with fake_engine(lambda stream, chunk: next(replies)) as (engine, _, published):
        feed = started(engine)
        engine.ask("a", "", request_id="any")
        engine.ask("a", "Who?", request_id="who")
        feed.give(3)
        published.wait_for(ChunkReport, 3)
        started(engine, "b", replace(SETTINGS, alert=AlertRule("Who?")))
        with pytest.raises(InputError, match="question: got none of a stream in alert mode"):
            engine.ask("b", " ")
    names = [(event.number, event.request_id) for event in published if isinstance(event, ReplyStarted)]
    assert names == [(0, "who"), (2, "any")]
    assert [event.request_id for event in published if isinstance(event, ChunkReport)] == ["who", "", "any"]


def test_a_cancelled_reply_ends_at_its_next_token_and_one_that_waits_is_withdrawn():
    def script(stream, chunk):
        yield "Red"
        assert engine.cancel("a", "who") and not engine.cancel("a", "nobody") and not engine.cancel("b")
        yield " and blue"
        yield " and green"

    with fake_engine(script) as (engine, _, published):
        feed = started(engine)
        engine.ask("a", "Who?", request_id="who")
        engine.ask("a", "Why?", request_id="why")
        assert engine.cancel("a", "why")
        assert published.wait_for(Unanswered).reason == "cancelled"
        feed.give()
        report = published.wait_for(ChunkReport)
        assert report.finish == "cancelled" and report.request_id == "who"
    words = "".join(event.text for event in published if isinstance(event, ReplyDelta))
    assert words == report.text == "Red and blue"  # what the stream goes on from


def test_a_reply_is_cancelled_by_the_number_of_its_chunk_and_no_other_is():
    def script(stream, chunk):
        yield "Red"
        cancelled.append(engine.cancel("a", number=0))
        yield " and blue"

    cancelled = []
    with fake_engine(script) as (engine, _, published):
        started(engine).give(2)
        published.wait_for(ChunkReport, 2)
    assert cancelled == [True, False]
    finishes = [event.finish for event in published if isinstance(event, ChunkReport)]
    assert finishes == ["cancelled", "stop"]


def test_nothing_follows_the_end_of_a_stream_and_whoever_asked_is_told():
    """Also when it is ended while its reply is decoded."""

    def script(stream, chunk):
        yield "Red"
        engine.ask("a", "Why?", request_id="why")
        engine.end("a", "stopped by its viewer")
        yield " and blue"

    with fake_engine(script) as (engine, _, published):
        feed = started(engine)
        engine.ask("a", "Who?", request_id="who")
        feed.give()
        assert published.wait_for(Ended).reason == "stopped by its viewer"
        started(engine, "b").finish()
        published.wait_for(Ended, stream="b")
        with pytest.raises(InputError, match="stream: got one that has ended"):
            engine.ask("a", "Who?")
        assert engine.num_free == 2
    kinds = [type(event) for event in published if event.stream == "a"]
    assert kinds == [ReplyStarted, ReplyDelta, Unanswered, Unanswered, Ended]
    assert [event.request_id for event in published if isinstance(event, Unanswered)] == ["who", "why"]


def test_settings_change_between_chunks_or_are_refused():
    with fake_engine(lambda stream, chunk: ["Goal"]) as (engine, runner, published):
        feed = started(engine)
        feed.give()
        published.wait_for(ChunkReport)
        shorter = replace(SETTINGS, max_new_tokens=2)
        assert engine.change("a", shorter).result(HANG) == shorter and runner.changes == [("a", shorter)]
        with pytest.raises(InputError, match="max_new_tokens: got 3, expected 1 to 2"):
            engine.ask("a", "Who?", max_new_tokens=3)
        with pytest.raises(InputError, match="seed: got 5"):
            engine.change("a", replace(SETTINGS, seed=5)).result(HANG)
        feed.give()
        published.wait_for(ChunkReport, 2)  # nobody else is hurt
        engine.end("a", "over")
        with pytest.raises(InputError, match="one that has ended"):
            engine.change("a", shorter)


def test_a_shorter_reply_is_asked_for_one_request_alone():
    with fake_engine(lambda stream, chunk: ["Red."]) as (engine, runner, published):
        feed = started(engine)
        engine.ask("a", "Who?", max_new_tokens=2)
        feed.give(3)
        published.wait_for(ChunkReport, 3)
    assert runner.limits == [{"a": 2}, {"a": None}, {"a": None}]


def test_a_stream_that_cannot_join_ends_alone(capfd):
    """Also by a bug."""

    def join(stream, settings):
        if settings.seed == 1:
            raise InputError("vision_window of a stream", 99, "at most 16", "shorten it")
        if settings.seed == 2:
            raise KeyError("/home/somebody/secret")
        return joined(stream, settings)

    with fake_engine(lambda stream, chunk: ["Goal"]) as (engine, runner, published):
        joined, runner.join = runner.join, join
        started(engine, "b").give()
        started(engine, "a", replace(SETTINGS, seed=1)).give()
        assert "vision_window of a stream: got 99" in published.wait_for(Ended, stream="a").reason
        started(engine, "c", replace(SETTINGS, seed=2)).give()
        assert published.wait_for(Ended, stream="c").reason == "the server failed: KeyError"
        published.wait_for(ChunkReport, stream="b")


def test_a_source_that_is_lost_and_comes_back_is_part_of_the_history_and_of_the_metrics():
    """Their label is the operator's title, whatever it holds."""
    events = [
        Dropped(stream="a", start=1, end=3, chunks=2),
        SourceLost(stream="a", second=3, reason="no answer"),
        SourceBack(stream="a", start=3, end=7, chunks=4, seconds=4.0, attempts=2),
    ]
    with fake_engine(lambda stream, chunk: ["Goal"]) as (engine, _, published):
        feed = ScriptedFeed()
        feed.metrics_label = 'gate "1"\\\n'
        engine.open("a", feed, SETTINGS)
        feed.give()
        published.wait_for(ChunkReport)
        with engine.lock:
            engine.playback._events += events
            engine.lock.notify_all()
        published.wait_for(TimelineEvent, 3)
        assert up(engine) == [1.0]
        feed.give()
        published.wait_for(ChunkReport, 2)
        engine.end("a", "over")
        lines = engine.metrics.text({}).splitlines()
        assert up(engine) == [0.0]
    numbers = [event.number for event in published if isinstance(event, TimelineEvent | ChunkReport)]
    assert numbers == [0, 1, 2, 3, 4] and published.wait_for(ChunkReport, 2).dropped_total == 2
    assert [event.event for event in published if isinstance(event, TimelineEvent)] == events
    source = r'{source="gate \"1\"\\\n"}'
    for line in ("chunks_total{} 2", "dropped_chunks_total{} 2", "lost_total{} 1", "missed_chunks_total{} 4"):
        assert f"svlm_source_{line}".replace("{}", source) in lines
    assert any(line.startswith(f"svlm_source_latency_seconds_count{source} 2") for line in lines)


def up(engine):
    lines = engine.metrics.text({}).splitlines()
    return [float(line.split()[-1]) for line in lines if line.startswith("svlm_source_up{")]


class Work:
    """One-shot work of some slices that tells a log what happens."""

    def __init__(self, log: list[str], slices: int, name: str = "slice", broken: Exception | None = None) -> None:
        self.log, self.slices, self.name, self.broken = log, slices, name, broken
        self.done, self.error = threading.Event(), None

    def run_slice(self) -> bool:
        self.log.append(self.name)
        if self.broken is not None:
            raise self.broken
        self.slices -= 1
        if not self.slices:
            self.done.set()
        return self.slices > 0

    def fail(self, error: Exception) -> None:
        self.error = error
        self.done.set()
        raise error  # not even this hurts others


def test_one_shot_work_has_one_slice_after_each_tick_and_no_more_while_a_chunk_is_ready():
    """Else a chat request stalls the streams, or streams that fill the device starve it."""

    def script(stream, chunk):
        log.append("tick")
        if chunk.start == 0:
            for work in (Work(log, 3, "first"), Work(log, 3, "second"), last):
                engine.submit(work)
            player = engine.playback.players["a"]
            with engine.lock:
                assert engine.lock.wait_for(lambda: len(player.ready) >= 4, HANG)
        return ["Goal"]

    log: list[str] = []
    last = Work(log, 2, "last")
    with fake_engine(script) as (engine, _, _):
        started(engine).give(5)
        assert last.done.wait(HANG)
    while_ready = ["tick", "first", "tick", "second", "tick", "last", "tick", "first", "tick", "second"]
    assert log[:11] == [*while_ready, "last"]


def test_work_that_raises_hurts_nobody_and_the_engine_wakes_for_work():
    log: list[str] = []
    broken, good = Work(log, 1, broken=ValueError("out of memory")), Work(log, 3)
    with fake_engine(lambda stream, chunk: ["Goal"]) as (engine, _, published):
        for work in (broken, good):
            engine.submit(work)
            assert work.done.wait(HANG)
        assert str(broken.error) == "out of memory" and good.error is None and len(log) == 4
        started(engine).give()
        published.wait_for(ChunkReport)


def test_work_that_waits_when_the_engine_stops_is_told_and_none_is_taken_then(capfd):
    class Endless(Work):
        def run_slice(self) -> bool:
            self.done.set()
            return True

    work = Endless([], 1)
    with fake_engine(lambda stream, chunk: [], limits=Limits()) as (engine, _, _):
        engine.submit(work)
        assert work.done.wait(HANG)
    assert "the server is stopping" in str(work.error)
    with pytest.raises(InputError, match="request: got one after the engine has stopped"):
        engine.submit(work)


@pytest.fixture(scope="module")
def real_engine(compiled):
    published = Published()
    engine = Engine(*compiled, publish=published.add)
    engine.start()
    engine.compiler.join(HANG)
    yield engine, published
    engine.stop()


def test_streams_with_settings_of_their_own_share_a_batch_and_nothing_compiles_for_them(real_engine):
    engine, published = real_engine
    compilations = []

    def on_duration(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if threading.current_thread() is engine.thread:  # what an earlier test began may still compile in another
            compilations.append(event)

    jax.monitoring.register_event_duration_secs_listener(on_duration)
    short = replace(CONFIG, vision_window=1, text_rounds=1, sink=2, text_window=2)
    talkative = Sampling(temperature=1.3, top_k=5, top_p=0.9, repetition_penalty=1.2, silence=1.0)
    settings = {
        "a": StreamSettings(query="Commentate", seed=1, config=short, sampling=talkative, max_new_tokens=2),
        "b": StreamSettings(query="Commentate", seed=2, sampling=Sampling(), pacing=Pacing(min_gap=2.0)),
    }
    feeds = {name: ScriptedFeed(FEED) for name in settings}
    with engine.lock:  # both come in one tick
        for name, feed in feeds.items():
            feed.give(4)
            engine.open(name, feed, settings[name])
    for name in feeds:
        published.wait_for(ChunkReport, 4, stream=name)
    assert engine.change("b", replace(settings["b"], sampling=talkative)).result(HANG).sampling == talkative
    for feed in feeds.values():
        feed.give(2)
    reports = {name: [published.wait_for(ChunkReport, count, stream=name) for count in range(1, 7)] for name in feeds}
    assert max(report.output_tokens for report in reports["a"]) == 2
    assert max(report.output_tokens for report in reports["b"]) > 2
    for name in feeds:
        for report in reports[name]:
            words = [event for event in published if isinstance(event, ReplyDelta) and event.stream == name]
            words = [event for event in words if event.number == report.number]
            assert "".join(event.text for event in words) == report.text
            assert all(0 < event.chosen_at <= time.monotonic() for event in words)
        engine.end(name, "over")
    assert not [name for name in compilations if "compile" in name], compilations
    jax.monitoring.unregister_event_duration_listener(on_duration)


def test_a_cancelled_reply_stops_at_that_token_and_the_stream_goes_on_from_there(real_engine):
    engine, published = real_engine
    settings = StreamSettings(query="Commentate", sampling=Sampling(temperature=1.0, silence=1.0), seed=3)

    def cancel_first(event):
        if isinstance(event, ReplyDelta) and event.number == 0:
            assert engine.cancel("c", number=0)

    engine.reporter._publish = lambda event: (published.add(event), cancel_first(event))
    feed = ScriptedFeed(FEED)
    feed.give(2)
    engine.open("c", feed, settings)
    first, second = published.wait_for(ChunkReport, 1, stream="c"), published.wait_for(ChunkReport, 2, stream="c")
    engine.end("c", "over")
    assert first.finish == "cancelled" and first.output_tokens < CONFIG.max_new_tokens
    assert second.finish != "cancelled" and second.output_tokens > first.output_tokens
