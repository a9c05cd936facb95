"""Initial weights and learning rates by width (muP), and the optimizers over them.

MiniCPM's table (arXiv 2404.06395, appendix A.1): with the width ratio m = hidden_size / base_width, the
matrices of the layers begin with standard deviation init_std / sqrt(m) and learn at 1 / m of the rate;
embedding, head and norms keep both. The three scales inside the network (embedding, residual, logits) are
the model's (`ModelConfig`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from edge.config import ModelConfig
from edge.train.config import OptimizerSection
from edge.train.distributed import assign

PEAK = "peak_lr"
"""Key of a parameter group: the learning rate that it has when the schedule is at its highest."""


def width_ratio(config: ModelConfig, options: OptimizerSection) -> float:
    """How many times wider than the base the network is; 1 without muP."""
    return config.hidden_size / options.base_width if options.mup else 1.0


def is_hidden_matrix(name: str, parameter: torch.Tensor) -> bool:
    """Whether muP scales it: matrices between the embedding and the head, and a draft's other head."""
    beside = ("embed_tokens", "lm_head", "markov_head")
    return parameter.dim() >= 2 and not any(each in name for each in beside)


@torch.no_grad()
def initialise(network: nn.Module, config: ModelConfig, options: OptimizerSection, seed: int) -> None:
    """Draw the weights; norms are 1 and biases 0. The same seed gives the same weights in every process."""
    make = torch.Generator().manual_seed(seed)
    std = options.init_std / width_ratio(config, options) ** 0.5
    for name, parameter in network.named_parameters():
        if parameter.dim() < 2:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
        else:
            size = std if is_hidden_matrix(name, parameter) else options.init_std
            assign(parameter, torch.empty(parameter.shape).normal_(0, size, generator=make))


def make_optimizers(
    network: nn.Module, config: ModelConfig, options: OptimizerSection
) -> list[torch.optim.Optimizer]:
    """AdamW for all parameters, or Muon for the layers' matrices and AdamW for the others.

    Every group has its highest learning rate under `PEAK`; `set_rates` gives it that of a step.
    """
    ratio = width_ratio(config, options)
    matrices = [
        parameter for name, parameter in network.named_parameters() if is_hidden_matrix(name, parameter)
    ]
    hidden = {id(parameter) for parameter in matrices}
    others = [parameter for parameter in network.parameters() if id(parameter) not in hidden]
    decayed = [parameter for parameter in others if parameter.dim() >= 2]
    plain = [parameter for parameter in others if parameter.dim() < 2]
    groups = [
        {"params": decayed, "weight_decay": options.weight_decay, PEAK: options.learning_rate},
        {"params": plain, "weight_decay": 0.0, PEAK: options.learning_rate},
    ]
    optimizers: list[torch.optim.Optimizer] = []
    if options.kind == "muon":
        # Its updates are orthogonal: their spectral norm is the same at every width, so they need no factor.
        muon = torch.optim.Muon(matrices, weight_decay=options.weight_decay, adjust_lr_fn="original")
        muon.param_groups[0][PEAK] = options.muon_learning_rate
        optimizers.append(muon)
    else:
        groups.append(
            {"params": matrices, "weight_decay": options.weight_decay, PEAK: options.learning_rate / ratio}
        )
    first, second = options.betas
    adamw = torch.optim.AdamW(
        [group for group in groups if group["params"]], betas=(first, second), eps=options.epsilon, fused=True
    )
    return [adamw, *optimizers]


def groups_of(optimizers: list[torch.optim.Optimizer]) -> Iterator[dict[str, Any]]:
    """The parameter groups of all of them."""
    for optimizer in optimizers:
        yield from optimizer.param_groups


def set_rates(optimizers: list[torch.optim.Optimizer], share: float) -> None:
    """Give every group its learning rate at this share of its highest one."""
    for group in groups_of(optimizers):
        group["lr"] = share * group[PEAK]
