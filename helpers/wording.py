"""Words that error messages share: some of many names, and the name that was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def few(names: Iterable) -> str:
    """The first five names in quotes, and how many there are. Introduced in notebook 01."""
    names = [f"'{name}'" for name in names]
    return ", ".join(names[:5]) + (f", ... ({len(names)} in all)" if len(names) > 5 else "")


def closest(word: str, known: Iterable) -> str:
    """ "; did you mean '...'?" where a known name is near, else nothing. Introduced in notebook 01."""
    lowered = {str(name).lower(): str(name) for name in known}
    near = difflib.get_close_matches(str(word).lower(), lowered, n=1, cutoff=0.5)
    return f"; did you mean '{lowered[near[0]]}'?" if near else ""
