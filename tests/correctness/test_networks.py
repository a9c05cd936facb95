"""Native logits of random tiny networks against the fp32 reference over the same dequantized weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from edge.config import RopeConfig
from edge.config.presets import preset
from edge.config.rope import rope_parameters
from edge.executors.native.library import ACTIVATIONS, cpu_tiers
from edge.quant.scheme import QuantScheme
from tests.steps import forward
from tests.toy_scheme import SCHEMES as TOYS

F16 = QuantScheme("f16")
SCHEMES = [
    F16,
    QuantScheme("int8", 32),
    QuantScheme("int8", 128),
    QuantScheme("int8"),
    QuantScheme("int4", 32),
    QuantScheme("int4", 128),
    QuantScheme("int4"),
    QuantScheme("int4", 32, minimum=True),
    QuantScheme("int4", 128, minimum=True),
    QuantScheme("int4", 0, minimum=True),
    QuantScheme("ternary", 128),
    QuantScheme("ternary", 256),
    QuantScheme("ternary"),
    *TOYS,
]
TIERS = ["portable", "avx2", "avx2vnni", "avx512vnni", "neon", "neon-dotprod", "neon-i8mm"]

ROPES = {
    "default": RopeConfig(theta=500000.0),
    "linear": RopeConfig("linear", factor=4.0),
    "dynamic": RopeConfig("dynamic", factor=2.0, original_max_position_embeddings=512),
    "yarn": RopeConfig("yarn", factor=8.0, original_max_position_embeddings=128),
    "longrope-short": RopeConfig(
        "longrope",
        original_max_position_embeddings=1024,
        short_factor=tuple(1 + 0.1 * i for i in range(32)),
        long_factor=tuple(1 + i for i in range(32)),
    ),
    "longrope-long": RopeConfig(
        "longrope",
        original_max_position_embeddings=512,
        short_factor=tuple(1 + 0.1 * i for i in range(32)),
        long_factor=tuple(1 + i for i in range(32)),
    ),
}


@pytest.fixture
def check(open_native, reference, tokens_of, run_all, assert_close):
    """Compare native logits of n random tokens with the reference's."""

    def compare(bundle, n=40, activations="float32", kv_type="float32", **options):
        executor = open_native(bundle, activations=activations, kv_type=kv_type, **options)
        tokens = tokens_of(bundle.config, n)
        found = run_all(executor, executor.new_cache(), tokens)
        wanted = reference(bundle, executor.context)(torch.from_numpy(tokens).long())
        assert_close(found, wanted, f"{activations} {kv_type}")

    return compare


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("heads, kv_heads", [(3, 3), (8, 1), (16, 2), (16, 1), (32, 2)])
def test_attention_shapes(minicpm, make_bundle, check, heads: int, kv_heads: int, head_dim: int, tied: bool):
    """GQA groups of 1, 8 and 16."""
    config = minicpm(
        num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=head_dim, tie_word_embeddings=tied
    )
    check(make_bundle(config))


@pytest.mark.parametrize("head_dim", [16, 48, 96])
def test_unusual_head_dims(minicpm, make_bundle, check, head_dim: int):
    check(make_bundle(minicpm(head_dim=head_dim)))


@pytest.mark.parametrize("mup", ["scale_emb", "scale_depth", "dim_model_base", "none"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_each_mup_scale_alone(minicpm, make_bundle, check, mup: str, tied: bool):
    off = {name: None for name in ("scale_emb", "scale_depth", "dim_model_base") if name != mup}
    check(make_bundle(minicpm(tie_word_embeddings=tied, **off)))


@pytest.mark.parametrize("name", ["minicpm4-0.5b", "minicpm4-8b"])
def test_published_shapes(make_bundle, check, name: str):
    """Two layers of the real networks, with their rotary factors, scales and widths; a small vocabulary."""
    config = replace(
        preset(name),
        num_hidden_layers=2,
        vocab_size=500,
        intermediate_size=700,
        bos_token_id=1,
        eos_token_ids=(2,),
    )
    check(make_bundle(config, QuantScheme("int4", 32)), n=33)


@pytest.mark.parametrize("rope", ROPES.values(), ids=ROPES)
def test_rope_types(minicpm, make_bundle, check, rope: RopeConfig):
    check(make_bundle(minicpm(rope=rope)), n=90)


def test_far_positions(minicpm, make_bundle, open_native, reference, assert_close, tokens_of):
    """Angles of 100,000 radians, where every rounding on the way to them would show."""
    config = minicpm(max_position_embeddings=131072)
    bundle = make_bundle(config)
    executor = open_native(bundle)
    tokens = tokens_of(config, 24)
    positions = np.arange(100_000, 100_024, dtype=np.int32)
    found = forward(executor, executor.new_cache(), tokens, positions=positions, logits="all").logits
    decoder = reference(bundle)
    # One bit of a frequency is 0.006 radians here, so both sides get the same ones.
    frequencies, _ = rope_parameters(config.rope, config.head_dim, 131072, 131072)
    decoder.model.rotary.inverse_frequency.copy_(torch.from_numpy(frequencies))
    wanted = decoder(torch.from_numpy(tokens).long(), torch.from_numpy(positions))
    assert_close(found, wanted)


@pytest.mark.parametrize(
    "sizes",
    [
        {"vocab_size": 16, "hidden_size": 32, "intermediate_size": 32},
        {"vocab_size": 17, "hidden_size": 80, "intermediate_size": 33},
        {"vocab_size": 1000, "hidden_size": 520, "intermediate_size": 1100},
    ],
    ids=lambda sizes: "x".join(map(str, sizes.values())),
)
@pytest.mark.parametrize("scheme", [F16, QuantScheme("int4", 32)], ids=str)
def test_odd_sizes(minicpm, make_bundle, check, sizes: dict[str, int], scheme: QuantScheme):
    check(make_bundle(minicpm(**sizes), scheme))


@pytest.mark.parametrize("activations", ACTIVATIONS)
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_schemes(minicpm, make_bundle, check, scheme: QuantScheme, activations: str):
    """Columns of 144, 272 and 512 leave ragged groups of every kind."""
    check(make_bundle(minicpm(), scheme), activations=activations)


@pytest.mark.parametrize("activations", ACTIVATIONS)
@pytest.mark.parametrize("head", ["int4", "int8", "f16"])
def test_ternary_body_with_another_head(minicpm, make_bundle, check, head: str, activations: str):
    scheme = QuantScheme(head, 0 if head == "f16" else 32)
    check(make_bundle(minicpm(), QuantScheme("ternary", 128), head=scheme), activations=activations)


@pytest.mark.parametrize("kv_type", ["float32", "float16", "int8", "int16", "int4"])
@pytest.mark.parametrize("activations", ACTIVATIONS)
def test_long_sequence(minicpm, make_bundle, check, activations: str, kv_type: str):
    """Several attention chunks, at a length that is no multiple of them."""
    check(
        make_bundle(minicpm(), QuantScheme("int4", 32)),
        n=777,
        max_batch=200,
        activations=activations,
        kv_type=kv_type,
    )


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("activations", ACTIVATIONS)
@pytest.mark.parametrize("scheme", [F16, *SCHEMES[1::3], SCHEMES[-1]], ids=str)
def test_tiers(minicpm, make_bundle, check, tier: str, scheme: QuantScheme, activations: str):
    if tier not in cpu_tiers():
        pytest.skip(f"this CPU cannot run the tier {tier}")
    check(make_bundle(minicpm(), scheme), n=300, tier=tier, activations=activations, kv_type="float16")


def test_mapped_weights_equal_copied_ones(minicpm, make_bundle, open_native, run_all, tokens_of):
    bundle = make_bundle(minicpm(), QuantScheme("int4", 32))
    tokens = tokens_of(bundle.config, 20)
    executors = [open_native(bundle, mmap=mmap) for mmap in (False, True)]
    copied, mapped = (run_all(executor, executor.new_cache(), tokens) for executor in executors)
    np.testing.assert_array_equal(mapped, copied)


def test_every_tier_is_tested():
    assert set(cpu_tiers()) <= set(TIERS)


def test_hidden_states_and_outputs_of_layers(
    minicpm, make_bundle, open_native, reference, tokens_of, assert_close
):
    """Hidden states are normed and not scaled for the head; outputs of layers come in the order asked for."""
    config = minicpm(num_hidden_layers=3)
    bundle = make_bundle(config)
    executor = open_native(bundle)
    tokens = tokens_of(config, 21)
    result = forward(executor, executor.new_cache(), tokens, logits="last", hidden=True, layers=(2, 0, 1))
    decoder = reference(bundle)
    hidden, outputs = decoder.hidden_states(torch.from_numpy(tokens).long(), layers=(2, 0, 1))
    assert_close(result.hidden, hidden)
    assert len(result.layers) == 3
    for found, wanted in zip(result.layers, outputs, strict=True):
        assert_close(found, wanted)
    assert_close(result.logits, decoder.logits(hidden[-1:]))


def test_what_is_not_asked_for_is_not_returned(minicpm, make_bundle, open_native, tokens_of):
    bundle = make_bundle(minicpm())
    executor = open_native(bundle)
    cache = executor.new_cache()
    result = forward(executor, cache, tokens_of(bundle.config, 5), logits="none")
    assert result.logits is None and result.hidden is None and result.layers == ()
    assert cache.length == 5
