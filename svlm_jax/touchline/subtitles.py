"""The commentary on a game as WebVTT subtitles, as they lie beside videos: exact, or with mistakes that subtitles have.

Owns what a cue is: words without a pause between them. Units: seconds.
"""

from collections.abc import Iterator, Mapping, Sequence

from svlm_jax.data.annotation import Annotation, Word
from svlm_jax.touchline.corrupt import RATES, Damage, corrupt, repair_minimally

PAUSE = 0.05  # seconds between two words that are not of one cue
# What subtitles have that a recogniser wrote; their words have no times of their own that could be wrong.
ROUGH: Mapping[Damage, float] = {kind: RATES[kind] for kind in (Damage.MISHEARD, Damage.ADVERT, Damage.LOOP)}


def to_webvtt(words: Sequence[Word]) -> str:
    """The text of a file. The words of a cue of the true commentary share its time evenly, so that a reader that divides it by
    their number finds their times."""
    cues = (
        f"{_clock(cue[0].start)} --> {_clock(cue[-1].end)}\n{' '.join(word.text for word in cue)}\n" for cue in _cues(words)
    )
    return "\n".join(("WEBVTT\n", *cues))


def rough_words(annotation: Annotation, seed: int) -> tuple[Word, ...]:
    """The words as `ROUGH` has them."""
    return repair_minimally(corrupt(annotation, "", seed, ROUGH)[0])


def _cues(words: Sequence[Word]) -> Iterator[list[Word]]:
    cue: list[Word] = []
    for word in words:
        if cue and word.start - cue[-1].end > PAUSE:
            yield cue
            cue = []
        cue.append(word)
    if cue:
        yield cue


def _clock(seconds: float) -> str:
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}.{rest % 1000:03}"
