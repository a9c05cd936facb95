"""The choice of blocks and attention with real numbers of heads, over contexts up to the longest."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from edge.config import SparseConfig
from edge.model.attention.sparse import chosen_blocks
from tests.kernels.cuda.caches import DEAD, Array, Cache, Step
from tests.kernels.cuda.runs import decoded, exact, exact_scores, prefilled, scored

from .devices import Watched
from .extents import Extent, Shape
from .report import Report

LIMIT = 3e-3
"""Of attention, as a share of the largest value: probabilities and values have 11 bits."""
SCORES = 1e-3
"""Of a block's score, as a share of it: exponents are sums of float32."""

_PARENTS = (-1, 0, 0, 1, 2, 4)
_SHARPNESS = 4  # of queries: else every row of a long context has the same small part in it


def check_caches(device: Watched, report: Report, extent: Extent) -> None:
    """All shapes, with caches of both types."""
    for shape in extent.shapes:
        for kind in ("float16", "int8"):
            title = f"attention {shape.name} {kind}"
            made = Caches(device, shape, extent.lengths, int8=kind == "int8")
            report.run(title, partial(made.check, report, title, extent.sparse))


class Caches:
    """Sequences of some lengths, and a pass that has a last row, some rows or a tree of each."""

    def __init__(self, device: Watched, shape: Shape, lengths: Sequence[int], *, int8: bool) -> None:
        self._device, self._config, self._lengths, self._int8 = device, shape.config, lengths, int8

    def check(self, report: Report, title: str, sparse: SparseConfig) -> None:
        """Choice, attention with and without it, rows alone, and prefill."""
        config = self._config
        cache = Cache.of(
            self._device,
            self._lengths,
            kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            int8=self._int8,
            summaries=True,
        )
        causal = self._causal()
        tree = Step(len(self._lengths) - 2, self._lengths[-2] - len(_PARENTS), len(_PARENTS), _PARENTS)
        steps = [tree, DEAD, *causal]
        for step in (tree, *causal):
            if step.before:
                cache.summarise(step.sequence, 0, step.before)
        cache.upload()
        rows = sum(step.n for step in steps)
        random = np.random.default_rng(0)
        q = random.standard_normal((rows, config.num_attention_heads, config.head_dim))
        q = (_SHARPNESS * q).astype(np.float16)

        lists = self._choice(report, title, cache, steps, q, sparse)
        for name, chosen in (("dense", []), ("sparse", lists)):
            found = decoded(cache, steps, q, chosen)
            report.near(f"{title}, {name}", found, exact(cache, steps, q, chosen), LIMIT)
            first = 0
            for step in steps:
                own = slice(first, first + step.n)
                heads = slice(first * config.num_key_value_heads, own.stop * config.num_key_value_heads)
                alone = decoded(cache, [step], q[own], chosen[heads])
                report.same(f"{title}, {name}, {step} alone", alone, found[own])
                first += step.n
            after = len(_PARENTS)
            of_causal = chosen[after * config.num_key_value_heads :]
            found_again = prefilled(cache, steps[1:], q[after:], of_causal)
            report.same(f"{title}, {name}, prefill", found_again, found[after:])
        for address in cache.pools.addresses.values():
            self._device.free(address)

    def _causal(self) -> list[Step]:
        """The last row of each sequence, and the last three of the one before the longest."""
        steps = [Step(at, length - 1, 1) for at, length in enumerate(self._lengths)]
        del steps[-2]
        other = len(self._lengths) - 3
        if other >= 0 and self._lengths[other] > 3:
            steps[other] = Step(other, self._lengths[other] - 3, 3)
        return steps

    def _choice(
        self,
        report: Report,
        title: str,
        cache: Cache,
        steps: Sequence[Step],
        q: Array,
        sparse: SparseConfig,
    ) -> list[list[int]]:
        """Blocks by row and head, [-1] where all are read: right scores, and what they choose."""
        found, lists = scored(cache, steps, q, sparse)
        kv_heads, apart, wrong, sparse_rows = self._config.num_key_value_heads, 0.0, 0, 0
        row = 0
        for step in steps:
            for i in range(step.n):
                length = 0 if step.sequence < 0 else len(step.rows_seen(i))
                for head in range(kv_heads):
                    at = row * kv_heads + head
                    if length <= sparse.dense_len:
                        lists[at] = [-1] if length else []
                        continue
                    sparse_rows += 1
                    wanted = exact_scores(cache, step, i, q[row], head, sparse)
                    scored_blocks = len(wanted) - sparse.local_blocks
                    mine = torch.from_numpy(found[row, head, : len(wanted)].copy())
                    near = (mine - wanted).abs()[:scored_blocks] / wanted[:scored_blocks].clamp(min=1e-30)
                    apart = max(apart, float(near.max()))
                    wrong += chosen_blocks(mine, length, sparse) != lists[at]
                row += 1
        report.check(f"{title}, scores", apart <= SCORES, apart=apart, limit=SCORES, of=sparse_rows)
        report.check(f"{title}, choice on these scores", wrong == 0, differing=wrong, of=sparse_rows)
        return lists
