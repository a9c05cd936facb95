"""What is minimised: the module that a step runs forward and backward, a decoder with its losses.

It is one module so that everything which wraps a network (FSDP2, torch.compile) wraps the losses with it.
Losses come as sums over this process's rows; who calls divides by the counts of all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from edge.model.network.decoder import Attend, Attention, Decoder
from edge.model.network.multi_token import MultiTokenPrediction
from edge.train.data.batch import IGNORED, AnyBatch

_MOST_LOGITS = 1 << 26
"""In memory at a time: 256 MB. PyTorch's linear_cross_entropy would do, but took ten times as long at
49,152 tokens.
"""


@dataclass(frozen=True)
class Term:
    """A part of what is minimised: its sum over the targets of some rows.

    name: in the log. weight: of its mean. counted: which of the counts divides the sum. held_out: its name in
    the log for texts held out, None if it is not looked at there. is_measure: it tells something and is no
    loss.
    """

    name: str
    weight: float
    counted: int
    held_out: str | None = None
    is_measure: bool = False

    @property
    def is_logged(self) -> bool:
        """Unless it is a loss that is not wanted."""
        return self.weight > 0 or self.is_measure


class Learner(nn.Module, ABC):
    """What a run trains. Its forward pass takes the tensors of a `Batch` and returns the sums of its terms,
    float32 scalars, as a tuple.
    """

    terms: tuple[Term, ...]

    @abstractmethod
    def counts(self, batch: AnyBatch) -> tuple[int, ...]:
        """How many targets there are in the batch, one number or several."""


class Losses(NamedTuple):
    """Sums over the targets of some rows, float32 scalars.

    next_token: cross-entropy in nats. z: squared logarithms of the softmax's normalisers. second_token:
    cross-entropy of the token after next.
    """

    next_token: Tensor
    z: Tensor
    second_token: Tensor


class Counts(NamedTuple):
    """Targets of some rows: of the next token, and of the token after next."""

    next_token: int
    second_token: int


class Objective(Learner):
    """A decoder and, if wanted, a layer that predicts the token after next.

    multi_token, z: weights of the two losses beside the next token's, 0 for none. The normalisers keep all
    logits in memory.
    """

    def __init__(self, decoder: Decoder, *, multi_token: float = 0.0, z: float = 0.0) -> None:
        super().__init__()
        self.decoder = decoder
        self.multi_token = MultiTokenPrediction(decoder.config) if multi_token else None
        self._has_z = z > 0
        self.terms = (
            Term("loss", 1.0, 0, "held_out"),
            Term("z_loss", z, 0),
            Term("second_token_loss", multi_token, 1, "held_out_second"),
        )

    def counts(self, batch: AnyBatch) -> Counts:
        """See `Learner`."""
        return counts(batch)

    def use_attention(self, attend: Attend) -> None:
        """Let all layers read their rows through `attend`."""
        for module in self.modules():
            if isinstance(module, Attention):
                module.attend = attend

    def forward(self, tokens: Tensor, targets: Tensor, positions: Tensor) -> Losses:
        """See `Batch` for the arguments."""
        trunk = self.decoder.trunk(tokens, positions)
        nothing = trunk.hidden.new_zeros((), dtype=torch.float32)
        if self._has_z:
            logits = self.decoder.logits(trunk.hidden).float()
            z = logits.logsumexp(-1).square().masked_fill(targets == IGNORED, 0).sum()
            first = _cross_entropy(logits, targets)
        else:
            z, first = nothing, self._next_token(trunk.hidden, targets)
        if self.multi_token is None:
            return Losses(first, z, nothing)
        guesses = self.multi_token(self.decoder, tokens, trunk.stream[-1], positions)
        return Losses(first, z, _cross_entropy(guesses.float(), second_targets(targets, positions)))

    def _next_token(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """The loss with the logits of a part of the tokens in memory at a time; the backward pass makes
        them anew.
        """
        tokens = max(_MOST_LOGITS // self.decoder.config.vocab_size, 1)
        parts = zip(hidden.flatten(0, -2).split(tokens), targets.flatten().split(tokens), strict=True)
        if hidden.numel() // hidden.shape[-1] <= tokens or not torch.is_grad_enabled():
            return torch.stack([self._part(*part) for part in parts]).sum()
        return torch.stack([checkpoint(self._part, *part, use_reentrant=False) for part in parts]).sum()

    def _part(self, hidden: Tensor, targets: Tensor) -> Tensor:
        return _cross_entropy(self.decoder.logits(hidden).float(), targets)


def second_targets(targets: Tensor, positions: Tensor) -> Tensor:
    """The token after next for all tokens of a row but the last, IGNORED beyond a document's end: [rows,
    length - 1].
    """
    return targets[..., 1:].masked_fill(positions[..., 1:] == 0, IGNORED)


def counts(batch: AnyBatch) -> Counts:
    """How many targets its rows have."""
    second = second_targets(batch.targets, batch.positions)
    return Counts(int((batch.targets != IGNORED).sum()), int((second != IGNORED).sum()))


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(
        logits.flatten(0, -2), targets.flatten(), reduction="sum", ignore_index=IGNORED
    )
