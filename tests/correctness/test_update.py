"""New weights for an open executor: what it then computes is what a bundle of those weights gives."""

from __future__ import annotations

import numpy as np
import pytest

from edge.errors import CheckpointError, EdgeError
from edge.executors.protocol import TakesWeights
from edge.quant.scheme import QuantScheme
from tests.steps import forward

SCHEMES = [
    QuantScheme("int4", 32),
    QuantScheme("int4", 128, minimum=True),
    QuantScheme("int8", 32),
    QuantScheme("f16"),
]


@pytest.fixture
def floats() -> dict[str, np.ndarray]:
    """The tensors of every bundle that `remember` was the change of."""
    return {}


@pytest.fixture
def pair(minicpm, make_bundle, open_native, floats):
    """`pair(scheme, **fields)`: two executors of one network with different weights, those of the second in
    `floats`.
    """

    def remember(name: str, values: np.ndarray) -> None:
        floats[name] = values.copy()

    def make(scheme: QuantScheme, **fields):
        config = minicpm(**fields)
        options = {"activations": "int8", "kv_type": "int16"}
        old = open_native(make_bundle(config, scheme, seed=1), **options)
        return old, open_native(make_bundle(config, scheme, seed=2, change=remember), **options)

    return make


def logits(executor, tokens) -> np.ndarray:
    return forward(executor, executor.new_cache(), tokens, logits="all").logits


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("tied", [True, False])
def test_all_weights_at_once(pair, floats, tokens_of, scheme: QuantScheme, tied: bool):
    old, new = pair(scheme, tie_word_embeddings=tied)
    tokens = tokens_of(old.config, 60)
    assert isinstance(old, TakesWeights)
    before, identity = logits(old, tokens), dict(old.cache_identity)
    assert not np.array_equal(before, logits(new, tokens))
    old.update(floats)
    np.testing.assert_array_equal(logits(old, tokens), logits(new, tokens))
    changed = {name for name, value in old.cache_identity.items() if value != identity[name]}
    assert changed == {"model"}


def test_one_tensor_after_the_other(pair, floats, tokens_of):
    """In the end all of them are the new ones; every step changes the answer."""
    old, new = pair(QuantScheme("int4", 32))
    tokens = tokens_of(old.config, 20)
    seen = [logits(old, tokens)]
    for name, values in floats.items():
        old.update({name: values})
        seen.append(logits(old, tokens))
        assert not np.array_equal(seen[-1], seen[-2]), name
    np.testing.assert_array_equal(seen[-1], logits(new, tokens))


def test_what_is_wrong_changes_nothing(pair, floats, tokens_of):
    old, _ = pair(QuantScheme("int4", 32))
    tokens = tokens_of(old.config, 20)
    before = logits(old, tokens)
    name = next(name for name in floats if name.endswith("q_proj.weight"))
    good, wrong = floats[name], floats[name].copy()
    wrong[3, 5] = np.nan
    far = np.full_like(good, 1e30)
    for tensors, kind, words in (
        ({name: good, "model.layers.9.q": good}, EdgeError, "no tensor 'model.layers.9.q'"),
        ({name: good[:-1]}, EdgeError, "float tensor of shape"),
        ({name: good.astype(np.int32)}, EdgeError, "int32"),
        ({name: wrong}, EdgeError, "not finite"),
        ({name: far}, CheckpointError, name),
    ):
        with pytest.raises(kind, match=words):
            old.update(tensors)
    old.update({})
    np.testing.assert_array_equal(logits(old, tokens), before)
