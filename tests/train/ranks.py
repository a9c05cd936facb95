"""A small training run in which everything is decided by the step, alone or under torchrun.

`torchrun tests/train/ranks.py FOLDER` does what `tests/train/test_distributed.py` compares with one process.
"""

from __future__ import annotations

import errno
import os
import resource
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional
from torch.optim import AdamW, Muon, Optimizer

from edge.config import ModelConfig, RopeConfig
from edge.errors import TrainingError
from edge.model.network.decoder import Decoder
from edge.train.checkpoints import CheckpointStore
from edge.train.distributed import World, all_sum, clip, joined, shard

ROWS, LENGTH, STEPS, MORE = 4, 12, 5, 2
CONFIG = ModelConfig(
    model_type="llama",
    vocab_size=101,  # odd sizes: two ranks have unequal shards
    hidden_size=64,
    intermediate_size=67,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=32,
    rms_norm_eps=1e-5,
    max_position_embeddings=64,
    rope=RopeConfig(),
    tie_word_embeddings=True,
    bos_token_id=None,
    eos_token_ids=(),
)


class Objective(nn.Module):
    """Sum of the cross-entropies. idle: a parameter that never gets a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = Decoder(CONFIG)
        self.idle = nn.Parameter(torch.ones(3))

    def forward(self, tokens: Tensor) -> Tensor:
        logits = self.decoder(tokens[:, :-1])
        return functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum")


class Run(NamedTuple):
    network: Objective
    optimizers: list[Optimizer]
    world: World


def new_run(world: World, seed: int = 0) -> Run:
    """Muon on four matrices, for on shards each of its products communicates; AdamW on the rest."""
    torch.manual_seed(seed)
    network = Objective()
    network.decoder.model.gradient_checkpointing = world.size > 1
    shard(network, world)
    matrices = list(network.decoder.model.layers[0].self_attn.parameters())
    rest = [each for each in network.parameters() if not any(each is other for other in matrices)]
    return Run(network, [Muon(matrices, lr=1e-2), AdamW(rest, lr=1e-2)], world)


def train(run: Run, steps: Iterable[int]) -> list[tuple[float, float]]:
    """(loss, gradient norm) of every step. A rank of many takes its rows one by one: accumulation."""
    found = []
    for step in steps:
        make = torch.Generator().manual_seed(step)
        rows = torch.randint(0, CONFIG.vocab_size, (ROWS, LENGTH + 1), generator=make)
        mine = rows[run.world.rank :: run.world.size]
        total = torch.zeros(())
        for part in mine.split(1 if run.world.size > 1 else ROWS):
            loss = run.network(part) / (ROWS * LENGTH)
            loss.backward()
            total += loss.detach()
        norm = clip(run.network, 1.0)
        for optimizer in run.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        found.append((float(all_sum(total, run.world)), norm))
    return found


def everything(run: Run) -> dict[str, Tensor]:
    """All weights and all optimizer state, whole, by name."""
    found = dict(run.network.state_dict())
    names = {parameter: name for name, parameter in run.network.named_parameters()}
    for optimizer in run.optimizers:
        for parameter, state in optimizer.state.items():
            found |= {f"{names[parameter]} {key}": value for key, value in state.items()}
    whole = {n: each.full_tensor() if isinstance(each, DTensor) else each for n, each in found.items()}
    return {name: each.detach().clone() for name, each in whole.items()}


class End(Exception):
    """Ends a run as an error does."""


def main(folder: Path) -> None:
    """FOLDER/one and FOLDER/damaged are there; writes FOLDER/two, FOLDER/back and FOLDER/rankN.pt."""
    try:
        with joined("cpu") as world:
            torch.save(compare(folder, world), folder / f"rank{world.rank}.pt")
            raise End
    except End:
        assert not dist.is_initialized()


def compare(folder: Path, world: World) -> dict[str, Any]:
    """What the tests look at."""
    said: list[str] = []
    found: dict[str, Any] = {"size": world.size, "rank": world.rank, "said": said}
    run = new_run(world)
    found["losses"] = train(run, range(STEPS))
    CheckpointStore(folder / "two", 2, world).save(STEPS, *run[:2], {"seen": STEPS})
    found["two"] = everything(run)
    found["losses"] += train(run, range(STEPS, STEPS + MORE))
    found["full"] = full_disk(folder / "two", run, 100_000)

    run = new_run(world, seed=1)
    found["loaded"] = CheckpointStore(folder / "one", 2, world).load(*run[:2], said.append)
    found["one"] = everything(run)
    CheckpointStore(folder / "back", 2, world).save(STEPS, *run[:2], {"seen": STEPS})
    found["resumed"] = train(run, range(STEPS, STEPS + MORE))

    fallen = CheckpointStore(folder / "damaged", 2, world).load(*run[:2], said.append)
    found["fallen"] = fallen and fallen.step
    return found


def full_disk(folder: Path, run: Run, limit: int) -> str:
    """What a save says if the last rank's files may not grow beyond `limit` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if run.world.rank == run.world.size - 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        CheckpointStore(folder, 2, run.world).save(STEPS + MORE, *run[:2], {})
    except TrainingError as error:
        return str(error).replace(os.strerror(errno.EFBIG), "too large")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    return "saved"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
