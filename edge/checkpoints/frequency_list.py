"""Lists of the most frequent tokens (FR-Spec, arXiv 2502.14856): the rows that a draft's small head has.

Public files are called `freq_N.pt`: a list of N token ids, the most frequent first, as `torch.save` writes
it. `.npy` and `.json` files with such a list are read too.
"""

from __future__ import annotations

import io
import json
import pickle
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge.checkpoints.torch_pickle import read_integers
from edge.config.fields import unique
from edge.errors import CheckpointError
from edge.formats.atomic import write_failure, write_file
from edge.formats.guarded_json import parse_json
from edge.formats.model_folder import read_regular

TokenIds = npt.NDArray[np.int32]

_NAME = re.compile(r"freq_(\d{1,9})\.(?:pt|npy|json)")
_MOST = 1 << 24  # bytes of a file without torch's container; ids have a few


def read_frequency_list(path: str | Path, vocab_size: int) -> TokenIds:
    """The ids in a file, the most frequent first: int32 [n].

    Raises CheckpointError for a file that is damaged, empty, shorter than its name says, or holds anything
    but different ids of a vocabulary of that size.
    """
    path = Path(path)
    ids = _read(path)
    if ids.size == 0:
        raise CheckpointError(f"'{path}' holds no token ids; give a list of the most frequent ones.")
    named = _NAME.fullmatch(path.name)
    if named is not None and int(named[1]) != ids.size:
        raise CheckpointError(
            f"'{path}' holds {ids.size} token ids, but its name says {int(named[1])}: it is truncated or "
            "renamed; copy or make it again."
        )
    return checked_ids(ids, vocab_size, f"'{path}'")


def checked_ids(ids: npt.NDArray[np.integer], vocab_size: int, where: str) -> TokenIds:
    """The ids as int32; CheckpointError, naming `where`, unless they are different tokens of a vocabulary of
    that size.
    """
    outside = ids[(ids < 0) | (ids >= vocab_size)]
    if outside.size:
        raise CheckpointError(
            f"{where} holds the token id {int(outside[0])}, which lies outside the model's vocabulary of "
            f"{vocab_size} tokens; it was made for another tokenizer."
        )
    seen, counts = np.unique(ids, return_counts=True)
    if seen.size != ids.size:
        raise CheckpointError(
            f"{where} holds the token id {int(seen[counts > 1][0])} more than once; make the list again, for "
            "example with `edge eval frequencies`."
        )
    return ids.astype(np.int32)


def with_end_tokens(ids: TokenIds, end_tokens: Iterable[int]) -> TokenIds:
    """The same number of ids with every end token among them: those that lack take the place of the rarest.

    A draft that can't guess the end of an answer would be wrong at each. CheckpointError for a list that is
    too short for them.
    """
    ends = unique(end_tokens)
    if len(ends) >= ids.size:
        raise CheckpointError(
            f"A list of {ids.size} token ids is too short for a model with {len(ends)} end tokens; give a "
            "longer one."
        )
    missing = [token for token in ends if token not in ids]
    others = np.flatnonzero(~np.isin(ids, ends))
    kept = np.delete(ids, others[len(others) - len(missing) :])
    return np.concatenate([kept, np.array(missing, np.int32)])


def write_frequency_list(path: str | Path, ids: Iterable[int]) -> None:
    """Write a list as a public tool would: `.pt` as `torch.save` does, `.json` as a list, `.npy` as int32.

    The file appears whole or not at all. CheckpointError for another name, and where it can't be written.
    """
    path, numbers = check_list_name(path), [int(each) for each in ids]
    try:
        write_file(path, _WRITERS[path.suffix](numbers))
    except OSError as error:
        raise CheckpointError(write_failure(path, error)) from None


def check_list_name(path: str | Path) -> Path:
    """The path, if a list can be written there by its name; CheckpointError for another name."""
    path = Path(path)
    if path.suffix not in _WRITERS:
        raise CheckpointError(
            f"'{path}' is no name of a list of token ids: let it end in {', '.join(_WRITERS)}, best as "
            "freq_N.pt."
        )
    return path


def _read(path: Path) -> npt.NDArray[np.int64]:
    if path.suffix == ".json":
        values = parse_json(_small(path), path, CheckpointError, "copy or make it again")
        if isinstance(values, list) and all(type(each) is int and abs(each) < 1 << 63 for each in values):
            return np.array(values, np.int64)
    elif path.suffix == ".npy":
        try:
            array = np.load(io.BytesIO(_small(path)), allow_pickle=False)
        except (ValueError, EOFError, OSError, OverflowError, MemoryError, zipfile.BadZipFile):
            raise CheckpointError(
                f"'{path}' is truncated or not a NumPy file; copy or make it again."
            ) from None
        if isinstance(array, np.ndarray) and array.ndim == 1 and array.dtype.kind in "iu":
            return array.astype(np.int64)
    else:
        return read_integers(path)
    raise CheckpointError(f"'{path}' holds no list of whole numbers; give a file with a list of token ids.")


def _small(path: Path) -> bytes:
    try:
        return read_regular(path, _MOST)
    except OSError as error:
        raise CheckpointError(f"Cannot read '{path}': {error.strerror or error}.") from None


def _numpy_bytes(ids: list[int]) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array(ids, np.int32))
    return file.getvalue()


def _torch_bytes(ids: list[int]) -> bytes:
    """What `torch.save` writes for a list: a zip file with a pickle, nothing compressed."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, data in (
            ("data.pkl", pickle.dumps(ids, protocol=2)),
            ("byteorder", b"little"),
            ("version", b"3\n"),
        ):
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), data)  # no time: the same ids, the same file
    return file.getvalue()


def _json_bytes(ids: list[int]) -> bytes:
    return json.dumps(ids).encode()


_WRITERS: Mapping[str, Callable[[list[int]], bytes]] = {
    ".pt": _torch_bytes,
    ".npy": _numpy_bytes,
    ".json": _json_bytes,
}
