"""What an export is asked for of LongRoPE's two regimes stands in the artifact of every target."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edge.config.rope import rope_parameters
from edge.config.rope_regime import with_regime
from edge.errors import ConfigError, EdgeError
from edge.executors.opening import open_executor
from edge.executors.options import RunOptions
from edge.executors.protocol import StoresCaches, shares_rows
from edge.export.artifact import check_artifact, export_model
from edge.export.check import read_reference
from edge.export.options import ExportOptions
from edge.formats.artifact.folder import Artifact
from edge.formats.bundle.reader import Bundle
from edge.model.weights.checkpoint import reference_from_bundle
from edge.quant.scheme import QuantScheme

from .tiny import LONGROPE, llama_config, make_source, minicpm_config

CONTEXT = 48  # within LONGROPE's original length
TARGETS = {
    "bundle": {"target": "bundle"},
    "gguf": {"target": "gguf"},
    "coreml": {"target": "coreml"},
    "onnx": {"target": "onnx"},
    "onnx-portable": {"target": "onnx", "portable": True},
    "executorch": {"target": "executorch"},
    "executorch-portable": {"target": "executorch", "portable": True},
}
SLOW = ("coreml", "executorch")  # to export
PACKAGES = {"coreml": "coremltools", "onnx": "onnxruntime", "executorch": "executorch"}


def exported(folder: Path, target: str, regime: str, context: int = CONTEXT) -> tuple[Any, Artifact]:
    words: dict[str, Any] = TARGETS[target]
    package = PACKAGES.get(words["target"])
    if package is not None and importlib.util.find_spec(package) is None:
        pytest.skip(f"the package {package} is not installed")
    source = make_source(folder, minicpm_config(num_hidden_layers=1), QuantScheme("int4", 32))
    options = ExportOptions(**words, context=context, rope_regime=regime)  # type: ignore[arg-type]
    return source, export_model(source, options, folder / "out")


@pytest.mark.parametrize(
    "target", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in TARGETS]
)
def test_every_target_computes_the_regime_that_was_asked_for(tmp_path: Path, target: str) -> None:
    """Long within the original length, where the context alone would choose short. What runs the folder finds
    it there, takes no other, and shares no prefixes.
    """
    source, artifact = exported(tmp_path, target, "long")
    reference = read_reference(artifact)
    tokens = torch.tensor(np.asarray(reference.tokens)).long()
    for regime, same in (("long", True), ("short", False)):
        network = source.bundle.with_config(with_regime(source.bundle.config, regime))
        truth = reference_from_bundle(network, CONTEXT)(tokens)[-len(reference.logits) :].numpy()
        error = np.abs(truth - reference.logits).max() / truth.std()
        assert (error < 1e-4) == same and (same or error > 0.05), (regime, error)
    assert artifact.config.rope.regime == "long"
    assert check_artifact(artifact.path).passed
    if artifact.manifest.target in ("onnx", "executorch"):
        with pytest.raises(
            EdgeError, match=r"--rope-regime\) can't be short: .* it was exported with; leave"
        ):
            open_executor(artifact, RunOptions(rope_regime="short"))
        executor = open_executor(artifact, RunOptions(threads=1))
        assert not shares_rows(executor) and not isinstance(executor, StoresCaches)
        executor.close()


def test_a_bundle_keeps_both_lists(tmp_path: Path) -> None:
    """Programs without Python find the frequencies in it; whoever asks for the other regime has it."""
    _, artifact = exported(tmp_path, "bundle", "long")
    decoder = json.loads((artifact.path / "decoder.json").read_text())
    for regime, wanted in (("auto", "long"), ("long", "long"), ("short", "short")):
        executor = open_executor(
            Bundle.open(artifact.path),
            RunOptions(threads=1, context=256, rope_regime=regime),  # type: ignore[arg-type]
        )
        rope = executor.config.rope
        executor.close()
        assert (rope.regime, rope.short_factor) == (wanted, LONGROPE.short_factor)
        frequencies, _ = rope_parameters(rope, 64, 256, 256)
        same = frequencies.tolist() == decoder["rope"]["inverse_frequency"]
        assert same == (wanted == "long")


def test_a_model_without_regimes(tmp_path: Path) -> None:
    source = make_source(tmp_path, llama_config(num_hidden_layers=1))
    with pytest.raises(ConfigError, match="no long regime"):
        export_model(source, ExportOptions("bundle", rope_regime="long"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
