"""A KV cache in a file: the rows of a session and their tokens, to continue without computing them again.

Magic and length of the header (uint64), the header (JSON), the tokens (int32), the executor's memory, each
from a multiple of 64 bytes on; little-endian. The header holds what the rows depend on
(`StoresCaches.cache_identity`) and a checksum. A file of another model, layout or setting is refused by name,
and so is a damaged one.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge.errors import EdgeError
from edge.formats.atomic import remove_leftovers, replacing, write_failure
from edge.formats.guarded_json import parse_object
from edge.formats.model_folder import open_regular
from edge.formats.names import user_path

MAGIC = b"minicpm-edge-kv\n"
VERSION = 1
_PREFIX = struct.Struct("<16sQ")
_ALIGNMENT = 64
_MOST_HEADER = 1 << 16
_MEANINGS = {
    "model": "by another model",
    "layout": "by another version of this program",
    "kv_type": "with another --kv",
    "activations": "with another --activations",
    "rope": "with another --context, --rope-regime or --rope-override",
    "attention": "with another --attention",
}


@dataclass(frozen=True)
class StoredCache:
    """tokens: int32 [n]. memory: uint8, the pages of `StoresCaches.cache_pages`; both borrow the mapped
    file.
    """

    tokens: npt.NDArray[np.int32]
    memory: npt.NDArray[np.uint8]


def write_cache(
    path: str | Path,
    identity: Mapping[str, str],
    tokens: npt.NDArray[np.int32],
    pages: Sequence[npt.NDArray[np.uint8]],
) -> int:
    """Replace the file `path`, atomically; returns its size in bytes. Raises EdgeError where it can't.

    Only its owner can read it: the rows tell the conversation.
    """
    path = user_path(path)
    stored = np.ascontiguousarray(tokens, "<i4").view(np.uint8)
    header = json.dumps(
        {
            "version": VERSION,
            "identity": dict(identity),
            "tokens": len(tokens),
            "bytes": sum(page.nbytes for page in pages),
            "sha256": _checksum(stored, *pages),
        }
    ).encode()
    try:
        with replacing(path, private=True) as file:
            file.write(_PREFIX.pack(MAGIC, len(header)) + header)
            for parts in ((stored,), pages):
                file.write(bytes(-file.tell() % _ALIGNMENT))
                for part in parts:
                    file.write(part.data)
            return file.tell()
    except OSError as error:
        raise EdgeError(write_failure(path, error)) from None


def read_cache(path: str | Path, identity: Mapping[str, str]) -> StoredCache:
    """The contents of a file that fits `identity`. Raises EdgeError with the reason for any other."""
    with reading_cache(path, identity) as stored:
        return stored


@contextmanager
def reading_cache(path: str | Path, identity: Mapping[str, str]) -> Iterator[StoredCache]:
    """The same, to be used while another thread computes the checksum.

    Raises EdgeError at the block's end if that does not match: what was made of the contents is worth nothing
    then.
    """
    path = user_path(path)
    stored, checksum = _mapped(path, identity)
    with ThreadPoolExecutor(1, "edge-checksum") as pool:
        found = pool.submit(_checksum, stored.tokens.view(np.uint8), stored.memory)
        yield StoredCache(stored.tokens.astype(np.int32, copy=False), stored.memory)
        if found.result() != checksum:
            raise _damaged(path, "its checksum does not match")


def read_tokens(path: str | Path, identity: Mapping[str, str]) -> npt.NDArray[np.int32]:
    """Its tokens alone. The checksum is not looked at: it is that of the whole file."""
    return _mapped(user_path(path), identity)[0].tokens.astype(np.int32)


def _mapped(path: Path, identity: Mapping[str, str]) -> tuple[StoredCache, str]:
    """The parts of a file that fits `identity`, and the checksum that they should have."""
    remove_leftovers(path.parent)
    try:
        with open_regular(path) as file:
            if os.fstat(file.fileno()).st_size < _PREFIX.size:
                raise _damaged(path, "it is too short")
            data = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    except OSError as error:
        raise EdgeError(f"Cannot read the KV cache '{path}': {error.strerror or error}.") from None
    magic, length = _PREFIX.unpack(data[: _PREFIX.size].tobytes())
    if magic != MAGIC:
        raise EdgeError(f"'{path}' is not a KV cache of this program.")
    if length > min(_MOST_HEADER, len(data)):
        raise _damaged(path, "its header is cut off")
    end = _PREFIX.size + length
    header = parse_object(
        data[_PREFIX.size : end].tobytes(), f"The header of '{path}'", EdgeError, "delete it"
    )
    try:
        version, found = header["version"], header["identity"]
        count, size, checksum = int(header["tokens"]), int(header["bytes"]), header["sha256"]
        facts = dict(found)
    except (ValueError, KeyError, TypeError, OverflowError):
        raise _damaged(path, "its header can't be read") from None
    if version != VERSION:
        raise EdgeError(
            f"The KV cache '{path}' has format version {version} and this program reads {VERSION}."
        )
    for name in identity:
        if facts.get(name) != identity[name]:
            meaning = _MEANINGS.get(name, f"with another {name}")
            raise EdgeError(f"The KV cache '{path}' was written {meaning}: use that one again, or delete it.")
    start = _aligned(end)
    memory_start = _aligned(start + 4 * count)
    if count < 0 or size < 0 or memory_start + size != len(data):
        raise _damaged(path, "its size does not match its header")
    return StoredCache(data[start : start + 4 * count].view("<i4"), data[memory_start:]), checksum


def _checksum(*parts: npt.NDArray[np.uint8]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.data)
    return digest.hexdigest()


def _aligned(offset: int) -> int:
    return offset + -offset % _ALIGNMENT


def _damaged(path: Path, what: str) -> EdgeError:
    return EdgeError(f"The KV cache '{path}' is damaged: {what}; delete it.")
