"""One source from its first frames to its end: makes the runner for their size, and runs it."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain

from svlm_jax.inputs import Clip
from svlm_jax.media.chunks import Source
from svlm_jax.stream.events import Caption, Ended, Event, Started
from svlm_jax.stream.playback import Playback, Ready
from svlm_jax.stream.runner import VIDEO, OnToken, Question, Runner


def watch(
    playback: Playback,
    source: Source,
    start: Callable[[Clip], Runner],
    *,
    question: Question | None = None,
    on_token: OnToken | None = None,
) -> Iterator[Event]:
    """Watch one source to its end, as the stream `VIDEO`.

    Args:
        source: open, and closed at the end.
        start: makes the runner, with the stream joined, from the frames of the first chunk.
        question, on_token: as in `Runner.run`.

    Raises:
        Exception: what broke the source, why a chunk cannot be watched, or what `on_token` raised; after the events of all
            chunks before it.
    """
    ready: Mapping[str, Ready] = {}
    if source.live:  # it goes on while the programs are compiled; what then waits for too long is dropped
        playback.open(VIDEO, source)
        while not ready and VIDEO in playback and not playback.stopped:  # a camera may not be there yet
            playback.wait()
            ready, events = playback.poll()
            yield from _raise_error(events)
        if not ready:  # it had no chunk, or `playback.stop` came first
            return
        runner = start(ready[VIDEO].clip)
        playback.upload = runner.session.upload
    else:  # compiled before the clock of a paced file starts, so that it costs no second of the video
        try:
            chunks = iter(source)
            first = next(chunks)
            runner = start(playback.clip(first, source.fps))
            playback.upload = runner.session.upload
        except BaseException:
            source.close()
            raise
        playback.open(VIDEO, source, chain([first], chunks))
    merge = runner.session.model_config.vision.spatial_merge_size
    tokens = math.prod(runner.session.grid) // merge**2
    yield Started(stream=VIDEO, grid=runner.session.grid, vision_tokens=tokens, capacity=runner.session.capacity)
    yield from _raise_error(runner.run(playback, ready=ready, question=question, on_token=on_token))


def _raise_error(events: Iterable[Event]) -> Iterator[Event]:
    for event in events:
        if isinstance(event, Ended) and event.error is not None:
            raise event.error
        yield event
        if isinstance(event, Caption) and event.callback_error is not None:
            raise event.callback_error
