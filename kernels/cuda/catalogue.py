"""Every entry of every operator, in the order in which a pass needs them."""

from __future__ import annotations

from edge.kernels import (
    adjusted,
    attention,
    candidates,
    dense,
    embedding,
    head,
    linear,
    logprobs,
    norm,
    pages,
    probe,
    repack,
    rope,
    rows,
    sampling,
    scores,
    selection,
    summaries,
    swiglu,
)
from edge.kernels.entry import Entry, by_id

_OPERATORS = (
    repack,
    rows,
    embedding,
    norm,
    linear,
    dense,
    rope,
    pages,
    summaries,
    scores,
    selection,
    attention,
    swiglu,
    head,
    adjusted,
    candidates,
    sampling,
    logprobs,
    probe,
)

ENTRIES: dict[str, Entry] = by_id(entry for operator in _OPERATORS for entry in operator.ENTRIES)
