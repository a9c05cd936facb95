"""Every entry of every operator."""

from __future__ import annotations

from edge.kernels import attention, embedding, pages, rope, scores, selection, summaries
from edge.kernels.entry import Entry, by_id

ENTRIES: dict[str, Entry] = by_id(
    [
        *embedding.ENTRIES,
        *rope.ENTRIES,
        *pages.ENTRIES,
        *summaries.ENTRIES,
        *scores.ENTRIES,
        *selection.ENTRIES,
        *attention.ENTRIES,
    ]
)
