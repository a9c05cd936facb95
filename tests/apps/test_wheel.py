"""`make chat` in a copy of the project with a wheel in dist/, without a compiler and without torch: what a
user installs is what runs.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import alone

ROOT = Path(__file__).resolve().parents[2]
COMPILERS = ("cc", "gcc", "c++", "g++", "clang", "clang++", "cmake", "ninja", "ld", "as")
SHADOWS = ("model.py", "train.py", "export.py", "apps.py")
QUESTION = "What is the capital of France?"
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


def copy_of_the_project(folder: Path) -> Path:
    """The files that git knows or would take, with their times and links: what a clone would have."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    return folder


def without_compiler(folder: Path) -> dict[str, str]:
    """The environment of a machine that has Python, make and a shell."""
    tools = folder / "tools"
    tools.mkdir(exist_ok=True)
    for name in ("make", "sh"):
        found = shutil.which(name)
        assert found, f"{name} is not installed"
        (tools / name).unlink(missing_ok=True)
        (tools / name).symlink_to(found)
    assert not [name for name in COMPILERS if shutil.which(name, path=str(tools))]
    kept = {name: value for name, value in os.environ.items() if name not in ("CC", "CXX", "MAKEFLAGS")}
    return {**kept, "PATH": str(tools), "EDGE_CACHE": str(folder / "cache"), "HOME": str(folder)}


@dataclass(frozen=True)
class Fresh:
    """A copy of the project where `make chat` was interrupted once and then ran to its end.

    interrupted, told: what the two said on stderr; answer: stdout of the second.
    """

    project: Path
    environment: dict[str, str]

    @property
    def programs(self) -> Path:
        return self.project / ".venv" / "bin"

    @property
    def wheel(self) -> Path:
        return next((self.project / "dist").glob("*.whl"))

    def said(self, name: str) -> str:
        return (self.project.parent / name).read_text()

    def chat(self, message: str) -> subprocess.CompletedProcess[str]:
        command = ["make", "--silent", "chat", f"PYTHON={sys.executable}"]
        return subprocess.run(
            command,
            cwd=self.project,
            env=self.environment,
            input=message,
            capture_output=True,
            text=True,
            timeout=900,
        )

    def interrupted_chat(self) -> str:
        """Ctrl-C while the second step goes on."""
        told = self.project.parent / "interrupted"
        command = ["make", "--silent", "chat", f"PYTHON={sys.executable}"]
        with told.open("w") as stderr:
            process = subprocess.Popen(
                command,
                cwd=self.project,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,
            )
            end = time.monotonic() + 300
            while "[2/3]" not in told.read_text() and time.monotonic() < end and process.poll() is None:
                time.sleep(0.05)
            os.killpg(process.pid, signal.SIGINT)
            assert process.wait(timeout=60) != 0
        return told.read_text()

    def run(self, *command: str | Path, **options: object) -> str:
        words = [str(part) for part in command]
        process = subprocess.run(words, env=self.environment, capture_output=True, text=True, **options)  # type: ignore[call-overload]
        assert process.returncode == 0, process.stdout[-3000:] + process.stderr[-3000:]
        return str(process.stdout)


@pytest.fixture(scope="session")
def fresh(wheel: Callable[[str], Path], run_folder: Path, smollm2_gguf: Path) -> Fresh:
    made = wheel(platform.machine())
    folder = run_folder / "fresh"
    with alone(folder):
        fresh = Fresh(folder / "project", without_compiler(folder))
        if not (folder / "answer").exists():
            copy_of_the_project(fresh.project)
            (fresh.project / "dist").mkdir()
            shutil.copy(made, fresh.project / "dist")
            fresh.interrupted_chat()
            done = fresh.chat(QUESTION)
            assert done.returncode == 0, done.stderr[-3000:]
            (folder / "told").write_text(done.stderr)
            (folder / "answer").write_text(done.stdout)
    return fresh


@pytest.fixture
def beside(tmp_path: Path) -> Path:
    """A folder with a user's own modules, named like this project's packages."""
    for name in SHADOWS:
        (tmp_path / name).write_text("MINE = True\nprint('a module of the user was imported')\n")
    return tmp_path


def test_make_chat_installs_the_wheel_and_goes_on_after_an_interruption(fresh: Fresh):
    interrupted, told = fresh.said("interrupted"), fresh.said("told")
    assert "Using dist/minicpm_edge-" in interrupted and "[2/3] The runtime" in interrupted
    assert "'make chat' goes on" in interrupted and "Traceback" not in interrupted
    assert "The last installation was not finished" in told
    assert re.findall(r"^\[(\d/\d)\]", told, re.M) == ["1/3", "2/3", "3/3"]
    assert fresh.said("answer").strip() and "[" not in fresh.said("answer")
    where = (fresh.programs / "python", "-c", "import edge; print(edge.__file__)")
    place = fresh.run(*where, cwd=fresh.project.parent)
    assert "/site-packages/edge/" in place


def test_the_second_make_chat_starts_at_once(fresh: Fresh):
    again = fresh.chat(QUESTION)
    assert again.returncode == 0 and again.stdout.strip()
    # A sampled answer may come to the model's limit, and then a note says so.
    assert not re.sub(r"\(stopped: the limit of \d+ tokens is reached\)\n", "", again.stderr)


def test_chat_without_torch(fresh: Fresh, beside: Path):
    missing = subprocess.run([fresh.programs / "python", "-c", "import torch"], capture_output=True)
    assert missing.returncode != 0
    options = ("--temperature", "0", "--max-tokens", "16", "--json")
    command = (fresh.programs / "edge", "chat", "smollm2-135m", "--prompt", "Hello", *options)
    answer = json.loads(fresh.run(*command, cwd=beside, timeout=120))
    assert answer["text"]
    assert answer["completion_tokens"] > 0


def test_python_api_beside_a_users_modules(fresh: Fresh, beside: Path):
    fresh.run(fresh.programs / "python", "-c", PYTHON_API, cwd=beside, timeout=120)


def test_example_of_the_readme(fresh: Fresh, tmp_path: Path):
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    output = fresh.run(fresh.programs / "python", "-c", example, cwd=tmp_path, timeout=120)
    assert re.search(r"^(eos|length) \d+ tokens/s$", output, re.M), output


def test_the_wheel_adds_one_package(fresh: Fresh):
    """Whatever a user has called model, export or train is not in the way, and not overwritten."""
    names = zipfile.ZipFile(fresh.wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert sorted(name for name in tops if not name.endswith(".dist-info")) == ["edge"]
    inside = {name.split("/")[1] for name in names if name.startswith("edge/")}
    assert {"model", "export", "train", "apps", "py.typed"} <= inside
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_version(fresh: Fresh):
    assert fresh.run(fresh.programs / "edge", "--version", timeout=60).startswith("edge 0.")


def test_executorch_says_that_it_needs_a_compiler(tmp_path: Path):
    """The one thing that is compiled at first use; in this environment, which has the package."""
    pytest.importorskip("executorch", reason="the package executorch is not installed")
    code = "from edge.executors.adapters import executorch_library as library; library()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=without_compiler(tmp_path),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert re.fullmatch(
        r"edge.errors.NativeError: ExecuTorch's kernels are compiled .* no C\+\+ compiler: .*", last
    )
