"""A scheme that no target knows is stored exactly, by what its declaration says, or refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge.checkpoints.gguf import GGUFCheckpoint
from edge.errors import EdgeError, ExportError
from edge.export.options import ExportOptions
from edge.export.targets.coreml.weights import code_bits, stored_bytes, type_name
from edge.export.targets.executorch.weights import PortableEmbedding, keeps_codes, portable_weights
from edge.export.targets.gguf.target import TARGET, choose_types
from edge.export.targets.onnx.weights import BlockLayout
from edge.formats.bundle.manifest import BundleTensor
from edge.model.operators.linear import PackedShape
from edge.quant.rounding import quantize
from edge.quant.scheme import QuantizedMatrix, QuantScheme
from tests.export.tiny import llama_config, make_source
from tests.toy_scheme import SCHEMES, WIDE_SCHEME

UP = "model.layers.0.mlp.up_proj.weight"


def matrix(scheme: QuantScheme) -> QuantizedMatrix:
    return quantize(np.random.default_rng(0).standard_normal((24, 256), np.float32), scheme)


@pytest.mark.parametrize(
    ("scheme", "stored"), [*zip(SCHEMES, ["Q4_0", "Q4_0", "Q4_1"], strict=True)], ids=str
)
def test_gguf_is_exact(tmp_path: Path, scheme: QuantScheme, stored: str):
    source, options = make_source(tmp_path, llama_config(), scheme), ExportOptions("gguf")
    TARGET.write(source, options, tmp_path, None)
    assert choose_types(source, options)[UP] == stored
    again = GGUFCheckpoint(tmp_path / "model.gguf")
    for name, info in source.tensors.items():
        if len(info.shape) == 2:
            np.testing.assert_array_equal(again.read_float32(name), source.floats(name))


def test_gguf_refuses_by_name(tmp_path: Path):
    source = make_source(tmp_path, llama_config(), WIDE_SCHEME)
    with pytest.raises(ExportError, match=r"'model.*' is toy255-g32-min, which no type of GGUF holds"):
        choose_types(source, ExportOptions("gguf"))
    source = make_source(tmp_path, llama_config(), SCHEMES[0])
    with pytest.raises(ExportError, match="toy5-g64 weights would be rounded"):
        choose_types(source, ExportOptions("gguf", gguf_type="tq2_0"))


@pytest.mark.parametrize("scheme", [*SCHEMES, WIDE_SCHEME], ids=str)
def test_onnx_codes_are_exact(scheme: QuantScheme):
    """As MatMulNBits computes: scale * (code - middle), and the offsets that the graph adds."""
    found = matrix(scheme)
    layout = BlockLayout.of(scheme)
    assert layout.bits == (8 if scheme == WIDE_SCHEME else 4)
    packed = layout.codes(found)
    fields = [packed >> np.uint8(at) & np.uint8(2**layout.bits - 1) for at in range(0, 8, layout.bits)]
    codes = np.stack(fields, -1).reshape(*packed.shape[:2], -1).astype(np.float32) - layout.middle
    scales = layout.spread(found.scales, 256).astype(np.float32)[..., None]
    weights = codes * scales
    if found.minimums is not None:
        weights += layout.spread(found.minimums, 256).astype(np.float32)[..., None] + layout.middle * scales
    np.testing.assert_allclose(weights.reshape(24, 256), found.dequantize(), atol=1e-4)


@pytest.mark.parametrize("scheme", [*SCHEMES, WIDE_SCHEME], ids=str)
def test_executorch_weights(scheme: QuantScheme):
    found = matrix(scheme)
    portable, wide = portable_weights(found), scheme == WIDE_SCHEME  # codes beyond int8 are rounded to it
    assert keeps_codes(scheme, 256) == (not wide)
    assert (portable.bits, portable.offsets is None) == (8 if wide else 4, wide or not scheme.minimum)
    tolerance = 0.02 if wide else 2.0**-8 * 4 * np.abs(found.scales).max()
    np.testing.assert_allclose(portable.dequantize(), found.dequantize(), atol=tolerance)
    import torch

    rows = PortableEmbedding(found)(torch.tensor([3, 19])).numpy()
    np.testing.assert_allclose(rows, found.dequantize()[[3, 19]], atol=0.02 if wide else 1e-6)


def test_coreml_has_them_in_4_bits_or_refuses_by_name():
    info = BundleTensor(UP, (24, 256), SCHEMES[0], "F32", True)
    same = BundleTensor(UP, (24, 256), QuantScheme("int4", 64), "F32", True)
    assert code_bits(SCHEMES[0]) == 4 and stored_bytes(info) == stored_bytes(same)
    assert type_name(info) == "toy5 blocks of 64"
    for scheme in (SCHEMES[2], WIDE_SCHEME):
        with pytest.raises(ExportError, match=f"minimum per group \\({scheme}\\)"):
            type_name(BundleTensor(UP, (24, 256), scheme, "F32", True))


def test_operators_take_its_layout_or_refuse_it_by_name():
    numbers = PackedShape(SCHEMES[0].packing, 24, 256).numbers
    assert numbers == PackedShape(QuantScheme("int4", 64).packing, 24, 256).numbers
    with pytest.raises(EdgeError, match=r"can't compute on the layout x8\.n16k4\.g32\.min\.v1"):
        _ = PackedShape(WIDE_SCHEME.packing, 24, 256).numbers
