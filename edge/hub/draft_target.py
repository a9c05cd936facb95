"""Tells whether a public draft was trained for a model: by its tokenizer, and by its copies of the model's
matrices.
"""

from __future__ import annotations

import numpy as np

from edge.checkpoints.draft import EMBEDDING_COPY, HEAD_COPY, DraftCheckpoint
from edge.config.tensors import EMBEDDING, HEAD
from edge.errors import CheckpointError
from edge.formats.bundle.reader import Bundle
from edge.quant.gather import gather_rows
from edge.quant.packing import dequantize
from edge.text.tokenizer.load import load_tokenizer, open_tokenizer

_ROWS = 64  # of a copy that are compared
_ALIKE = 0.9  # cosine between two rows; rounding to 4 bits leaves 0.99
_OTHER_TOKENS = 0.01  # share of a vocabulary in which two files of one tokenizer may differ


def check_tokenizer(draft: DraftCheckpoint, target: Bundle) -> None:
    """Raise CheckpointError for a draft that brings another tokenizer than its target has.

    The texts of all tokens are compared, since the two may come in different files. Few drafts bring one.
    """
    files = draft.tokenizer_files
    if not files or not target.tokenizer_files:
        return
    theirs, ours = load_tokenizer(files, target.config), open_tokenizer(target)
    try:
        size = target.config.vocab_size
        others = [token for token in range(size) if theirs.token_bytes(token) != ours.token_bytes(token)]
    finally:
        theirs.close()
        ours.close()
    if len(others) > _OTHER_TOKENS * size:
        raise CheckpointError(
            f"{draft.source} is a draft for another tokenizer: {len(others)} of its {size} tokens stand for "
            f"other texts than those of '{target.path}', token {others[0]} among them; take the draft that "
            "was trained for this model."
        )


def check_copies(draft: DraftCheckpoint, target: Bundle) -> None:
    """Raise CheckpointError if the draft's copy of the target's embedding or head is that of another model.

    Some rows are compared by their direction, which survives the target's quantization. Drafts need not have
    copies.
    """
    size = target.config.vocab_size
    rows = np.unique(np.linspace(0, size - 1, _ROWS).astype(np.int64))
    head = EMBEDDING if target.config.tie_word_embeddings else HEAD
    for copy, name in ((EMBEDDING_COPY, EMBEDDING), (HEAD_COPY, head)):
        theirs = draft.copy_of(copy, rows)
        if theirs is None:
            continue
        tensor = target.tensors[name]
        packed = gather_rows(target.data(name), tensor.scheme, (tensor.rows, tensor.columns), rows)
        ours = dequantize(packed.data, packed.scheme, *packed.shape)
        norms = np.linalg.norm(theirs, axis=1) * np.linalg.norm(ours, axis=1)
        told = norms > 0  # of a token that was never trained nothing can be told
        cosines = (theirs * ours).sum(axis=1)[told] / norms[told]
        if cosines.size and not np.median(cosines) >= _ALIKE:
            raise CheckpointError(
                f"{draft.source} is a draft for another model: its copy '{copy}' differs from the matrix of "
                f"'{target.path}'; take the draft that was trained for this model."
            )
