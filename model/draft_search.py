"""The tree of tokens that a PyTorch draft tries; see `edge.executors.drafts.DraftPlan`."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from edge.errors import NativeError
from edge.executors.checks import MAX_TREE
from edge.executors.drafts import MARKOV_CANDIDATES, DraftPlan, Tried
from edge.model.network.block_draft import BlockDraft
from edge.model.network.draft import Draft
from edge.model.network.kv_cache import GrowingCache

_LEAST_REST = 1e-6  # of a row's probability, that may be left for all tokens but the likeliest


class Search(ABC):
    """The tokens that were tried so far."""

    def __init__(self, plan: DraftPlan, ids: npt.NDArray[np.int32]) -> None:
        """ids: tokens of the head's rows."""
        self._plan, self._ids = plan, ids
        self._tokens: list[int] = []
        self._parents: list[int] = []
        self._logprobs: list[float] = []
        self._last_step = range(0)
        self._leaves: list[int] = []

    @property
    def most_steps(self) -> int:
        """Steps that can be made."""
        return self._plan.steps

    @abstractmethod
    def step(self, number: int) -> None:
        """Children of the leaves."""

    def choose_leaves(self, step: int) -> bool:
        """Of the last step's tokens those that step number `step` goes on from; False for no such step."""
        plan = self._plan
        least = float(np.log(plan.least_chance)) if plan.least_chance > 0 else -np.inf
        ranked = sorted(self._logprobs, reverse=True)
        bar = ranked[plan.rows - 1] if 0 < plan.rows <= len(ranked) else -np.inf
        leaves = [node for node in self._last_step if bar < self._logprobs[node] >= least]
        leaves.sort(key=lambda node: -self._logprobs[node])
        self._leaves = leaves[: min(plan.branches, self._room())]
        promised = sum(np.exp(self._logprobs[node]) for node in self._leaves)
        return bool(self._leaves) and promised >= plan.all_gains[step]

    def tried(self, seconds: list[float]) -> Tried:
        """Everything."""
        return Tried(self._tokens, self._parents, self._logprobs, seconds)

    def _room(self) -> int:
        """Leaves that a step may have."""
        return MAX_TREE

    def _add(self, parent: int, rows: Tensor, logprobs: Tensor) -> None:
        """Children of one token, -1 for the root: rows of the head, the likeliest first."""
        before = self._logprobs[parent] if parent >= 0 else 0.0
        for row, logprob in zip(rows, logprobs, strict=True):
            self._tokens.append(int(self._ids[int(row)]))
            self._parents.append(parent)
            self._logprobs.append(float(logprob) + before)

    def _begin_step(self) -> int:
        """The number of the first token that is added."""
        return len(self._tokens)

    def _end_step(self, first: int) -> None:
        self._last_step = range(first, len(self._tokens))


def likeliest(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Rows of the head and the logarithms of their probabilities, the lower row first where two are alike."""
    logprobs = logits.log_softmax(-1)
    if not logprobs.isfinite().all():
        raise NativeError("The logits of the draft are not finite: its weights are damaged.")
    best = logprobs.sort(descending=True, stable=True)
    return best.indices[:count], best.values[:count]


class RowSearch(Search):
    """Every leaf becomes a row, whose state tells its children."""

    def __init__(
        self,
        draft: Draft,
        plan: DraftPlan,
        ids: npt.NDArray[np.int32],
        cache: GrowingCache,
        position: int,
        root: Tensor,
    ) -> None:
        """cache: its rows are true. position: of the root's children as rows. root: its state [1, hidden]."""
        super().__init__(plan, ids)
        self._draft, self._cache, self._position = draft, cache, position
        self._kept = cache.length
        self._states: list[Tensor] = []  # from which each token was told
        self._paths: list[list[int]] = []  # rows in the tree of a token's ancestors
        self._rows = 0
        self._add_children([-1], root)

    def step(self, number: int) -> None:
        """See `Search`."""
        n = len(self._leaves)
        mask = torch.zeros(n, self._cache.length + n, dtype=torch.bool)
        mask[:, : self._kept] = True
        for at, leaf in enumerate(self._leaves):
            self._paths[leaf] = [*self._paths[leaf], self._rows + at]
            mask[at, [self._kept + row for row in self._paths[leaf]]] = True
        self._rows += n
        states = self._draft(
            torch.tensor([self._tokens[leaf] for leaf in self._leaves]),
            torch.stack([self._states[leaf] for leaf in self._leaves]),
            torch.full((n,), self._position + number - 1),
            mask,
            self._cache,
        )
        self._add_children(self._leaves, states)

    def _room(self) -> int:
        return MAX_TREE - self._rows

    def _add_children(self, parents: list[int], states: Tensor) -> None:
        first = self._begin_step()
        for parent, state in zip(parents, states, strict=True):
            self._add(parent, *likeliest(self._draft.logits(state), self._plan.branches))
            added = len(self._tokens) - len(self._states)
            self._states += [state] * added
            self._paths += [self._paths[parent] if parent >= 0 else []] * added
        self._end_step(first)


class BlockSearch(Search):
    """Row k of a block tells the children of all leaves of step k, each with what the Markov head adds."""

    def __init__(
        self, draft: BlockDraft, plan: DraftPlan, ids: npt.NDArray[np.int32], states: Tensor, anchor: int
    ) -> None:
        """states: of all rows of the block, [block_size, hidden]."""
        super().__init__(plan, ids)
        config = draft.config
        self._draft, self._anchor = draft, anchor
        self._rows = states[config.block_size - config.guessed_rows :]
        count = max(plan.branches, MARKOV_CANDIDATES) if config.markov_rank else plan.branches
        self._best = [likeliest(draft.logits(row), count) for row in self._rows[: self.most_steps]]
        self._leaves = [-1]
        self.step(0)

    @property
    def most_steps(self) -> int:
        """See `Search`."""
        return min(self._plan.steps, len(self._rows))

    def step(self, number: int) -> None:
        """See `Search`."""
        first = self._begin_step()
        for leaf in self._leaves:
            before = torch.tensor(self._tokens[leaf] if leaf >= 0 else self._anchor)
            rows, logprobs = self._best[number]
            if self._draft.config.markov_rank:
                rows, logprobs = self._with_bias(rows, logprobs, before)
            rows, logprobs = rows[: self._plan.branches], logprobs[: self._plan.branches]
            if self._draft.config.confidence:
                logprobs = self._with_confidence(logprobs, self._rows[number], before)
            self._add(leaf, rows, logprobs)
        self._end_step(first)

    def _with_bias(self, rows: Tensor, logprobs: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """The same in their new order; tokens that are not among them keep the chances that they had."""
        raised = logprobs + self._draft.bias(before)[rows]
        others = (1 - logprobs.double().exp().sum()).clamp(min=0)
        total = raised.double().exp().sum() + others
        best = (raised - total.log()).sort(descending=True, stable=True)
        return rows[best.indices], best.values

    def _with_confidence(self, logprobs: Tensor, state: Tensor, before: Tensor) -> Tensor:
        """The first token has the chance that the head says, the others have what is left in their shares."""
        sure = self._draft.confidence(state, before)
        rest = (1 - logprobs[0].exp()).clamp(min=_LEAST_REST).log()
        first, left = functional.logsigmoid(sure), functional.logsigmoid(-sure)
        others = torch.minimum(left + (logprobs[1:] - rest).clamp(max=0), first)
        return torch.cat([first[None], others])
