"""The loss on texts that a run doesn't learn from: the same rows every time."""

from __future__ import annotations

import torch

from edge.train.config import RunConfig
from edge.train.data.batch import AnyBatch, parts_of
from edge.train.data.loader import Loader, LoaderPlan
from edge.train.distributed import World, all_sum
from edge.train.network import Network
from edge.train.texts import Texts


class Evaluation:
    """Losses of a network on the first rows of every held-out source."""

    def __init__(self, config: RunConfig, texts: Texts, network: Network, world: World) -> None:
        self._config, self._network, self._world = config, network, world
        rows = config.evaluation.rows
        self._size = -(-config.data.rows // (world.size * config.runtime.accumulation))
        self._batches = {
            name: Loader({name: shards}, _plan(name, rows, config.data.length)).next(world.rank, world.size)
            for name, shards in texts.held_out.items()
        }

    def losses(self) -> dict[str, float]:
        """Means per target, by the names that the terms have for it: `held_out/NAME` in nats per token."""
        terms = self._network.objective.terms
        found = {}
        for name, batch in self._batches.items():
            for term, mean in zip(terms, self._of(batch), strict=True):
                if term.held_out is not None and term.is_logged:
                    found[f"{term.held_out}/{name}"] = mean
        return found

    @torch.no_grad()
    def _of(self, batch: AnyBatch) -> list[float]:
        objective = self._network.objective.eval()
        sums = torch.zeros(len(objective.terms), dtype=torch.float64)
        for part in parts_of(batch, self._size, self._world.device):
            with self._network.autocast():
                losses = objective(*part)
            sums += torch.tensor([each.item() for each in losses], dtype=torch.float64)
        targets = torch.tensor(objective.counts(batch), dtype=torch.float64)
        found = all_sum(torch.cat([sums, targets]), self._world).tolist()
        totals, counts = found[: len(sums)], found[len(sums) :]
        return [
            total / max(counts[term.counted], 1.0)
            for total, term in zip(totals, objective.terms, strict=True)
        ]


def _plan(name: str, rows: int, length: int) -> LoaderPlan:
    return LoaderPlan(rows=rows, length=length, phases=((0, {name: 1.0}),))
