"""The process of a part: `python -m scripts.cuda.worker WORK ... --into FILE`, see `report`.

A failure of the GPU spoils all that its process does afterwards; so every part has one of its own.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from .devices import Watched, open_device
from .extents import REAL, REHEARSED, Extent
from .report import Report

TESTS = "tests/kernels/cuda"
ON_GPU = "EDGE_TEST_GPU"
"""Environment variable that lets the tests of kernels run on the GPU, see their `conftest.py`."""

Work = Callable[[Watched, Report, Extent, argparse.Namespace], None]


def _facts(device: Watched, report: Report, extent: Extent, asked: argparse.Namespace) -> None:
    from .facts import tell

    tell(device, report)


def _kernels(device: Watched, report: Report, extent: Extent, asked: argparse.Namespace) -> None:
    from .caches import check_caches
    from .layers import check_layers
    from .matrices import check_matrices

    check_layers(device, report, extent)
    check_matrices(device, report, extent)
    check_caches(device, report, extent)


def _model(device: Watched, report: Report, extent: Extent, asked: argparse.Namespace) -> None:
    from .models import check_model

    check_model(device, report, extent, extent.shape(asked.shape), asked.models)


def _speed(device: Watched, report: Report, extent: Extent, asked: argparse.Namespace) -> None:
    from .speed import measure

    measure(device, report, extent, extent.shape(asked.shape), asked.models)


WORKS: dict[str, Work] = {"facts": _facts, "kernels": _kernels, "model": _model, "speed": _speed}
"""On a device."""


def _prepare(extent: Extent, asked: argparse.Namespace) -> None:
    from .models import prepare

    prepare(asked.models, extent)


def _tests(report: Report) -> None:
    """The tests of the kernels, on the GPU in the place of Triton's interpreter."""
    import pytest

    class Heard:
        """What pytest tells."""

        @staticmethod
        def pytest_runtest_logreport(report: pytest.TestReport) -> None:
            if report.failed or (report.when == "call" and report.passed):
                facts = {"error": report.longreprtext[-1500:]} if report.failed else {}
                into.check(report.nodeid, report.passed, **facts)

    into = report
    os.environ[ON_GPU] = "1"
    chosen = [TESTS, f"--ignore={TESTS}/test_build.py", "-q", "-p", "no:cacheprovider"]
    if pytest.main(chosen, plugins=[Heard()]) not in (0, 1):
        sys.exit("pytest could not run")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("works", nargs="+", choices=[*WORKS, "prepare", "tests"])
    parser.add_argument("--into", type=Path, required=True)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--shape", default="")
    parser.add_argument("--rehearse", action="store_true", help="tiny shapes, without a GPU")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes")
    asked = parser.parse_args(arguments)
    extent = REHEARSED if asked.rehearse or asked.tiny else REAL
    report = Report(asked.into, asked.seconds)
    if "prepare" in asked.works:
        _prepare(extent, asked)
    elif "tests" in asked.works:
        _tests(report)
    else:
        device = open_device(asked.rehearse)
        report.alive = device.synchronize
        for work in asked.works:
            WORKS[work](device, report, extent, asked)
        device.close()


if __name__ == "__main__":
    main()
