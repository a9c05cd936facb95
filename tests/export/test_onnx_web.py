"""The portable ONNX flavour in onnxruntime-web (WebAssembly), under node."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from edge.scheme import QuantScheme
from model.executor import TorchExecutor
from model.loading import reference_from_bundle

pytest.importorskip("onnx", reason="the package onnx is not installed")

VERSION = "1.30.0"
SCRIPT = Path(__file__).with_name("onnx_web.mjs")
MODULES = Path(__file__).resolve().parents[2] / "build" / "test-node"
ROUNDED = 0.2  # as in test_onnx_portable.py


@pytest.fixture(scope="module")
def node_modules() -> Path:
    """A folder with onnxruntime-web, fetched once."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    wanted = {"private": True, "dependencies": {"onnxruntime-web": VERSION}}
    package = MODULES / "package.json"
    if not (MODULES / "node_modules" / "onnxruntime-web").is_dir():
        MODULES.mkdir(parents=True, exist_ok=True)
        package.write_text(json.dumps(wanted))
        command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts"]
        try:
            subprocess.run(command, cwd=MODULES, check=True, capture_output=True, timeout=120)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            pytest.skip(f"npm can't fetch onnxruntime-web ({error})")
    return MODULES


@pytest.mark.parametrize("scheme", ["int4-g32", "int4-g32-min", "ternary-g128", "int8-g32"])
def test_logits_in_webassembly(scheme, node_modules, minicpm, make_bundle, export_bundle, tokens_of):
    bundle = make_bundle(minicpm(), QuantScheme.parse(scheme), tokenizer=True)
    artifact = export_bundle(bundle, "onnx", portable=True, context=128)
    tokens = tokens_of(bundle.config, 20)
    run = subprocess.run(
        ["node", str(SCRIPT), str(node_modules), str(artifact.path), json.dumps(tokens.tolist())],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    whole, stepped = (np.array(row, np.float32) for row in json.loads(run.stdout.splitlines()[-1]))
    reference = TorchExecutor(reference_from_bundle(bundle, 128))
    truth = reference.forward(reference.new_cache(), tokens).logits[0]
    assert np.abs(whole - truth).max() / truth.std() < ROUNDED
    assert np.abs(stepped - whole).max() / truth.std() < 1e-3
