"""What a user should know although nothing failed: which of two contradicting sources was used, say."""

from __future__ import annotations

import warnings


class EdgeWarning(UserWarning):
    """A notice: one sentence, shown once. The command line prints it on stderr as a note."""


def notice(sentence: str) -> None:
    """Tell the user, through Python's `warnings`, so that programs can filter or record it."""
    warnings.warn(sentence, EdgeWarning, stacklevel=2)
