"""Every entry of every operator."""

from __future__ import annotations

from edge.kernels import dense, embedding, linear, repack
from edge.kernels.entry import Entry, by_id

ENTRIES: dict[str, Entry] = by_id(
    [
        *embedding.ENTRIES,
        *repack.ENTRIES,
        *linear.ENTRIES,
        *dense.ENTRIES,
    ]
)
