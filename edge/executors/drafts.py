"""Draft networks beside a model: what executors offer that can run them (`edge.config.draft`).

Row i of a draft's cache is made of the target's embedding of token i + 1 and hidden state of token i. Behind
the last row, where the target's hidden states end, a draft goes on with its own guesses at them and tries a
tree of tokens. Of a block draft row i is made of hidden states of token i alone; the last row's token is the
anchor, behind which one block is computed, and step k of a tree takes its tokens from row k of that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, cast, runtime_checkable

import numpy as np
import numpy.typing as npt

from edge.config.draft import DraftConfig
from edge.errors import EdgeError
from edge.executors.checks import MAX_TREE, integers
from edge.executors.protocol import Executor, KVCache, NextToken
from edge.formats.draft.files import DraftFiles

MAX_BRANCHES = 16
"""Most leaves that a step goes on from, and most children of each."""
MARKOV_CANDIDATES = 64
"""The Markov head of a block draft chooses among so many of a row's likeliest tokens: of all of them it would
read as much as half a head for every step.
"""

Tokens = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class DraftRows:
    """Rows for the end of a cache.

    position: of the first one in the sequence, behind all rows of the cache; there may be a gap between, or
    before the first row of a cache. tokens: int32 [n], the token after the one of each row; the last one is
    the root of a tree. hidden: float32 [n, hidden_columns], the target's hidden states of the rows, as
    `StepResult.hidden`, or for a draft with taps `StepResult.layers` of those, one behind the other.
    """

    position: int
    tokens: Tokens
    hidden: Floats

    def checked(self, config: DraftConfig) -> DraftRows:
        """The same as executors read them; EdgeError for what can't be rows of this draft."""
        tokens = integers(self.tokens, "tokens")
        hidden = np.ascontiguousarray(self.hidden, np.float32)
        if not tokens.size or hidden.shape != (tokens.size, config.hidden_columns):
            raise EdgeError(
                f"Rows of a draft have one token and {config.hidden_columns} floats each, got {tokens.size} "
                f"tokens and hidden states of shape {hidden.shape}."
            )
        return DraftRows(self.position, tokens, hidden)


@dataclass(frozen=True)
class DraftPlan:
    """What is tried behind the rows.

    steps: at most. The first one gives `branches` children of the root, a further one as many behind each of
    the `branches` best tokens of the step before. rows: most tokens of any use; no step goes on behind one
    that is not among the best; 0: all are. least_chance: nor behind one with a lower chance. least_gains:
    what the chances of its leaves must add up to for step i to be made; the first always is, and so are those
    beyond the list.
    """

    steps: int
    branches: int
    rows: int = 0
    least_chance: float = 0.0
    least_gains: Sequence[float] = ()

    def __post_init__(self) -> None:
        if not (1 <= self.steps <= MAX_TREE and 1 <= self.branches <= MAX_BRANCHES):
            raise EdgeError(
                f"A draft tries 1 to {MAX_TREE} steps with 1 to {MAX_BRANCHES} branches, got {self.steps} "
                f"with {self.branches}."
            )

    @property
    def room(self) -> int:
        """Most tokens that are tried."""
        return self.branches + (self.steps - 1) * self.branches**2

    @property
    def all_gains(self) -> list[float]:
        """`least_gains` of every step."""
        known = list(self.least_gains[: self.steps])
        return known + [0.0] * (self.steps - len(known))


class Tried(NamedTuple):
    """What was tried: parents before their children, the children of one in order of their chances.

    parents: -1 for the root. logprobs: the sum of the logarithms of probabilities along the path, over the
    tokens of the draft's head. seconds: what every step took, the first one with the rows.
    """

    tokens: list[int]
    parents: list[int]
    logprobs: list[float]
    seconds: list[float]


class DraftNetwork(Protocol):
    """A draft network on an executor, whose calls it takes part in: one at a time."""

    @property
    def config(self) -> DraftConfig:
        """The network."""

    @property
    def cache_bytes(self) -> int:
        """Memory of all its caches."""

    def new_cache(self) -> KVCache:
        """An empty cache; memory is committed as it fills."""

    def append(self, cache: KVCache, rows: DraftRows) -> None:
        """Append rows; raises EdgeError, and leaves the cache as it was, if they can't be."""

    def run(self, cache: KVCache, rows: DraftRows, plan: DraftPlan) -> Tried:
        """The same, and then try tokens behind them. The cache keeps the rows, and nothing of the tokens."""

    def truncate(self, cache: KVCache, n: int) -> None:
        """Drop all rows of the cache after the first n."""

    def close(self) -> None:
        """Free its weights; it can't be used afterwards, nor when its executor is closed."""


class RowsMemory(NamedTuple):
    """Where rows of a draft are written, see `DraftRows`: addresses of int32 [n] and float32 [n,
    hidden_columns], and what owns them.
    """

    tokens: int
    hidden: int
    owners: tuple[object, object]


class DraftAhead(Protocol):
    """A search behind a pass that draws tokens (`DrawsTokens.decode`), which begins in the call of that."""

    def behind(self, step: NextToken, position: int, memory: RowsMemory, plan: DraftPlan) -> None:
        """Let the rows that stay of the coming pass of `step` be appended, the first of which has this
        position and the cache all before, and then tokens be tried behind them. step: without soft rows, and
        with the hidden states that the draft needs wanted of it. memory: for as many rows as it has.
        """

    @property
    def rows(self) -> int:
        """That stayed of the last pass, and stand in `memory`; 0 if it failed."""

    @property
    def root(self) -> int:
        """The token that it was made behind."""

    @property
    def seconds(self) -> float:
        """That it took of the pass: none where it goes on behind it."""

    def wait(self) -> None:
        """Until it is over. For any thread, as `tried`."""

    def tried(self) -> Tried | None:
        """What was tried, when the search is over; None if it could not be made: then the cache has none of
        the rows.
        """


@runtime_checkable
class DraftsAhead(Protocol):
    """A draft network whose executor makes searches behind its passes."""

    def ahead(self, cache: KVCache) -> DraftAhead:
        """For one of its caches."""


@runtime_checkable
class Drafts(Protocol):
    """An executor that runs drafts; any number of them."""

    def open_draft(self, files: DraftFiles) -> DraftNetwork:
        """The network of a draft beside this executor's model, whose embedding and head it uses; EdgeError
        if it is not one for a model of this shape.
        """


def drafts_of(executor: Executor) -> Drafts | None:
    """The executor as `Drafts`, also behind a trace (whose attributes `isinstance` does not see)."""
    return cast(Drafts, executor) if hasattr(executor, "open_draft") else None
