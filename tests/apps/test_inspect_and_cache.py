"""`edge inspect`, `edge cache`, `edge eval` and the start of the program."""

from __future__ import annotations

import json
import math
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge.config.presets import preset
from edge.formats.bundle.reader import Bundle
from edge.hub.built_in import BUILT_IN
from edge.measure.profile.options import ProfileOptions

ROOT = Path(__file__).resolve().parents[2]

CHECK_IMPORTS = """
import sys
from edge.apps.cli.main import main
sys.argv = ["edge", *sys.argv[2:]]
code = main()
loaded = [name for name in {names!r} if name in sys.modules]
sys.exit(f"imported: {{loaded}}" if loaded or code else 0)
"""


def facts_of(process: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert process.returncode == 0, process.stderr
    facts: dict[str, Any] = json.loads(process.stdout)
    return facts


def test_facts_of_the_default_model(run_edge: Callable[..., Any], smollm2: str):
    facts = facts_of(run_edge("inspect", smollm2, "--context", "1000", "--json"))
    assert facts["architecture"] == "llama"
    assert facts["parameters"] == 134_515_008
    assert facts["tokenizer"]["kind"] == "byte-level BPE"
    assert facts["chat_template"] is True
    assert facts["thinking"] is False
    memory = facts["memory"]
    assert memory["kv_cache_bytes"] == 1000 * 2 * 30 * 3 * (64 * 2 + 4)  # int16 and a scale
    assert memory["weights_bytes"] == sum(group["bytes"] for group in facts["quantization"])
    assert facts["parameters"] == sum(group["parameters"] for group in facts["quantization"])
    weights = Path(facts["path"]) / "weights.safetensors"
    assert 0 <= weights.stat().st_size - memory["weights_bytes"] < 200_000
    schemes = {
        group["part"]: (group["source_type"], group["scheme"], group["exact"])
        for group in facts["quantization"]
    }
    assert schemes["MLP down"] == ("Q4_1", "int4-g32-min", True)
    assert schemes["norms"] == ("F32", "f32", True)
    assert facts["generation_config"] == BUILT_IN.settings
    assert facts["activations"] == "int16"


def test_page_for_people(run_edge: Callable[..., Any], smollm2: str):
    page = run_edge("inspect", smollm2, "--context", "4000").stdout
    for expected in (
        "llama",
        "8192 tokens",
        "byte-level BPE, 49152",
        "Q4_1",
        "int4-g32-min",
        "at 4000 tokens",
    ):
        assert expected in page
    assert "Not exact" not in page
    assert "\x1b" not in page


def test_rounded_weights_are_named(run_edge: Callable[..., Any], tiny_checkpoint):
    page = run_edge("inspect", str(tiny_checkpoint()), "--quantize", "int8").stdout
    assert "Not exact: F32 -> int8-g32" in page


def test_inspect_needs_no_native_library_and_no_torch(environment: dict[str, str], tiny_checkpoint):
    names = ("edge.executors.native.library", "torch", "transformers", "prompt_toolkit")
    command = [
        sys.executable,
        "-c",
        CHECK_IMPORTS.format(names=names),
        "-",
        "inspect",
        str(tiny_checkpoint()),
    ]
    process = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", timeout=60)
    assert process.returncode == 0, process.stderr


def test_help_imports_nothing_slow(environment: dict[str, str]):
    """A start is fast because it is empty, on any machine."""
    names = (
        "numpy",
        "jinja2",
        "prompt_toolkit",
        "gguf",
        "tokenizers",
        "huggingface_hub",
        "torch",
        "markdown_it",
    )
    command = [sys.executable, "-c", CHECK_IMPORTS.format(names=names), "-", "--version"]
    process = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", timeout=60)
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith("edge ")


@pytest.mark.parametrize(
    "command", [(), ("chat",), ("inspect",), ("eval",), ("eval", "perplexity"), ("cache",), ("cache", "list")]
)
def test_every_command_has_help(run_edge: Callable[..., Any], command: tuple[str, ...]):
    process = run_edge(*command, "--help")
    assert process.returncode == 0, process.stderr
    assert "Usage: edge" in process.stdout


def test_no_command_prints_the_help(run_edge: Callable[..., Any]):
    assert run_edge().stdout == run_edge("--help").stdout


def test_cache(run_edge: Callable[..., Any], tiny_checkpoint):
    assert facts_of(run_edge("cache", "list", "--json"))["models"] == []
    assert "empty" in run_edge("cache", "list").stdout

    folder = tiny_checkpoint()
    facts = facts_of(run_edge("inspect", str(folder), "--json"))
    facts_of(run_edge("inspect", str(folder), "--quantize", "int8", "--json"))
    models = facts_of(run_edge("cache", "list", "--json"))["models"]
    assert len(models) == 2
    assert {tuple(model["quantization"]) for model in models} == {("int4-g32",), ("int8-g32",)}
    assert facts["path"] in {model["path"] for model in models}
    for model in models:
        size = sum(file.stat().st_size for file in Path(model["path"]).iterdir())
        assert model["bytes"] == size
        assert model["source"] == str(folder)
        wanted = {str(tensor.scheme) for tensor in Bundle.open(model["path"]).tensors.values()} - {"f32"}
        assert set(model["quantization"]) == wanted
        assert ", ".join(model["quantization"]) in run_edge("cache", "list").stdout
        assert model["key"] in run_edge("cache", "list").stdout

    removed = facts_of(run_edge("cache", "remove", models[0]["key"], "--json"))["removed"]
    assert [model["key"] for model in removed] == [models[0]["key"]]
    assert not Path(models[0]["path"]).exists()
    assert Path(models[1]["path"]).exists()
    process = run_edge("cache", "remove", "--all")
    assert process.returncode == 0
    assert models[1]["key"] in process.stdout
    assert not Path(models[1]["path"]).exists()


def test_perplexity(run_edge: Callable[..., Any], smollm2: str, tmp_path: Path):
    """Sensible English is likely, the same words in a senseless order are not."""
    text = "The sun rises in the east and sets in the west. Water boils at one hundred degrees. " * 4
    shuffled = " ".join(sorted(text.split(), key=hash_of))
    results = []
    for name, content in (("plain", text), ("shuffled", shuffled)):
        (tmp_path / name).write_text(content)
        options = ("--text", str(tmp_path / name), "--window", "32", "--stride", "16", "--json")
        results.append(facts_of(run_edge("eval", "perplexity", smollm2, *options)))
    plain, mixed = results
    assert plain["perplexity"] < mixed["perplexity"]
    assert math.isclose(plain["perplexity"], math.exp(plain["nll"]))
    assert "32 tokens" in plain["protocol"] and "stride 16" in plain["protocol"]
    page = run_edge("eval", "perplexity", smollm2, "--text", str(tmp_path / "plain"), "--limit", "20")
    assert "Protocol:" in page.stdout and "19 of 20 tokens" in page.stdout


@pytest.mark.slow
def test_the_torch_executor_agrees(
    run_edge: Callable[..., Any], tiny_checkpoint: Callable[..., Path], tmp_path: Path
):
    (tmp_path / "text").write_text("abcdefgh " * 12)
    command = ("eval", "perplexity", str(tiny_checkpoint()), "--text", str(tmp_path / "text"), "--json")
    ours = facts_of(run_edge(*command, "--executor", "torch", "--threads", "1"))
    native = facts_of(run_edge(*command, "--activations", "float32", "--kv", "float32"))
    assert (ours["executor"], ours["activations"], ours["kv_type"]) == ("torch", "float32", "float32")
    assert (native["executor"], native["tokens"]) == ("native", ours["tokens"])
    assert math.isclose(ours["nll"], native["nll"], rel_tol=1e-4)
    model = command[2]
    both = run_edge("eval", "compare", model, model, *command[3:], "--executor-a", "torch", "--threads", "1")
    found = facts_of(both)
    assert (found["a"]["executor"], found["b"]["executor"]) == ("torch", "native")
    assert (found["a"]["activations"], found["b"]["activations"]) == ("float32", "int8")
    assert 0 < found["kl_divergence"] < 1
    refused = run_edge(*command, "--executor", "torch", "--mmap")
    assert refused.returncode == 1 and "mmap (--mmap/--no-mmap) can't be True" in refused.stderr


def hash_of(word: str) -> int:
    return sum(ord(letter) * 31**i for i, letter in enumerate(word)) % 97


def test_commands_of_the_docs_fit_the_default_model(run_inside: Callable[..., Any], smollm2: str):
    """README and docs/profile.md say MODEL: what they show must not be refused for the default one."""
    pages = "\n".join((ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "docs/profile.md"))
    commands = [
        shlex.split(line, comments=True)[1:]
        for line in re.findall(r"^    (edge (?:inspect|profile) MODEL .*)$", pages, re.M)
    ]
    assert {command[0] for command in commands} == {"inspect", "profile"}
    for command in commands:
        if command[0] == "inspect":
            done = run_inside("inspect", smollm2, *command[2:])
            assert done.returncode == 0, done.stderr
        elif "--depth" in command:
            depths = command[command.index("--depth") + 1].split(",")
            options = ProfileOptions(depth=tuple(map(int, depths)))
            assert options.context <= preset("smollm2-135m").max_position_embeddings


def test_a_notice_is_a_sentence_on_stderr(
    run_inside: Callable[..., Any], tiny_checkpoint: Callable[..., Path]
):
    """A head of its own beside a config that ties it, and a second set of weights."""

    def untie(tensors: dict[str, Any]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] * 2

    folder = tiny_checkpoint(untie)
    (folder / "consolidated.00.pth").write_bytes(b"")
    result = run_inside("inspect", str(folder), "--json")
    parts = [group["part"] for group in facts_of(result)["quantization"]]
    assert "head" in parts and "embedding" in parts
    first, second = result.stderr.splitlines()
    assert first == (
        f"Note: '{folder}' has more than one set of weights: model.safetensors is used, as transformers "
        "does, and consolidated.00.pth not."
    )
    assert second.startswith(f"Note: '{folder}' has a head of its own")
