"""Cross-entropy between what a head makes of two states, its gradient made on the way.

A head is most of a draft's training. Kept logits would take gigabytes, and made anew in the backward pass
they would cost half as much again; the gradient of cross-entropy, (q - p) times the head, is known at once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

_MOST_LOGITS = 1 << 24  # in memory at a time


def told_apart(found: Tensor, wanted: Tensor, head: Tensor) -> tuple[Tensor, Tensor]:
    """(cross-entropy in nats, whether both find the same row likeliest), float32 [times, n] each.

    found: float32 [times, n, hidden], the only one that gets a gradient. wanted: [n, hidden], whose
    distribution is the true one. head: [rows, hidden], in whose type products are computed.
    """
    cross_entropy, agreed = _ToldApart.apply(found, wanted, head)
    return cross_entropy, agreed


class _ToldApart(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, found: Tensor, wanted: Tensor, head: Tensor) -> tuple[Tensor, Tensor]:
        gradient = torch.empty_like(found)
        cross_entropy, agreed = found.new_empty(found.shape[:2]), found.new_empty(found.shape[:2])
        part = max(1, _MOST_LOGITS // len(head))
        with torch.autocast(found.device.type, enabled=False):
            for start in range(0, len(wanted), part):
                rows = slice(start, start + part)
                theirs = functional.linear(wanted[rows].to(head.dtype), head)
                best = theirs.argmax(-1, keepdim=True)
                mean = theirs.softmax(-1).matmul(head).float()  # of the head's rows, under p
                for time, states in enumerate(found[:, rows]):
                    mine = functional.linear(states.to(head.dtype), head)
                    agreed[time, rows] = (
                        (mine.gather(-1, best) >= mine.amax(-1, keepdim=True)).squeeze(-1).float()
                    )
                    cross_entropy[time, rows] = mine.logsumexp(-1).float() - (mean * states).sum(-1)
                    gradient[time, rows] = mine.softmax(-1).matmul(head).float() - mean
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(agreed)
        return cross_entropy, agreed

    @staticmethod
    def backward(ctx: Any, outward: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * outward.unsqueeze(-1), None, None
