"""Reading alone, see `kernels/cuda/probe.py`."""

from __future__ import annotations

from edge.executors.cuda.device import Address, Device

BLOCK = 4096
"""Words that a program reads at a time."""


def probe(device: Device, words: Address, out: Address, *, programs: int, steps: int) -> None:
    """out int32 [programs, BLOCK] = the exclusive or of words int32 [programs, steps, BLOCK] over steps."""
    device.launch("probe", (programs, 1, 1), (words, out, steps))
