"""What guesses for the sequences of one model."""

from __future__ import annotations

from collections.abc import Callable

from edge.engine.speculative.drafter import Drafter
from edge.engine.speculative.sequence import SequenceSpeculation
from edge.engine.speculative.track_record import TrackRecord

Start = Callable[[], Callable[[], Drafter]]
"""Makes a function that makes drafters, which share what they learn."""


class Speculation:
    """Makes a drafter for every sequence."""

    def __init__(
        self, name: str, start: Start, close: Callable[[], None] = lambda: None, memory_bytes: int = 0
    ) -> None:
        """name: of the kind of drafter. close: frees what all of them use. memory_bytes: weights and buffers
        of that.
        """
        self.name = name
        self.close = close
        self.memory_bytes = memory_bytes
        self.start = start
        self._new_drafter = start()
        self._record = TrackRecord()

    def sequence(self) -> SequenceSpeculation:
        """For a new sequence."""
        return SequenceSpeculation(self._new_drafter(), self.name, self._record)

    def forgetful(self) -> Speculation:
        """The same, having learned nothing yet; it can't be used after this one is closed."""
        return Speculation(self.name, self.start, memory_bytes=self.memory_bytes)
