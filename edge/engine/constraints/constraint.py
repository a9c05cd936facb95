"""What an engine asks of whatever says how an answer may go on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt


class Constraint(Protocol):
    """What an answer may consist of, from where it is. It goes forward only, along the tokens that come.

    Which token comes must follow from `allowed` alone: `forced` only says early what that leaves, so that an
    answer is the same whether forced tokens are committed together or drawn one by one.
    """

    def allowed(self) -> npt.NDArray[np.uint32] | None:
        """Which tokens may come next, see `edge.executors.protocol.Executor.sample`; None: any.

        The next call may change the array. End tokens (`Tokenizer.eos_ids`) are among them only where
        `is_complete`.
        """

    def advance(self, token: int) -> None:
        """This one has come, an end token too."""

    def forced(self) -> Sequence[int]:
        """The tokens that must come now, in their order; may be empty although something must.

        An end token is the last of them, where nothing but the end may follow.
        """

    def fits(self, tokens: Sequence[int]) -> int:
        """How many of these guesses could come, one after the other; nothing is changed by asking."""

    @property
    def is_complete(self) -> bool:
        """Whether the text so far is a whole one."""
