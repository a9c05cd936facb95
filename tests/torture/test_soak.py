"""What a soak calls a finding, and a miniature of it (`make torture` runs the long one)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.torture.soak.known import KNOWN
from tests.torture.soak.report import Conversation, Report

ROOT = Path(__file__).resolve().parents[2]


def test_what_a_finding_is():
    report = Report(0, quiet={"a": ["x"]})
    for status in (200, 404, 429, 503, 504, None):
        report.counted("whole", status)
    report.answered("a", ["x"])
    report.remembered([150, 100, 100, 101, 102, 102])  # the median of a third of two samples: 125 and 102
    report.found_again(Conversation(1, 1500, 1200), 1199)
    assert report.findings == [] and report.document()["most_growth"] == pytest.approx(102 / 125 - 1)
    report.counted("stream", 500)
    report.answered("a", ["y"])
    report.remembered([100] * 5)  # too few
    report.remembered([100, 100, 101, 101, 103, 103])
    report.found_again(Conversation(1, 1500, 1200), 1198)
    begun = [finding.split()[0] for finding in report.findings]
    assert begun == ["stream:", "a:", "memory", "1198"]
    assert report.statuses == {"200": 1, "404": 1, "429": 1, "503": 1, "504": 1, "none": 1, "500": 1}


def test_a_report_goes_on(tmp_path):
    path = tmp_path / "report.json"
    report = Report(3, lives=2, conversations=[Conversation(1, 1500, 1200)], quiet={"a": ["x"]})
    report.save(path)
    assert Report.load(path, 3) == report and Report.load(path, 4) == Report(4)


@pytest.mark.slow
def test_a_server_that_is_killed_under_traffic(smollm2_gguf, tmp_path):
    """Two lives of some seconds, in two runs; the second one finds what the first had in files."""

    def run(seconds: float) -> dict[str, Any]:
        command = [sys.executable, "-m", "tests.torture.soak", "--life", "3", "--state", str(tmp_path)]
        command += ["--seconds", str(seconds), "--model", str(smollm2_gguf)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    first = run(1)
    saved = [each["saved"] for each in json.loads((tmp_path / "report.json").read_bytes())["conversations"]]
    assert first["ends"] == {"kill -9": 1} and first["compared"] >= 2 * len(KNOWN) and max(saved) > 1000
    second = run(first["seconds"] + 1)
    assert second["ends"] == {"kill -9": 2} and second["prefixes"] >= first["prefixes"] + len(saved)
    assert {"leave", "cancel", "malformed"} <= set(second["requests"]) and second["findings"] == []
