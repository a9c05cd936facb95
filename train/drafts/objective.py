"""What a draft minimises: the distance to what its target says next and, of EAGLE-2, to its hidden states."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from edge.model.network.draft import Draft
from edge.train.config import DraftSection
from edge.train.data.batch import IGNORED, AnyBatch
from edge.train.drafts.head_loss import told_apart
from edge.train.drafts.unrolled import unrolled
from edge.train.objective import Learner, Term


class DraftLosses(NamedTuple):
    """Sums over the places of some rows, means over the times, float32 scalars.

    token: cross-entropy in nats, to the target's distribution over the head's rows. feature: smooth L1
    between the draft's states and the target's, the mean over their numbers; 0 unless it is wanted. agreed,
    agreed_last: places where both find the same token likeliest, the first time and the last.
    """

    token: Tensor
    feature: Tensor
    agreed: Tensor
    agreed_last: Tensor


class DraftObjective(Learner):
    """A draft with its losses: EAGLE's (arXiv 2401.15077, section 4.2), or the token's alone."""

    def __init__(
        self, draft: Draft, head: Tensor, options: DraftSection, finish: Callable[[Tensor], Tensor]
    ) -> None:
        """head: rows of the target's that are guessed with, [rows, hidden], times the logit scale, in the
        type that its products are computed in. finish: makes of the last layer's states those that the
        target's head gets.
        """
        super().__init__()
        self.draft, self.times = draft, options.times
        self._target = head, finish  # in a tuple: nothing that is learned or saved
        self._has_features = draft.config.kind == "eagle2" and options.feature_loss > 0
        self.terms = (
            Term("loss", options.token_loss, 0, "held_out"),
            Term("feature_loss", options.feature_loss * self._has_features, 0, "held_out_feature"),
            Term("agreement", 0.0, 0, "held_out_agreement", is_measure=True),
            Term("last_agreement", 0.0, 0, "held_out_last_agreement", is_measure=True),
        )

    def counts(self, batch: AnyBatch) -> tuple[int, ...]:
        """Places whose next state is known."""
        return (int(_places(batch.targets, batch.positions, self.times).sum()),)

    def forward(self, tokens: Tensor, targets: Tensor, positions: Tensor, states: Tensor) -> DraftLosses:
        """See `AnswerBatch` for the arguments. states: what the draft reads of its target, and at the end
        what `finish` gets, where that is not among it.
        """
        config, states, (head, finish) = self.draft.config, states.float(), self._target
        places = _places(targets, positions, self.times)
        read = states[:, :-1, : config.hidden_columns]
        made = unrolled(self.draft, tokens[:, 1:], read, positions[:, :-1], self.times)
        found = torch.stack([each[places] for each in made]).float()
        wanted = finish(states[:, 1:, -config.hidden_size :][places])
        feature = found.new_zeros(1, 1)
        if self._has_features:
            feature = functional.smooth_l1_loss(found, wanted.expand_as(found), reduction="none").mean(-1)
        own = self.draft.lm_head
        token, agreed = told_apart(
            self.draft.norm(found) * (1.0 if own is None else config.logit_scale),
            wanted,
            head,
            None if own is None else own.weight,
        )
        return DraftLosses(token.mean(0).sum(), feature.mean(0).sum(), agreed[0].sum(), agreed[-1].sum())


def _places(targets: Tensor, positions: Tensor, times: int) -> Tensor:
    """Rows of a batch, but the last, whose next state is known and belongs to the same answer, with so many
    rows of the document before it that every time has one to begin behind: bool [rows, n - 1].
    """
    return (targets[:, 1:] != IGNORED) & (positions[:, 1:] >= times)
