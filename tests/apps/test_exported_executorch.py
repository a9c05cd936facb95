"""The portable flavour of ExecuTorch on a real model, from the export to its distance from native."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("executorch", reason="the package executorch is not installed")

SIZE_TOLERANCE = 0.02  # of the stated formula
DIVERGENCE, AGREEMENT = 0.05, 0.85  # nats, of 128 positions; measured on 4088: 0.023 and 0.912


@pytest.mark.slow
def test_the_portable_default_model(run_edge, smollm2, shared_data: Path, tmp_path: Path):
    folder = str(tmp_path / "portable")
    export = ("export", smollm2, "--to", "executorch", "--portable", "--context", "512", "--out", folder)
    planned = json.loads(run_edge(*export, "--dry-run", "--json").stdout.splitlines()[-1])
    run = run_edge(*export)
    assert run.returncode == 0, run.stderr
    size = (Path(folder) / "model.pte").stat().st_size
    assert abs(size - planned["files"]["model.pte"]) < SIZE_TOLERANCE * size
    assert run_edge("export", "--check", folder).returncode == 0

    text = ("--text", str(shared_data / "wikitext-2-raw.valid.txt"), "--limit", "129", "--json")
    run = run_edge("eval", "compare", smollm2, folder, *text)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    assert found["kl_divergence"] < DIVERGENCE and found["top1_agreement"] > AGREEMENT

    ask = ("--prompt", "Name a planet.", "--temperature", "0", "--max-tokens", "8", "--json")
    answer = json.loads(run_edge("chat", folder, *ask).stdout.splitlines()[-1])
    assert answer["text"]
