"""What a step of curation makes of a video: lines, or a reason to set it aside, and all that it changed.

`curate.running.run` writes outcomes to files; steps make them and know no file. Host side, never jax. Units: seconds of the
video.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol


class Change(NamedTuple):
    """One repair, edit or deletion, for people to read.

    Attributes:
        rule: its name, the same in reports, docs and tests: "end before start".
        time: where in the video; None: nowhere in particular.
        before, after: words, or a word and its times; after is "" where they were deleted.
    """

    rule: str
    time: float | None
    before: str
    after: str


@dataclass(frozen=True)
class Outcome:
    """
    Attributes:
        lines: JSON values to write, one a line: the transcript of most steps, windows of others. None at all for a video that
            is set aside.
        reason: why it is set aside, in one line; "" where it is not.
        changes: in order of time.
        counts: numbers that a report adds up over videos: {"sentences": 12, "kept": 9}.
    """

    lines: tuple[Any, ...] = ()
    reason: str = ""
    changes: tuple[Change, ...] = ()
    counts: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if bool(self.lines) == bool(self.reason):
            raise ValueError(f"{len(self.lines)} lines and the reason {self.reason!r}: lines, or why there are none")


class NotDone(Exception):
    """This video cannot be done now and may be later, and others may be now: a server that does not answer. It is neither kept
    nor set aside, and the same command again asks for it alone."""


class SetAside(Exception):
    """A video that a step cannot use, now or later, and why in one line: no sound, no words. Raised where the reason is found;
    the step makes an `Outcome` with this reason of it."""


class Step(Protocol):
    """name: "clean". settings: JSON; what an outcome depends on besides its input: flags, rules, prompts (as digests), model,
    version of the step. Called with an item, a `Transcript` for most; the same item gives the same outcome.

    Pickled where processes share the work, so its attributes are data. Raises `NotDone` for a video that has to wait, and
    InputError where no video can be done (a refused key): that ends the run, and what is done stays done.
    """

    @property
    def name(self) -> str: ...

    @property
    def settings(self) -> Mapping[str, Any]: ...

    def run(self, item: Any, /) -> Outcome: ...
