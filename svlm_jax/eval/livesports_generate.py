"""LiveSports-3K CC: what a model says about each event, streamed as it was published or captioned offline.

Owns the protocols and the file that a run leaves. Does not know models: a `Commentator` watches, an `Answerer` captions.
Units: seconds of the whole video.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from svlm_jax.errors import InputError, shortened
from svlm_jax.eval.collecting import collect
from svlm_jax.eval.commentary import Utterance
from svlm_jax.eval.commentator import Clock, Commentator, Job, job_seed
from svlm_jax.eval.frames import prefix
from svlm_jax.eval.lines import BadLines
from svlm_jax.eval.livesports_cc import Event, fill_prompt, find_video, has_words, prediction_record
from svlm_jax.eval.models import Answerer, Request

OFFLINE_TOKENS = 512  # of a published offline caption, at most


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


class Said(NamedTuple):
    """What came of an event: a text, its parts with their times where it was streamed; or why there is none."""

    event: Event
    text: str
    utterances: tuple[Utterance, ...] = ()
    error: str = ""


def find_videos(events: Iterable[Event], folder: str | Path, bad: BadLines) -> dict[str, Path]:
    """The file of each event's video, by the event's key; looked for before a model is loaded.

    Raises:
        InputError: more are missing or empty than may be.
    """
    found = {}
    for event in events:
        try:
            found[event.key] = find_video(folder, f"event {event.key}", event.video, event.video_id)
        except InputError as error:
            bad.add(error)
    return found


def stream_jobs(
    events: Iterable[Event], videos: Mapping[str, str | Path], template: str, style: Style, seed: int = 0
) -> list[Job]:
    """What is watched: each event, from its begin until its end is seen, by a stream of its own.

    Args:
        videos: of `find_videos`; an event without one is left out.
    """
    in_query = style.previous == "query"
    return [
        Job(
            event.key,
            videos[event.key],
            event.begin,
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
    events: Iterable[Event], jobs: Sequence[Job], commentator: Commentator, style: Style, done: Iterable[str]
) -> Iterator[Said]:
    """Watch the jobs that are not done; each comes as it is finished."""
    by_key = {event.key: event for event in events}
    for finished in commentator.run(jobs, skip=set(done)):
        event = by_key[finished.job.key]
        text = join(finished.utterances, style)
        yield Said(event, text, finished.utterances, finished.error)


def captioned(
    events: Iterable[Event],
    videos: Mapping[str, str | Path],
    answerer: Answerer,
    template: str,
    frames: int,
    done: Iterable[str],
) -> Iterator[Said]:
    """Caption the events that are not done: `frames` frames at most of begin..end, 2 a second, thinned evenly. The published
    script gives its captioners the whole video instead, and asks them about a part that it does not name."""
    skip = set(done)
    for event in events:
        if event.key in skip or event.key not in videos:
            continue
        try:
            shown = prefix(videos[event.key], event.end, max_frames=frames, start=event.begin)
        except InputError as error:
            yield Said(event, "", error=str(error))
            continue
        text = answerer.answer(Request(_prompt(template, event, event.previous), shown, max_new_tokens=OFFLINE_TOKENS))
        yield Said(event, text if has_words(text) else "")


def predict(
    target: Path,
    events: Sequence[Event],
    run: Callable[[Collection[str]], Iterator[Said]],
    bad: BadLines,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the predictions of events, in the order of their keys; a run that was killed goes on.

    Args:
        events: those whose video was found.
        run: given the keys that are done, what comes of the others.
        progress: called with (events done, events in all).

    Raises:
        InputError: more events failed than may be (`collecting.collect`).
    """

    def records(done: Collection[str]) -> Iterator[tuple[str, dict[str, Any] | InputError]]:
        for said in run(done):
            key, remedy = said.event.key, "mend the video, or allow it with --bad"
            if said.error:
                yield key, InputError(f"event {shortened(key, 60)}", said.error, "all of it watched", remedy)
            else:
                yield key, prediction_record(said.event, said.text, said.utterances)

    keys = sorted(event.key for event in events)
    return collect(target, keys, lambda record: f"{record['video_id']}_{record['event_id']}", records, bad, progress)
