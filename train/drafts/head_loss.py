"""Cross-entropy between what heads make of two states, its gradient made on the way.

A head is most of a draft's training. Kept logits would take gigabytes, and made anew in the backward pass
they would cost half as much again; the gradient of cross-entropy by the logits, q - p, is known at once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

_MOST_LOGITS = 1 << 24  # in memory at a time


def told_apart(
    found: Tensor, wanted: Tensor, head: Tensor, own: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(cross-entropy in nats, whether both find the same row likeliest), float32 [times, n] each.

    found: float32 [times, n, hidden], gets a gradient. wanted: [n, hidden], whose distribution is the true
    one. head: [rows, hidden], in whose type products are computed. own: float32, as large, the head of
    `found` if that has one of its own; it gets a gradient, in float32.
    """
    cross_entropy, agreed = _ToldApart.apply(found, wanted, head, own)
    return cross_entropy, agreed


class _ToldApart(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, found: Tensor, wanted: Tensor, head: Tensor, own: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        mine = head if own is None else own.to(head.dtype)
        by_state = torch.empty_like(found)
        by_head = None if own is None else torch.zeros_like(own)
        cross_entropy, agreed = found.new_empty(found.shape[:2]), found.new_empty(found.shape[:2])
        part = max(1, _MOST_LOGITS // len(head))
        with torch.autocast(found.device.type, enabled=False):
            for start in range(0, len(wanted), part):
                rows = slice(start, start + part)
                theirs = functional.linear(wanted[rows].to(head.dtype), head)
                best, p = theirs.argmax(-1, keepdim=True), theirs.softmax(-1)
                mean = p.matmul(mine).float()  # of the rows of the head, under p
                for time, states in enumerate(found[:, rows]):
                    logits = functional.linear(states.to(head.dtype), mine)
                    is_best = logits.gather(-1, best) >= logits.amax(-1, keepdim=True)
                    agreed[time, rows] = is_best.squeeze(-1).float()
                    cross_entropy[time, rows] = logits.logsumexp(-1).float() - (mean * states).sum(-1)
                    q = logits.softmax(-1)
                    by_state[time, rows] = q.matmul(mine).float() - mean
                    if by_head is not None:
                        by_head += (q - p).T.matmul(states.to(head.dtype)).float()
        ctx.save_for_backward(by_state, by_head)
        ctx.mark_non_differentiable(agreed)
        return cross_entropy, agreed

    @staticmethod
    def backward(ctx: Any, outward: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        by_state, by_head = ctx.saved_tensors
        if by_head is not None:  # made before `outward` was known, which then must be the same everywhere
            by_head = by_head * outward.flatten()[0]
        return by_state * outward.unsqueeze(-1), None, None, by_head
