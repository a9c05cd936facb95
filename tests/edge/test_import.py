"""`import edge` is light, and works beside a user's own model.py, train.py and export.py."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import edge

HEAVY = ("torch", "transformers", "gguf", "huggingface_hub", "sentencepiece", "tokenizers", "jinja2", "numpy")
TRAP = "raise RuntimeError('the user\\'s own file was imported')\n"


@pytest.fixture
def own_files(tmp_path: Path) -> Path:
    """A folder with files whose names are also those of packages of this project."""
    for name in ("model", "train", "export", "apps", "kernels", "config", "session", "chat"):
        (tmp_path / f"{name}.py").write_text(TRAP)
    return tmp_path


def run(folder: Path, program: str) -> dict:
    """The JSON that `program` prints, run in `folder` with that folder first on sys.path."""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_import_edge_is_light(own_files):
    program = "import sys, json, edge; print(json.dumps([m for m in sys.modules]))"
    loaded = run(own_files, program)
    assert "edge" in loaded
    assert [name for name in HEAVY if name in loaded] == []


def test_a_conversation_needs_neither_torch_nor_the_other_rooms(own_files, smollm2_gguf):
    program = (
        "import sys, json, edge\n"
        f"with edge.load({str(smollm2_gguf)!r}, context=128) as model:\n"
        "    text = model.chat().send('Hi', temperature=0, max_new_tokens=5).text\n"
        "print(json.dumps({'text': text, 'modules': list(sys.modules)}))\n"
    )
    result = run(own_files, program)
    assert result["text"]
    for name in (
        "torch",
        "transformers",
        "edge.model",
        "edge.train",
        "edge.export",
        "edge.apps",
        "huggingface_hub",
        "onnxruntime",
    ):
        assert name not in result["modules"]


def test_a_script_beside_its_own_files_exports_and_uses_the_torch_executor(own_files, smollm2_gguf):
    program = (
        "import sys, json, edge\n"
        "from edge.export.artifact import export_model\n"
        "from edge.export.options import ExportOptions\n"
        "from edge.export.source import open_source\n"
        "options = ExportOptions(target='bundle', context=64)\n"
        f"artifact = export_model(open_source({str(smollm2_gguf)!r}, options), options, 'exported')\n"
        f"with edge.load({str(smollm2_gguf)!r}, context=64, executor='torch') as model:\n"
        "    text = model.complete('One, two,', temperature=0, max_new_tokens=2).text\n"
        "target = artifact.manifest.target\n"
        "print(json.dumps({'text': text, 'target': target, 'modules': list(sys.modules)}))\n"
    )
    result = run(own_files, program)
    assert result["target"] == "bundle" and result["text"]
    assert "edge.model.executor" in result["modules"]
    assert not {"model", "train", "export", "apps"} & set(result["modules"])


def test_every_public_name_is_there():
    for name in edge.__all__:
        value = getattr(edge, name)
        if name not in ("__version__",):
            assert getattr(value, "__name__", None) == name and value.__module__.startswith("edge."), name
    assert set(edge.__all__) <= set(dir(edge))
    with pytest.raises(AttributeError, match="'lod'"):
        _ = edge.lod


def test_the_version_is_the_packages():
    assert edge.__version__ == version("minicpm-edge")
