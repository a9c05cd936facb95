"""What guesses for the sequences of one model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edge.engine.speculative.drafter import Drafter
from edge.engine.speculative.sequence import SequenceSpeculation


@dataclass(frozen=True)
class Speculation:
    """name: of the kind of drafter. new_drafter: makes one for a sequence. close: frees what all of them
    use.
    """

    name: str
    new_drafter: Callable[[], Drafter]
    close: Callable[[], None] = lambda: None

    def sequence(self) -> SequenceSpeculation:
        """For a new sequence."""
        return SequenceSpeculation(self.new_drafter(), self.name)
