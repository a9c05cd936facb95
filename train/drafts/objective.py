"""What a draft minimises: the distance to its target's hidden states, and to what the target says next."""

from __future__ import annotations

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
    between the draft's states and the target's, the mean over their numbers. agreed, agreed_last: places
    where both find the same token likeliest, the first time and the last.
    """

    token: Tensor
    feature: Tensor
    agreed: Tensor
    agreed_last: Tensor


class DraftObjective(Learner):
    """A draft with its losses (EAGLE, arXiv 2401.15077, section 4.2)."""

    def __init__(self, draft: Draft, embedding: Tensor, head: Tensor, options: DraftSection) -> None:
        """embedding: of the target, [vocabulary, hidden], scaled. head: rows of the target's that are guessed
        with, [rows, hidden], times the logit scale, in the type that its products are computed in.
        """
        super().__init__()
        self.draft, self.times = draft, options.times
        self._frozen = (embedding, head)  # in a tuple: nothing that is learned or saved
        self.terms = (
            Term("loss", options.token_loss, 0, "held_out"),
            Term("feature_loss", options.feature_loss, 0, "held_out_feature"),
            Term("agreement", 0.0, 0, "held_out_agreement", is_measure=True),
            Term("last_agreement", 0.0, 0, "held_out_last_agreement", is_measure=True),
        )

    def counts(self, batch: AnyBatch) -> tuple[int, ...]:
        """Places whose next state is known."""
        return (int(_places(batch.targets, batch.positions, self.times).sum()),)

    def forward(self, tokens: Tensor, targets: Tensor, positions: Tensor, states: Tensor) -> DraftLosses:
        """See `AnswerBatch` for the arguments."""
        embedding, head = self._frozen
        places = _places(targets, positions, self.times)
        embeddings, states = embedding[tokens[:, 1:]], states.float()
        made = unrolled(self.draft, embeddings, states[:, :-1], positions[:, :-1], self.times)
        found, wanted = torch.stack([each[places] for each in made]).float(), states[:, 1:][places]
        feature = functional.smooth_l1_loss(found, wanted.expand_as(found), reduction="none").mean(-1)
        token, agreed = told_apart(found, wanted, head)
        return DraftLosses(token.mean(0).sum(), feature.mean(0).sum(), agreed[0].sum(), agreed[-1].sum())


def _places(targets: Tensor, positions: Tensor, times: int) -> Tensor:
    """Rows of a batch, but the last, whose next state is known and belongs to the same answer, with so many
    rows of the document before it that every time has one to begin behind: bool [rows, n - 1].
    """
    return (targets[:, 1:] != IGNORED) & (positions[:, 1:] >= times)
