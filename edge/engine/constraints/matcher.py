"""A compiled grammar along one answer."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edge.engine.constraints.vocabulary import Vocabulary
from edge.errors import EdgeError

if TYPE_CHECKING:
    from llguidance import LLMatcher


class GrammarConstraint:
    """A `Constraint` over an `LLMatcher`, which belongs to it."""

    def __init__(self, vocabulary: Vocabulary, matcher: LLMatcher) -> None:
        self._vocabulary, self._matcher = vocabulary, matcher
        self._mask = vocabulary.mask()
        self._address = self._mask.ctypes.data
        # Where the grammar leaves one text only, its tokens are those that the tokenizer would write. Cut
        # anew behind some of them, the rest might become others: so they are decided on together.
        self._forced: deque[int] = deque()
        self._has_looked = False
        self._ended = False

    def allowed(self) -> npt.NDArray[np.uint32]:
        """See `Constraint`. The array is the same at every call."""
        if forced := self.forced():
            self._mask[:] = 0
            for token in self._vocabulary.ends if forced[0] in self._vocabulary.ends else forced[:1]:
                self._mask[token // 32] |= np.uint32(1 << token % 32)
        else:
            self._matcher.unsafe_compute_mask_ptr(self._address, self._mask.nbytes)
            self._check()
        return self._mask

    def advance(self, token: int) -> None:
        """See `Constraint`. Raises EdgeError for a token that was not allowed."""
        if token in self._vocabulary.ends:
            self._ended = True
            return
        if self._forced and self._forced[0] == token:
            self._forced.popleft()
        else:
            self._forced.clear()
        self._has_looked = len(self._forced) > 0
        self._matcher.consume_token(token)
        self._check()

    def forced(self) -> Sequence[int]:
        """See `Constraint`."""
        if self._ended:
            return ()
        if not self._has_looked:
            self._has_looked = True
            if self._matcher.is_stopped():
                self._check()
                self._forced.append(self._vocabulary.ends[0])
            else:
                self._forced.extend(self._matcher.compute_ff_tokens())
                self._check()
        return tuple(self._forced)

    def fits(self, tokens: Sequence[int]) -> int:
        """See `Constraint`."""
        forced = self.forced()
        for at, (token, must) in enumerate(zip(tokens, forced, strict=False)):
            if token != must:
                return at
        if len(tokens) <= len(forced) or self._ended or self._matcher.is_stopped():
            return 0 if self._ended else min(len(tokens), len(forced))
        fitting = self._matcher.validate_tokens(list(tokens))
        self._check()
        return fitting

    @property
    def is_complete(self) -> bool:
        """See `Constraint`."""
        return bool(self._matcher.is_accepting())

    def _check(self) -> None:
        if self._matcher.is_error():
            said = " ".join(self._matcher.get_error().removesuffix("<non-verbose/>").split())
            raise EdgeError(f"The answer can't go on in its grammar: {said}.")
