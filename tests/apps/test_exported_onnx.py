"""The program over folders of `edge export --to onnx`: chat, facts, profile and comparison."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("onnx", reason="the package onnx is not installed")
pytest.importorskip("onnxruntime", reason="the package onnxruntime is not installed")


@pytest.fixture(params=["full", "portable"])
def folder(request, run_edge, smollm2, tmp_path) -> Path:
    """The default model, exported for 256 tokens."""
    out = tmp_path / request.param
    flags = ["--portable"] if request.param == "portable" else []
    run = run_edge("export", smollm2, "--to", "onnx", *flags, "--context", "256", "--out", str(out))
    assert run.returncode == 0, run.stderr
    return out


def test_chat_profile_and_comparison(folder: Path, run_edge, smollm2, tmp_path):
    ask = ("--prompt", "Name a planet.", "--temperature", "0", "--max-tokens", "8", "--json")
    answer, wanted = (
        json.loads(run_edge("chat", *which, "--context", "256", *ask).stdout.splitlines()[-1])
        for which in ((str(folder),), (smollm2, "--activations", "int8", "--kv", "float16"))
    )
    # Portable rounds otherwise, so a later token may differ; the first word is far from a tie.
    words = slice(None) if folder.name == "full" else slice(1)
    assert answer["text"].split()[words] == wanted["text"].split()[words] != []

    run = run_edge("inspect", str(folder), "--json")
    assert run.returncode == 0, run.stderr
    facts = json.loads(run.stdout.splitlines()[-1])
    kv_type = {"full": "float16", "portable": "float32"}[folder.name]
    assert (facts["memory"]["context"], facts["memory"]["kv_type"]) == (256, kv_type)
    assert facts["chat_template"] and facts["tokenizer"]["kind"]

    small = ("--prefill", "8", "--generate", "4", "--repeat", "1", "--json")
    run = run_edge("profile", str(folder), *small)
    assert run.returncode == 0, run.stderr
    rows = json.loads(run.stdout.splitlines()[-1])["results"]
    assert [row["test"] for row in rows] == ["prefill", "decode"]
    assert {(row["executor"], row["kv_type"]) for row in rows} == {("onnx", kv_type)}
    assert rows[0]["tier"].startswith("onnxruntime")

    text = tmp_path / "text.txt"
    text.write_text("The tower is 324 metres tall, about the same height as an 81-storey building. " * 3)
    arguments = (
        "--activations-a",
        "int8",
        "--kv-a",
        "float16",
        "--text",
        str(text),
        "--window",
        "32",
        "--json",
    )
    run = run_edge("eval", "compare", smollm2, str(folder), *arguments)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    assert found["kl_divergence"] < (1e-12 if folder.name == "full" else 0.05)
    assert found["top1_agreement"] > 0.9
    assert found["b"]["executor"] == "onnx"
    assert (found["a"]["kv_type"], found["b"]["kv_type"]) == ("float16", kv_type)


@pytest.mark.parametrize("folder", ["full"], indirect=True)
def test_what_is_refused(folder: Path, run_edge, smollm2):
    for arguments, words in (
        (("chat", str(folder), "--context", "300"), "context of 256 tokens"),
        (("chat", str(folder), "--quantize", "int8"), "quantize can't be changed"),
        (("chat", smollm2, "--executor", "onnx"), "not an exported model"),
        (("chat", str(folder), "--executor", "native"), "was exported to onnx"),
        (("profile", str(folder), "--executor", "executorch"), "was exported to onnx"),
        (("profile", str(folder), "--quantize", "int8"), "quantize can't be changed"),
    ):
        run = run_edge(*arguments, *(("--prompt", "Hello") if arguments[0] == "chat" else ()))
        assert run.returncode != 0
        assert words in " ".join(run.stderr.split()), run.stderr
