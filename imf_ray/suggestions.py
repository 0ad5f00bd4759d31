"""Suggests the name that a mistyped one may be meant for."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

MIN_SIMILARITY = 0.8
"""Minimum of `difflib`'s ratio for two words that a suggestion takes for the same, misspelled."""
SYNONYMS = {"learning": "lr", "epoch": "steps", "epochs": "steps"}
"""Words that others use, and those of our options, for suggestions."""


def suggest(word: str, names: Sequence[str], default: str | None = None) -> str:
    """Return ': did you mean NAME?' with the most similar name, for a message about `word`.

    It is the name that shares most of the word's parts, which `_`, `-` and `.` separate. Among
    several, it is the default, or else the one with few other parts that is spelled alike.
    """
    parts = _parts(word)

    def similarity(name: str) -> tuple[int, bool, float]:
        others = _parts(name)
        shared = sum(bool(difflib.get_close_matches(p, others, 1, MIN_SIMILARITY)) for p in parts)
        ratio = difflib.SequenceMatcher(a="".join(parts), b="".join(others)).ratio()
        return shared, name == default, shared / len(others) + ratio

    return f": did you mean {max(names, key=similarity)}?"


def _parts(name: str) -> list[str]:
    """Return the words of a name, each as the word that options use for it."""
    return [SYNONYMS.get(part, part) for part in re.split(r"[._-]+", name.lower()) if part]
