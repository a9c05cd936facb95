"""The token ids of answers that were given lately: a client sends them back as text.

Encoded anew, a text may become other ids than those that a model wrote, and what was computed for those
could not be used again. An answer is found by its text and by the whole prompt that it answered, so that what
a prompt becomes depends on its own conversation alone.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Sequence
from hashlib import sha256

import numpy as np
import numpy.typing as npt

_MOST = 1 << 22
"""Of tokens and characters together: some 20 MB."""


class AnswerMemory:
    """Safe to use from several threads."""

    def __init__(self, most: int = _MOST) -> None:
        """most: tokens and characters that are kept; those given longest ago go first."""
        self._most = most
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[bytes, str], npt.NDArray[np.int32]] = OrderedDict()
        self._texts: Counter[str] = Counter()
        self._size = 0

    def remember(self, prompt: Sequence[int], text: str, tokens: Sequence[int]) -> None:
        """An answer to a prompt: what is said, and its ids."""
        key = _digest(prompt), text
        with self._lock:
            self._forget(key)
            self._kept[key] = np.array(tokens, np.int32)
            self._texts[text] += 1
            self._size += len(text) + len(tokens)
            while self._size > self._most:
                self._forget(next(iter(self._kept)))

    def has(self, text: str) -> bool:
        """Whether it was the answer to anything."""
        return text in self._texts

    def find(self, prompt: Sequence[int], text: str) -> list[int] | None:
        """The ids of this answer to this prompt; None if it was none."""
        key = _digest(prompt), text
        with self._lock:
            found = self._kept.get(key)
            if found is None:
                return None
            self._kept.move_to_end(key)
        return [int(token) for token in found]

    def _forget(self, key: tuple[bytes, str]) -> None:
        tokens = self._kept.pop(key, None)
        if tokens is None:
            return
        text = key[1]
        self._size -= len(text) + len(tokens)
        self._texts[text] -= 1
        if not self._texts[text]:
            del self._texts[text]


def _digest(prompt: Sequence[int]) -> bytes:
    return sha256(np.array(prompt, np.int32).tobytes()).digest()
