"""Counts the tokens of texts: the list of frequent ones for a draft's small head (FR-Spec, arXiv 2502.14856).

Texts are read in pieces that end at line breaks, so a corpus may be larger than the memory. Tokens are those
that the model's tokenizer gives for plain text, without the first token of a sequence.
"""

from __future__ import annotations

import codecs
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge.checkpoints.frequency_list import TokenIds, with_end_tokens
from edge.errors import EdgeError
from edge.formats.model_folder import open_regular
from edge.text.tokenizer.base import Tokenizer

Counts = npt.NDArray[np.int64]
Progress = Callable[[int, int, str], None]
"""Called with bytes read so far, bytes of all files, and the file that is read."""

_PIECE = 1 << 18  # bytes
_SHARES = (8, 4, 2)  # parts of the vocabulary of which the coverage is told


@dataclass(frozen=True)
class TokenCounts:
    """How often every token of a vocabulary came up: int64 [vocab_size]."""

    counts: Counts

    @property
    def tokens(self) -> int:
        """Occurrences of all tokens together."""
        return int(self.counts.sum())

    @property
    def different(self) -> int:
        """Tokens that came up at all."""
        return int(np.count_nonzero(self.counts))

    def ranked(self, size: int, end_tokens: Iterable[int]) -> TokenIds:
        """The `size` most frequent tokens, the most frequent first, int32; equal ones by their id.

        Where fewer came up, others follow by their id. End tokens are always among them. CheckpointError for
        a size that has no room for them.
        """
        order = np.argsort(-self.counts, kind="stable")
        return with_end_tokens(order[:size].astype(np.int32), end_tokens)

    def coverage(self, ids: TokenIds) -> float:
        """The share of all occurrences that these tokens have."""
        return float(self.counts[ids].sum() / self.tokens)

    def usual_sizes(self) -> tuple[int, ...]:
        """An eighth, a quarter and a half of the vocabulary."""
        return tuple(self.counts.size // share for share in _SHARES)


def count_tokens(
    tokenizer: Tokenizer, texts: Sequence[str | Path], *, progress: Progress | None = None
) -> TokenCounts:
    """Count the tokens of UTF-8 files.

    Raises EdgeError for a file that can't be read or is not UTF-8, and if there is no text at all.
    """
    paths = [Path(text) for text in texts]
    sizes = [_size(path) for path in paths]
    counts = np.zeros(tokenizer.vocab_size, np.int64)
    done = 0
    for path, size in zip(paths, sizes, strict=True):
        started = done
        for piece, read in _pieces(path):
            if progress is not None:
                progress(done, sum(sizes), str(path))
            ids = tokenizer.encode(piece, add_bos=False, continues=done != started)
            counts += np.bincount(np.asarray(ids, np.int64), minlength=counts.size)
            done = started + read
        done = started + size
    if progress is not None:
        progress(done, sum(sizes), "")
    found = TokenCounts(counts)
    if not found.tokens:
        raise EdgeError("The texts are empty, so there are no tokens to count; name files with text.")
    return found


def _size(path: Path) -> int:
    try:
        with open_regular(path) as file:
            return os.fstat(file.fileno()).st_size
    except OSError as error:
        raise EdgeError(f"Cannot read '{path}': {error.strerror or error}.") from None


def _pieces(path: Path) -> Iterator[tuple[str, int]]:
    """The text in pieces that end behind a line break where there is one, each with the bytes read until
    then.
    """
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    rest, read = "", 0
    try:
        with open_regular(path) as file:
            while data := file.read(_PIECE):
                read += len(data)
                text = rest + decoder.decode(data)
                cut = text.rfind("\n") + 1 or len(text)
                rest = text[cut:]
                if cut:
                    yield text[:cut], read
        rest += decoder.decode(b"", final=True)
    except OSError as error:
        raise EdgeError(f"Cannot read '{path}': {error.strerror or error}.") from None
    except UnicodeDecodeError:
        raise EdgeError(f"'{path}' is not a UTF-8 text; convert it to UTF-8 or name another.") from None
    if rest:
        yield rest, read
