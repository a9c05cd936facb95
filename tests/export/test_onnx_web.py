"""The portable ONNX flavour in onnxruntime-web, under node; `tests/examples/test_browser.py` has the page."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from edge.model.executor import TorchExecutor
from edge.model.weights.checkpoint import reference_from_bundle
from edge.quant.scheme import QuantScheme
from tests.steps import forward

from .tiny import PARTIAL

pytest.importorskip("onnx", reason="the package onnx is not installed")
pytest.importorskip("onnxruntime", reason="the package onnxruntime is not installed")

SCRIPT = Path(__file__).with_name("onnx_web.mjs")
ROUNDED = 0.2  # as in test_onnx_portable.py


@pytest.mark.parametrize("name", ["int4-g32", "int4-g32-min", "ternary-g128", "int8-g32", "oak"])
def test_logits_in_webassembly(name, oak, node_modules, minicpm, make_bundle, export_bundle, tokens_of):
    """Of an oak everything that a family may add to a Llama."""
    config, scheme = (oak(minicpm(rope=PARTIAL)), "int4-g32") if name == "oak" else (minicpm(), name)
    bundle = make_bundle(config, QuantScheme.parse(scheme), tokenizer=True)
    artifact = export_bundle(bundle, "onnx", portable=True, context=128)
    tokens = tokens_of(bundle.config, 20)
    run = subprocess.run(
        ["node", str(SCRIPT), str(node_modules), str(artifact.path), json.dumps(tokens.tolist())],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    document = json.loads(run.stdout.splitlines()[-1])
    whole, stepped, returned = (np.array(row, np.float32) for row in document["found"])
    reference = TorchExecutor(reference_from_bundle(bundle, 128))
    truth = forward(reference, reference.new_cache(), tokens).logits[0]
    assert np.abs(whole - truth).max() / truth.std() < ROUNDED
    assert np.abs(stepped - whole).max() / truth.std() < 1e-3
    assert np.abs(returned - whole).max() / truth.std() < 1e-3
    assert document["asked"] == [[0, 14], [4, 14], [8, 14], [12, 14]]  # a third was kept
