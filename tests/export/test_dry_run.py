"""Plans before there is a bundle: they say what the export will do, and no weight is read for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edge.config import ModelConfig, SparseConfig
from edge.export.artifact import plan_export, small_files_bytes
from edge.export.options import ExportOptions
from edge.export.source import Source
from edge.formats.bundle.manifest import MANIFEST
from edge.formats.bundle.planned import UnreadWeightsError
from edge.formats.bundle.reader import Bundle
from edge.hub.convert import convert, plan_bundle
from edge.quant.scheme import QuantScheme

from .tiny import llama_config, make_checkpoint, minicpm_config

TARGETS = {
    "bundle": ((), {}),
    "gguf": ((), {}),
    "coreml": (("coremltools",), {}),
    "onnx": (("onnx", "onnxruntime"), {}),
    "onnx-portable": (("onnx", "onnxruntime"), {"portable": True}),
    "executorch": (("executorch",), {}),
    "executorch-portable": (("executorch", "torchao"), {"portable": True}),
}
CASES = [
    pytest.param(minicpm_config(), QuantScheme("int4", 32), {}, id="int4"),
    pytest.param(llama_config(), QuantScheme("int8", 32), {}, id="int8"),
    pytest.param(llama_config(), QuantScheme("f16"), {"quantize": "int4-g128", "head": "int8"}, id="float"),
    pytest.param(
        minicpm_config(
            sparse=SparseConfig(dense_len=64, topk=2, window_size=64), max_position_embeddings=512
        ),
        QuantScheme("int4", 32),
        {},
        id="sparse",
    ),
]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("config", "scheme", "quantize"), CASES)
def test_a_plan_needs_no_weights(
    tmp_path: Path, target: str, config: ModelConfig, scheme: QuantScheme, quantize: dict[str, Any]
):
    modules, given = TARGETS[target]
    for module in modules:
        pytest.importorskip(module)
    checkpoint = make_checkpoint(config, scheme)
    options = ExportOptions(target.partition("-")[0], **given)  # type: ignore[arg-type]
    planned = Source(plan_bundle(checkpoint, **quantize))
    convert(checkpoint, tmp_path / "bundle", **quantize)
    written = Source(Bundle.open(tmp_path / "bundle"))
    before, after = plan_export(planned, options), plan_export(written, options)
    if target == "bundle":  # only writing tells whether float16 holds every float
        files = dict(before.files), dict(after.files)
        assert files[0].pop(MANIFEST) == pytest.approx(files[1].pop(MANIFEST), rel=0.01)
        assert files[0] == files[1]
    else:
        assert before == after
    assert small_files_bytes(planned) == small_files_bytes(written)


def test_a_planned_bundle_is_the_written_one_without_weights(tmp_path: Path):
    checkpoint = make_checkpoint(minicpm_config())
    planned = plan_bundle(checkpoint)
    convert(checkpoint, tmp_path / "bundle")
    written = Bundle.open(tmp_path / "bundle")
    assert planned.tensors == written.tensors and planned.manifest.operators == written.manifest.operators
    for name, entry in written.manifest.files.items():
        assert planned.manifest.files[name].bytes == entry.bytes, name
    for name in written.tensors:
        assert planned.offset(name) == written.offset(name)
    assert planned.tokenizer_files == written.tokenizer_files
    assert planned.chat_template == written.chat_template
    assert planned.generation_config == written.generation_config
    with pytest.raises(UnreadWeightsError, match="not converted yet"):
        Source(planned).floats("model.norm.weight")


def test_types_that_depend_on_weights_ask_for_them(tmp_path: Path):
    """Whether TQ2_0 is exact depends on the scales of ternary weights."""
    planned = Source(plan_bundle(make_checkpoint(minicpm_config(), QuantScheme("ternary", 128))))
    with pytest.raises(UnreadWeightsError):
        plan_export(planned, ExportOptions("gguf"))
