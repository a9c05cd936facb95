"""A plan's numbers against what PyTorch counts and allocates."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from edge.train.distributed import World
from edge.train.mup import set_rates
from edge.train.network import Network, build
from edge.train.plan import plan
from edge.train.schedule import rate
from edge.train.texts import open_texts
from tests.train.runs import finished, run_config, write_config, write_texts

MODEL = {
    "hidden_size": 128,
    "intermediate_size": 320,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
}
SIZES: dict[str, Any] = {"model": MODEL, "data": {"length": 64, "rows": 8}}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "untied": {"model": {**MODEL, "tie_word_embeddings": False}},
    "muon": {"optimizer": {"kind": "muon"}},
    "multi-token": {"loss": {"multi_token": 0.3}},
    "z": {"loss": {"z": 0.1}},
    "bfloat16": {"runtime": {"precision": "bfloat16"}},
}


def step(folder: Path, **sections: Any) -> tuple[Network, int, int]:
    """(network after a step, bytes that its backward pass needed, operations that PyTorch counted)."""
    config = run_config(folder, **sections)
    texts = open_texts(config)
    network = build(config, texts, World(), print)
    batch = texts.loader.next()
    own = {each.untyped_storage().data_ptr() for each in (*network.objective.parameters(), *batch)}
    kept: dict[int, tuple[int, torch.Tensor]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes(), tensor
        return tensor

    # PyTorch's plain attention: its counter doesn't know the fused one of CPUs.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda each: each), network.autocast():
            loss = sum(network.objective(*batch)) / batch.tokens.numel()
        size = sum(size for size, _ in kept.values())
        loss.backward()
    set_rates(network.optimizers, 0.1)
    for optimizer in network.optimizers:
        optimizer.step()
    return network, size, counter.get_total_flops()


@pytest.mark.parametrize("sections", KINDS.values(), ids=KINDS.keys())
def test_sizes_are_those_of_the_real_network(tmp_path: Path, sections: dict[str, Any]):
    sections = {**SIZES, **sections}
    found = plan(run_config(tmp_path, **sections))
    network, kept, _ = step(tmp_path, **sections)
    parameters = list(network.objective.parameters())
    assert found.parameters == sum(each.numel() for each in parameters)
    assert found.memory["weights"] == sum(each.nbytes for each in parameters)
    assert found.memory["gradients"] == sum(each.grad.nbytes for each in parameters if each.grad is not None)
    moments = [
        value
        for optimizer in network.optimizers
        for state in optimizer.state.values()
        for value in state.values()
        if value.numel() > 1
    ]
    assert found.memory["optimizer"] == sum(each.nbytes for each in moments)
    assert 0.5 < found.memory["activations"] / kept < 2


def test_a_layer_that_is_computed_again_keeps_its_input_only(tmp_path: Path):
    _, plain, _ = step(tmp_path, **SIZES)
    sections = {**SIZES, "runtime": {"gradient_checkpointing": True}}
    _, inputs, _ = step(tmp_path, **sections)
    most = inputs + plain / MODEL["num_hidden_layers"]  # type: ignore[operator]
    assert 0.5 < plan(run_config(tmp_path, **sections)).memory["activations"] / most < 2


@pytest.mark.parametrize("name", ["plain", "untied", "multi-token"])
def test_operations_are_those_that_pytorch_counts(tmp_path: Path, name: str):
    """PyTorch counts all of a row's products, the plan the causal half; and it leaves out the norms."""
    sections = {**SIZES, **KINDS[name]}
    found = plan(run_config(tmp_path, **sections))
    _, _, counted = step(tmp_path, **sections)
    layers = MODEL["num_hidden_layers"] + (name == "multi-token")
    half = 12 * layers * 4 * 32 * 64 / 2
    assert (found.flops_per_token + half) * found.tokens_per_step == pytest.approx(
        counted, rel=0.02 if name == "multi-token" else 0.005
    )
    assert found.flops == found.flops_per_token * found.tokens


def test_sources_are_read_as_often_as_the_phases_say(tmp_path: Path):
    """Against the loader, at the run's end."""
    for number in (1, 2):
        write_texts(tmp_path / f"t{number}", seed=number)
    sources = {f"t{number}": str(tmp_path / f"t{number}") for number in (1, 2)}
    data = {
        "sources": sources,
        "weights": {"t1": 3, "t2": 1},
        "phases": [{"begins": 0.5, "weights": {"t2": 1}}],
    }
    config = run_config(tmp_path, data=data, schedule={"steps": 20})
    loader = open_texts(config).loader
    for _ in range(20):
        loader.next()
    found = plan(config).epochs
    for name in ("t1", "t2"):
        assert found[name] == pytest.approx(loader.epochs()[name], rel=0.05)


def test_processes_share_what_is_sharded(tmp_path: Path):
    one, four = (plan(run_config(tmp_path, **SIZES), count).memory for count in (1, 4))
    assert {name: one[name] // size for name, size in four.items()} == dict.fromkeys(one, 4)


def test_a_dry_run_prints_the_plan_and_draws_it(tmp_path: Path):
    config, picture = write_config(tmp_path, **SIZES), tmp_path / "rate.png"
    code, printed, complained = finished(
        "run", config, "--dry-run", "--json", "--picture", picture, out=tmp_path / "said"
    )
    assert code == 0 and not complained, complained
    found = json.loads(printed)
    wanted = plan(run_config(tmp_path, **SIZES))
    assert found == {"schema": 1, **json.loads(json.dumps(wanted.to_json()))}
    schedule = run_config(tmp_path).schedule
    assert found["rates"][0] == 1e-2 * rate(schedule, 0) and found["rates"][-1] == 1e-2 * rate(schedule, 5)
    data = picture.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and min(struct.unpack(">II", data[16:24])) > 100
    code, printed, _ = finished("run", config, "--dry-run", "--processes", 2, out=tmp_path / "said")
    assert code == 0
    lines = {line.split()[0]: line for line in printed.splitlines() if line[0] != " "}
    assert list(lines) == ["parameters", "steps", "tokens", "operations", "memory", "rate"]
    assert "6: 2 of warm-up, 2 of decay" in lines["steps"] and "a process of 2" in lines["memory"]
    assert not (tmp_path / "run").exists()


def test_a_preset_can_be_planned_without_its_texts(tmp_path: Path):
    code, printed, complained = finished(
        "run", "smoke", "--dry-run", "--set", "data.sources.docs=nowhere", out=tmp_path / "said"
    )
    assert code == 0 and "docs: the texts are not there" in printed, complained
