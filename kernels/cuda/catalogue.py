"""Every entry of every operator."""

from __future__ import annotations

from edge.kernels import embedding
from edge.kernels.entry import Entry, by_id

ENTRIES: dict[str, Entry] = by_id([*embedding.ENTRIES])
