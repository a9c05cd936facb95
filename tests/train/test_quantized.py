"""Fake quantization against `edge.quant`, and the way from training steps to the weights that are run."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from edge.checkpoints.gguf import GGUFCheckpoint
from edge.checkpoints.huggingface import HuggingFaceCheckpoint
from edge.config import ModelConfig
from edge.errors import ConfigError
from edge.executors.opening import open_executor
from edge.executors.options import RunOptions
from edge.export.artifact import export_model
from edge.export.options import ExportOptions
from edge.export.source import Source
from edge.formats.bundle.reader import Bundle
from edge.hub.convert import convert
from edge.model.network.decoder import Decoder
from edge.model.weights.checkpoint import save_huggingface
from edge.quant.packing import dequantize
from edge.quant.rounding import quantize
from edge.quant.scheme import QuantScheme
from edge.train.quantized import fake_quantize, quantize_aware, quantized_state
from tests.configs import one_layer
from tests.export.tiny import byte_tokenizer_files
from tests.steps import forward

NAMES = ("ternary", "ternary-g32", "ternary-g64", "ternary-row", "int4", "int4-g64", "int4-g128", "int4-row")
SIZES = (1.0, 0.02, 1e-4, 1e-5, 1e-6, 3e-7, 6e-8, 0.0)


@st.composite
def matrices(draw: st.DrawFn) -> np.ndarray:
    """Rows of mixed sizes, down to those that float16 scales can hardly hold, zeros and ties among them."""
    rows, columns = draw(st.integers(1, 5)), draw(st.integers(1, 300))
    make = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    groups = -(-columns // 32)
    size = make.choice(draw(st.lists(st.sampled_from(SIZES), min_size=1, max_size=3)), (rows, groups))
    matrix = make.standard_normal((rows, columns)) * np.repeat(size, 32, 1)[:, :columns]
    steps = draw(st.sampled_from([0, 1, 4, 16]))  # few different values: ties of the rounding
    if steps:
        matrix = np.rint(matrix * steps / max(np.abs(matrix).max(), 1e-30)) / steps
    return matrix.astype(np.float32)


@settings(max_examples=200, deadline=None)
@given(matrices(), st.sampled_from(NAMES))
def test_values_are_those_of_the_quantizer_and_a_second_time_the_same(matrix: np.ndarray, name: str):
    scheme = QuantScheme.from_name(name)
    found = fake_quantize(torch.from_numpy(matrix), scheme)
    np.testing.assert_array_equal(found.numpy(), quantize(matrix, scheme).dequantize())
    np.testing.assert_array_equal(quantize(found.numpy(), scheme).dequantize(), found.numpy())


@pytest.mark.parametrize("scale", [0.6, 1.4, 1.51, 4.6, 5.6, 6.6, 7.7, 8.5])
def test_the_smallest_int4_scales_keep_their_weights(scale: float):
    """Scales of a few times 2^-24, whose rounding to float16 moved the extreme to another code."""
    matrix = (np.linspace(-7, 8, 32) * scale * 2.0**-24).astype(np.float32)[None]
    once = quantize(matrix, QuantScheme("int4", 32)).dequantize()
    np.testing.assert_array_equal(quantize(once, QuantScheme("int4", 32)).dequantize(), once)
    assert np.abs(once - matrix).max() <= 8 * 2.0**-24


def test_gradients_go_straight_through():
    weight = torch.randn(5, 70, requires_grad=True)
    upstream = torch.randn(5, 70)
    (fake_quantize(weight, QuantScheme("ternary", 32)) * upstream).sum().backward()
    assert torch.equal(weight.grad, upstream)


@pytest.mark.parametrize("name", ["int8", "f16", "int4-min"])
def test_other_schemes_are_refused(name: str):
    with pytest.raises(ConfigError, match="choose ternary or int4"):
        quantize_aware(Decoder(small()), QuantScheme.from_name(name))


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_and_under_autocast_the_bits_are_the_same(backend: str):
    """A compiler that sees the rounding to float16 may leave it out."""
    weight, scheme = torch.randn(16, 96, requires_grad=True), QuantScheme("int4", 32)
    wanted = fake_quantize(weight, scheme)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fake_quantize(weight, scheme), wanted)
        found = torch.compile(lambda w: fake_quantize(w, scheme) * 1, fullgraph=True, backend=backend)(weight)
    assert torch.equal(found, wanted)
    found.sum().backward()
    assert torch.equal(weight.grad, torch.ones_like(weight))


def small(**changes: object) -> ModelConfig:
    return one_layer(
        **{
            "vocab_size": 300, "hidden_size": 160, "intermediate_size": 288, "num_hidden_layers": 2,
            "num_attention_heads": 5, **changes,
        }
    )  # fmt: skip


def fresh(config: ModelConfig) -> Decoder:
    torch.manual_seed(5)
    return Decoder(config)


def steps(decoder: Decoder, count: int = 3) -> list[float]:
    """Training steps on a text of its own; the losses."""
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=3e-3)
    tokens = torch.randint(96, (2, 17), generator=torch.Generator().manual_seed(1))
    losses = []
    for _ in range(count):
        logits = decoder(tokens[:, :-1])
        loss = functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_only_matrices_of_the_layers_change_and_no_name_does():
    plain, decoder = fresh(small()), quantize_aware(fresh(small()), QuantScheme("ternary", 64))
    assert list(plain.state_dict()) == list(decoder.state_dict())
    assert [name for name, _ in plain.named_parameters()] == [name for name, _ in decoder.named_parameters()]
    state, floats = quantized_state(decoder), plain.state_dict()
    changed = {name for name in floats if not torch.equal(state[name], floats[name])}
    assert changed == {name for name in floats if "_proj" in name} and len(changed) == 14
    assert all(torch.equal(decoder.state_dict()[name], floats[name]) for name in floats)


def test_the_network_that_trains_is_the_network_of_its_quantized_state():
    config = small()
    decoder = quantize_aware(fresh(config), QuantScheme("ternary", 32))
    losses = steps(decoder, 20)
    assert losses[-1] < 0.5 * losses[0]
    tokens = torch.arange(11)
    saved = Decoder.from_tensors(config, quantized_state(decoder))
    assert torch.equal(saved(tokens), decoder(tokens))
    # And called with another scheme it trains on for that.
    again = quantize_aware(decoder, QuantScheme("int4", 32))
    assert not torch.equal(saved(tokens), again(tokens))


def test_layers_that_run_again_in_the_backward_pass_learn_the_same():
    plain, again = (quantize_aware(fresh(small()), QuantScheme("int4", 32)) for _ in range(2))
    again.model.gradient_checkpointing = True
    assert steps(plain) == steps(again)


def test_a_sharded_network_learns_the_same_and_gives_whole_tensors(tmp_path: Path):
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    plain, sharded = (quantize_aware(fresh(small()), QuantScheme("ternary", 64)) for _ in range(2))
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        for layer in sharded.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(sharded, mesh=mesh)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert steps(plain) == steps(sharded)
        found, wanted = quantized_state(sharded), quantized_state(plain)
    finally:
        distributed.destroy_process_group()
    assert found.keys() == wanted.keys()
    assert all(type(found[name]) is Tensor and torch.equal(found[name], wanted[name]) for name in wanted)


def trained(scheme: QuantScheme, config: ModelConfig) -> Decoder:
    """A network after some steps, with groups that round to nothing; its ends fit in float16."""
    decoder = quantize_aware(fresh(config), scheme)
    steps(decoder)
    with torch.no_grad():
        layer = decoder.model.layers[0]
        layer.mlp.up_proj.weight[3, :64] *= 1e-6
        layer.mlp.up_proj.weight[4] = 0
        layer.self_attn.k_proj.weight[:, 32:96] *= 1e-4
        # Both halves of every group of 64 in one size: a reader finds a larger group than was trained.
        layer.self_attn.o_proj.weight.copy_(layer.self_attn.o_proj.weight.sign() * 0.125)
        for ends in (decoder.model.embed_tokens, decoder.lm_head):
            ends.weight.copy_(ends.weight.half())
    return decoder


@pytest.mark.parametrize("name", ["ternary", "ternary-g32", "ternary-row", "int4", "int4-row"])
def test_the_bundle_holds_the_weights_that_were_trained(tmp_path: Path, name: str):
    config, scheme = small(), QuantScheme.from_name(name)
    decoder = trained(scheme, config)
    state = quantized_state(decoder)
    save_huggingface(tmp_path / "saved", config, state, tokenizer_files=byte_tokenizer_files())
    kind = name if scheme.kind == "int4" else "ternary"
    convert(HuggingFaceCheckpoint(tmp_path / "saved"), tmp_path / "bundle", quantize=kind, head="f16")
    bundle = Bundle.open(tmp_path / "bundle")
    for key, tensor in bundle.tensors.items():
        if "_proj" in key:
            assert tensor.scheme.kind == scheme.kind
        found = dequantize(bundle.data(key), tensor.scheme, tensor.rows, tensor.columns)
        np.testing.assert_array_equal(found.reshape(tensor.shape), state[key].numpy(), err_msg=key)
    tokens = [3, 1, 4, 1, 5, 9, 2, 6, 5]
    wanted = decoder(torch.tensor(tokens)).detach().numpy()
    executor = open_executor(bundle, RunOptions(activations="float32", kv_type="float32", threads=2))
    try:
        logits = forward(executor, executor.new_cache(), tokens, logits="all").logits
    finally:
        executor.close()
    # The tolerance of exact activations in tests/correctness/conftest.py.
    assert np.abs(logits - wanted).max() <= 5e-5 * wanted.std()


@pytest.mark.parametrize(("name", "stored"), [("ternary-row", "TQ2_0"), ("int4", "Q4_0")])
def test_gguf_holds_the_weights_that_were_trained(tmp_path: Path, name: str, stored: str):
    config = small(
        vocab_size=300,
        eos_token_ids=(2,),
        bos_token_id=1,
        hidden_size=256,
        intermediate_size=512,
        num_attention_heads=8,
        num_hidden_layers=1,
    )
    scheme = QuantScheme.from_name(name)
    state = quantized_state(trained(scheme, config))
    save_huggingface(tmp_path / "saved", config, state, tokenizer_files=byte_tokenizer_files())
    convert(HuggingFaceCheckpoint(tmp_path / "saved"), tmp_path / "bundle", quantize=scheme.kind, head="f16")
    source = Source(Bundle.open(tmp_path / "bundle"))
    artifact = export_model(source, ExportOptions("gguf"), tmp_path / "gguf")
    types = artifact.manifest.quantization.tensors
    assert {types[key] for key in state if "_proj" in key} == {stored}
    found = GGUFCheckpoint(artifact.model)
    for key, tensor in state.items():
        np.testing.assert_array_equal(found.read_float32(key), tensor.numpy(), err_msg=key)
