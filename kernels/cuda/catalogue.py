"""Every entry of every operator."""

from __future__ import annotations

from edge.kernels import adjusted, candidates, embedding, logprobs, sampling
from edge.kernels.entry import Entry, by_id

ENTRIES: dict[str, Entry] = by_id(
    [
        *embedding.ENTRIES,
        *adjusted.ENTRIES,
        *candidates.ENTRIES,
        *sampling.ENTRIES,
        *logprobs.ENTRIES,
    ]
)
