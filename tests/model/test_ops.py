"""The `edge` operators: opcheck, equality with the reference, caches, summaries beside them, torch.export."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edge.config import SparseConfig
from edge.errors import ConfigError
from edge.model.attention.sparse import reference_attention
from edge.model.operators import attention as ops

SPARSE = SparseConfig(
    kernel_size=8, kernel_stride=4, init_blocks=1, block_size=16, window_size=32, topk=3, dense_len=40
)
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
CAPACITY = 200


def constants(sparse: SparseConfig) -> tuple[Any, ...]:
    return (
        *(sparse.kernel_size, sparse.kernel_stride, sparse.init_blocks, sparse.block_size),
        *(sparse.window_size, sparse.topk, sparse.dense_len, sparse.exact_lse),
    )


def sample(n: int, start: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q [2, 4, n, 16], caches [2, 2, CAPACITY, 16] with rubbish after their last row, and start."""
    make = torch.Generator().manual_seed(n)
    q = torch.randn(2, 4, n, 16, generator=make) * 2
    k, v = (torch.randn(2, 2, CAPACITY, 16, generator=make) for _ in range(2))
    k[:, :, start + n :], v[:, :, start + n :] = float("nan"), float("nan")
    return q.to(dtype), k.to(dtype), v.to(dtype), torch.tensor([start])


def empty_summaries() -> tuple[Tensor, Tensor]:
    return torch.full((2, 2, CAPACITY // 4, 16), float("nan")), torch.full(
        (2, 2, CAPACITY // 16, 16), float("nan")
    )


def expected(q: Tensor, k: Tensor, v: Tensor, rows: int, tree: Tensor | None = None) -> Tensor:
    return torch.stack(
        [reference_attention(q[i], k[i, :, :rows], v[i, :, :rows], SPARSE, tree) for i in range(q.shape[0])]
    )


def fork(n: int) -> Tensor:
    """Two branches after the first token."""
    tree = torch.ones(n, n, dtype=torch.bool).tril()
    tree[n // 2 :, 1 : n // 2] = False
    return tree


@pytest.mark.parametrize("n, start", [(1, 0), (1, 150), (37, 0), (30, 121)])
def test_equals_the_reference(n: int, start: int):
    q, k, v, begin = sample(n, start)
    found = ops.block_sparse_attention(q, k, v, begin, None, None, None, *constants(SPARSE))
    torch.testing.assert_close(found, expected(q, k, v, start + n), **CLOSE)
    found = ops.block_sparse_attention(q, k, v, begin, fork(n), None, None, *constants(SPARSE))
    torch.testing.assert_close(found, expected(q, k, v, start + n, fork(n)), **CLOSE)


@pytest.mark.parametrize("n, start", [(1, 150), (30, 121)])
def test_summaries_beside_the_cache(n: int, start: int):
    """Filled in pieces and used, they change nothing; a tree uses those of the rows before it."""
    q, k, v, begin = sample(n, start)
    fine, coarse = empty_summaries()
    for first, last in ((0, 5), (5, 90), (90, 91), (91, start)):
        ops.extend_key_summaries(k, torch.tensor([first]), last - first, fine, coarse, 8, 4)
    tree = fork(n)
    found = ops.block_sparse_attention(q, k, v, begin, tree, fine, coarse, *constants(SPARSE))
    torch.testing.assert_close(found, expected(q, k, v, start + n, tree), **CLOSE)
    ops.extend_key_summaries(k, begin, n, fine, coarse, 8, 4)
    found = ops.block_sparse_attention(q, k, v, begin, None, fine, coarse, *constants(SPARSE))
    torch.testing.assert_close(found, expected(q, k, v, start + n), **CLOSE)


def test_summaries_are_read():
    """Not computed again: other summaries select other blocks."""
    q, k, v, begin = sample(4, 150)
    own = ops.block_sparse_attention(q, k, v, begin, None, None, None, *constants(SPARSE))
    fine, coarse = (torch.randn_like(x) for x in empty_summaries())
    other = ops.block_sparse_attention(q, k, v, begin, None, fine, coarse, *constants(SPARSE))
    assert not torch.allclose(own, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tree", [None, fork(9)], ids=["row", "tree"])
def test_opcheck_attention(dtype: torch.dtype, tree: Tensor | None):
    q, k, v, begin = sample(9, 100, dtype)
    fine, coarse = empty_summaries()
    ops.extend_key_summaries(k.float(), torch.tensor([0]), 109, fine, coarse, 8, 4)
    for summaries in ((None, None), (fine, coarse)):
        arguments = (q, k, v, begin, tree, *summaries, *constants(SPARSE))
        torch.library.opcheck(torch.ops.edge.block_sparse_attention.default, arguments)


def test_opcheck_summaries():
    _, k, _, begin = sample(40, 100)
    fine, coarse = (torch.zeros_like(x) for x in empty_summaries())
    torch.library.opcheck(torch.ops.edge.extend_key_summaries.default, (k, begin, 40, fine, coarse, 8, 4))


class Step(nn.Module):
    """What a decoder with a static cache does: writes its rows, extends the summaries, attends."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("k", "v"):
            self.register_buffer(name, torch.zeros(1, 2, CAPACITY, 16))
        for name, count in (("fine", CAPACITY // 4), ("coarse", CAPACITY // 16)):
            self.register_buffer(name, torch.zeros(1, 2, count, 16))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, start: Tensor) -> Tensor:
        n = q.shape[2]
        rows = torch.arange(n) + start
        self.k.index_copy_(2, rows, k)
        self.v.index_copy_(2, rows, v)
        ops.extend_key_summaries(self.k, start, n, self.fine, self.coarse, 8, 4)
        summaries = (self.fine, self.coarse)
        return ops.block_sparse_attention(q, self.k, self.v, start, None, *summaries, *constants(SPARSE))


def test_export_with_a_cache():
    """One exported program, called with pieces of several sizes, equals the reference at once."""
    make = torch.Generator().manual_seed(3)
    q = torch.randn(1, 4, 150, 16, generator=make) * 2
    k, v = (torch.randn(1, 2, 150, 16, generator=make) for _ in range(2))
    n = torch.export.Dim("n", min=1, max=CAPACITY)
    shapes = ({2: n}, {2: n}, {2: n}, None)
    example = (*(x[:, :, :7].contiguous() for x in (q, k, v)), torch.tensor([0]))
    program = torch.export.export(Step(), example, dynamic_shapes=shapes)
    targets = {str(node.target) for node in program.graph.nodes}
    assert {"edge.block_sparse_attention.default", "edge.extend_key_summaries.default"} <= targets
    run = program.module()
    parts, start = [], 0
    for size in (70, 1, 1, 60, 18):
        piece = (x[:, :, start : start + size].contiguous() for x in (q, k, v))
        parts.append(run(*piece, torch.tensor([start])))
        start += size
    torch.testing.assert_close(torch.cat(parts, 2), expected(q, k, v, 150), **CLOSE)


def test_bad_input():
    q, k, v, begin = sample(9, 100)
    call = ops.block_sparse_attention
    with pytest.raises(ValueError, match="195 to 204 lie outside a cache of 200"):
        call(q, k, v, torch.tensor([195]), None, None, None, *constants(SPARSE))
    with pytest.raises(ValueError, match="-1 to 8"):
        call(q, k, v, torch.tensor([-1]), None, None, None, *constants(SPARSE))
    with pytest.raises(ValueError, match="do not fit"):
        call(q, k, v[..., :8], begin, None, None, None, *constants(SPARSE))
    with pytest.raises(ValueError, match="3 query heads"):
        call(q[:, :3], k, v, begin, None, None, None, *constants(SPARSE))
    with pytest.raises(ValueError, match="tree of 9 tokens"):
        call(q, k, v, begin, fork(8), None, None, *constants(SPARSE))
    with pytest.raises(ValueError, match="both"):
        call(q, k, v, begin, None, empty_summaries()[0], None, *constants(SPARSE))
    with pytest.raises(ConfigError, match="kernel_size"):
        call(q, k, v, begin, None, None, None, 7, *constants(SPARSE)[1:])
    with pytest.raises(ValueError, match="48 windows of 8, but there is room for 4"):
        ops.extend_key_summaries(
            k, torch.tensor([0]), 199, empty_summaries()[0][:, :, :4], empty_summaries()[1], 8, 4
        )


def test_exact_lse_reaches_the_operator():
    """The option changes the selection somewhere."""
    q, k, v, begin = sample(60, 130)
    one, other = (
        ops.block_sparse_attention(
            q, k, v, begin, None, None, None, *constants(replace(SPARSE, exact_lse=exact))
        )
        for exact in (False, True)
    )
    assert not torch.allclose(one, other)
