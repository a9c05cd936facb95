"""The needle test on the native executor: the same answers as the network in PyTorch gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edge.config import SparseConfig
from edge.executors.opening import open_executor
from edge.executors.options import RunOptions
from edge.model.attention.mode import attend_function
from edge.model.weights.checkpoint import reference_from_bundle
from edge.train import long_needle, needle

SPARSE = SparseConfig(window_size=128, topk=3, dense_len=256)
LENGTH = 32 * (long_needle.SPAN + 1) + 200


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """The network before any training, which answers all kinds of things."""
    decoder = needle.new_decoder(1024, 0)
    return long_needle.write_bundle(decoder, tmp_path_factory.mktemp("needle") / "bundle", SPARSE)


@pytest.mark.parametrize("attention", ["dense", "sparse"])
def test_an_executor_answers_as_the_network_does(bundle, attention):
    decoder = reference_from_bundle(bundle)
    decoder.use_attention(attend_function(SPARSE if attention == "sparse" else None))
    run = RunOptions(kv_type="float32", activations="float32", attention=attention)
    executor = open_executor(bundle, run)
    right = []
    for tokens, wanted in long_needle.questions(2, LENGTH):
        assert tokens.shape == (LENGTH,) and wanted.min() >= needle.ANSWERS_AT
        logits = decoder(torch.from_numpy(tokens)[None])[0, -needle.KEYS :]
        found = logits.argmax(-1).numpy()
        assert len(set(found.tolist())) > 3
        np.testing.assert_array_equal(long_needle.answers(executor, tokens), found)
        right.append(found == wanted)
    assert long_needle.recall(executor, 2, LENGTH) == np.mean(right)
    executor.close()
