"""A cut of `make torture`: a few kills, full disks and races of the quick kinds of write."""

from __future__ import annotations

import json
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
    document = json.loads(done.stdout.splitlines()[-1])
    assert list(document["writes"]) == ["KV cache", "cache entry"] and not document["failed"]
    for found in document["writes"].values():
        assert found["kills"][0] == 4 and found["limits"] == [3, 3] and found["races"] == 2
