"""What an executor is given wrongly gets one sentence, and the cache stays as it was."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from edge.config import SparseConfig
from edge.errors import ContextError, EdgeError, NativeError, TokenizerError
from edge.quant.scheme import QuantScheme
from tests.steps import forward, memory_of


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


@pytest.mark.parametrize("position", [64, 65, 2**31 - 1, -1])
def test_positions_outside_the_context(executor, refused, position: int):
    for place in (0, 2):
        positions = np.array([10, 11, 12], np.int32)
        positions[place] = position
        refused(
            ContextError,
            lambda cache, at=positions: forward(executor, cache, [1, 2, 3], positions=at),
            match=str(position),
        )


def test_the_last_position_of_the_context(executor):
    cache = executor.new_cache()
    forward(executor, cache, [1, 2, 3], positions=np.array([0, 1, 63], np.int32))
    assert cache.length == 3


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
    memory = memory_of(executor, cache)
    for call in (
        lambda: executor.keep(cache, number, []),
        lambda: executor.keep(cache, 0, [number]),
        lambda: executor.repeat(cache, number + 6),
        lambda: executor.restore(cache, number, memory),
    ):
        with pytest.raises(EdgeError):
            call()
        assert cache.length == 10
        np.testing.assert_array_equal(memory_of(executor, cache), memory)


@pytest.mark.parametrize("length", [9.0, "9", None])
def test_lengths_that_are_no_whole_numbers(open_native, minicpm, make_bundle, tokens_of, length):
    executor = open_native(make_bundle(minicpm()), context=64)
    cache = executor.new_cache()
    forward(executor, cache, tokens_of(executor.config, 10))
    with pytest.raises(EdgeError, match="whole number"):
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


@pytest.mark.parametrize(
    "other",
    [
        {"context": 63},
        {"context": 320},
        {"kv_type": "float16"},
        {"num_key_value_heads": 4},
        {"head_dim": 32, "num_attention_heads": 16},
        {"sparse": SparseConfig(window_size=64, topk=2, dense_len=40)},
    ],
    ids=str,
)
def test_caches_of_another_shape(minicpm, make_bundle, open_native, other):
    """Also where they have as many bytes: a cache is read by its own shape."""
    options = {name: value for name, value in other.items() if name in ("context", "kv_type")}
    fields = {name: value for name, value in other.items() if name not in options}
    ours = open_native(make_bundle(minicpm()), context=64)
    theirs = open_native(make_bundle(minicpm(**fields)), **{"context": 64, **options})
    for executor, cache in ((ours, theirs.new_cache()), (theirs, ours.new_cache())):
        with pytest.raises(NativeError, match="The cache belongs to a model"):
            forward(executor, cache, [1])
        assert cache.length == 0


def nan_in_a_norm(name, weights):
    if name == "model.layers.1.input_layernorm.weight":
        weights[3] = np.nan


def nan_in_the_head(name, weights):
    if name == "lm_head.weight":
        weights[150, 7] = np.nan


def nan_in_the_last_logit(name, weights):
    """203 logits: the last vector of 16 is not full."""
    if name == "lm_head.weight":
        weights[202, 0] = np.nan


def infinity_in_a_linear(name, weights):
    if name == "model.layers.0.mlp.down_proj.weight":
        weights[0, 0] = np.inf


@pytest.mark.parametrize("arithmetic", ["float32", "int8", "torch"])
@pytest.mark.parametrize(
    "damage", [nan_in_a_norm, nan_in_the_head, nan_in_the_last_logit, infinity_in_a_linear]
)
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


def nan_in_a_row(name, weights):
    if name == "model.embed_tokens.weight":
        weights[7, 3] = np.nan


@pytest.mark.parametrize("logits", ["none", "last", "all"])
def test_damage_in_the_last_token_is_seen_without_logits(minicpm, make_bundle, open_native, logits):
    executor = open_native(make_bundle(minicpm(), change=nan_in_a_row))
    cache = executor.new_cache()
    with pytest.raises(NativeError, match="not finite"):
        forward(executor, cache, [1, 2, 7], logits=logits)
    assert cache.length == 0


@pytest.mark.parametrize("kv_type", ["float32", "float16", "int8", "int16", "int4"])
@pytest.mark.parametrize("prefix", [0, 5, 61])
def test_rows_of_a_failed_batch_are_not_seen(minicpm, make_bundle, open_native, kv_type: str, prefix: int):
    """They stay in the memory of the cache, with keys, values and scales that are NaN."""
    executor = open_native(make_bundle(minicpm(), change=nan_in_a_row), kv_type=kv_type, activations="int8")
    used, fresh = executor.new_cache(), executor.new_cache()
    for cache in (used, fresh):
        if prefix:
            forward(executor, cache, [1 + i % 5 for i in range(prefix)])
    with pytest.raises(NativeError, match="not finite"):
        forward(executor, used, [7] * 40)
    assert used.length == prefix
    for tokens in ([3], [4, 5, 6], [3]):
        found = forward(executor, used, tokens, logits="all").logits
        np.testing.assert_array_equal(found, forward(executor, fresh, tokens, logits="all").logits)


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
