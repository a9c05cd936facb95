"""What guesses: one drafter per sequence. The scheduler asks it before a pass and tells it what came of it.

Drafters are called in whichever thread runs a pass, one call at a time for all sequences of a model, so that
those of one model may share what they have learned.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edge.engine.speculative.tree import DraftTree
from edge.executors.drafts import DraftAhead
from edge.executors.protocol import NextToken
from edge.executors.soft import SoftPrompt

Tokens = npt.NDArray[np.int32]


class Budget(NamedTuple):  # as is what else is made for every pass: a dataclass takes five times as long
    """What a tree may cost.

    rows: most nodes that can be verified. depth: longest path that can count. token_seconds: what a token of
    plain decoding takes; what a drafter spends, and the nodes that are verified, must be worth it.
    least_chance: of a node that can pay for its row in the pass; a lower one is left out in any case.
    children: of one token, the most that can pay if there are no other guesses.
    """

    rows: int
    depth: int
    token_seconds: float
    least_chance: float
    children: int = 64


class Accepted(NamedTuple):
    """Tokens that now stand in the cache for good.

    start: their first place in the sequence. What was told of this place and later ones before does not hold
    any more. tokens: int32 [n], of prompts and of answers alike. hidden: float32 [n, hidden_size], their
    hidden states after the final norm and before the logit scale, if the drafter `wants_hidden`, or its
    `taps` one behind the other (None for rows that come from elsewhere, such as a file). soft: float32 [m,
    vocab_size], logits of the soft rows behind the last token, None if the pass had none there. searched:
    whether the search that `Drafter.search_behind` wanted was made behind just these tokens; it has their
    hidden states, which are None here.
    """

    start: int
    tokens: Tokens
    hidden: npt.NDArray[np.float32] | None = None
    soft: npt.NDArray[np.float32] | None = None
    searched: bool = False


class Drafter(ABC):
    """Guesses for one sequence."""

    wants_hidden = False
    """Whether it needs the target's hidden states."""
    needs_all_hidden = False
    """Whether it needs those of every token; others do without them early in a rest."""
    taps: tuple[int, ...] = ()
    """Layers of the target after which it needs the residual stream, in place of the final hidden states."""
    soft: SoftPrompt | None = None
    """With one, all embeddings of this prompt stand as soft rows behind the last token and behind each guess
    of a pass: a group, which `DraftTree.group` asks for.
    """

    @abstractmethod
    def propose(self, tokens: Tokens, budget: Budget) -> DraftTree:
        """A tree behind the last of `tokens`, int32: the whole sequence, prompt and answer, whose last token
        is not in the cache yet. It may have more nodes than `budget.rows`; the likeliest are verified. Empty
        if there is nothing worth a row.
        """

    def rests(self) -> int:
        """In how many passes it is not to be asked, the one that comes among them, since its guesses have
        cost more than they gave, in all sequences. Called once for each pass in which it would be.
        """
        return 0

    @abstractmethod
    def accepted(self, accepted: Accepted) -> None:
        """Called after every pass in which the sequence had tokens."""

    def search_behind(self, step: NextToken, start: int) -> DraftAhead | None:
        """Called before a pass that draws its tokens, `step`, after `propose`: the search that the drafter
        has put behind it, for its next tree. start: the place of the pass's first token.
        """
        return None

    def verified(self, depth: int) -> None:  # noqa: B027 - most have nothing to learn from it
        """Of the tree that was proposed last, guesses down to this depth are verified, 0 for none."""

    def settled(self, gained: float) -> None:  # noqa: B027 - most have nothing to learn from it
        """The pass for which it was asked last won so many tokens, less what guesses cost in the time of
        plain tokens. Called where that can be told.
        """

    def close(self) -> None:  # noqa: B027 - most have nothing to do
        """An answer has ended; another one may follow in the same sequence."""
