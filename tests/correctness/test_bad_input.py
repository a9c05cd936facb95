"""What an executor is given wrongly gets one sentence, and the cache stays as it was."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from edge.errors import ContextError, EdgeError, NativeError, TokenizerError
from edge.quant.scheme import QuantScheme
from tests.steps import forward


@pytest.fixture(params=["native", "torch"])
def executor(request, minicpm, make_bundle, open_native, open_reference):
    open_one = open_native if request.param == "native" else open_reference
    return open_one(make_bundle(minicpm()), context=64, max_batch=48)


@pytest.fixture
def refused(executor, tokens_of, run_all) -> Callable[..., None]:
    """Check that a call raises one sentence and changes nothing for the calls after it."""

    def check(error: type[EdgeError], call: Callable[[object], object], match: str | None = None) -> None:
        tokens = tokens_of(executor.config, 20)
        cache, other = executor.new_cache(), executor.new_cache()
        run_all(executor, cache, tokens[:10])
        run_all(executor, other, tokens[:10])
        with pytest.raises(error, match=match) as caught:
            call(cache)
        message = str(caught.value)
        assert message.endswith(".") and "\n" not in message and len(message) > 20
        assert cache.length == 10
        np.testing.assert_array_equal(
            run_all(executor, cache, tokens[10:]), run_all(executor, other, tokens[10:])
        )

    return check


@pytest.mark.parametrize("token", [-1, 203, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize("place", [0, 3])
def test_token_outside_the_vocabulary(executor, refused, token: int, place: int):
    tokens = [5, 6, 7, 8]
    tokens[place] = token
    refused(TokenizerError, lambda cache: forward(executor, cache, tokens), match=str(token))


def test_token_beyond_32_bits(executor, refused):
    refused(EdgeError, lambda cache: forward(executor, cache, [2**40]))


def test_too_long_a_prompt(executor, run_all, tokens_of):
    tokens = tokens_of(executor.config, 64)
    cache = executor.new_cache()
    run_all(executor, cache, tokens, (40, 24))
    assert cache.length == cache.capacity == executor.context == 64
    with pytest.raises(ContextError, match="64"):
        forward(executor, cache, [1])
    assert cache.length == 64


def test_a_batch_that_does_not_fit_any_more(executor, refused, tokens_of):
    def call(cache):
        forward(executor, cache, tokens_of(executor.config, 38))
        forward(executor, cache, tokens_of(executor.config, 48))

    def fill(cache):
        try:
            call(cache)
        finally:
            executor.truncate(cache, 10)

    refused(ContextError, fill)


def test_no_tokens(executor, refused):
    refused(EdgeError, lambda cache: forward(executor, cache, []))


def test_too_large_a_batch(executor, refused):
    refused(EdgeError, lambda cache: forward(executor, cache, [1] * 49), match="48")


@pytest.mark.parametrize("positions", [[10, 11], [10, 11, 12, 13], [[10, 11, 12]], [10, -1, 12]], ids=str)
def test_wrong_positions(executor, refused, positions):
    array = np.array(positions, np.int32)
    refused(EdgeError, lambda cache: forward(executor, cache, [1, 2, 3], positions=array))


@pytest.mark.parametrize("tree", [[1, 3], [1, 3, 7, 15], [1, 1, 7], [1, 7, 7]], ids=str)
def test_wrong_trees(executor, refused, tree):
    """Too short, too long, a token that does not see itself, a token that sees a later one."""
    masks = np.array(tree, np.uint64)
    refused(EdgeError, lambda cache: forward(executor, cache, [1, 2, 3], tree=masks))


@pytest.mark.parametrize("kind", ["native", "torch"])
def test_too_large_a_tree(minicpm, make_bundle, open_native, open_reference, kind: str):
    executor = (open_native if kind == "native" else open_reference)(make_bundle(minicpm()))
    masks = np.full(65, 2**64 - 1, np.uint64)
    with pytest.raises(EdgeError, match="64"):
        forward(executor, executor.new_cache(), [1] * 65, tree=masks)


@pytest.mark.parametrize("layers", [(2,), (-1,), (0, 99)], ids=str)
def test_layers_that_are_not_there(executor, refused, layers):
    refused(EdgeError, lambda cache: forward(executor, cache, [1], layers=layers), match="no layer")


def test_unknown_logits(executor, refused):
    refused(EdgeError, lambda cache: forward(executor, cache, [1], logits="some"))


WRAPPED = [2**32 + 5, 2**33 + 1, 2**64 + 5, -(2**32) + 5]
"""A length within the cache, if the bits above the 32nd or the 64th were dropped."""


@pytest.mark.parametrize("length", [-1, 11, 2**31 - 1, *WRAPPED])
def test_truncate_to_a_wrong_length(executor, refused, length: int):
    refused(EdgeError, lambda cache: executor.truncate(cache, length))


@pytest.mark.parametrize(
    "n, rows", [(5, [7, 6]), (5, [6, 6]), (5, [4]), (5, [10]), (5, [-1]), (11, []), (-1, [])], ids=str
)
def test_keep_of_wrong_rows(executor, refused, n: int, rows: list[int]):
    refused(EdgeError, lambda cache: executor.keep(cache, n, rows))


@pytest.mark.parametrize("number", WRAPPED)
def test_numbers_that_do_not_fit(open_native, minicpm, make_bundle, tokens_of, number: int):
    executor = open_native(make_bundle(minicpm()), context=64)
    cache = executor.new_cache()
    forward(executor, cache, tokens_of(executor.config, 10))
    memory = executor.cache_memory(cache).copy()
    for call in (
        lambda: executor.keep(cache, number, []),
        lambda: executor.keep(cache, 0, [number]),
        lambda: executor.repeat(cache, number + 6),
        lambda: executor.restore(cache, number, memory),
    ):
        with pytest.raises(NativeError):
            call()
        assert cache.length == 10
        np.testing.assert_array_equal(executor.cache_memory(cache), memory)


@pytest.mark.parametrize("length", [9.0, "9", None])
def test_lengths_that_are_no_whole_numbers(open_native, minicpm, make_bundle, tokens_of, length):
    executor = open_native(make_bundle(minicpm()), context=64)
    cache = executor.new_cache()
    forward(executor, cache, tokens_of(executor.config, 10))
    with pytest.raises(NativeError, match="must be a whole number"):
        executor.truncate(cache, length)
    executor.truncate(cache, np.int64(9))
    assert cache.length == 9


@pytest.mark.parametrize(
    "options",
    [
        {"context": 0},
        {"context": -5},
        {"max_batch": 0},
        {"threads": -1},
        {"threads": 100_000},
        {"tier": "mmx"},
        {"activations": "int3"},
        {"kv_type": "float8"},
    ],
    ids=str,
)
def test_wrong_options(minicpm, make_bundle, open_native, options):
    with pytest.raises(EdgeError) as caught:
        open_native(make_bundle(minicpm()), **options)
    assert str(caught.value).endswith(".")


def test_context_beyond_the_model(minicpm, make_bundle, open_native):
    bundle = make_bundle(minicpm(max_position_embeddings=128))
    with pytest.raises(ContextError, match=r"129.*128"):
        open_native(bundle, context=129)


def test_closed_executor(executor):
    cache = executor.new_cache()
    executor.close()
    executor.close()
    for call in (executor.new_cache, lambda: forward(executor, cache, [1])):
        with pytest.raises(EdgeError):
            call()


@pytest.mark.parametrize("kind", ["native", "torch"])
def test_cache_of_another_executor(minicpm, make_bundle, open_native, open_reference, kind: str):
    open_one = open_native if kind == "native" else open_reference
    small, large = (open_one(make_bundle(minicpm(num_hidden_layers=n))) for n in (1, 2))
    with pytest.raises(EdgeError):
        forward(large, small.new_cache(), [1])


def nan_in_a_norm(name, weights):
    if name == "model.layers.1.input_layernorm.weight":
        weights[3] = np.nan


def nan_in_the_head(name, weights):
    if name == "lm_head.weight":
        weights[150, 7] = np.nan


def infinity_in_a_linear(name, weights):
    if name == "model.layers.0.mlp.down_proj.weight":
        weights[0, 0] = np.inf


@pytest.mark.parametrize("arithmetic", ["float32", "int8", "torch"])
@pytest.mark.parametrize("damage", [nan_in_a_norm, nan_in_the_head, infinity_in_a_linear])
def test_damaged_weights(minicpm, make_bundle, open_native, open_reference, damage, arithmetic: str):
    bundle = make_bundle(minicpm(), change=damage)
    if arithmetic == "torch":
        executor = open_reference(bundle)
    else:
        executor = open_native(bundle, activations=arithmetic)
    cache = executor.new_cache()
    with pytest.raises(NativeError) as caught:
        forward(executor, cache, [1, 2, 3])
    assert str(caught.value).endswith(".")
    assert cache.length == 0


def test_damaged_scale(minicpm, make_bundle, open_native, tmp_path):
    """A NaN among the scales of packed int4 weights."""
    from edge.formats.bundle.reader import Bundle
    from edge.formats.bundle.writer import BundleWriter

    good = make_bundle(minicpm(), QuantScheme("int4", 32))
    with BundleWriter(tmp_path / "bad", good.config, "damaged", list(good.tensors.values())) as writer:
        for name in good.tensors:
            data = good.data(name).copy()
            if name == "model.layers.0.self_attn.o_proj.weight":
                data[256:258] = np.array([np.nan], np.float16).view(np.uint8)
            writer.write(name, data)
    executor = open_native(Bundle.open(tmp_path / "bad"))
    with pytest.raises(NativeError):
        forward(executor, executor.new_cache(), [1, 2, 3])
