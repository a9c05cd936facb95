"""Packed attention through flex_attention equals that through the fused kernel; forward only, on CPUs."""

from __future__ import annotations

import pytest
import torch

from edge.model.network.decoder import fused_attention
from edge.train.attention import packed
from edge.train.flex import PackedFlex


@pytest.mark.parametrize("documents", [((37, 90, 43), (170,)), ((1, 168, 1), (128, 42)), ((170,), (170,))])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_documents_do_not_mix(documents: tuple[tuple[int, ...], ...], kv_heads: int):
    make = torch.Generator().manual_seed(kv_heads)
    positions = torch.stack([torch.cat([torch.arange(size) for size in row]) for row in documents])
    q, k, v = (torch.randn(2, heads, 170, 32, generator=make) for heads in (4, kv_heads, kv_heads))
    mask = torch.ones(170, 170, dtype=torch.bool).tril()
    found = PackedFlex()(q, k, v, mask, positions)
    wanted = packed(fused_attention)(q, k, v, mask, positions)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=2e-6)
