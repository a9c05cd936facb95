"""The loss on texts that a run doesn't learn from: the same rows every time."""

from __future__ import annotations

import torch

from edge.train.config import RunConfig
from edge.train.data.loader import Loader, LoaderPlan
from edge.train.data.shards import ShardFolder
from edge.train.distributed import World, all_sum
from edge.train.network import Network
from edge.train.objective import counts
from edge.train.texts import Texts


class Evaluation:
    """Losses of a network on the first rows of every held-out source."""

    def __init__(self, config: RunConfig, texts: Texts, network: Network, world: World) -> None:
        self._config, self._sources, self._network, self._world = config, texts.held_out, network, world

    def losses(self) -> dict[str, float]:
        """`held_out/NAME` in nats per token, and `held_out_second/NAME` for the token after next."""
        found = {}
        for name, shards in self._sources.items():
            first, second = self._of(name, shards)
            found[f"held_out/{name}"] = first
            if self._config.loss.multi_token:
                found[f"held_out_second/{name}"] = second
        return found

    @torch.no_grad()
    def _of(self, name: str, shards: ShardFolder) -> tuple[float, float]:
        data, world = self._config.data, self._world
        rows = min(data.rows, self._config.evaluation.rows)
        plan = LoaderPlan(rows=rows, length=data.length, phases=((0, {name: 1.0}),), buckets=(), seed=0)
        loader = Loader({name: shards}, plan)
        self._network.objective.eval()
        sums = torch.zeros(4, dtype=torch.float64)
        for _ in range(max(self._config.evaluation.rows // rows, 1)):
            batch = loader.next(world.rank, world.size)
            with self._network.autocast():
                losses = self._network.objective(*(each.to(world.device) for each in batch))
            here = [losses.next_token.item(), losses.second_token.item(), *counts(batch)]
            sums += torch.tensor(here, dtype=torch.float64)
        first, second, targets, second_targets = all_sum(sums, world).tolist()
        return first / max(targets, 1.0), second / max(second_targets, 1.0)
