"""Every entry of every operator."""

from __future__ import annotations

from edge.kernels import (
    attention,
    dense,
    embedding,
    head,
    linear,
    norm,
    pages,
    probe,
    repack,
    rope,
    scores,
    selection,
    summaries,
    swiglu,
)
from edge.kernels.entry import Entry, by_id

ENTRIES: dict[str, Entry] = by_id(
    [
        *repack.ENTRIES,
        *embedding.ENTRIES,
        *norm.ENTRIES,
        *linear.ENTRIES,
        *dense.ENTRIES,
        *rope.ENTRIES,
        *pages.ENTRIES,
        *summaries.ENTRIES,
        *scores.ENTRIES,
        *selection.ENTRIES,
        *attention.ENTRIES,
        *swiglu.ENTRIES,
        *head.ENTRIES,
        *probe.ENTRIES,
    ]
)
