"""The text that calibrated quantizers look at, as sequences of tokens.

Without a file it is the language reference inside every Python installation: English prose with program text,
about 110,000 tokens.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edge.config import ModelConfig
from edge.errors import ExportError
from edge.text.tokenizer.load import load_tokenizer

_MOST_CHARACTERS = 8 << 20  # what lies beyond is not read: more would only take time


@dataclass(frozen=True)
class Calibration:
    """tokens: int64 [sequences, length]. source: where the text came from. sha256: of the tokens."""

    tokens: npt.NDArray[np.int64]
    source: str
    sha256: str


class Tokenized(Protocol):
    """A checkpoint, a bundle, or whatever else has these two."""

    @property
    def config(self) -> ModelConfig:
        """The network."""

    @property
    def tokenizer_files(self) -> dict[str, bytes]:
        """By file name."""


def calibration(model: Tokenized, path: Path | None, sequences: int, length: int) -> Calibration:
    """Evenly spread, disjoint pieces of a text, each with a BOS in front if the tokenizer wants one.

    path: a UTF-8 text, None for `default_text`. Raises ExportError for one that can't be read or is too
    short, TokenizerError for a tokenizer that is missing or contradicts the vocabulary.
    """
    tokenizer = load_tokenizer(model.tokenizer_files, model.config)
    text, source = (
        (default_text(), "Python's language reference") if path is None else (_read(path), str(path))
    )
    ids = np.array(tokenizer.encode(text, add_bos=False), np.int64)
    lead = tokenizer.encode("a")[: -len(tokenizer.encode("a", add_bos=False))]
    body = length - len(lead)
    if len(ids) < sequences * body:
        raise ExportError(
            f"The calibration text ({source}) has {len(ids)} tokens, but {sequences} sequences of {length} "
            f"need {sequences * body}; give a longer text."
        )
    starts = np.linspace(0, len(ids) - body, sequences).astype(np.int64)
    pieces = ids[starts[:, None] + np.arange(body)]
    tokens = np.concatenate([np.tile(np.array(lead, np.int64), (sequences, 1)), pieces], axis=1)
    return Calibration(tokens, source, hashlib.sha256(tokens.tobytes()).hexdigest())


def default_text() -> str:
    """The language reference of the running Python; ExportError where an installation leaves it out."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise ExportError(
            "This Python has no language reference (pydoc_data) to calibrate with; give a calibration text."
        ) from None
    return "\n\n".join(topics[name] for name in sorted(topics))


def _read(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(_MOST_CHARACTERS)
    except OSError as error:
        raise ExportError(f"Cannot read the calibration text '{path}': {error.strerror or error}.") from None
    except UnicodeDecodeError:
        raise ExportError(f"'{path}' is not a UTF-8 text; convert it to UTF-8 or name another.") from None
