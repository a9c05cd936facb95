"""Sequences in scattered pages on a device, and the tables of passes over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from edge.config import SparseConfig
from edge.executors.cuda.device import Address, Device
from edge.executors.cuda.operators.pages import CachePools, CacheShape
from edge.executors.cuda.operators.summaries import COARSE, FINE
from edge.executors.cuda.operators.tables import PAGE, TREE, StepTables
from edge.model.attention.key_summaries import KeySummaries
from tests.kernels.cuda.memory import fetched, sent

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Step:
    """n rows behind the first `before` of a sequence: causal ones, or a tree, with the parent of each in it
    or -1. Sequence -1: dead rows. A pass has those from `first` on.
    """

    sequence: int
    before: int
    n: int
    parents: tuple[int, ...] = ()
    first: int = 0

    @property
    def rows(self) -> range:
        """Of a pass, by their place in the step."""
        return range(self.first, self.n)

    def ancestors(self, i: int) -> list[int]:
        """Those of row i in the step, in order of depth, itself last."""
        if not self.parents:
            return list(range(i + 1))
        above = self.ancestors(self.parents[i]) if self.parents[i] >= 0 else []
        return [*above, i]

    def rows_seen(self, i: int) -> list[int]:
        """Cache rows on the path of row i."""
        return [*range(self.before), *(self.before + j for j in self.ancestors(i))]


DEAD = Step(-1, 0, 1)


@dataclass
class Cache:
    """Rows of several sequences as the host has them: keys and values float16 [layers, kv_heads, rows, d], of
    int8 caches as the codes and scales say.
    """

    device: Device
    pools: CachePools
    page_table: npt.NDArray[np.int32]
    arrays: dict[str, Array] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        device: Device,
        lengths: Sequence[int],
        *,
        layers: int = 1,
        kv_heads: int = 1,
        head_dim: int = 64,
        int8: bool = False,
        summaries: bool = False,
        seed: int = 0,
    ) -> Cache:
        """Random rows, as many as `lengths` say of each sequence; all else is NaN, for no kernel to use."""
        random = np.random.default_rng(seed)
        needed = [-(-length // PAGE) for length in lengths]
        pages = sum(needed) + 1
        ids = random.permutation(pages).astype(np.int32)
        table = np.full((len(lengths), max(needed)), ids[-1], np.int32)
        for sequence, count in enumerate(needed):
            table[sequence, :count] = ids[sum(needed[:sequence]) :][:count]
        shape = CacheShape(layers, kv_heads, head_dim, int8, summaries)
        cache = cls(device, CachePools.allocate(device, shape, pages), table)
        half = np.dtype(np.float16)
        heads = (layers, pages, kv_heads)
        for name in ("keys", "values"):
            cache.arrays[name] = np.full(
                (*heads, PAGE, head_dim), 0 if int8 else np.nan, np.int8 if int8 else half
            )
            cache.arrays[name[:-1] + "_scales"] = np.full((*heads, PAGE), np.nan, half)
        cache.arrays["fine"] = np.full((*heads, 16, head_dim), np.nan, half)
        cache.arrays["coarse"] = np.full((*heads, 4, head_dim), np.nan, half)
        for sequence, length in enumerate(lengths):
            page, row = table[sequence, np.arange(length) // PAGE], np.arange(length) % PAGE
            for name in ("keys", "values"):
                rows = random.standard_normal((layers, length, kv_heads, head_dim))
                if int8:
                    cache.arrays[name][:, page, :, row] = random.integers(-127, 128, rows.shape).swapaxes(
                        0, 1
                    )
                    scales = random.uniform(0.005, 0.02, rows.shape[:3])
                    cache.arrays[name[:-1] + "_scales"][:, page, :, row] = scales.swapaxes(0, 1)
                else:
                    cache.arrays[name][:, page, :, row] = rows.swapaxes(0, 1)
        cache.upload()
        return cache

    def summarise(self, sequence: int, before: int, rows: int) -> None:
        """Write the windows that are complete in so many rows and were not in `before`, on the host."""
        for layer in range(self.pools.shape.layers):
            keys = torch.from_numpy(self.rows("keys", sequence, range(rows), layer)).double()
            whole = KeySummaries.of(keys, SparseConfig())
            for name, windows, means in (("fine", FINE, whole.fine), ("coarse", COARSE, whole.coarse)):
                for j in range(means.shape[1]):
                    last = j * windows.stride + windows.size - 1
                    if last >= before:
                        page, place = self.page_table[sequence, last // PAGE], last % PAGE // windows.stride
                        self.arrays[name][layer, page, :, place] = means[:, j].float().numpy()

    def upload(self) -> None:
        """Everything to the device."""
        for name, address in self.pools.addresses.items():
            if address:
                self.device.upload(address, self.arrays[name])

    def download(self) -> dict[str, Array]:
        """What stands there, by the names of the pools."""
        return {
            name: fetched(self.device, address, self.arrays[name].shape, self.arrays[name].dtype)
            for name, address in self.pools.addresses.items()
            if address
        }

    def rows(self, name: str, sequence: int, rows: Sequence[int] | Array, layer: int = 0) -> Array:
        """Keys or values as float16 [kv_heads, n, d]."""
        at = np.asarray(rows)
        found = self.arrays[name][layer, self.page_table[sequence, at // PAGE], :, at % PAGE]
        if self.pools.shape.int8:
            scales = self.arrays[name[:-1] + "_scales"]
            scale = scales[layer, self.page_table[sequence, at // PAGE], :, at % PAGE]
            found = found.astype(np.float16) * scale[..., None]
        return found.swapaxes(0, 1)

    def tables(self, steps: Sequence[Step]) -> StepTables:
        """Of a pass."""
        rows = [(step, i) for step in steps for i in step.rows]
        ancestors = np.full((len(rows), TREE), 10**6, np.int32)
        for row, (step, i) in enumerate(rows):
            if step.parents:
                ancestors[row, : len(step.ancestors(i))] = step.ancestors(i)
        path = [len(step.rows_seen(i)) - 1 for step, i in rows]

        def column(values: Sequence[int]) -> Address:
            return sent(self.device, np.array(values, np.int32))

        return StepTables(
            rows=len(rows),
            positions=column(path),
            sequences=column([step.sequence for step, _ in rows]),
            slots=column([step.before + i for step, i in rows]),
            before=column([step.before for step, _ in rows]),
            path=column(path),
            is_tree=column([bool(step.parents) for step, _ in rows]),
            ancestors=sent(self.device, ancestors),
            page_table=sent(self.device, self.page_table),
            max_pages=self.page_table.shape[1],
        )
