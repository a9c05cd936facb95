"""What a block draft minimises (DeepSeek's DSpark, DeepSpec, 2026): at random anchors of an answer, whole
blocks are told from what stands before them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from edge.model.network.block_draft import BlockDraft
from edge.model.network.kv_cache import GrowingCache
from edge.train.attention import document_numbers
from edge.train.config import DraftSection
from edge.train.data.batch import IGNORED, AnyBatch
from edge.train.objective import Learner, Term

_MOST_LOGITS = 1 << 24  # in memory at a time


class BlockLosses(NamedTuple):
    """Sums over the places of blocks, float32 scalars; a loss at the k-th place of a block counts
    exp(-k / decay), made so that these are 1 on average.

    token: cross-entropy in nats, to the target's distribution over the head's rows. variation: the sum of
    the differences between both distributions, 0 to 2. confidence: cross-entropy of the confidence head to
    the share that both distributions have in common. agreed: places where both find the same token likeliest.
    expected: tokens of a block that come before the first one that is not accepted.
    """

    token: Tensor
    variation: Tensor
    confidence: Tensor
    agreed: Tensor
    expected: Tensor


class Blocks(NamedTuple):
    """The blocks of some rows: int and bool [rows, anchors, block_size].

    places: of each block's own tokens in the row, the anchor's first. known: whether what the target says
    there is known, and at all places of the block before.
    """

    places: Tensor
    known: Tensor


def blocks_of(tokens: Tensor, targets: Tensor, positions: Tensor, anchors: int, size: int) -> Blocks:
    """So many blocks of every row whose anchors have a token before them and one of an answer behind them.
    Which they are follows from the tokens, so that a run that goes on makes the same.
    """
    n, device = tokens.shape[-1], tokens.device
    possible = (targets != IGNORED) & (positions > 0)
    seed = int(tokens.sum()) * 1000003 + int(positions.sum())
    drawn = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(seed)).to(device)
    best = drawn.masked_fill(~possible, -1).topk(min(anchors, n), dim=-1)
    step = torch.arange(size, device=device)
    places = best.indices.sort(dim=-1).values.unsqueeze(-1) + step
    inside, places = places < n, places.clamp(max=n - 1)
    document, is_known = document_numbers(positions), targets != IGNORED
    first = _at(document, places[..., :1])
    known = inside & (_at(document, places) == first) & _at(is_known, places)
    known &= _at(possible, places[..., :1])
    return Blocks(places, known.cumprod(-1).bool())


class BlockObjective(Learner):
    """A block draft with its losses."""

    def __init__(
        self,
        draft: BlockDraft,
        head: Tensor,
        options: DraftSection,
        finish: Callable[[Tensor], Tensor],
        ids: Tensor | None = None,
    ) -> None:
        """head, finish: see `DraftObjective`. ids: tokens of the head's rows, None for all."""
        super().__init__()
        self.draft, self.anchors, self.decay = draft, options.anchors, options.block_decay
        self._target = head, finish, ids  # in a tuple: nothing that is learned or saved
        self.terms = (
            Term("loss", options.token_loss, 0, "held_out"),
            Term("variation", options.variation_loss, 0, "held_out_variation"),
            Term("confidence_loss", options.confidence_loss, 0, "held_out_confidence"),
            Term("agreement", 0.0, 0, "held_out_agreement", is_measure=True),
            Term("expected", 0.0, 1, "held_out_expected", is_measure=True),
        )

    def counts(self, batch: AnyBatch) -> tuple[int, ...]:
        """Places that are told, and blocks."""
        known = self._blocks(batch.tokens, batch.targets, batch.positions).known
        return int(known.sum()), int(known.any(-1).sum())

    def forward(self, tokens: Tensor, targets: Tensor, positions: Tensor, states: Tensor) -> BlockLosses:
        """See `AnswerBatch` for the arguments. states: what the draft reads of its target, and at the end
        what `finish` gets.
        """
        draft, states, (_, finish, _) = self.draft, states.float(), self._target
        config, blocks = draft.config, self._blocks(tokens, targets, positions)
        before = _at(tokens, blocks.places)
        made = self._states(tokens, positions, states[..., : config.hidden_columns], blocks)
        last = states[..., -config.hidden_size :]
        wanted = finish(last.flatten(0, 1)[_flat(blocks.places, tokens.shape[-1])[blocks.known]])
        steps = torch.arange(config.block_size, device=tokens.device)
        weights = torch.exp(-steps / self.decay)
        weights = (weights / weights.mean()).expand(blocks.known.shape)
        parts = (made[blocks.known].float(), wanted, before[blocks.known], weights[blocks.known])
        token, variation, confidence, agreed, accepted = self._told(parts)
        chances = torch.zeros(blocks.known.shape, device=tokens.device)
        chances[blocks.known] = accepted
        sums = token.sum(), variation.sum(), confidence.sum(), agreed.sum()
        return BlockLosses(*sums, chances.cumprod(-1).sum())

    def _blocks(self, tokens: Tensor, targets: Tensor, positions: Tensor) -> Blocks:
        return blocks_of(tokens, targets, positions, self.anchors, self.draft.config.block_size)

    def _states(self, tokens: Tensor, positions: Tensor, hidden: Tensor, blocks: Blocks) -> Tensor:
        """Of all rows of all blocks, [rows, anchors, block_size, hidden]; each sees its block and what stands
        before the anchor in its document.
        """
        draft, cache = self.draft, GrowingCache(self.draft.shape)
        draft.remember(hidden, positions, cache)
        rows, anchors, size = blocks.places.shape
        anchor, document = blocks.places[..., 0], document_numbers(positions)
        place = torch.arange(tokens.shape[-1], device=tokens.device)
        seen = (place < anchor.unsqueeze(-1)) & (
            document.unsqueeze(-2) == _at(document, anchor).unsqueeze(-1)
        )
        block = torch.arange(anchors * size, device=tokens.device) // size
        own = (block.unsqueeze(-1) == block).expand(rows, -1, -1)
        mask = torch.cat([seen.repeat_interleave(size, dim=1), own], dim=-1).unsqueeze(-3)
        at = _at(positions, anchor).unsqueeze(-1) + torch.arange(size, device=tokens.device)
        tokens = draft.block(_at(tokens, anchor)).flatten(1)
        return draft(tokens, at.flatten(1), cache, mask).unflatten(1, (anchors, size))

    def _told(self, parts: tuple[Tensor, ...]) -> list[Tensor]:
        """What `_part` says of all places, some at a time; the backward pass makes their logits anew."""
        size = max(1, _MOST_LOGITS // self.draft.config.vocab_size)
        told = []
        for part in zip(*(each.split(size) for each in parts), strict=True):
            again = torch.is_grad_enabled()
            told.append(checkpoint(self._part, *part, use_reentrant=False) if again else self._part(*part))
        return [torch.cat(each) for each in zip(*told, strict=True)]

    def _part(self, found: Tensor, wanted: Tensor, before: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
        """The terms of places, [n] each, the losses by their weights, and each one's chance of acceptance."""
        draft, (head, _, ids) = self.draft, self._target
        logits = functional.linear(found.to(head.dtype), head).float()
        if draft.markov_head is not None:
            bias = draft.bias(before).float()
            logits = logits + (bias if ids is None else bias[:, ids])
        theirs = functional.linear(wanted.to(head.dtype), head).float()
        p, logq = theirs.softmax(-1), logits.log_softmax(-1)
        token, variation = -(p * logq).sum(-1), (p - logq.exp()).abs().sum(-1)
        accepted = (1 - variation / 2).detach()
        confidence = torch.zeros_like(token)
        if draft.confidence_head is not None:
            sure = draft.confidence(found, before).float()
            confidence = functional.binary_cross_entropy_with_logits(sure, accepted, reduction="none")
        agreed = (logits.argmax(-1) == theirs.argmax(-1)).float()
        return token * weights, variation * weights, confidence * weights, agreed, accepted


def _at(values: Tensor, places: Tensor) -> Tensor:
    """values [rows, n] at places [rows, ...] -> of their shape."""
    return values.gather(-1, places.flatten(1)).view(places.shape)


def _flat(places: Tensor, n: int) -> Tensor:
    """Places in rows of n as places in all rows, one behind the other."""
    row = torch.arange(len(places), device=places.device)
    return places + n * row.view(-1, *[1] * (places.dim() - 1))
