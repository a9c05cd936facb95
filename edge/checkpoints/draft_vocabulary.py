"""The tokens of a head that was trained with its draft, as EAGLE-3 stores them: `d2t` and `t2d`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.checkpoints.draft_matrices import shape_text
from edge.checkpoints.frequency_list import TokenIds, checked_ids
from edge.errors import CheckpointError

VOCABULARY = ("d2t", "t2d")
"""d2t: integers [rows of the head], what must be added to the number of a row to have its token. t2d: bool
[vocabulary], whether a token has a row; it says nothing that d2t does not.
"""


def trained_ids(arrays: Mapping[str, npt.NDArray[Any]], rows: int, vocab_size: int, where: str) -> TokenIds:
    """The token of every row, int32 [rows]. arrays: those of VOCABULARY that there are; where: the draft, in
    words. Without d2t a head over the whole vocabulary has the tokens in their order. Raises CheckpointError
    for a map that lacks, or has another size, no token, one twice, or others than t2d says.
    """
    for name, size in zip(VOCABULARY, (rows, vocab_size), strict=True):
        if name in arrays and arrays[name].shape != (size,):
            raise CheckpointError(
                f"Tensor '{name}' of {where} has shape {shape_text(arrays[name].shape)}, but its "
                f"configuration asks for {size}; they belong to different drafts."
            )
    d2t, t2d = (arrays.get(name) for name in VOCABULARY)
    if d2t is None:
        if rows < vocab_size:
            raise CheckpointError(
                f"{where} has no tensor 'd2t', which says which tokens the {rows} rows of its head are; "
                "download the draft again."
            )
        return np.arange(rows, dtype=np.int32)
    if d2t.dtype.kind not in "iu":
        raise CheckpointError(f"Tensor 'd2t' of {where} has no whole numbers; download the draft again.")
    ids = checked_ids(d2t.astype(np.int64) + np.arange(rows), vocab_size, f"Tensor 'd2t' of {where}")
    # of a whole head some programs leave it empty
    if t2d is not None and rows < vocab_size and not np.array_equal(np.flatnonzero(t2d), np.sort(ids)):
        raise CheckpointError(
            f"Tensors 'd2t' and 't2d' of {where} name different tokens; download the draft again."
        )
    return ids
