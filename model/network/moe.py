"""Mixture of experts in place of an MLP (MiniCPM-MoE; Mixtral, arXiv 2401.04088, section 2.1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from edge.config import ModelConfig

LOAD_BALANCE_WEIGHT = 0.01
"""What MiniCPM-MoE was trained with, beside a loss of the text of weight 1."""


class Expert(nn.Module):
    """SwiGLU under the names of MiniCPM-MoE's checkpoints: w2(silu(w1(x)) * w3(x))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.w2 = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.w3 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., hidden] -> the same shape."""
        return self.w2(functional.silu(self.w1(x)) * self.w3(x))


class MixtureOfExperts(nn.Module):
    """Every token goes to the experts with the `num_experts_per_tok` largest router probabilities, which are
    scaled to a sum of 1 and weigh the experts' outputs."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.gate = nn.Linear(config.hidden_size, config.num_experts, bias=False)
        self.experts = nn.ModuleList(Expert(config) for _ in range(config.num_experts))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [..., hidden] -> (the same shape, router logits [..., num_experts])."""
        router = self.gate(x)
        best, chosen = router.softmax(dim=-1, dtype=torch.float32).topk(self.top_k, dim=-1)
        shares = torch.zeros_like(router, dtype=torch.float32).scatter(
            -1, chosen, best / best.sum(dim=-1, keepdim=True)
        )
        tokens, flat_shares = x.flatten(0, -2), shares.flatten(0, -2).to(x.dtype)
        mixed = torch.zeros_like(tokens)
        for index, expert in enumerate(self.experts):
            rows = flat_shares[:, index].nonzero().squeeze(-1)  # only the tokens that chose it
            mixed = mixed.index_add(0, rows, expert(tokens[rows]) * flat_shares[rows, index, None])
        return mixed.reshape(x.shape), router


def load_balance_loss(
    router_logits: Sequence[Tensor], top_k: int, weight: float = LOAD_BALANCE_WEIGHT
) -> Tensor:
    """A number that is smallest when all experts get equally many tokens; 0-d float32.

    Switch Transformer (arXiv 2101.03961), equations 4-6, for top_k choices: the number of experts times the
    sum over experts of (share of tokens that chose it) x (mean router probability), over all layers at once.
    It is `weight` x `top_k` for a perfect balance. router_logits: [..., num_experts] of every layer.
    """
    logits = torch.cat([layer.flatten(0, -2) for layer in router_logits]).float()
    probabilities = logits.softmax(dim=-1)
    experts = logits.shape[-1]
    chosen = functional.one_hot(probabilities.topk(top_k, dim=-1).indices, experts).sum(dim=-2)
    return weight * experts * (chosen.float().mean(dim=0) * probabilities.mean(dim=0)).sum()
