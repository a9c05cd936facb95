"""What `make chat` does before the chat: which wheel it takes, how it shows progress, and how it fails."""

from __future__ import annotations

import os
import platform
import re
import runpy
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pexpect
import pytest

from tests.apps.test_wheel import ROOT, copy_of_the_project, without_compiler

SCRIPT = "scripts/install_runtime.py"
WORK = "import time; print('[1/2] Building CXX object a.o', flush=True); time.sleep(1.2)"


@pytest.fixture(scope="module")
def script() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(ROOT / SCRIPT)))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small tree with the folders that the script looks at, an hour old; the test's current folder."""
    files = {
        "edge/__init__.py": '__version__ = "1.2.3"\n',
        "model/network.py": "LAYERS = 2\n",
        "kernels/CMakeLists.txt": "project(edge)\n",
        "kernels/exports.map": "{};\n",
        "kernels/src/api.cpp": "int main;\n",
        "pyproject.toml": (ROOT / "pyproject.toml").read_text(encoding="utf-8"),
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        hour_ago = time.time() - 3600
        os.utime(path, (hour_ago, hour_ago))
    (tmp_path / "edge/model").symlink_to("../model")
    (tmp_path / "dist").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_wheel(
    project: Path,
    version: str = "1.2.3",
    machine: str = platform.machine(),
    native: str | None = "of the sources",
    **changed: str,
) -> Path:
    """native: what the wheel says that its library was compiled from."""
    path = project / f"dist/minicpm_edge-{version}-py3-none-manylinux_2_34_{machine}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("edge/__init__.py", "edge/model/network.py"):
            key = name.rpartition("/")[2].partition(".")[0]
            archive.writestr(name, changed.get(key, (project / name).read_text()))
        archive.writestr("edge/executors/native/libedge.so", b"\x7fELF")
        if native is not None:
            digest = runpy.run_path(str(ROOT / SCRIPT))["native_digest"]()
            archive.writestr(
                "edge/executors/native/sources.txt", native.replace("of the sources", digest) + "\n"
            )
    return path


def test_a_wheel_of_these_sources_is_taken(script: SimpleNamespace, project: Path, capsys):
    wheel = make_wheel(project)
    assert script.choose_wheel() == wheel.relative_to(project)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda project: make_wheel(project, version="1.2.2"), "is not version 1.2.3"),
        (lambda project: make_wheel(project, network="LAYERS = 1\n"), "was made from other sources"),
        (lambda project: make_wheel(project).write_bytes(b"half a file"), "is damaged"),
        (
            lambda project: (make_wheel(project), (project / "model/new.py").touch()),
            "was made from other sources",
        ),
        (
            lambda project: (make_wheel(project), (project / "kernels/src/api.cpp").write_text("int other;")),
            "was made from other sources",
        ),
        (lambda project: make_wheel(project, native=None), "does not say what .*"),
    ],
    ids=["version", "python", "damaged", "new file", "kernels", "silent"],
)
def test_any_other_wheel_is_named_and_left(
    script: SimpleNamespace, project: Path, capsys, change: Callable[[Path], object], reason: str
):
    change(project)
    assert script.choose_wheel() is None
    said = capsys.readouterr().err
    assert re.fullmatch(
        rf"dist/minicpm_edge-\S+\.whl {reason}: it is not used \('make wheels' .*\)\.\n", said
    )


def test_a_wheel_counts_by_what_is_in_it_not_by_its_time(script: SimpleNamespace, project: Path):
    """A download may keep the time of the server, and a clone has the time of today."""
    wheel = make_wheel(project)
    os.utime(wheel, (0, 0))
    assert script.choose_wheel() == wheel.relative_to(project)


def test_a_second_installation_waits_for_the_first(project: Path):
    hold = f"import runpy, time; alone = runpy.run_path({str(ROOT / SCRIPT)!r})['alone']\n"
    first = subprocess.Popen(
        [sys.executable, "-c", hold + "with alone(): print('in', flush=True); time.sleep(1)"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert first.stdout is not None and first.stdout.readline() == "in\n"
    second = subprocess.run(
        [sys.executable, "-c", hold + "with alone(): pass"], capture_output=True, text=True, timeout=30
    )
    assert first.poll() == 0 or first.wait(5) == 0
    assert second.stderr == "Another installation goes on in this folder; this one waits for it.\n"


def test_an_index_of_torch_alone_is_enough(tmp_path: Path):
    """PyTorch's index has its own choice of the packages that torch needs: those come from the usual one."""
    index = tmp_path / "torch"
    index.mkdir()
    name = "torch-2.13.0+cpu-py3-none-any.whl"
    with zipfile.ZipFile(index / name, "w") as archive:
        facts = "Metadata-Version: 2.1\nName: torch\nVersion: 2.13.0+cpu\nRequires-Dist: no-such-package==1\n"
        archive.writestr("torch-2.13.0+cpu.dist-info/METADATA", facts)
        archive.writestr("torch-2.13.0+cpu.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("torch-2.13.0+cpu.dist-info/RECORD", "")
    (index / "index.html").write_text(f'<a href="{name}">{name}</a>')
    made = ("make", "--dry-run", "--always-make", "setup", f"TORCH_INDEX={tmp_path.as_uri()}")
    printed = subprocess.run(made, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout
    (line,) = (line for line in printed.splitlines() if line.endswith("torch==2.13.0"))
    command = line.replace(".venv/bin/pip", f"{sys.executable} -m pip --isolated", 1)
    tried = subprocess.run(
        f"{command} --dry-run --ignore-installed --report -",
        shell=True,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert tried.returncode == 0, tried.stderr
    assert re.findall(r'"version": "([^"]+)"', tried.stdout)[-1:] == ["2.13.0+cpu"]


def test_setup_says_each_stage_before_it_runs():
    made = ("make", "--dry-run", "--always-make", "setup", f"PYTHON={sys.executable}")
    printed = subprocess.run(made, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout
    lines = [line for line in printed.splitlines() if line.startswith("echo ") or "pip install" in line]
    said, done = lines[::2], lines[1::2]
    assert len(said) == len(done) == 4 and all("pip install" in line for line in done)
    names = ("torch", "cmake", "runtime", "model")
    for number, (line, name) in enumerate(zip(said, names, strict=True), 1):
        assert line.startswith(f'echo "[{number}/4] ') and name in line


def test_wheels_for_other_machines_are_not_mentioned(script: SimpleNamespace, project: Path, capsys):
    make_wheel(project, machine="riscv64")
    assert script.choose_wheel() is None
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("installed", "changed", "current"),
    [
        ("", None, True),
        ("", "model/network.py", True),  # the sources themselves are used
        ("", "kernels/src/api.cpp", False),
        ("", "pyproject.toml", False),
        ("a.whl\n", None, True),
        ("a.whl\n", "model/network.py", False),
        ("a.whl\n", "kernels/src/api.cpp", False),
    ],
)
def test_what_is_installed_again(
    script: SimpleNamespace, project: Path, installed: str, changed: str | None, current: bool
):
    (project / ".venv/bin").mkdir(parents=True)
    (project / ".venv/bin/edge").touch()
    assert not script.is_current()
    (project / ".venv/.runtime").write_text(installed)
    if changed:
        later = time.time() + 60
        os.utime(project / changed, (later, later))
    assert script.is_current() == current


def test_the_build_tools_are_those_of_pyproject(script: SimpleNamespace, project: Path):
    names = {re.split("[<>=]", each)[0] for each in script.build_tools()}
    assert names == {"scikit-build-core", "cmake", "ninja"}


def test_without_compiler_and_wheel_one_sentence_names_both(tmp_path: Path):
    project = copy_of_the_project(tmp_path / "project")
    command = ["make", "--silent", "chat", f"PYTHON={sys.executable}"]
    done = subprocess.run(
        command, cwd=project, env=without_compiler(tmp_path), capture_output=True, text=True, timeout=60
    )
    assert done.returncode != 0 and done.stdout == ""
    first = done.stderr.splitlines()[0]
    assert (
        first.startswith("Error: There is no C++ compiler")
        and "apt-get install g++" in first
        and "dist/" in first
    )
    assert not (project / ".venv").exists()


def test_the_causes_of_real_failures(script: SimpleNamespace, tmp_path: Path):
    pip = [sys.executable, "-m", "pip", "download", "--retries", "1", "--timeout", "2", "--isolated"]
    nowhere = subprocess.run(
        [*pip, "--index-url", "http://127.0.0.1:9/simple", "nothing"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PIP_CONFIG_FILE": os.devnull},
    )
    assert nowhere.returncode != 0
    assert "The package index could not be reached" in script.cause(nowhere.stdout + nowhere.stderr)
    cmake = shutil.which("cmake")
    if cmake is None:
        pytest.skip("cmake is not installed; `make setup` installs it")
    configured = subprocess.run(
        [cmake, "-S", str(ROOT / "kernels"), "-B", str(tmp_path / "build"), "-G", "Ninja"],
        capture_output=True,
        text=True,
        env={**without_compiler(tmp_path), "PATH": f"{tmp_path / 'tools'}:{tmp_path / 'with'}"},
    )
    assert configured.returncode != 0
    assert "C++ compiler" in script.cause(configured.stdout + configured.stderr)


def test_a_failure_shows_the_end_of_the_log(project: Path):
    code = f"import runpy; s = runpy.run_path({str(ROOT / SCRIPT)!r}); steps = s['Steps'](1)\n"
    fail = "print(*range(40), sep=chr(10)); print('OSError: No space left on device'); raise SystemExit(1)"
    code += f"try: steps.run('A step', {sys.executable!r}, '-c', {fail!r})\n"
    code += "except s['Refused'] as error: print(error)"
    done = subprocess.run([sys.executable, "-c", code], cwd=project, capture_output=True, text=True)
    shown = done.stderr.splitlines()
    assert shown[0] == "[1/1] A step" and "failed after" in shown[1]
    assert shown[2:] == [
        *(f"    {number}" for number in range(29, 40)),
        "    OSError: No space left on device",
    ]
    assert done.stdout == (
        "The disk is full. The whole output is in build/install.log; 'make chat' tries again.\n"
    )
    assert (project / "build/install.log").read_text().startswith("0\n1\n")


def test_a_terminal_shows_a_line_that_moves(project: Path):
    code = f"import runpy; s = runpy.run_path({str(ROOT / SCRIPT)!r})\n"
    code += f"s['Steps'](3).run('A step (usually brief)', {sys.executable!r}, '-c', {WORK!r})"
    terminal = pexpect.spawn(
        sys.executable, ["-c", code], cwd=str(project), encoding="utf-8", dimensions=(24, 60)
    )
    terminal.expect(r"[-|/\\] \[1/3\] A step +\d+ s +\[1/2\] Building CXX obj", timeout=30)
    terminal.expect(r"\[1/3\] A step \(usually brief\): \d+ s\r\n", timeout=30)
    terminal.expect(pexpect.EOF, timeout=30)
    assert terminal.wait() == 0


def torch_check(site: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts/check_torch.py"), "--site", str(site)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("cuda", "packages", "refused"),
    [
        (None, ["numpy"], None),
        ("13.0", ["nvidia-cublas", "nvidia-cudnn-cu13"], r"torch was built for CUDA 13\.0 \(2 packages"),
        (None, ["nvidia-cuda-runtime"], r"CUDA libraries are installed \(1 packages"),
    ],
    ids=["cpu", "cuda", "libraries alone"],
)
def test_a_cuda_build_of_torch_is_refused(
    tmp_path: Path, cuda: str | None, packages: list[str], refused: str | None
):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/version.py").write_text(f"__version__ = '2.13.0'\ncuda: str | None = {cuda!r}\n")
    for name in packages:
        (tmp_path / f"{name}-1.0.dist-info").mkdir()
        (tmp_path / f"{name}-1.0.dist-info/METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
        )
    done = torch_check(tmp_path)
    assert done.returncode == (1 if refused else 0)
    if refused:
        assert re.match(f"Error: {refused}.* TORCH_INDEX=.* TORCH_CUDA=ok.*\n$", done.stderr)
    else:
        assert done.stderr == ""
