"""What families add to a Llama in the native decoder: biases, norms of heads, what is not rotated.

The truth is the PyTorch network, and at the end the families' own classes in transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edge.checkpoints.huggingface import HuggingFaceCheckpoint
from edge.config import ModelConfig, RopeConfig, SparseConfig
from edge.config.families import Family
from edge.config.roles import DECODER, QK_NORMS, QKV_BIASES, Role
from edge.errors import EdgeError
from edge.executors.native.executor import NativeExecutor
from edge.executors.native.library import ACTIVATIONS, KV_TYPE, cpu_tiers
from edge.executors.protocol import SequenceStep
from edge.formats.bundle.reader import Bundle
from edge.hub.convert import convert
from edge.model.attention.mode import use_attention_mode
from edge.quant.scheme import QuantScheme
from tests.export.tiny import byte_tokenizer_files
from tests.family_networks import CASES, LENGTH, TOKENS, theirs
from tests.oak import OAK, registered
from tests.oak import oak as oak_of
from tests.steps import TREE, forward, paths, tree_masks

INT4 = QuantScheme("int4", 32)
PARTIAL = RopeConfig("yarn", factor=8.0, original_max_position_embeddings=128, rotary_dim=48)
SPARSE = SparseConfig(init_blocks=1, window_size=128, topk=3, dense_len=200)
MODES = [("float32", "float32"), ("int8", "int16"), ("int8", "int8"), ("int16", "int4")]
ONE_PART = {"biases": (*DECODER, *QKV_BIASES), "norms": (*DECODER, *QK_NORMS), "rope": DECODER}


@pytest.fixture(autouse=True)
def families() -> Iterator[None]:
    with registered(OAK):
        yield


@pytest.fixture
def oak(minicpm) -> Callable[..., ModelConfig]:
    """`oak(field=value, ...)`: a network with everything, muP scales and a factor on cos and sin among it."""
    return lambda **changes: oak_of(minicpm(**{"rope": PARTIAL, **changes}))


@pytest.fixture(params=MODES, ids="-".join)
def executor(request, oak, make_bundle, open_native) -> NativeExecutor:
    activations, kv_type = request.param
    return open_native(make_bundle(oak(), INT4), activations=activations, kv_type=kv_type, max_batch=320)


@pytest.mark.parametrize("part", ONE_PART)
def test_each_part_alone(
    part: str, minicpm, make_bundle, open_native, reference, run_all, tokens_of, assert_close
):
    with registered(Family(f"elm-{part}", "ElmForCausalLM", roles=ONE_PART[part])):
        config = minicpm(model_type=f"elm-{part}", num_hidden_layers=3)
        if part == "rope":
            config = replace(config, layers_without_rope=(0, 2))
        bundle = make_bundle(config)
        tokens = tokens_of(config, 90)
        executor = open_native(bundle)
        found = run_all(executor, executor.new_cache(), tokens)
        assert_close(found, reference(bundle)(torch.from_numpy(tokens).long()))


@pytest.mark.parametrize("tier", cpu_tiers())
@pytest.mark.parametrize("mode", MODES, ids="-".join)
def test_all_parts_together(
    tier: str, mode, oak, make_bundle, open_native, reference, run_all, tokens_of, assert_close
):
    activations, kv_type = mode
    bundle = make_bundle(oak(num_hidden_layers=3), INT4)
    executor = open_native(bundle, tier=tier, activations=activations, kv_type=kv_type)
    tokens = tokens_of(bundle.config, 300)
    found = run_all(executor, executor.new_cache(), tokens)
    wanted = reference(bundle, executor.context)(torch.from_numpy(tokens).long())
    assert_close(found, wanted, f"{activations} {kv_type}")


@pytest.mark.parametrize(
    "shape",
    [
        {"head_dim": 16, "rope": replace(PARTIAL, rotary_dim=4)},
        {"num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 48, "rope": RopeConfig()},
        {"num_attention_heads": 5, "num_key_value_heads": 1, "head_dim": 80, "hidden_size": 100},
    ],
    ids=["16", "48", "80"],
)
def test_odd_sizes(shape, oak, make_bundle, open_native, reference, run_all, tokens_of, assert_close):
    """Heads of less than a vector, and rows of q and k that fill no whole tile."""
    bundle = make_bundle(oak(**shape))
    executor = open_native(bundle)
    tokens = tokens_of(bundle.config, 70)
    found = run_all(executor, executor.new_cache(), tokens)
    assert_close(found, reference(bundle, executor.context)(torch.from_numpy(tokens).long()))


@pytest.mark.parametrize("chunks", [(1,), (1, 2, 3, 100)], ids=str)
def test_any_chunking_gives_the_same_bits(executor, run_all, tokens_of, chunks):
    tokens = tokens_of(executor.config, 270)
    whole = run_all(executor, executor.new_cache(), tokens)
    np.testing.assert_array_equal(run_all(executor, executor.new_cache(), tokens, chunks), whole)


def test_a_pass_of_several_sequences_a_tree_and_a_shared_prefix(executor, run_all, tokens_of):
    """A fork goes on like what it was made of, beside a tree, whose nodes see their paths alone."""
    tokens, tree = tokens_of(executor.config, 80), tokens_of(executor.config, len(TREE), seed=3)
    prefix, cold = executor.new_cache(), executor.new_cache()
    run_all(executor, prefix, tokens[:61])
    wanted = run_all(executor, cold, tokens)
    fork, grown = executor.fork(prefix, 37), executor.fork(prefix, 61)
    positions = np.array([60 + len(path) for path in paths(TREE)], np.int32)
    found = executor.forward(
        [
            SequenceStep(fork, tokens[37:], logits="all"),
            SequenceStep(grown, tree, positions=positions, tree=tree_masks(TREE), logits="all"),
        ]
    )
    np.testing.assert_array_equal(found[0].logits, wanted[37:])
    for node, path in enumerate(paths(TREE)):
        alone = run_all(executor, executor.new_cache(), np.concatenate([tokens[:61], tree[path]]))
        np.testing.assert_array_equal(found[1].logits[node], alone[-1])


def test_sparse_attention(oak, make_bundle, open_native, reference, run_all, tokens_of, assert_close):
    bundle = make_bundle(oak(num_attention_heads=16, sparse=SPARSE), INT4)
    executor = open_native(bundle)
    tokens = tokens_of(bundle.config, 620)
    found = run_all(executor, executor.new_cache(), tokens)
    decoder = reference(bundle, executor.context)
    with torch.no_grad():
        dense = decoder(torch.from_numpy(tokens).long()).numpy()
        use_attention_mode(decoder, "sparse")
        assert_close(found, decoder(torch.from_numpy(tokens).long()))
    assert np.abs(found - dense).max() > 0.01 * dense.std()


def test_new_weights(oak, make_bundle, open_native, tokens_of):
    """Every bias and norm can be replaced; in the end the network is the other one."""
    floats: dict[str, np.ndarray] = {}

    def remember(name: str, values: np.ndarray) -> None:
        floats[name] = values.copy()

    old, new = (
        open_native(make_bundle(oak(), INT4, seed=seed, change=remember if seed == 2 else None))
        for seed in (1, 2)
    )
    tokens = tokens_of(old.config, 20)

    def logits(executor: NativeExecutor) -> np.ndarray:
        return forward(executor, executor.new_cache(), tokens, logits="all").logits

    vectors = [name for name in floats if name.endswith("bias") or "_norm." in name]
    assert len(vectors) == 2 * 5
    for name in vectors:
        before = logits(old)
        old.update({name: floats.pop(name)})
        assert not np.array_equal(logits(old), before), name
    old.update(floats)
    np.testing.assert_array_equal(logits(old), logits(new))


def test_a_part_that_no_kernel_computes_is_refused(minicpm, make_bundle, open_native):
    bias = Role("self_attn.o_proj.bias", ("hidden",), "attention biases", joins_stream=True)
    with registered(Family("elm", "ElmForCausalLM", roles=(*DECODER, bias))):
        bundle = make_bundle(minicpm(model_type="elm"))
        with pytest.raises(
            EdgeError, match="native executor does not compute attention biases, which this elm"
        ):
            open_native(bundle)


@pytest.fixture
def of_transformers(tmp_path: Path) -> Callable[[str], tuple[Bundle, Any]]:
    """`of_transformers(case)`: a bundle of float16 weights, and their logits from the family's own class."""

    def make(name: str) -> tuple[Bundle, Any]:
        model = theirs(CASES[name])
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.copy_(parameter.half())
        folder = tmp_path / name
        model.save_pretrained(folder)
        for file, data in byte_tokenizer_files().items():
            (folder / file).write_bytes(data)
        convert(HuggingFaceCheckpoint(folder), tmp_path / "bundle", quantize="f16")
        return Bundle.open(tmp_path / "bundle"), model(TOKENS[None]).logits[0]

    return make


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_transformers(name: str, of_transformers, open_native, run_all, assert_close):
    bundle, wanted = of_transformers(name)
    executor = open_native(bundle, max_batch=LENGTH)
    found = run_all(executor, executor.new_cache(), TOKENS.numpy().astype(np.int32), (LENGTH - 20, 1, 19))
    assert_close(found, wanted)


def test_what_is_tested_is_all_there_is():
    assert {activations for activations, _ in MODES} == {*ACTIVATIONS}
    assert {kv_type for _, kv_type in MODES} == {*KV_TYPE} - {"float16"}
