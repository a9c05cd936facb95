"""docs/extending.md as a package: its files in a temporary folder add a family, a scheme and the rest."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parent.parent / "docs" / "extending.md"
ROOT = PAGE.parent.parent
PROGRAM = """
import json, sys
from pathlib import Path

import numpy as np
import torch

import edge
from edge.checkpoints.gguf import GGUFCheckpoint
from edge.checkpoints.huggingface import HuggingFaceCheckpoint
from edge.config.presets import preset
from edge.export.artifact import export_model
from edge.export.options import ExportOptions
from edge.export.source import open_source
from edge.export.targets.gguf.target import TARGET
from edge.formats.safetensors import SafetensorsFile
from edge.hub.resolve import open_bundle
from edge.model.network.decoder import Decoder
from edge.model.weights.checkpoint import save_huggingface

out = Path(sys.argv[1])
found = {}

# Reader: a folder in the family's own names, written from a PyTorch network.
torch.manual_seed(0)
config = preset("sapling-tiny")
network = Decoder(config).requires_grad_(False)
files = open_bundle("random:sapling-tiny", quantize="f16").tokenizer_files
save_huggingface(out / "hf", config, network.state_dict(), tokenizer_files=files)
found["names"] = sorted(SafetensorsFile(out / "hf" / "model.safetensors").tensors)[-3:]
found["fields"] = json.loads((out / "hf" / "config.json").read_text())["n_embd"]
for name, weight in network.state_dict().items():
    assert np.array_equal(HuggingFaceCheckpoint(out / "hf").read_float32(name), weight.numpy()), name

# The scheme, on native and torch: the same greedy text from the same quantized weights, in exact arithmetic.
texts = []
for executor in ("native", "torch", "toy"):
    options = {} if executor == "torch" else {"activations": "float32", "kv_type": "float32"}
    with edge.load(out / "hf", quantize="quinary", executor=executor, **options) as model:
        texts.append(model.complete([1, 5, 9, 200], temperature=0, max_new_tokens=8).tokens)
        found[executor] = model.executor.info.tier.partition(" ")[0]
        schemes = {str(tensor.scheme) for tensor in model.files.tensors.values()}
assert texts[0] == texts[1] == texts[2], texts
found["schemes"] = sorted(schemes)

# The option: checked, with its default, seen by the executor.
with edge.load("random:sapling-tiny", executor="toy", shout=3) as model:
    found["shout"] = model.executor.info.tier
try:
    edge.load("random:sapling-tiny", executor="toy", shout=9)
except edge.EdgeError as error:
    found["refused"] = str(error)

# Through GGUF and back, from synthetic weights: bit for bit.
options = ExportOptions("gguf", quantize="f16", head="f16")
source = open_source("random:sapling-tiny", options)
written = TARGET.write(source, options, out, None)
read = GGUFCheckpoint(out / written.model)
assert read.config == source.config
for name in source.tensors:
    assert np.array_equal(read.read_float32(name), source.floats(name)), name
found["gguf"] = read._metadata["general.architecture"]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as pip would leave it: the files of the page, and entry points as its pyproject.toml says."""
    folder = tmp_path_factory.mktemp("site")
    text = PAGE.read_text(encoding="utf-8")
    files = dict(re.findall(r"```\w+\n# file: (\S+)\n(.*?)```", text, re.S))
    assert len(files) == 7
    entry = re.search(r'plugins"\]\n(.*)', files.pop("pyproject.toml"))
    assert entry is not None
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content)
    info = folder / "edge_toy-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: edge-toy\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[minicpm_edge.plugins]\n{entry[1].replace(chr(34), '')}\n")
    return folder


def run(site: Path, *command: str | Path) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(site), "EDGE_CACHE": str(site / "cache")},
        cwd=site,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-1000:]
    return done.stdout


def test_the_package_of_the_page(site: Path, tmp_path: Path):
    found = json.loads(run(site, sys.executable, "-c", PROGRAM, tmp_path).splitlines()[-1])
    assert found["names"][-1] == "tree.wte.weight" and found["fields"] == 128
    assert found["schemes"] == ["f32", "quinary-g64"]
    assert found["torch"] == "torch" and found["toy"] == "toy" and found["native"] not in ("torch", "toy")
    assert found["shout"] == "toy !!!"
    assert found["refused"] == "shout must be a whole number from 1 to 5, got 9."
    assert found["gguf"] == "sapling"


def test_the_commands_of_the_page(site: Path, tmp_path: Path):
    """They are run as they stand on the page, with --json and --dry-run where that shows more."""
    text = PAGE.read_text(encoding="utf-8")
    chat, inspect, export = re.findall(r"^edge (.*)$", text.rpartition("## Using it")[2], re.M)
    edge = (sys.executable, "-m", "edge.apps.cli.main")
    answer = json.loads(run(site, *edge, *chat.split(), "--max-tokens", "4", "--json").splitlines()[-1])
    assert answer["completion_tokens"] == 4
    facts = json.loads(run(site, *edge, *inspect.split(), "--json").splitlines()[-1])
    assert facts["architecture"] == "sapling"
    assert {group["scheme"] for group in facts["quantization"]} == {"f32", "quinary-g64"}
    run(site, *edge, *export.split(), "--dry-run")
    assert "--shout" in run(site, *edge, "chat", "--help")


def test_nothing_in_the_project_names_it():
    """The declarations are the package's alone."""
    for folder in ("edge", "model", "export", "train", "apps", "kernels"):
        for path in (ROOT / folder).rglob("*.py"):
            assert "quinary" not in path.read_text(encoding="utf-8"), path


def test_lines_of_each_declaration():
    """One declaration per family, of less than 60 lines; the page's table has all of them."""
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    source = (ROOT / "edge" / "config" / "families.py").read_text(encoding="utf-8")
    calls = [node.value for node in ast.parse(source).body if isinstance(node, ast.Expr)]
    lines = {
        ast.literal_eval(call.args[0].args[0]): call.end_lineno - call.lineno + 1
        for call in calls
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "register_family"
    }
    assert {name: int(count) for name, count in rows} == lines and len(rows) >= 7
    assert max(lines.values()) < 60
