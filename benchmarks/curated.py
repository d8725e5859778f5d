"""A transcript through `svlm curate clean` and `edit` by rules, in this process: what benchmarks and tests compare."""

from typing import NamedTuple

from svlm_jax.curate import transcript
from svlm_jax.curate.cleaning.clean import clean
from svlm_jax.curate.editing.edit import EditStep
from svlm_jax.curate.editing.glossary import Glossary
from svlm_jax.curate.editing.rule_editor import RuleEditor
from svlm_jax.curate.outcome import Outcome
from svlm_jax.curate.transcript import Transcript
from svlm_jax.touchline.corrupt import MISHEARD

EDITORS = {  # what the rule-based editor is given
    "nothing": Glossary({}),
    "names": Glossary({name: [] for name in MISHEARD}),
    "names and how they are misheard": Glossary(MISHEARD),
}
LISTED = "names and how they are misheard"


class Curated(NamedTuple):
    """cleaned, edited: the transcript after each step, and both steps' outcomes."""

    cleaned: Transcript
    edited: Transcript
    outcomes: tuple[Outcome, Outcome]


def curate(damaged: Transcript, glossary: Glossary) -> Curated:
    """`svlm curate clean`, then `edit` by rules."""
    first = clean(damaged)
    cleaned = _only(first)
    second = EditStep(RuleEditor(glossary)).run(cleaned)
    return Curated(cleaned, _only(second), (first, second))


def _only(outcome: Outcome) -> Transcript:
    assert not outcome.reason, outcome.reason
    return transcript.parse(outcome.lines[0], "outcome")
