"""InfLLM-V2: the written reference against hand-made cases, and the vectorised form against the reference."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from edge.config import SparseConfig
from edge.config.attention import with_selection
from edge.model.attention import blocks as block_attention
from edge.model.attention.key_summaries import KeySummaries
from edge.model.attention.sparse import (
    block_scores,
    kernel_scores,
    reference_attention,
    reference_selection,
    select_blocks,
)

SPARSE = SparseConfig(
    kernel_size=8, kernel_stride=4, init_blocks=1, block_size=16, window_size=32, topk=3, dense_len=-1
)
VARIANTS = {
    "plain": SPARSE,
    "exact": replace(SPARSE, exact_lse=True),
    "dense-first": replace(SPARSE, dense_len=90),
    "no-init": replace(SPARSE, init_blocks=0, topk=2),
    "init-only": replace(SPARSE, init_blocks=2, topk=2),
    "wide-kernels": replace(SPARSE, kernel_size=12, block_size=8, window_size=8),
    "one-stride": replace(SPARSE, kernel_size=4, kernel_stride=4, block_size=4, window_size=12, topk=5),
}
CLOSE = {"rtol": 1e-5, "atol": 1e-5}  # float32 against float32, outputs of about 1


def random_qkv(
    heads: int, kv_heads: int, n: int, rows: int, d: int, seed: int = 0, batch: tuple[int, ...] = ()
) -> tuple[Tensor, Tensor, Tensor]:
    """q [*batch, heads, n, d] large enough for pointed scores, k and v [*batch, kv_heads, rows, d]."""
    make = torch.Generator().manual_seed(seed)
    q = 2 * torch.randn(*batch, heads, n, d, generator=make)
    k, v = (torch.randn(*batch, kv_heads, rows, d, generator=make) for _ in range(2))
    return q, k, v


def tree_mask(parents: list[int]) -> Tensor:
    mask = torch.zeros(len(parents), len(parents), dtype=torch.bool)
    for row, parent in enumerate(parents):
        if parent >= 0:
            mask[row] = mask[parent]
        mask[row, row] = True
    return mask


def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    n, rows = q.shape[-2], k.shape[-2]
    causal = torch.ones(n, rows, dtype=torch.bool).tril(rows - n)
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=causal, enable_gqa=True)


# Constants decide about blocks and shapes about heads: every constant with one shape, every shape with two.
@pytest.mark.parametrize(
    ("variant", "heads", "kv_heads", "d"),
    [
        *((variant, 4, 2, 64) for variant in VARIANTS),
        *((variant, *shape) for variant in ("plain", "exact") for shape in ((2, 2, 128), (16, 1, 64))),
    ],
)
def test_vectorised_equals_reference(variant: str, heads: int, kv_heads: int, d: int):
    sparse = VARIANTS[variant]
    q, k, v = random_qkv(heads, kv_heads, 21, 187, d)
    chosen = block_attention.select_blocks(q, k, sparse)
    assert torch.equal(chosen, reference_selection(q, k, sparse))
    assert 0 < chosen.sum() < chosen.numel()
    found = block_attention.block_sparse_attention(q, k, v, sparse)
    torch.testing.assert_close(found, reference_attention(q, k, v, sparse), **CLOSE)


def published_blocks(q: Tensor, k: Tensor, selection: str) -> list[int]:
    """What public code reads for the last of k's rows, of heads q that share them.

    Scores of all fine kernels, max-pooled with stride 4, size 5 and padding 1, as both do. MiniCPM4's own
    code and InfLLM-V2's kernels then set first and local blocks (`own <= block + local`) to infinity and
    take the best `topk + local` of all; CPM.cu takes the best `topk` beside the local ones (`own < block +
    local`). A kernel between two blocks is a tie, which they leave open: here the lower one is first.
    """
    local, topk, own = SPARSE.window_size // SPARSE.block_size, SPARSE.topk, (len(k) - 1) // SPARSE.block_size
    fine, coarse = (k.unfold(0, 8 * i, 4 * i).mean(-1) for i in (1, 4))
    logits = q @ fine.T / q.shape[1] ** 0.5
    normaliser = logits if selection == "minicpm4" else q @ coarse.T / q.shape[1] ** 0.5
    scores = (logits - normaliser.logsumexp(1, keepdim=True)).exp().sum(0)
    blocks = functional.pad(scores, (1, 8)).unfold(0, 5, 4).amax(1).tolist()  # the last ones have no kernel
    infinity = float("inf")
    if selection == "paper":
        near = {i for i in range(own + 1) if own < i + local}
        pooled = [infinity if i < 1 else -infinity if i in near else blocks[i] for i in range(own + 1)]
    else:
        near, topk = set(), topk + local
        pooled = [infinity if i < 1 or own <= i + local else blocks[i] for i in range(own + 1)]
    best = torch.tensor(pooled).sort(descending=True, stable=True).indices[:topk]
    return sorted(near | set(best.tolist()))


@pytest.mark.parametrize("selection", ["paper", "minicpm4", "infllmv2"])
def test_selections_are_those_of_public_code(tiny_config, selection):
    sparse = with_selection(tiny_config(sparse=SPARSE), selection).sparse
    q, k, _ = random_qkv(4, 1, 40, 230, 64, seed=3)
    chosen = reference_selection(q, k, sparse)[0]
    expected = [published_blocks(q[:, i], k[0, : 191 + i], selection) for i in range(40)]
    assert [row.nonzero().flatten().tolist() for row in chosen] == expected
    assert all(len(blocks) == 5 for blocks in expected)


@pytest.mark.parametrize("sparse", VARIANTS.values(), ids=VARIANTS)
def test_from_the_first_token(sparse: SparseConfig):
    """Every length from 1 on: no window, no coarse window, ragged last block."""
    q, k, v = random_qkv(2, 1, 83, 83, 16)
    assert torch.equal(block_attention.select_blocks(q, k, sparse), reference_selection(q, k, sparse))
    found = block_attention.block_sparse_attention(q, k, v, sparse)
    torch.testing.assert_close(found, reference_attention(q, k, v, sparse), **CLOSE)


def test_batch():
    q, k, v = random_qkv(4, 2, 9, 140, 32, batch=(3,))
    found = block_attention.block_sparse_attention(q, k, v, SPARSE)
    for i in range(3):
        torch.testing.assert_close(found[i], reference_attention(q[i], k[i], v[i], SPARSE), **CLOSE)


@pytest.mark.parametrize("changes", [{"topk": 12}, {"dense_len": 187}, {"window_size": 192}])
def test_equals_dense_when_everything_is_selected(changes: dict[str, int]):
    q, k, v = random_qkv(4, 2, 60, 187, 32)  # the queries with the most blocks to leave out
    sparse = replace(SPARSE, **changes)
    torch.testing.assert_close(reference_attention(q, k, v, sparse), dense(q, k, v), **CLOSE)
    torch.testing.assert_close(
        block_attention.block_sparse_attention(q, k, v, sparse), dense(q, k, v), **CLOSE
    )
    assert not torch.allclose(reference_attention(q, k, v, SPARSE), dense(q, k, v), atol=1e-2)


def test_the_published_constants():
    """96 blocks of 64 tokens: init + dynamic + 32 local ones; kernels 32/16 and 128/64; pool size 5."""
    sparse = SparseConfig(dense_len=-1)
    q, k, _ = random_qkv(8, 1, 1, 10_000, 64)
    blocks = select_blocks(q[:, 0], k[0], sparse)
    last = 9_999 // 64
    assert len(blocks) == 96
    assert blocks[0] == 0 and blocks[-32:] == list(range(last - 31, last + 1))
    summaries = KeySummaries.of(k[0], sparse)
    torch.testing.assert_close(summaries.fine[7], k[0, 112:144].mean(0))
    torch.testing.assert_close(summaries.coarse[7], k[0, 448:576].mean(0))
    assert summaries.fine.shape[0] == (10_000 - 32) // 16 + 1
    scores = kernel_scores(q[:, 0], summaries)
    pooled = block_scores(scores, 10_000, sparse)
    assert pooled[40] == scores[159:164].max() and pooled[0] == scores[:4].max()
    assert torch.equal(
        block_attention.select_blocks(q, k, sparse)[0, 0].nonzero().flatten(), torch.tensor(blocks)
    )


def test_scores_by_hand():
    """Two heads of a group, three fine kernels, one coarse kernel: the formula written out."""
    q = torch.tensor([[1.0, 0, 0, 0], [0, 3.0, 0, 0]])
    k = torch.zeros(16, 4)
    k[:4, 0], k[4:8, 1], k[8:12, 0] = 2.0, 4.0, 6.0
    sparse = SparseConfig(kernel_size=8, kernel_stride=4, block_size=8, window_size=8, topk=1, dense_len=-1)
    short = KeySummaries.of(k, sparse)  # 16 rows: fine kernels only
    logits = torch.tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 0.0]]) * torch.tensor([[0.5], [1.5]])
    expected = logits.softmax(-1).sum(0)
    assert short.coarse.shape[0] == 0
    torch.testing.assert_close(kernel_scores(q, short), expected)

    long = KeySummaries.of(torch.cat([k, torch.zeros(16, 4)]), sparse)
    logits = torch.tensor([[1.0, 3, 3, 0, 0, 0, 0], [2.0, 2, 0, 0, 0, 0, 0]]) * torch.tensor([[0.5], [1.5]])
    coarse = torch.tensor([[0.5 * (4 * 2 + 4 * 6) / 32], [1.5 * (4 * 4) / 32]])
    torch.testing.assert_close(kernel_scores(q, long), (logits - coarse).exp().sum(0))
    torch.testing.assert_close(kernel_scores(q, long, exact_lse=True), logits.softmax(-1).sum(0))


def test_scores_cannot_overflow():
    """One fine kernel far above every coarse one: exponents over 88 would be infinite."""
    k = torch.zeros(1, 160, 16)
    k[0, 64:72] = 60.0
    k[0, 16:48] = -60.0
    q = torch.full((1, 1, 16), 20.0)
    scores = kernel_scores(q[:, 0], KeySummaries.of(k[0], SPARSE))
    assert scores.isfinite().all() and scores.max() > 1e30
    for choose in (reference_selection, block_attention.select_blocks):
        # Kernel 15 lies over blocks 3 and 4.
        assert choose(q, k, SPARSE)[0, 0].nonzero().flatten().tolist() == [0, 3, 4, 8, 9]


def test_ties_go_to_the_lower_block():
    q, k, _ = random_qkv(2, 1, 1, 16 * 40, 16)
    k[:] = 1.0
    for choose in (reference_selection, block_attention.select_blocks):
        assert choose(q, k, SPARSE)[0, 0].nonzero().flatten().tolist() == [0, 1, 2, 38, 39]


def test_a_group_shares_its_selection():
    """One selection per KV head, whatever the order of the query heads in its group."""
    q, k, _ = random_qkv(6, 2, 3, 200, 16)
    chosen = block_attention.select_blocks(q, k, SPARSE)
    assert chosen.shape == (2, 3, 13)
    assert not torch.equal(chosen[0], chosen[1])
    swapped = block_attention.select_blocks(q[[2, 0, 1, 3, 4, 5]], k, SPARSE)
    assert torch.equal(swapped, chosen)


def test_a_query_sees_the_past_only():
    """Later rows change nothing: neither scores nor selection nor output."""
    q, k, v = random_qkv(4, 2, 60, 160, 32)
    full = block_attention.block_sparse_attention(q, k, v, SPARSE)
    k[:, 130:], v[:, 130:] = 1e3, 1e3
    changed = block_attention.block_sparse_attention(q, k, v, SPARSE)
    torch.testing.assert_close(changed[:, :30], full[:, :30], **CLOSE)
    assert not torch.allclose(changed[:, 30:], full[:, 30:])


@pytest.mark.parametrize("attention", [reference_attention, block_attention.block_sparse_attention])
@pytest.mark.parametrize("sizes", [[1] * 50, [50, 50, 37], [3, 64, 70]])
def test_chunks_and_single_tokens_equal_one_prefill(attention, sizes: list[int]):
    sparse = replace(SPARSE, dense_len=90)
    q, k, v = random_qkv(4, 2, 187, 187, 16)
    whole = attention(q, k, v, sparse)
    end = 187
    for n in reversed(sizes):
        part = attention(q[:, end - n : end], k[:, :end], v[:, :end], sparse)
        torch.testing.assert_close(part, whole[:, end - n : end], **CLOSE)
        end -= n


@pytest.mark.parametrize(
    ("variant", "start"),
    [
        *((variant, 85) for variant in VARIANTS),  # the tree crosses dense_len and ends of blocks
        *((variant, start) for variant in ("plain", "dense-first", "exact") for start in (0, 5, 101)),
    ],
)
def test_tree_equals_sequential_decoding(variant: str, start: int):
    """A deep tree, so that fine and coarse windows complete inside it, differently along its branches."""
    sparse = VARIANTS[variant]
    parents = [-1, 0, 0, *range(1, 38), *range(2, 21), 2, 41, 42]
    mask = tree_mask(parents)
    q, k, v = random_qkv(4, 2, len(parents), start + len(parents), 16, seed=start)
    written = reference_attention(q, k, v, sparse, mask)
    torch.testing.assert_close(
        block_attention.block_sparse_attention(q, k, v, sparse, mask), written, **CLOSE
    )
    for i in (0, 2, 17, len(parents) - 1, 39):
        rows = [*range(start), *(start + j for j in mask[i].nonzero().flatten().tolist())]
        alone = reference_attention(q[:, i : i + 1], k[:, rows], v[:, rows], sparse)
        torch.testing.assert_close(written[:, i : i + 1], alone, **CLOSE)


@pytest.mark.parametrize("steps", [[1] * 70, [7, 31, 1, 1, 64], [130]])
def test_summaries_extend(steps: list[int]):
    """Row by row or in pieces, and after a truncation, they are those of the rows at once."""
    k = torch.randn(2, sum(steps), 16, generator=torch.Generator().manual_seed(1))
    summaries = KeySummaries.of(k[:, :0], SPARSE)
    for rows in torch.tensor(steps).cumsum(0).tolist():
        summaries = summaries.extend(k[:, :rows])
        whole = KeySummaries.of(k[:, :rows], SPARSE)
        assert summaries.rows == rows
        torch.testing.assert_close(summaries.fine, whole.fine)
        torch.testing.assert_close(summaries.coarse, whole.coarse)
    shorter = summaries.truncate(45)
    assert shorter.fine.shape[1] == 10 and shorter.coarse.shape[1] == 1
    torch.testing.assert_close(shorter.extend(k[:, :70]).fine, KeySummaries.of(k[:, :70], SPARSE).fine)
    with pytest.raises(ValueError, match="truncate"):
        summaries.extend(k[:, :45])
