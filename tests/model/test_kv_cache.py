"""Both KV caches against the network without one: any chunking, trees, batches, and what is kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from edge.config import ModelConfig
from edge.model.network.decoder import Decoder
from edge.model.network.kv_cache import GrowingCache, StaticCache
from tests.steps import paths

TOLERANCE = {"rtol": 1e-4, "atol": 2e-5}
CAPACITY = 40
PARENTS = [-1, 0, 0, 1, 3, 2]


@pytest.fixture
def decoder(tiny_config, llama) -> Decoder:
    config = tiny_config()
    return Decoder.from_tensors(config, llama(config).state_dict())


@pytest.fixture(params=["growing", "static"])
def new_cache(request) -> Callable[..., Any]:
    def make(config: ModelConfig, batch: tuple[int, ...] = ()) -> Any:
        return GrowingCache(config) if request.param == "growing" else StaticCache(config, CAPACITY, batch)

    return make


def tokens(config: ModelConfig, *shape: int) -> torch.Tensor:
    return torch.randint(config.vocab_size, shape, generator=torch.Generator().manual_seed(shape[-1]))


def run(decoder: Decoder, cache: Any, ids: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    return torch.cat([decoder(part, cache=cache) for part in ids.split(sizes, dim=-1)], dim=-2)


@pytest.mark.parametrize("sizes", [[30], [1] * 30, [7, 1, 1, 21], [29, 1]], ids=str)
def test_any_chunking_equals_at_once(decoder, new_cache, sizes: list[int]):
    ids, cache = tokens(decoder.config, 30), new_cache(decoder.config)
    torch.testing.assert_close(run(decoder, cache, ids, sizes), decoder(ids), **TOLERANCE)
    assert int(cache.length) == 30


def test_batch(decoder, new_cache):
    ids, cache = tokens(decoder.config, 3, 12), new_cache(decoder.config, (3,))
    torch.testing.assert_close(run(decoder, cache, ids, [5, 1, 6]), decoder(ids), **TOLERANCE)


def test_truncate_forgets(decoder, new_cache):
    ids, cache = tokens(decoder.config, 30), new_cache(decoder.config)
    run(decoder, cache, tokens(decoder.config, 20), [20])
    cache.truncate(0)
    run(decoder, cache, torch.cat([ids[:9], tokens(decoder.config, 10)]), [19])
    cache.truncate(9)
    torch.testing.assert_close(run(decoder, cache, ids[9:], [21]), decoder(ids)[9:], **TOLERANCE)


@pytest.mark.parametrize("past", [0, 11])
def test_tree_equals_each_path(decoder, new_cache, past: int):
    before, tree = tokens(decoder.config, past), tokens(decoder.config, len(PARENTS))
    cache = new_cache(decoder.config)
    if past:
        decoder(before, cache=cache)
    mask = torch.zeros(len(PARENTS), len(PARENTS), dtype=torch.bool)
    for row, path in enumerate(paths(PARENTS)):
        mask[row, path] = True
    positions = torch.tensor([past + len(path) - 1 for path in paths(PARENTS)])
    logits = decoder(tree, positions, mask, cache)
    for row, path in enumerate(paths(PARENTS)):
        wanted = decoder(torch.cat([before, tree[path]]))[-1]
        torch.testing.assert_close(logits[row], wanted, **TOLERANCE)


def test_keep_an_accepted_path(decoder):
    before, tree, after = (tokens(decoder.config, n) for n in (11, len(PARENTS), 8))
    cache = GrowingCache(decoder.config)
    decoder(before, cache=cache)
    path = paths(PARENTS)[4]
    mask = torch.zeros(len(PARENTS), len(PARENTS), dtype=torch.bool)
    for row, nodes in enumerate(paths(PARENTS)):
        mask[row, nodes] = True
    positions = torch.tensor([11 + len(nodes) - 1 for nodes in paths(PARENTS)])
    decoder(tree, positions, mask, cache)
    cache.keep(11, [11 + node for node in path])
    assert cache.length == 11 + len(path)
    whole = decoder(torch.cat([before, tree[path], after]))[-len(after) :]
    torch.testing.assert_close(decoder(after, cache=cache), whole, **TOLERANCE)


def test_a_failed_pass_leaves_the_cache_as_it_was(decoder, new_cache):
    ids, cache = tokens(decoder.config, 20), new_cache(decoder.config)
    decoder(ids[:12], cache=cache)
    broken = decoder.model.layers[1].mlp
    decoder.model.layers[1].mlp = torch.nn.Linear(3, 3)  # does not fit: the second layer fails
    with pytest.raises(RuntimeError):
        decoder(ids[12:15], cache=cache)
    decoder.model.layers[1].mlp = broken
    assert int(cache.length) == 12
    torch.testing.assert_close(decoder(ids[12:], cache=cache), decoder(ids)[12:], **TOLERANCE)


def test_a_full_static_cache_refuses(decoder):
    cache = StaticCache(decoder.config, 4)
    with pytest.raises((IndexError, RuntimeError), match=r"(?i)index|bounds"):
        decoder(tokens(decoder.config, 5), cache=cache)
