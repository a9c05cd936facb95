"""What the machine code of every CUDA kernel needs of a device, as `make cubins` prints it, for sm_87.

    python -m scripts.cuda_kernels

Compiled first, unless `make cubins ARCHITECTURES=87` was run. The last line is one JSON document. No GPU is
asked.
"""

from __future__ import annotations

import json
from dataclasses import asdict

import triton

from edge.kernels.catalogue import ENTRIES
from edge.kernels.targets import TARGETS

from .cuda_model.code import ARCHITECTURE, compiled


def main() -> None:
    """See the head of this file."""
    rows = []
    for kernel in ENTRIES:
        usage, lowered, _ = compiled(kernel)
        faults = usage.faults(TARGETS[ARCHITECTURE], warps=lowered.warps, dynamic_shared=lowered.shared)
        needs = asdict(usage) | {"shared": usage.shared + lowered.shared}
        rows.append({"kernel": kernel, "warps": lowered.warps, **needs, "faults": faults})
        print(f"{kernel:36} {usage.registers:4} registers, {usage.spills:4} bytes of spills")
    document = {"architecture": f"sm_{ARCHITECTURE}", "triton": triton.__version__, "kernels": rows}
    print(json.dumps(document))


if __name__ == "__main__":
    main()
