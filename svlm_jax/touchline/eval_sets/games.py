"""A held-out game as the benchmarks of a set ask about it: what was true in each second.

Owns the names of videos within a set and the look-ups. Host side: numpy, never jax. Units: whole seconds of the video.
"""

from collections.abc import Iterable, Iterator
from functools import cached_property

from svlm_jax.data.annotation import Word
from svlm_jax.touchline import commentary
from svlm_jax.touchline.film import play
from svlm_jax.touchline.judge import facts_at
from svlm_jax.touchline.match import Event, Facts, Kind, second_of

VIDEOS = "videos"  # the folder of films within a set


class Game:
    """The first seconds of the game of a seed. video: its path within a set."""

    def __init__(self, seed: int, seconds: int) -> None:
        self.seed, self.seconds = seed, seconds
        self.world = play(seed, seconds + 1)
        self.video_id = f"match_{seed}"
        self.video = f"{VIDEOS}/{self.video_id}.mp4"

    @cached_property
    def events(self) -> list[Event]:
        """Those that the film shows."""
        return [event for event in self.world.events if second_of(event.time) < self.seconds]

    @cached_property
    def words(self) -> list[Word]:
        return [word for word in commentary.words(self.events) if word.end <= self.seconds]

    @cached_property
    def replies(self) -> dict[int, str]:
        """The true commentary: second -> its words; silent seconds are left out."""
        words_by_second: dict[int, list[str]] = {}
        for word in self.words:
            words_by_second.setdefault(int(word.start), []).append(word.text)
        return {second: " ".join(texts) for second, texts in words_by_second.items()}

    @property
    def title(self) -> str:
        facts = self.facts(0)
        return f"{facts.teams[0]} against {facts.teams[1]}, {facts.cup} Cup"

    def facts(self, second: int) -> Facts:
        """The state of the match that frames up to this second show."""
        return facts_at(self.events, second)

    def holder(self, second: int) -> str:
        """The team that has the ball half a second later; "" for none."""
        return self.world.holders[second]

    def when(self, *kinds: Kind) -> Iterator[tuple[int, Event]]:
        """(second, event) of the events of some kinds, or of all, in order."""
        return ((second_of(event.time), event) for event in self.events if not kinds or event.kind in kinds)

    def event_at(self, second: int) -> Event | None:
        """The event that this second is the first to show; there is one at most."""
        return self._by_second.get(second)

    def event_before(self, second: int) -> Event | None:
        """The last event that frames up to this second show."""
        return next((event for when, event in reversed(self._by_second.items()) if when <= second), None)

    def event_after(self, second: int) -> Event | None:
        """The first event that only later frames show."""
        return next((event for when, event in self.when() if when > second), None)

    @cached_property
    def _by_second(self) -> dict[int, Event]:
        return dict(self.when())

    def text(self, start: int, end: int) -> str:
        """The true words of the seconds start .. end - 1."""
        return text_between(self.replies, start, end)


def text_between(replies: dict[int, str], start: int, end: int) -> str:
    """The words of the seconds start .. end - 1, joined by blanks."""
    return " ".join(replies[second] for second in range(start, end) if second in replies)


def changes(values: Iterable[tuple[int, str]], end: int) -> Iterator[tuple[int, int, str]]:
    """(start, end, value) for each value that differs from the one before, of (second, value) in order."""
    since, current = 0, None
    for second, value in values:
        if value != current:
            if current is not None and second > since:
                yield since, second, current
            since, current = second, value
    if current is not None and end > since:
        yield since, end, current
