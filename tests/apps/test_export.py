"""`edge export` as a person uses it: a folder, its check, the dry run, and every sentence for bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.formats.safetensors import SafetensorsFile

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


@pytest.mark.parametrize(("quantize", "stored"), [("int4-g32", "Q4_0"), ("int8", "Q8_0"), ("source", "F16")])
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
    assert tensors["model.embed_tokens.weight"] == ("F16" if quantize == "source" else "Q8_0")
    checked = run_edge("export", "--check", str(out), "--json")
    assert checked.returncode == 0 and json.loads(checked.stdout.splitlines()[-1])["passed"]


def second_layer(tensors: dict[str, Any]) -> None:
    for name in [name for name in tensors if ".layers.0." in name]:
        tensors[name.replace(".0.", ".1.")] = tensors[name][::-1].copy()


@pytest.fixture
def calibration_text(tmp_path: Path) -> Path:
    """More than the 64 sequences of 512 tokens that are looked at, a byte each."""
    path = tmp_path / "text.txt"
    path.write_text("".join(f"{n} sheep and {n * n % 97} dogs cross the river.\n" for n in range(900)))
    return path


def test_smoothing_before_rounding(
    run_edge: Run, tiny_checkpoint: Callable[..., Path], calibration_text: Path, tmp_path: Path
):
    pytest.importorskip("torch")
    out = tmp_path / "out"
    arguments = ("--quantize", "int4-g32", "--smooth", "--calibration", str(calibration_text))
    done = run_edge("export", str(tiny_checkpoint()), "--to", "gguf", *arguments, "--out", str(out))
    assert done.returncode == 0, done.stderr
    manifest = json.loads((out / "artifact.json").read_text())
    tensors = manifest["quantization"].pop("tensors")
    assert manifest["quantization"] == {"name": "int4-g32", "method": "rtn", "smooth": True}
    assert tensors["model.layers.0.mlp.up_proj.weight"] == "Q4_0"
    (layer,) = json.loads((out / "quantization.json").read_text())["layers"]
    assert len(layer["matrices"]) == 7 and len(layer["smoothing_exponents"]) == 4
    checked = run_edge("export", "--check", str(out), "--json")
    assert checked.returncode == 0 and json.loads(checked.stdout.splitlines()[-1])["passed"]


def test_ternary_weights_are_packed_exactly(
    run_edge: Run, tiny_checkpoint: Callable[..., Path], tmp_path: Path
):
    pytest.importorskip("torch")

    def ternary(tensors: dict[str, Any]) -> None:
        for name, tensor in tensors.items():
            if "_proj" in name:
                scale = np.float32(2.0**-4)
                tensors[name] = np.clip(np.rint(tensor), -1, 1).astype(np.float32) * scale

    out = tmp_path / "out"
    model = str(tiny_checkpoint(ternary))
    done = run_edge("export", model, "--to", "bundle", "--quantize", "ternary", "--out", str(out))
    assert done.returncode == 0, done.stderr
    (layer,) = json.loads((out / "quantization.json").read_text())["layers"]
    assert [matrix["weight_error"] for matrix in layer["matrices"]] == [0.0] * 7
    checked = run_edge("export", "--check", str(out), "--json")
    assert checked.returncode == 0 and json.loads(checked.stdout.splitlines()[-1])["passed"]


# `edge`, which kills itself where it would give something this name: the first argument.
KILLED = """
import os, signal, sys
from edge.apps.cli.main import main
name = sys.argv.pop(1)

def kill(event, values):
    if event == "os.rename" and os.path.basename(values[1]) == name:
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(kill)
sys.exit(main())
"""


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_a_killed_quantization_goes_on(
    environment: dict[str, str],
    run_edge: Run,
    tiny_checkpoint: Callable[..., Path],
    calibration_text: Path,
    tmp_path: Path,
):
    """Killed before the second layer has its name, and run again: it goes on there, and the files are those
    of an unbroken run."""
    pytest.importorskip("torch")
    model = str(tiny_checkpoint(second_layer, num_hidden_layers=2))
    arguments = ("--quantize", "int4", "--calibration", str(calibration_text), "--method", "gptq", "--out")
    command = ["export", model, "--to", "gguf", *arguments]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, "layer-001.safetensors", *command, str(tmp_path / "out")],
        env=environment,
        stderr=subprocess.DEVNULL,
        timeout=400,
    )
    assert killed.returncode == -signal.SIGKILL
    work = tmp_path / "cache" / "models"
    (kept,) = work.glob(".*.quantizing/layer-000.safetensors")
    assert not list(kept.parent.glob("layer-001*"))
    done = SafetensorsFile(kept).metadata["report"]
    environment["EDGE_CACHE"] = str(tmp_path / "other-cache")
    assert run_edge(*command, str(tmp_path / "whole"), timeout=400).returncode == 0
    environment["EDGE_CACHE"] = str(tmp_path / "cache")
    assert run_edge(*command, str(tmp_path / "out"), timeout=400).returncode == 0
    layers = json.loads((tmp_path / "out" / "quantization.json").read_text())["layers"]
    assert layers[0] == json.loads(done) and len(layers) == 2  # its seconds are those of the killed run
    for name in ("model.gguf", "reference.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not list(work.glob(".*"))


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


def test_the_dry_run_counts_the_memory_of_quantizing(
    run_edge: Run, tiny_checkpoint: Callable[..., Path], tmp_path: Path
):
    pytest.importorskip("torch")
    command = ("export", str(tiny_checkpoint()), "--to", "gguf", "--quantize", "int4", "--dry-run", "--json")
    plain, calibrated = (
        json.loads(run_edge(*command, *more).stdout)["export_memory"] for more in ((), ("--method", "gptq"))
    )
    assert calibrated > plain + (300 << 20)  # PyTorch
    done = run_edge(*command, "--method", "gptq", "--calibration", str(tmp_path / "absent.txt"))
    assert done.returncode != 0 and "Cannot read the calibration text" in done.stderr


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
        (["MODEL", "--to", "tflite", "--out", "OUT"], "Unknown target 'tflite'; choose one of bundle"),
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


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_an_interrupted_export_starts_again(environment: dict[str, str], run_edge: Run, tmp_path: Path):
    """Killed before the folder has its name: nothing stands under it; the next run cleans up and finishes."""
    environment["EDGE_CACHE"] = str(tmp_path / "cache")
    out = tmp_path / "place" / "out"
    command = ["export", "random:smollm2-135m", "--to", "gguf", "--context", "256", "--out", str(out)]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, "out", *command],
        env=environment,
        stderr=subprocess.DEVNULL,
        timeout=400,
    )
    assert killed.returncode == -signal.SIGKILL
    assert not out.exists() and list(out.parent.iterdir())
    done: Any = run_edge(*command)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in out.parent.iterdir()] == ["out"]
