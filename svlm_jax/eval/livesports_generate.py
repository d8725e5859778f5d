"""LiveSports-3K CC: what a model says about each event, streamed as it was published or captioned offline.

Owns the protocols and the file that a run leaves. Does not know models: a `Commentator` watches, an `Answerer` captions.
Units: seconds of the whole video.
"""

import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from svlm_jax.errors import InputError, shortened
from svlm_jax.eval.asking import Query, View, answering, ask_offline
from svlm_jax.eval.collecting import collect
from svlm_jax.eval.commentary import Utterance
from svlm_jax.eval.commentator import Clock, Commentator, Job, job_seed
from svlm_jax.eval.livesports_cc import Event, fill_prompt, find_video, has_words, prediction_record
from svlm_jax.eval.models import Answerer
from svlm_jax.json_lines import BadLines

OFFLINE_TOKENS = 512  # of a published offline caption, at most
Outcome = tuple[Event, dict[str, Any] | InputError]  # of an event: its prediction, or why there is none


class Style(NamedTuple):
    """How a protocol streams an event.

    Attributes:
        clock: as of `Job`.
        previous: where the words before the event stand: in the previous-text "turn", or in the "query".
        ellipsis: predictions end in "...", as all of LiveCC's published ones do.
        settings: fields of `StreamConfig` and `Sampling` that the published evaluation has, and the model's demo has not.
    """

    clock: Clock = "video"
    previous: Literal["turn", "query"] = "turn"
    ellipsis: bool = False
    settings: Mapping[str, float] = {}


STYLES: Mapping[str, Style] = {
    "streamingvlm": Style(),
    "livecc": Style("clip", "query", True, {"max_new_tokens": 32, "temperature": 0.0, "repetition_penalty": 1.15}),
}


def find_videos(events: Iterable[Event], folder: str | Path, bad: BadLines) -> dict[str, Path]:
    """The file of each event's video, by the event's key; looked for before a model is loaded.

    Raises:
        InputError: more are missing or empty than may be.
    """
    paths = {}
    for event in events:
        try:
            paths[event.key] = find_video(folder, f"event {event.key}", event.video, event.video_id)
        except InputError as error:
            bad.add(error)
    return paths


def stream_jobs(events: Iterable[Event], videos: Mapping[str, Path], template: str, style: Style, seed: int = 0) -> list[Job]:
    """A stream for each event, from its start until its end is seen.

    Args:
        videos: of `find_videos`; an event without one is left out.
    """
    in_query = style.previous == "query"
    return [
        Job(
            event.key,
            videos[event.key],
            event.start,
            event.end,
            query=_prompt(template, event, event.previous if in_query else ""),
            previous="" if in_query else event.previous,
            seed=job_seed(seed, event.key),
            clock=style.clock,
        )
        for event in events
        if event.key in videos
    ]


def _prompt(template: str, event: Event, previous: str) -> str:
    """{context} is for models without instructions: what was said before, else the title."""
    values = {"title": event.title, "previous": previous, "context": event.previous or event.title}
    return fill_prompt(template, values)


def join(utterances: Iterable[Utterance], style: Style) -> str:
    """The text of a prediction. Silence is the empty text, which LiveCC's script writes as "..."."""
    text = " ".join(filter(None, (each.text.strip() for each in utterances)))
    if not has_words(text):
        return ""
    return f"{text}..." if style.ellipsis else text


def streamed(
    events: Iterable[Event], jobs: Sequence[Job], commentator: Commentator, style: Style, done: Collection[str]
) -> Iterator[Outcome]:
    """Watch the jobs that are not done; each comes as it is finished."""
    by_key = {event.key: event for event in events}
    for finished in commentator.run(jobs, skip=done):
        event = by_key[finished.job.key]
        for note in finished.notes:
            warnings.warn(f"event {event.key}: {note}", stacklevel=2)
        if finished.error:
            remedy = "mend the video, or allow it with --bad"
            yield event, InputError(f"event {shortened(event.key, 60)}", finished.error, "all of it watched", remedy)
        else:
            yield event, prediction_record(event, join(finished.utterances, style), finished.utterances)


def captioned(
    events: Iterable[Event],
    videos: Mapping[str, Path],
    answerer: Answerer,
    template: str,
    view: View,
    done: Collection[str],
    concurrency: int = 1,
) -> Iterator[Outcome]:
    """Caption the events that are not done, in order, from frames of begin..end. The published script gives its captioners the
    whole video instead, and asks them about a part that it does not name.

    Args:
        concurrency: requests at a time, of an answerer that is a server.
    """
    by_key = {event.key: event for event in events if event.key in videos and event.key not in done}
    queries = [Query(key, "cc", str(videos[key].absolute()), each.start, each.end) for key, each in by_key.items()]
    ask = answering(answerer, lambda query: _prompt(template, by_key[query.key], by_key[query.key].previous), OFFLINE_TOKENS)
    for query, answer in ask_offline(queries, Path(), view, ask, concurrency=concurrency):
        event = by_key[query.key]
        if isinstance(answer, InputError):
            yield event, answer.within(f"event {shortened(event.key, 60)}")
        else:
            yield event, prediction_record(event, answer["response"] if has_words(answer["response"]) else "")


def predict(
    target: Path,
    events: Sequence[Event],
    run: Callable[[Collection[str]], Iterator[Outcome]],
    bad: BadLines,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the predictions of events, in the order of their keys, by `collecting.collect`; a run that was killed goes on.

    Args:
        events: those whose video was found.
        run: called with the keys that are done; yields the results of the others, in any order.
    """

    def records(done: Collection[str]) -> Iterator[tuple[str, dict[str, Any] | InputError]]:
        return ((event.key, outcome) for event, outcome in run(done))

    keys = sorted(event.key for event in events)
    return collect(target, keys, lambda record: f"{record['video_id']}_{record['event_id']}", records, bad, progress)
