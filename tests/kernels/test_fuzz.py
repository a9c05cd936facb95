"""A short run of the C++ fuzzers; `make fuzz-native` makes the long one (docs/fuzzing.md)."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "fuzz"
CORPUS = ROOT / "tests" / "fuzz" / "corpus"
QUICK = ("json", "bundle", "decoder", "sampler")
"""Compiled in seconds; the others take the kernels with sanitizers, which is minutes."""


@pytest.fixture(scope="module")
def fuzzer(require: Callable[..., None]) -> Callable[[str], Path]:
    """`fuzzer(reader)`: its program."""
    require("clang++", "cmake", "ninja")
    BUILD.mkdir(parents=True, exist_ok=True)
    # Of test processes that run side by side, the first one builds.
    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        built = subprocess.run(
            [ROOT / "scripts" / "fuzz-native", Path(shutil.which("cmake") or "").parent, BUILD, "0", *QUICK],
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
    if "libclang_rt" in built.stdout + built.stderr:
        pytest.skip("libclang-rt-dev is not installed; scripts/install-test-packages installs it")
    assert built.returncode == 0, built.stdout + built.stderr

    def program(reader: str) -> Path:
        path = BUILD / f"fuzz_{reader}"
        if not path.is_file():
            pytest.skip(f"{path.name} is not compiled; `make fuzz-native` does that")
        return path

    return program


@pytest.mark.parametrize("reader", [*QUICK, "model", "forward", "restore"])
def test_a_short_run(fuzzer, tmp_path: Path, reader: str):
    """Seeds are accepted; nothing in the corpus is a fault, and neither are a few thousand changes of it."""
    program = fuzzer(reader)
    seeds = sorted((CORPUS / reader).glob("seed-*"))
    assert seeds
    accepted = {**os.environ, "EDGE_FUZZ_ACCEPT": "1"}
    found = subprocess.run([program, *seeds], capture_output=True, text=True, env=accepted, timeout=120)
    assert found.returncode == 0, found.stderr
    limits = ["-max_total_time=1", "-max_len=12000", "-timeout=100", "-rss_limit_mb=2048", "-seed=1"]
    # A shell between: a process's peak of memory, as libFuzzer reads it, begins with its parent's.
    shell = ["sh", "-c", '"$@"; exit $?', "sh"]
    found = subprocess.run(
        [*shell, program, *limits, f"-artifact_prefix={tmp_path}/", tmp_path, CORPUS / reader],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert found.returncode == 0, found.stderr


def test_a_seed_that_is_refused_is_a_failure(fuzzer, tmp_path: Path):
    (tmp_path / "text").write_text("[1,]")
    accepted = {**os.environ, "EDGE_FUZZ_ACCEPT": "1"}
    found = subprocess.run(
        [fuzzer("json"), tmp_path / "text"], capture_output=True, text=True, env=accepted, timeout=60
    )
    assert found.returncode != 0 and "accepted" in found.stderr
