"""An editor without a model: names by a glossary, and sentences that are no commentary by patterns.

What it cannot do: know what a sentence means. It corrects names that are listed, in the glossary or in the title, and deletes
what its patterns find; a wrong player, studio talk in words of its own, a sentence without sense are kept. The changes of a run
list all that it did. The patterns are English: of another language it corrects names alone. Host side, never jax.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from svlm_jax.curate.editing.edit import Context, Decision
from svlm_jax.curate.editing.glossary import Glossary, names_in_title
from svlm_jax.curate.patterns import Patterns
from svlm_jax.curate.sentences import Sentence

UNWANTED = "unwanted"  # of `Patterns.of_package`
VERSION = 1  # of the rules, on which outcomes depend
TITLES = 64  # whose names are kept at hand


class RuleEditor:
    """An `Editor`; threads and processes may share it."""

    def __init__(self, glossary: Glossary | None = None, patterns: Patterns | None = None) -> None:
        """
        Args:
            glossary: names besides those of the title.
            patterns: kinds of sentences to delete; None: `english/unwanted.toml`.
        """
        self.glossary, self.patterns = glossary or Glossary({}), patterns or Patterns.of_package(UNWANTED)
        names = json.dumps({name: list(variants) for name, variants in self.glossary.names.items()})
        self.settings: Mapping[str, Any] = {
            "editor": "rules",
            "version": VERSION,
            "glossary_sha256": hashlib.sha256(names.encode()).hexdigest(),
            "patterns_sha256": self.patterns.digest(),
        }

    def edit(self, context: Context, sentences: Sequence[Sentence]) -> list[Decision]:
        glossary = _with_title(self.glossary, context.title)
        return [self.decide(sentence.text, glossary) for sentence in sentences]

    def decide(self, text: str, glossary: Glossary) -> Decision:
        if self.patterns.kind(text):
            return Decision("delete")
        corrected, replacements = glossary.corrected(text)
        return Decision("edit", corrected) if replacements else Decision("keep")


@lru_cache(TITLES)
def _with_title(glossary: Glossary, title: str) -> Glossary:
    return glossary.with_names(names_in_title(title))
