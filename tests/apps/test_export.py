"""`edge export` as a person uses it: a folder, its check, the dry run, and every sentence for bad input."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def test_export_check_and_inspect(run_edge: Run, tiny_checkpoint: Callable[..., Path], tmp_path: Path):
    model, out = tiny_checkpoint(), tmp_path / "out"
    done = run_edge("export", str(model), "--to", "bundle", "--out", str(out), "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout.splitlines()[-1])
    assert document["artifact"] == str(out) and document["target"] == "bundle"
    assert document["bytes"] == sum(
        path.stat().st_size for path in out.iterdir() if path.name in document["files"]
    )
    checked = run_edge("export", "--check", str(out))
    assert checked.returncode == 0 and "passed in minicpm-edge" in checked.stdout
    inspected = run_edge("inspect", str(out), "--json")
    assert inspected.returncode == 0 and json.loads(inspected.stdout)["path"] == str(out)


@pytest.mark.parametrize(("quantize", "stored"), [("int4-g32", "Q4_0"), ("int8", "Q8_0"), ("none", "F16")])
def test_quantizing_on_the_way(
    run_edge: Run, tiny_checkpoint: Callable[..., Path], tmp_path: Path, quantize: str, stored: str
):
    out = tmp_path / "out"
    arguments = ("export", str(tiny_checkpoint()), "--to", "gguf", "--quantize", quantize, "--out", str(out))
    assert run_edge(*arguments).returncode == 0
    manifest = json.loads((out / "artifact.json").read_text())
    tensors = manifest["quantization"].pop("tensors")
    assert manifest["quantization"] == {"name": quantize, "method": "rtn", "smooth": False}
    assert tensors["model.layers.0.mlp.up_proj.weight"] == stored
    assert tensors["model.embed_tokens.weight"] == ("F16" if quantize == "none" else "Q8_0")
    checked = run_edge("export", "--check", str(out), "--json")
    assert checked.returncode == 0 and json.loads(checked.stdout.splitlines()[-1])["passed"]


def test_the_dry_run_writes_nothing(run_edge: Run, tiny_checkpoint: Callable[..., Path], tmp_path: Path):
    model, before = tiny_checkpoint(), set(tmp_path.iterdir())
    done = run_edge("export", str(model), "--to", "gguf", "--dry-run", "--context", "64")
    assert done.returncode == 0, done.stderr
    for part in (
        "model.gguf",
        "Memory to run at 64 tokens",
        "KV cache",
        "Operators: llama.cpp.arch.llama v1",
    ):
        assert part in done.stdout
    document = run_edge("export", str(model), "--to", "gguf", "--dry-run", "--json")
    plan = json.loads(document.stdout.splitlines()[-1])
    assert plan["context"] == 128 and plan["bytes"] == plan["files"]["model.gguf"] > 0
    assert {path.name for path in set(tmp_path.iterdir()) - before} <= {"tiny", "state"}  # not even a cache


def test_a_dry_run_that_needs_weights_converts(
    run_edge: Run, tiny_checkpoint: Callable[..., Path], tmp_path: Path
):
    """Ternary weights of one scale per row: whether they fit TQ2_0 is told by the weights alone."""

    def ternary(tensors: dict[str, Any]) -> None:
        for name, values in tensors.items():
            if "layers" in name and values.ndim == 2:
                tensors[name] = np.sign(values.round()).astype(np.float32) / 8

    model = tiny_checkpoint(ternary)
    plan = json.loads(run_edge("export", str(model), "--to", "gguf", "--dry-run", "--json").stdout)
    out = tmp_path / "out"
    assert run_edge("export", str(model), "--to", "gguf", "--out", str(out)).returncode == 0
    assert (out / "model.gguf").stat().st_size == pytest.approx(plan["bytes"], rel=0.02)
    assert plan["operators"].keys() == json.loads((out / "artifact.json").read_text())["operators"].keys()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "give a model, or --check"),
        (["MODEL"], "choose one of bundle, executorch, onnx, coreml, gguf"),
        (["MODEL", "--to", "bundle"], "give the folder to write, or --dry-run"),
        (["MODEL", "--to", "tflite", "--out", "OUT"], "'tflite' is not one of"),
        (["MODEL", "--to", "bundle", "--out", "MODEL"], "exists already"),
        (["MODEL", "--to", "bundle", "--out", "OUT", "--context", "129"], "(flags: --context)"),
        (["MODEL", "--to", "gguf", "--out", "OUT", "--attention", "sparse", "--context", "64"], "dense_len"),
        (
            ["MODEL", "--to", "gguf", "--out", "OUT", "--gguf-type", "tq2_0"],
            "can't be stored as TQ2_0, because",
        ),
        (["MODEL", "--to", "bundle", "--out", "OUT", "--gguf-type", "q4_0"], "belongs to `--to gguf`"),
        (["MODEL", "--to", "bundle", "--out", "OUT", "--portable"], "bundle has only one"),
        (["MODEL", "--to", "bundle", "--out", "OUT", "--method", "gptq"], "choose how to round"),
        (
            [*("MODEL", "--to", "bundle", "--out", "OUT", "--quantize", "int4"), "--calibration", "no.txt"],
            "needs no calibration text",
        ),
        (
            [
                *("MODEL", "--to", "bundle", "--out", "OUT", "--quantize", "int4", "--method", "gptq"),
                *("--calibration", "no.txt"),
            ],
            "Cannot read the calibration text 'no.txt'",
        ),
        (["MODEL", "--to", "bundle", "--out", "OUT", "--quantize", "ternary"], "is not ternary"),
        (["no-such-model", "--to", "bundle", "--out", "OUT"], "Unknown model 'no-such-model'"),
        (["--check", "OUT"], "is not an exported model"),
        (["MODEL", "--check", "OUT"], "stands alone"),
    ],
)
def test_bad_input_is_one_sentence(
    run_edge: Run,
    tiny_checkpoint: Callable[..., Path],
    tmp_path: Path,
    arguments: list[str],
    sentence: str,
):
    places = {"MODEL": str(tiny_checkpoint()), "OUT": str(tmp_path / "out")}
    done = run_edge("export", *(places.get(each, each) for each in arguments), cwd=tmp_path)
    assert done.returncode != 0 and sentence in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_damaged_artifact_is_named(run_edge: Run, tiny_checkpoint: Callable[..., Path], tmp_path: Path):
    out = tmp_path / "out"
    assert run_edge("export", str(tiny_checkpoint()), "--to", "gguf", "--out", str(out)).returncode == 0
    data = bytearray((out / "model.gguf").read_bytes())
    data[-1] ^= 1
    (out / "model.gguf").write_bytes(data)
    done = run_edge("export", "--check", str(out))
    assert done.returncode == 1 and "model.gguf' was altered or damaged" in done.stderr


def test_an_interrupted_export_starts_again(
    edge_script: str, environment: dict[str, str], run_edge: Run, tmp_path: Path
):
    """Killed while it writes: nothing under the name; the next run cleans up and finishes."""
    environment["EDGE_CACHE"] = str(tmp_path / "cache")
    out = tmp_path / "place" / "out"
    command = ["export", "random:smollm2-135m", "--to", "gguf", "--context", "256", "--out", str(out)]
    process = subprocess.Popen([edge_script, *command], env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 100
    while not list(tmp_path.glob("place/.out.*.partial/model.gguf")) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists() and list(out.parent.iterdir())
    done: Any = run_edge(*command)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in out.parent.iterdir()] == ["out"]
