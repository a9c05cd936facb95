"""The loss on texts that a run doesn't learn from: the same rows every time."""

from __future__ import annotations

import torch

from edge.train.config import RunConfig
from edge.train.data.batch import Batch
from edge.train.data.loader import Loader, LoaderPlan
from edge.train.distributed import World, all_sum
from edge.train.network import Network
from edge.train.objective import counts
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
        """`held_out/NAME` in nats per token, and `held_out_second/NAME` for the token after next."""
        found = {}
        for name, batch in self._batches.items():
            first, second = self._of(batch)
            found[f"held_out/{name}"] = first
            if self._config.loss.multi_token:
                found[f"held_out_second/{name}"] = second
        return found

    @torch.no_grad()
    def _of(self, batch: Batch) -> tuple[float, float]:
        self._network.objective.eval()
        sums = torch.zeros(2, dtype=torch.float64)
        for part in zip(*(each.split(self._size) for each in batch), strict=True):
            with self._network.autocast():
                losses = self._network.objective(*(each.to(self._world.device) for each in part))
            sums += torch.tensor([losses.next_token.item(), losses.second_token.item()], dtype=torch.float64)
        targets = torch.tensor(counts(batch), dtype=torch.float64)
        first, second, *found = all_sum(torch.cat([sums, targets]), self._world).tolist()
        return first / max(found[0], 1.0), second / max(found[1], 1.0)


def _plan(name: str, rows: int, length: int) -> LoaderPlan:
    return LoaderPlan(rows=rows, length=length, phases=((0, {name: 1.0}),))
