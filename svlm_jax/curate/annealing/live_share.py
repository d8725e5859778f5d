"""How much of a text is live commentary: what happens on the field now, not background, statistics, history, adverts.

Owns the question (`LiveShareJudge`) and a judge by rules, which counts cues and knows no meaning. A model is asked by
`curate.annealing.llm_live_share`. Host side, never jax.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from svlm_jax.curate.patterns import Patterns
from svlm_jax.curate.sentences import split_words

CUES = "live"  # of `Patterns.of_package`
KINDS = ("live", "background")
SHORT = 7  # words: a sentence of no more and without any cue is a call: "Messi.", "Oh, Salah!"
CUE_EVERY = 20
VERSION = 1  # of the rules, on which shares depend


class LiveShare(NamedTuple):
    """share: of the words, 0 to 1; None: the judge gave no answer that can be used. reason: in a few words."""

    share: float | None
    reason: str


class LiveShareJudge(Protocol):
    """settings: JSON, all that shares depend on: model, prompt as a digest, rules."""

    settings: Mapping[str, Any]

    def judge(self, title: str, sentences: Sequence[str]) -> LiveShare:
        """Of a clip of a broadcast with this title. The same question has the same answer.

        Raises:
            NotDone: there is no answer now, and may be one later.
            InputError: there will be none: a refused key, an unknown model.
        """
        ...


class RuleJudge:
    """A `LiveShareJudge` by cues. A sentence is live where it has more cues of live commentary than of background, and
    one for every CUE_EVERY words; or none of either, and few words."""

    def __init__(self, cues: Patterns | None = None) -> None:
        """cues: the kinds "live" and "background"; None: `english/live.toml`."""
        self.cues = cues or Patterns.of_package(CUES)
        self.settings: Mapping[str, Any] = {"judge": "rules", "version": VERSION, "cues_sha256": self.cues.digest()}

    def judge(self, title: str, sentences: Sequence[str]) -> LiveShare:
        words = [len(split_words(sentence)) for sentence in sentences]
        live = sum(count for count, sentence in zip(words, sentences, strict=True) if self.is_live(sentence))
        total = sum(words)
        return LiveShare(live / total if total else 0.0, f"{live} of {total} words are in live sentences, by their cues")

    def is_live(self, sentence: str) -> bool:
        live, background = (self.cues.count(kind, sentence) for kind in KINDS)
        words = len(split_words(sentence))
        return (live > background and live * CUE_EVERY >= words) or (background == 0 and words <= SHORT)
