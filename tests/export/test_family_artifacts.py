"""Models of other families, from a checkpoint to what each target runs: logits of the family's own class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge.checkpoints.huggingface import HuggingFaceCheckpoint
from edge.executors.opening import open_executor
from edge.executors.options import RunOptions
from edge.export.artifact import export_model
from edge.export.options import ExportOptions
from edge.export.source import Source
from edge.formats.artifact.folder import Artifact
from edge.formats.bundle.reader import Bundle
from edge.hub.convert import convert
from tests.family_networks import CASES, CONTEXT, TOKENS, theirs
from tests.steps import forward

from .test_known_families import save

TARGETS = {
    "onnx": ExportOptions("onnx", context=CONTEXT),
    "onnx-portable": ExportOptions("onnx", context=CONTEXT, portable=True),
    "executorch": ExportOptions("executorch", context=CONTEXT),
    "executorch-portable": ExportOptions("executorch", context=CONTEXT, portable=True),
    "coreml": ExportOptions("coreml", context=CONTEXT),
}
MODULES = {"onnx": "onnxruntime", "executorch": "executorch", "coreml": "coremltools"}
# Of the truth's standard deviation: weights and caches are float16; XNNPACK rounds both factors to int8.
NEAR, ROUNDED = 0.02, 0.3
PIECES = (200, 95, 1, 1, 1, 1, 1)  # tokens of a pass, together all
FAST = {("qwen3", "onnx-portable"), ("phi3-long", "onnx-portable"), ("phi3-long", "onnx")}
CASE_NAMES = ("qwen3", "qwen2", "smollm3", "phi3-long", "mistral", "llama-3.2")


def last_rows(artifact: Artifact) -> np.ndarray:
    """Logits after the last token of every piece."""
    tokens, ends = TOKENS.numpy().astype(np.int32), np.cumsum(PIECES)
    pieces = np.split(tokens, ends[:-1])
    if artifact.manifest.target == "coreml":
        from edge.export.targets.coreml.mil_numpy import MilProgram

        program = MilProgram(artifact.model)
        return np.stack(
            [program.predict(piece, end - len(piece)) for piece, end in zip(pieces, ends, strict=True)]
        )
    executor = open_executor(artifact, RunOptions(threads=2))
    cache = executor.new_cache()
    found = np.concatenate([forward(executor, cache, piece).logits for piece in pieces])
    executor.close()
    return found


@pytest.mark.parametrize(
    ("name", "target"),
    [
        pytest.param(name, target, marks=() if (name, target) in FAST else pytest.mark.slow)
        for name in CASE_NAMES
        for target in TARGETS
    ],
)
def test_logits_are_those_of_the_familys_own_class(tmp_path: Path, name: str, target: str):
    """As our network, transformers' takes LongRoPE's long list: the whole text passes the original length."""
    options = TARGETS[target]
    pytest.importorskip(MODULES[options.target])
    model = theirs(CASES[name])
    convert(HuggingFaceCheckpoint(save(model, tmp_path / "model")), tmp_path / "bundle", quantize="f16")
    artifact = export_model(Source(Bundle.open(tmp_path / "bundle")), options, tmp_path / "out")
    truth = model(TOKENS[None]).logits[0].numpy()
    error = np.abs(last_rows(artifact) - truth[np.cumsum(PIECES) - 1]).max() / truth.std()
    assert error < (ROUNDED if target == "executorch-portable" else NEAR)
