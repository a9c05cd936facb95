"""Stop strings in a text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Cuts a growing text at the first stop string, holding back what may be the beginning of one."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._held = ""
        self.found: str | None = None  # the string that ended the text

    @property
    def stopped(self) -> bool:
        """Whether the text has ended."""
        return self.found is not None

    def push(self, text: str) -> str:
        """Take more text; returns what is certain to lie before any stop string."""
        if self.stopped:
            return ""
        if not self._stop:
            return text
        self._held += text
        # The one that is complete first counts, so that the pieces in which text arrives make no difference.
        found = [(at + len(s), at, s) for s in self._stop if (at := self._held.find(s)) >= 0]
        if found:
            _, at, self.found = min(found)
            ready, self._held = self._held[:at], ""
            return ready
        keep = max(self._overlap(s) for s in self._stop)
        cut = len(self._held) - keep
        ready, self._held = self._held[:cut], self._held[cut:]
        return ready

    def flush(self) -> str:
        """The text that was held back: no stop string came of it."""
        ready, self._held = self._held, ""
        return ready

    def _overlap(self, stop: str) -> int:
        """Length of the longest end of the held text that begins `stop`."""
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)
