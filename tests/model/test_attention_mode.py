"""Sparse attention inside the decoder: caches, trees, graphs, gradients, and the modes of `--attention`."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention

from edge.config import ModelConfig, SparseConfig
from edge.errors import ConfigError
from edge.model.attention import blocks as block_attention
from edge.model.attention.flex import block_mask, flex_attend
from edge.model.attention.mode import SparseAttention, use_attention_mode
from edge.model.attention.sparse import reference_attention
from edge.model.network.decoder import Decoder
from edge.model.network.kv_cache import GrowingCache, StaticCache

SPARSE = SparseConfig(
    kernel_size=8, kernel_stride=4, init_blocks=1, block_size=16, window_size=32, topk=3, dense_len=70
)
TOLERANCE = {"rtol": 1e-4, "atol": 2e-5}
N = 190


def tokens(config: ModelConfig, *shape: int) -> Tensor:
    return torch.randint(config.vocab_size, shape, generator=torch.Generator().manual_seed(shape[-1]))


@pytest.fixture
def decoder(tiny_config, llama) -> Decoder:
    config = tiny_config(max_position_embeddings=256, sparse=SPARSE)
    made = Decoder.from_tensors(config, llama(config).state_dict())
    assert use_attention_mode(made) == SPARSE
    return made


def test_modes(decoder):
    """Auto and sparse follow the config; within dense_len nothing changes, beyond it the logits differ."""
    ids = tokens(decoder.config, N)
    sparse = decoder(ids)
    assert use_attention_mode(decoder, "dense") is None
    dense = decoder(ids)
    torch.testing.assert_close(sparse[:70], dense[:70], **TOLERANCE)
    assert (sparse[100:] - dense[100:]).abs().amax(-1).min() > 1e-3
    assert use_attention_mode(decoder, "sparse") == SPARSE
    assert torch.equal(decoder(ids), sparse)
    decoder.use_attention(SparseAttention(replace(SPARSE, topk=20)))
    torch.testing.assert_close(decoder(ids), dense, **TOLERANCE)


def test_sparse_that_cannot_run(tiny_config):
    decoder = Decoder(tiny_config(sparse=replace(SPARSE, dense_len=64)))  # as long as its context
    assert use_attention_mode(decoder, "auto") is None
    with pytest.raises(ConfigError, match="64 tokens does not go beyond"):
        use_attention_mode(decoder, "sparse")


def test_every_layer_equals_the_reference(decoder):
    """The seam hands over q, k and v as the reference wants them."""
    ids = tokens(decoder.config, N)
    fast = decoder(ids)
    decoder.use_attention(lambda q, k, v, mask, positions: reference_attention(q, k, v, SPARSE))
    torch.testing.assert_close(fast, decoder(ids), **TOLERANCE)


@pytest.mark.parametrize("sizes", [[1] * N, [100, 60, 30], [N - 1, 1]])
@pytest.mark.parametrize("kind", [GrowingCache, lambda config: StaticCache(config, N + 7)])
def test_pieces_equal_one_prefill(decoder, kind, sizes: list[int]):
    ids = tokens(decoder.config, N)
    cache = kind(decoder.config)
    logits = torch.cat([decoder(piece, cache=cache) for piece in ids.split(sizes)])
    torch.testing.assert_close(logits, decoder(ids), **TOLERANCE)


def test_batch_equals_single(decoder):
    batch = tokens(decoder.config, 3, 120)
    torch.testing.assert_close(decoder(batch), torch.stack([decoder(row) for row in batch]), **TOLERANCE)


@pytest.mark.parametrize("kind", [GrowingCache, lambda config: StaticCache(config, N + 7)])
def test_tree_equals_each_path(decoder, kind):
    """Branches long enough that fine and coarse windows complete inside them."""
    past, parents = 118, [-1, 0, 0, *range(1, 30), *range(2, 20), 2, 50]
    ids = tokens(decoder.config, past + len(parents))
    mask, depth = torch.zeros(len(parents), len(parents), dtype=torch.bool), []
    for row, parent in enumerate(parents):
        if parent >= 0:
            mask[row] = mask[parent]
        mask[row, row] = True
        depth.append(int(mask[row].sum()) - 1)
    cache = kind(decoder.config)
    decoder(ids[:past], cache=cache)
    tree = decoder(ids[past:], past + torch.tensor(depth), mask, cache)
    for row in (0, 1, 25, 31, 49, 51):
        path = torch.cat([ids[:past], ids[past:][mask[row]]])
        torch.testing.assert_close(tree[row], decoder(path)[-1], **TOLERANCE)


class Step(nn.Module):
    """A decoder with its cache inside: what an exporter lowers."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder
        self.cache = StaticCache(decoder.config, N)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.decoder(tokens, cache=self.cache)


def test_export(decoder):
    """One program for every length; every layer is one operator."""
    n = torch.export.Dim("n", min=2, max=N)
    ids = tokens(decoder.config, N)
    wanted = decoder(ids)
    program = torch.export.export(Step(decoder), (ids[:9],), dynamic_shapes=({0: n},))
    called = [str(node.target) for node in program.graph.nodes]
    assert called.count("edge.block_sparse_attention.default") == decoder.config.num_hidden_layers
    run = program.module()
    logits = torch.cat([run(piece) for piece in ids.split([90, 2, 98])])
    torch.testing.assert_close(logits, wanted, **TOLERANCE)


@pytest.mark.slow
def test_compile(decoder):
    ids = tokens(decoder.config, 95)
    wanted = decoder(ids)
    step = Step(decoder)
    step(ids[:80])
    compiled = torch.compile(step, fullgraph=True, dynamic=False)
    logits = torch.cat([compiled(token[None]) for token in ids[80:]])
    torch.testing.assert_close(logits, wanted[80:], **TOLERANCE)


def qkv(n: int, dtype: torch.dtype) -> list[Tensor]:
    make = torch.Generator().manual_seed(n)
    shapes = ((2, 4, n, 16), (2, 2, n, 16), (2, 2, n, 16))
    return [torch.randn(shape, generator=make, dtype=dtype).requires_grad_() for shape in shapes]


def restricted(q: Tensor, k: Tensor, v: Tensor, selected: Tensor) -> Tensor:
    """Dense attention over the rows of the selected blocks, written out."""
    rows = k.shape[-2]
    k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    seen = selected.repeat_interleave(2, 1).repeat_interleave(16, -1)[..., :rows]
    seen = seen & torch.ones(rows, rows, dtype=torch.bool).tril()
    scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~seen, float("-inf"))
    return scores.softmax(-1) @ v


def test_gradients_equal_restricted_dense():
    inputs = qkv(150, torch.float64)
    selected = block_attention.select_blocks(*inputs[:2], SPARSE)
    assert not selected.requires_grad
    weight = torch.randn_like(inputs[0])
    ours = block_attention.block_sparse_attention(*inputs, SPARSE)
    theirs = restricted(*inputs, selected)
    torch.testing.assert_close(ours, theirs)
    found, wanted = (torch.autograd.grad((out * weight).sum(), inputs) for out in (ours, theirs))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)
    blocks = selected[0, 0].any(0)
    assert blocks.all(), "every block must be read by some query, or its gradient shows nothing"


def test_training_step_moves_every_projection(decoder):
    decoder.requires_grad_(True)
    decoder(tokens(decoder.config, 2, 150)).logsumexp(-1).mean().backward()
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("n, rows", [(190, 190), (61, 190)])
def test_flex_equals_masked(n: int, rows: int):
    q, k, v = (x.detach() for x in qkv(rows, torch.float32))
    q = q[:, :, rows - n :]
    selected = block_attention.select_blocks(q, k, SPARSE)
    wanted = block_attention.attend(q, k, v, selected, 16)
    torch.testing.assert_close(flex_attend(q, k, v, selected, 16), wanted, **TOLERANCE)
    with pytest.raises(ValueError, match="trees"):
        flex_attend(q, k, v, selected, 16, torch.ones(n, n, dtype=torch.bool))
    with pytest.raises(ValueError, match="128"):
        flex_attend(q, k, v, selected, 48)


def test_flex_skips_tiles():
    """Tiles of 128 x 128 in which nothing is selected are not in the mask."""
    selected = torch.zeros(1, 1, 512, 32, dtype=torch.bool)
    selected[..., 0] = True
    selected[0, 0, torch.arange(512), torch.arange(512) // 16] = True
    assert block_mask(selected, 2, 512, 16).kv_num_blocks.tolist() == [[[1, 2, 2, 2]] * 2]


@pytest.mark.slow
def test_flex_compiles_on_cpu():
    """Forward only: PyTorch has no backward pass of flex_attention for CPUs."""
    q, k, v = (x.detach() for x in qkv(190, torch.float32))
    selected = block_attention.select_blocks(q, k, SPARSE)
    wanted = block_attention.attend(q, k, v, selected, 16)
    found = flex_attend(q, k, v, selected, 16, flex=torch.compile(flex_attention))
    torch.testing.assert_close(found, wanted, **TOLERANCE)
