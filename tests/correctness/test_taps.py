"""Residual streams after chosen layers, of every kind of pass: what drafts with taps read.

The native executor against the PyTorch decoder, whose passes see a sequence as a whole.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from edge.config import SparseConfig
from edge.executors.opening import open_executor
from edge.executors.options import RunOptions
from edge.executors.protocol import SequenceStep
from edge.model.weights.checkpoint import reference_from_bundle
from tests.steps import TREE, forward, paths, tree_masks

TAPS = (4, 0, 2)
SPARSE = SparseConfig(dense_len=128, window_size=128, init_blocks=1, topk=2)


@pytest.fixture(scope="module")
def bundle(minicpm, make_bundle) -> Any:
    return make_bundle(minicpm(num_hidden_layers=5, vocab_size=96))


def some(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 96, n, dtype=np.int32)


def assert_rows(found: tuple[np.ndarray, ...], stream: list[torch.Tensor], rows: slice | list[int]) -> None:
    assert len(found) == len(TAPS)
    for layer, each in zip(TAPS, found, strict=True):
        np.testing.assert_allclose(each, stream[layer][rows].numpy(), rtol=2e-4, atol=2e-3)


@pytest.mark.parametrize("name", ["native", "torch"])
def test_a_pass_of_several_sequences(bundle, open_native, open_reference, name):
    """A prompt's piece, a tree behind the last token, a single token, and one that wants no layers."""
    executor = open_native(bundle) if name == "native" else open_reference(bundle)
    decoder = reference_from_bundle(bundle)
    prompt, rooted, single, other = some(70, 1), some(20, 2), some(9, 3), some(4, 4)
    nodes, caches = some(len(TREE), 5), [executor.new_cache() for _ in range(4)]
    found = [forward(executor, caches[0], prompt[:40], logits="none", layers=TAPS).layers]
    forward(executor, caches[1], rooted, layers=TAPS)
    forward(executor, caches[2], single[:-1], logits="none")
    depths = [len(path) - 1 for path in paths(TREE)]
    steps = [
        SequenceStep(caches[0], prompt[40:], logits="none", layers=TAPS),
        SequenceStep(
            caches[1],
            nodes,
            tree=tree_masks(TREE),
            positions=np.array(depths, np.int32) + len(rooted),
            logits="all",
            layers=TAPS,
        ),
        SequenceStep(caches[3], other, hidden=True),
        SequenceStep(caches[2], single[-1:], layers=TAPS),
    ]
    results = executor.forward(steps)
    assert all(result.error is None for result in results) and results[2].layers == ()
    found.append(results[0].layers)
    stream = decoder.trunk(torch.from_numpy(prompt)).stream
    assert_rows(found[0], stream, slice(0, 40))
    assert_rows(found[1], stream, slice(40, 70))
    for node, path in enumerate(paths(TREE)):
        whole = torch.from_numpy(np.concatenate([rooted, nodes[path]]))
        assert_rows(
            tuple(each[node : node + 1] for each in results[1].layers), decoder.trunk(whole).stream, [-1]
        )
    assert_rows(results[3].layers, decoder.trunk(torch.from_numpy(single)).stream, [-1])


def test_beyond_the_dense_length(minicpm, make_bundle):
    """Sparse attention, in pieces and then with a chain of guesses, as PyTorch's own."""
    bundle = make_bundle(minicpm(num_hidden_layers=5, vocab_size=96, sparse=SPARSE))
    exact = {"activations": "float32", "kv_type": "float32", "threads": 2}
    tokens, kept = some(330, 6), []
    for name, options in (("native", exact), ("torch", {})):
        executor = open_executor(bundle, RunOptions(executor=name, max_batch=128, **options))
        assert executor.info.sparse is not None
        cache, rows = executor.new_cache(), []
        for first, last in ((0, 128), (128, 250), (250, 320), (320, 321), (321, 330)):
            wanted = "all" if last == 330 else "none"
            rows.append(forward(executor, cache, tokens[first:last], logits=wanted, layers=TAPS).layers)
        kept.append([np.concatenate(each) for each in zip(*rows, strict=True)])
        executor.close()
    for ours, theirs in zip(*kept, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=2e-3)
