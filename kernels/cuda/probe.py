"""Reads memory and does nothing else: how fast a device is at that, which other kernels are held against."""

import triton
import triton.language as tl

from edge.kernels.entry import Entry


@triton.jit
def probe(words, out, steps, BLOCK: tl.constexpr):
    """out int32 [programs, BLOCK] = the exclusive or of words int32 [programs, steps, BLOCK] over steps."""
    program = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    place = words + program * steps * BLOCK + at
    found = tl.zeros((BLOCK,), tl.int32)
    for step in range(steps):
        found ^= tl.load(place + step * BLOCK)
    tl.store(out + program * BLOCK + at, found)


ENTRIES = [Entry("probe", probe, {"words": "*i32", "out": "*i32", "steps": "i32"}, {"BLOCK": 4096}, stages=4)]
