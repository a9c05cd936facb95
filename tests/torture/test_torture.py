"""A cut of `make torture`: a few kills, full disks and races of the quick kinds of write."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(sys.platform != "linux", reason="forks writers and kills them")
def test_writes_are_whole_or_not_there():
    command = [sys.executable, "-m", "tests.torture", "--kills", "4", "--fills", "3", "--races", "2"]
    command += [option for name in ("KV cache", "cache entry") for option in ("--write", name)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rows = done.stdout.splitlines()
    assert len(rows) == 2 and all("4 (" in row and "3 (3 failed)" in row for row in rows)
