"""The Core ML target: the saved package is read again, its weights expanded, and its program run in NumPy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.config import ModelConfig
from edge.errors import ExportError
from edge.export.artifact import check_artifact, export_model, plan_export
from edge.export.check import exact_executor
from edge.export.options import ExportOptions
from edge.export.source import Source
from edge.formats.artifact.folder import Artifact
from edge.quant.scheme import QuantScheme
from tests.oak import oak
from tests.steps import forward

from .tiny import PARTIAL, llama_config, make_source, minicpm_config

pytest.importorskip("coremltools")
pytestmark = pytest.mark.usefixtures("oak")
COREML = ExportOptions("coreml")
TERNARY = QuantScheme("ternary", 128)
OAK = oak(minicpm_config(rope=PARTIAL))  # biases, norms of q and k, partial RoPE, and a layer without it
CASES = [
    pytest.param(minicpm_config(), QuantScheme("int4", 32), id="minicpm-int4-g32"),
    pytest.param(OAK, QuantScheme("int4", 32), id="oak-int4-g32"),
    pytest.param(llama_config(num_hidden_layers=1, hidden_size=192), QuantScheme("int4", 128), id="ragged"),
    pytest.param(minicpm_config(num_hidden_layers=1), TERNARY, id="ternary"),
    pytest.param(llama_config(num_hidden_layers=1), QuantScheme("int8", 0), id="int8-row"),
    pytest.param(llama_config(num_hidden_layers=1), QuantScheme("f16"), id="float16"),
]


def program(artifact: Artifact) -> Any:
    from edge.export.targets.coreml.mil_numpy import MilProgram

    return MilProgram(artifact.model)


@pytest.mark.parametrize(("config", "scheme"), CASES)
def test_weights_and_logits_come_back(tmp_path: Path, config: ModelConfig, scheme: QuantScheme):
    source = make_source(tmp_path, config, scheme)
    artifact = export_model(source, COREML, tmp_path / "out")
    reloaded = program(artifact)
    for name, info in source.tensors.items():
        if len(info.shape) == 2:
            found = reloaded.constant(name.replace(".", "_"))
            np.testing.assert_array_equal(found, source.floats(name).astype(np.float16), err_msg=name)
    result = check_artifact(artifact.path)
    assert result.passed and result.agreement == 1
    assert "needs macOS" in result.remarks[0]
    for name, size in plan_export(source, COREML).files.items():
        assert artifact.manifest.files[name].bytes == pytest.approx(size, rel=0.02), name
    if scheme.kind == "ternary":  # exact: float16 holds -scale, 0 and scale
        name = "model.layers.0.mlp.up_proj.weight"
        found = reloaded.constant(name.replace(".", "_"))
        np.testing.assert_array_equal(found.astype(np.float32), source.floats(name))


@pytest.mark.parametrize("config", [minicpm_config(), OAK], ids=["minicpm", "oak"])
def test_the_cache_is_continued_and_cut_back(tmp_path: Path, config: ModelConfig):
    """Prefill in pieces, decoding, and going back to an earlier position give the native logits."""
    source = make_source(tmp_path, config)
    reloaded = program(export_model(source, COREML, tmp_path / "out"))
    tokens = np.arange(3, 43, dtype=np.int32)
    executor = exact_executor(source.bundle, 256)
    truth = forward(executor, executor.new_cache(), tokens, logits="all").logits
    executor.close()
    assert truth is not None
    for start, stop in ((0, 17), (17, 18), (18, 40), (5, 30), (30, 31)):
        found = reloaded.predict(tokens[start:stop], start)
        np.testing.assert_allclose(found, truth[stop - 1], rtol=0, atol=5e-3)


def test_rounding_to_float16_changes_little(tmp_path: Path):
    """As far as a device that sums in float32 is concerned: nothing overflows, the best token stays."""
    from edge.export.targets.coreml.mil_numpy import MilProgram

    source = make_source(tmp_path, minicpm_config())
    artifact = export_model(source, ExportOptions("coreml", context=64), tmp_path / "out")
    tokens = np.arange(3, 43, dtype=np.int32)
    exact, rounded = (MilProgram(artifact.model, rounded).predict(tokens, 0) for rounded in (False, True))
    assert 0 < np.abs(exact - rounded).max() < 1e-2
    assert exact.argmax() == rounded.argmax()


def test_inputs_states_and_range(tmp_path: Path):
    import coremltools as ct

    source = make_source(tmp_path, llama_config(num_hidden_layers=1))
    artifact = export_model(source, ExportOptions("coreml", context=64), tmp_path / "out")
    assert artifact.manifest.context == 64 and artifact.manifest.runtime.minimum == "18.0"
    spec = ct.models.MLModel(str(artifact.model), skip_model_load=True).get_spec()
    assert spec.specificationVersion == artifact.manifest.operators["coreml.mlprogram"] == 9
    tokens, position = spec.description.input
    sizes = [(each.lowerBound, each.upperBound) for each in tokens.type.multiArrayType.shapeRange.sizeRanges]
    assert (tokens.name, sizes) == ("tokens", [(1, 1), (1, 256)])
    assert (position.name, list(position.type.multiArrayType.shape)) == ("position", [1])
    states = {state.name: list(state.type.stateType.arrayType.shape) for state in spec.description.state}
    assert states == {"keys_0": [2, 64, 64], "values_0": [2, 64, 64]}
    assert [output.name for output in spec.description.output] == ["logits"]
    assert json.loads((artifact.model / "Manifest.json").read_text())["fileFormatVersion"]


def test_a_wrong_weight_fails_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = make_source(tmp_path, llama_config(num_hidden_layers=1))
    floats = Source.floats
    monkeypatch.setattr(Source, "floats", lambda self, name: floats(self, name)[::-1])  # norms, reversed
    export_model(source, COREML, tmp_path / "out")
    assert not check_artifact(tmp_path / "out").passed


def test_what_core_ml_lacks_is_refused(tmp_path: Path):
    minimum = make_source(tmp_path, llama_config(num_hidden_layers=1), QuantScheme("int4", 32, minimum=True))
    with pytest.raises(ExportError, match=r"minimum per group.*--quantize int4`"):
        plan_export(minimum, COREML)
    long = make_source(
        tmp_path,
        llama_config(num_hidden_layers=1, max_position_embeddings=131072),
    )
    with pytest.raises(ExportError, match=r"131072 tokens.*`--context`"):
        plan_export(long, COREML)
    assert plan_export(long, ExportOptions("coreml", context=512)).attention == "dense"
