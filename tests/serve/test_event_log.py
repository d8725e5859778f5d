"""The log of events, and server-sent events of it: nothing is lost or comes twice, and who comes too late is told."""

import asyncio

import pytest

from svlm_jax.serve.http.server_sent_events import _with_comments, event_text
from svlm_jax.serve.notifications.event_log import EventLog


def fill(log: EventLog, count: int) -> None:
    for number in range(count):
        log.add("caption", "abcdefgh", f"{number}")


def test_an_event_is_written_as_the_standard_says():
    assert event_text("a", event="caption", event_id="7") == "id: 7\nevent: caption\ndata: a\n\n"
    assert (
        event_text("a\nb\r\nc\rd") == "data: a\ndata: b\ndata: c\ndata: d\n\n"
    )  # else a line would be a field of the sender's


def test_a_follower_gets_every_event_once_also_those_of_other_threads():
    log = EventLog()
    fill(log, 3)

    async def follow() -> list:
        seen = []
        adding = asyncio.create_task(asyncio.to_thread(fill, log, 700))
        async for event in log.follow(1):
            seen.append(event)
            if len(seen) == 702:
                log.close()
        await adding
        return seen

    seen = asyncio.run(follow())
    assert [event.number for event in seen] == list(range(1, 703)) and not log._wakers


def test_a_follower_who_is_late_is_told_how_many_events_it_missed():
    log = EventLog(10)
    fill(log, 25)
    log.close()

    async def follow(position: int) -> list:
        return [event if isinstance(event, int) else event.number async for event in log.follow(position)]

    assert asyncio.run(follow(0)) == [15, *range(15, 25)]
    assert asyncio.run(follow(20)) == [*range(20, 25)]
    assert asyncio.run(follow(25)) == []


@pytest.mark.parametrize(
    ("event_id", "position"),
    [("{}-4", 5), ("{}-0", 1), ("{}-99", 10), ("{}-", None), ("{}-x", None), ("other-4", None), ("", None), ("{}-²", None)],
)
def test_an_id_is_of_this_run_of_the_server(event_id, position):
    """An id of before a restart must not skip events of after it."""
    log = EventLog()
    fill(log, 10)
    assert log.position_after(event_id.format(log.run_id)) == position


def test_comments_come_while_there_are_no_events_and_none_is_lost():
    """Else proxies close the response, or an event is dropped by the wait for it that was given up."""

    async def run() -> list[str]:
        closed, released = [], asyncio.Event()

        async def events():
            try:
                yield "one"
                await released.wait()
                yield "two"
            finally:
                closed.append(True)

        texts = []
        async for text in _with_comments(events(), 0.001):
            texts.append(text)
            if texts.count(":\n\n") == 4:
                released.set()
        assert closed == [True]
        return texts

    texts = asyncio.run(run())
    assert [text for text in texts if text != ":\n\n"] == ["one", "two"] and texts[0] == ":\n\n" and texts.count(":\n\n") >= 4
