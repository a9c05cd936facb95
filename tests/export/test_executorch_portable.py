"""The portable flavour in the real runtime: near the truth, and packed as ExecuTorch itself does it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge.config.tensors import HEAD
from edge.executors.executorch.executor import ExecuTorchExecutor
from edge.executors.opening import open_executor
from edge.executors.options import RunOptions
from edge.export.artifact import check_artifact, export_model
from edge.export.options import ExportOptions
from edge.export.targets.executorch.weights import PortableWeights, portable_weights, stacked
from edge.formats.artifact.folder import Artifact
from edge.quant.rounding import quantize
from edge.quant.scheme import QuantScheme
from tests.export.tiny import PARTIAL, llama_config, make_source, minicpm_config
from tests.steps import forward

pytest.importorskip("executorch", reason="the package executorch is not installed")

CONTEXT = 150  # not a multiple of the rows that attention reads together
DIVERGENCE = 1e-4  # nats: activations are int8 per token, and scales bfloat16
ROUNDING = 0.05  # of the largest logit: a value of an activation may fall on the other side of a step
SCHEMES = ("int4-g32-min", "int4-row")


def mixed(weights) -> None:
    """Matrices of one layer that can't be one matrix of XNNPACK's, and a ragged last group."""
    changes = {
        "self_attn.k": "int8-row",
        "self_attn.v": "int4-g96",
        "mlp.up": "int4-g64",
        "mlp.down": "ternary-g128",
    }
    for part, scheme in changes.items():
        name = f"model.layers.0.{part}_proj.weight"
        weights[name] = quantize(weights[name].dequantize(), QuantScheme.parse(scheme))


@pytest.fixture(scope="module", params=[*SCHEMES, "mixed", "oak"])
def artifact(request, tmp_path_factory: pytest.TempPathFactory, oak) -> Artifact:
    """Two layers with muP scales, LongRoPE and an untied head; of an oak everything beyond a Llama, too."""
    folder = tmp_path_factory.mktemp("portable")
    config = oak(minicpm_config(rope=PARTIAL)) if request.param == "oak" else minicpm_config()
    name = request.param if request.param in SCHEMES else "int4-g32"
    change = mixed if request.param == "mixed" else lambda weights: None
    head = QuantScheme("int8", 32)
    source = make_source(folder, config, QuantScheme.parse(name), head=head, change=change)
    return export_model(
        source, ExportOptions("executorch", context=CONTEXT, portable=True), folder / "portable"
    )


@pytest.fixture
def executor(artifact: Artifact):
    opened = open_executor(artifact, RunOptions(threads=2))
    yield opened
    opened.close()


def tokens_of(n: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, 250, n).astype(np.int32)


def assert_near(found: np.ndarray, wanted: np.ndarray) -> None:
    assert np.abs(found - wanted).max() <= ROUNDING * np.abs(wanted).max()


def test_near_the_truth(artifact: Artifact):
    result = check_artifact(artifact.path)
    assert result.passed and result.divergence < DIVERGENCE


def test_however_tokens_are_cut(executor: ExecuTorchExecutor):
    """One by one, at once and in pieces, across the borders of the blocks that attention reads."""
    tokens, whole = tokens_of(CONTEXT), executor.new_cache()
    one_by_one = forward(executor, whole, tokens, logits="all").logits
    pieces = executor.new_cache()
    for start, stop in ((0, 63), (63, 64), (64, 65), (65, 140), (140, CONTEXT)):
        logits = forward(executor, pieces, tokens[start:stop]).logits
        assert_near(logits[0], one_by_one[stop - 1])
    executor.truncate(pieces, 40)
    assert_near(forward(executor, pieces, tokens[40:90]).logits[0], one_by_one[89])


def test_sequences_do_not_share_rows(executor: ExecuTorchExecutor):
    first, second, alone = (executor.new_cache() for _ in range(3))
    forward(executor, first, tokens_of(20, 2))
    forward(executor, second, tokens_of(50, 3))
    forward(executor, alone, tokens_of(20, 2))
    found, wanted = (forward(executor, cache, [7]).logits for cache in (first, alone))
    np.testing.assert_array_equal(found, wanted)


def test_models_do_not_share_weights(tmp_path: Path):
    """The runtime keeps packed weights of all models of a process by name."""

    def other(weights) -> None:  # the same codes, other scales
        weights[HEAD] = quantize(weights[HEAD].dequantize() / 4, weights[HEAD].scheme)

    config = llama_config(num_hidden_layers=1, tie_word_embeddings=False)
    options = ExportOptions("executorch", context=64, portable=True)
    logits = []
    for name, change in (("plain", lambda weights: None), ("quiet", other)):
        source = make_source(tmp_path, config, QuantScheme("int8"), change=change)
        model = open_executor(export_model(source, options, tmp_path / name))
        logits.append((model, forward(model, model.new_cache(), tokens_of(9)).logits))
    np.testing.assert_allclose(logits[0][1], 4 * logits[1][1], atol=1e-4)
    for model, found in logits:
        np.testing.assert_array_equal(forward(model, model.new_cache(), tokens_of(9)).logits, found)
        model.close()


def test_matrices_of_the_same_codes_keep_their_scales(tmp_path: Path):
    """The runtime finds packed weights by name: one layer's matrix is 4 times another's, code by code."""

    def scaled(weights) -> None:
        first, second = (f"model.layers.{layer}.mlp.down_proj.weight" for layer in (0, 1))
        weights[second] = quantize(weights[first].dequantize() * 4, weights[first].scheme)
        assert (weights[second].codes == weights[first].codes).all()

    source = make_source(tmp_path, llama_config(), QuantScheme("int8"), change=scaled)
    options = ExportOptions("executorch", context=64, portable=True)
    result = check_artifact(export_model(source, options, tmp_path / "out").path)
    assert result.divergence < 5e-3 and result.agreement == 1, result  # the larger matrix rounds more


@pytest.mark.slow
@pytest.mark.parametrize("name", ["int4-g32", "int4-row", "int8-row"])
def test_packed_as_executorch_does(name: str):
    """Our program of one matrix holds the same constants as the partitioner's, byte for byte."""
    from edge.export.targets.executorch.xnnpack_graph import XnnpackGraph
    from edge.export.targets.executorch.xnnpack_shapes import Size

    weights = np.random.default_rng(0).standard_normal((48, 128), np.float32)
    portable = portable_weights(quantize(weights, QuantScheme.parse(name)))
    portable = PortableWeights(portable.bits, portable.codes, portable.scales)  # no offsets
    tokens, graph = Size("tokens", 8), XnnpackGraph()
    x = graph.input((tokens, 128))
    own = graph.lowered({graph.quantized_linear(x, portable): (tokens, 48)})
    assert {bytes(data) for data in own.named_data_store_output.buffers} == partitioned(portable)


def partitioned(weights: PortableWeights) -> set[bytes]:
    """The constants of torchao's linear layer, lowered by ExecuTorch's partitioner."""
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import (
        XnnpackDynamicallyQuantizedPartitioner,
    )
    from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower
    from torchao.quantization.quantize_.workflows.intx.intx_unpacked_to_int8_tensor import (
        IntxUnpackedToInt8Tensor,
        IntxUnpackedToInt8TensorActivationQuantization,
    )

    scales = torch.from_numpy(weights.scales)
    layer = torch.nn.Linear(128, 48, bias=False)
    layer.weight = torch.nn.Parameter(
        IntxUnpackedToInt8Tensor(
            torch.from_numpy(weights.codes),
            scales,
            torch.zeros_like(scales, dtype=torch.int8),
            getattr(torch, f"int{weights.bits}"),
            (1, weights.group),
            torch.float32,
            IntxUnpackedToInt8TensorActivationQuantization.INT8_ASYM_PER_TOKEN,
        ),
        requires_grad=False,
    )
    edge = to_edge_transform_and_lower(
        torch.export.export(layer, (torch.ones(3, 128),), strict=False),
        partitioner=[XnnpackDynamicallyQuantizedPartitioner()],
        compile_config=EdgeCompileConfig(_check_ir_validity=False),
    )
    return {bytes(data) for data in edge._named_data_store.buffers}


def test_neighbours_of_one_format_become_one_matrix():
    random = np.random.default_rng(0)
    parts = [
        portable_weights(quantize(random.standard_normal((rows, 64), np.float32), QuantScheme.parse(name)))
        for rows, name in ((8, "int4-g32"), (4, "ternary-g32"), (6, "int8-row"), (2, "int8-row"))
    ]
    found = stacked(parts)
    assert [part.codes.shape[0] for part in found] == [12, 8]
    wanted = np.concatenate([part.dequantize() for part in parts])
    np.testing.assert_array_equal(np.concatenate([part.dequantize() for part in found]), wanted)
    order = np.array([9, 1, 3])
    np.testing.assert_array_equal(found[0].rows(order).dequantize(), found[0].dequantize()[order])
