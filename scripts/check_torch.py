"""Whether the installed torch is the CPU build; `make setup` stops if CUDA libraries came with it.

Only the files of the packages are read: importing torch takes seconds.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import re
import runpy
import sys
import sysconfig
from pathlib import Path


def cuda_packages(site: Path) -> list[str]:
    """Installed packages with NVIDIA's libraries, by name."""
    found = (each.metadata["Name"] for each in importlib.metadata.distributions(path=[str(site)]))
    names = {name for name in found if name}  # a damaged one has none
    # Not nvidia-ml-py, which only asks the driver.
    return sorted(name for name in names if re.match(r"nvidia-(?!ml-py$)|cuda-toolkit$", name))


def cuda_version(site: Path) -> str | None:
    """The CUDA that torch was built for; None for a CPU build, or without torch."""
    facts = site / "torch" / "version.py"
    return runpy.run_path(str(facts))["cuda"] if facts.is_file() else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    site = sysconfig.get_paths()["purelib"]
    parser.add_argument("--site", type=Path, default=site, help="the folder of installed packages")
    site = parser.parse_args().site
    version, packages = cuda_version(site), cuda_packages(site)
    if version is None and not packages:
        return 0
    what = f"torch was built for CUDA {version}" if version else "CUDA libraries are installed"
    print(
        f"Error: {what} ({len(packages)} packages of NVIDIA came with it), and only its CPU build is needed: "
        "remove .venv and run 'make setup TORCH_INDEX=ADDRESS', where the address is that of PyTorch's index "
        "of CPU builds, from its installation page; 'make setup TORCH_CUDA=ok' keeps what there is.",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
