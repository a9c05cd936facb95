"""muP: first weights and learning rates of every parameter, and that activations move alike at all widths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from edge.train.distributed import World
from edge.train.mup import PEAK, groups_of
from edge.train.network import Network, build
from edge.train.texts import open_texts
from tests.train.runs import run_config


def network(folder: Path, width: int = 64, **options: Any) -> Network:
    model = {"hidden_size": width, "intermediate_size": 2 * width, "head_dim": width // 2}
    sections = {
        "model": {**model, "dim_model_base": 32},
        "loss": {"multi_token": 0.3},
        "optimizer": {"base_width": 32, "init_std": 0.1, "learning_rate": 0.01, **options},
    }
    config = run_config(folder, **sections)
    return build(config, open_texts(config), World(), print)


def table(width: int, mup: bool = True) -> dict[str, tuple[float, float, float]]:
    """(standard deviation, learning rate, weight decay) by the end of a parameter's name: MiniCPM, appendix
    A.1, table 7.
    """
    ratio = width / 32 if mup else 1.0
    matrix = (0.1 / ratio**0.5, 0.01 / ratio, 0.1)
    names = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "eh_proj")
    norms = ("input_layernorm", "post_attention_layernorm", "norm", "enorm", "hnorm")
    return {
        "embed_tokens": (0.1, 0.01, 0.1),
        **dict.fromkeys(names, matrix),
        **dict.fromkeys(norms, (0.0, 0.01, 0.0)),
    }


@pytest.mark.parametrize("mup", [True, False])
@pytest.mark.parametrize("width", [32, 128])
def test_every_parameter_has_the_values_of_the_table(tmp_path: Path, width: int, mup: bool):
    found = network(tmp_path, width, mup=mup)
    of = {
        id(parameter): (group[PEAK], group["weight_decay"])
        for group in groups_of(found.optimizers)
        for parameter in group["params"]
    }
    wanted, seen = table(width, mup), set()
    for name, parameter in found.objective.named_parameters():
        kind = name.split(".")[-2]
        seen.add(kind)
        std, rate, decay = wanted[kind]
        assert of.pop(id(parameter)) == pytest.approx((rate, decay)), name
        if std == 0:
            assert (parameter == 1).all(), name
        else:
            assert parameter.std().item() == pytest.approx(std, rel=0.1), name
            assert abs(parameter.mean().item()) < 4 * std / parameter.numel() ** 0.5, name
    assert seen == wanted.keys() and not of


def test_muon_has_the_matrices_and_adamw_the_rest(tmp_path: Path):
    found = network(tmp_path, 128, kind="muon", muon_learning_rate=0.03)
    adamw, muon = found.optimizers
    assert isinstance(muon, torch.optim.Muon) and isinstance(adamw, torch.optim.AdamW)
    names = {id(each): name for name, each in found.objective.named_parameters()}
    (group,) = muon.param_groups
    assert group[PEAK] == 0.03
    theirs = {names.pop(id(each)) for each in group["params"]}
    assert all(name.split(".")[-2].endswith("_proj") for name in theirs) and len(theirs) == 22
    assert {name for each in adamw.param_groups for name in (names[id(p)] for p in each["params"])} == set(
        names.values()
    )


def movement(folder: Path, width: int, mup: bool) -> float:
    """Root mean square of how far the residual stream's last state moved in three steps of AdamW."""
    found = network(folder, width, mup=mup, learning_rate=0.02)
    batch = open_texts(run_config(folder)).loader.next()
    before = found.objective.decoder.trunk(batch.tokens, batch.positions).stream[-1].detach()
    for _ in range(3):
        loss = found.objective(*batch).next_token / batch.tokens.numel()
        loss.backward()
        for group in groups_of(found.optimizers):
            group["lr"] = group[PEAK]
        for optimizer in found.optimizers:
            optimizer.step()
            optimizer.zero_grad()
    after = found.objective.decoder.trunk(batch.tokens, batch.positions).stream[-1].detach()
    return (after - before).square().mean().sqrt().item()


def test_activations_move_as_far_at_every_width(tmp_path: Path):
    """The coordinate check of Tensor Programs V (arXiv 2203.03466, appendix D.1)."""
    with_mup = [movement(tmp_path, width, True) for width in (32, 512)]
    without = [movement(tmp_path, width, False) for width in (32, 512)]
    assert with_mup[1] < 1.5 * with_mup[0], with_mup
    assert without[1] > 3 * without[0], without
