"""Every entry of every operator."""

from __future__ import annotations

from edge.kernels import dense, embedding, head, linear, norm, repack, rows, swiglu
from edge.kernels.entry import Entry, by_id

ENTRIES: dict[str, Entry] = by_id(
    [
        *repack.ENTRIES,
        *rows.ENTRIES,
        *embedding.ENTRIES,
        *norm.ENTRIES,
        *linear.ENTRIES,
        *dense.ENTRIES,
        *swiglu.ENTRIES,
        *head.ENTRIES,
    ]
)
