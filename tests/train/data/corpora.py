"""Folders of token shards in which every token has an id of its own: a test sees where each came from."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from edge.train.data.shards import (
    ShardFacts,
    ShardFolder,
    shard_name,
    tokenizer_digest,
    write_index,
    write_shard,
)

TOKENIZER = {"tokenizer.model": b"any"}


def facts(vocabulary: int = 60_000) -> ShardFacts:
    return ShardFacts(vocabulary, 1, (2,), tokenizer_digest(TOKENIZER))


def numbered(lengths: Sequence[int], first: int = 0) -> list[list[int]]:
    """Documents of these lengths; ids count from `first` on."""
    documents = []
    for length in lengths:
        documents.append(list(range(first, first + length)))
        first += length
    return documents


def write_corpus(folder: Path, documents: Sequence[Sequence[int]], shards: int = 1) -> ShardFolder:
    """The documents in so many shards."""
    folder.mkdir(parents=True)
    size = -(-len(documents) // shards)
    entries = [
        write_shard(folder, shard_name(number), "", documents[number * size : (number + 1) * size], facts())
        for number in range(shards)
    ]
    write_index(folder, facts(), entries, TOKENIZER)
    return ShardFolder.open(folder)


@contextmanager
def corpora(lengths: Sequence[Sequence[int]], shards: int = 1) -> Iterator[dict[str, ShardFolder]]:
    """Sources `s0`, `s1`, ... with documents of these lengths, for as long as the block."""
    with tempfile.TemporaryDirectory() as folder:
        found, first = {}, 0
        for number, each in enumerate(lengths):
            found[f"s{number}"] = write_corpus(Path(folder, f"s{number}"), numbered(each, first), shards)
            first += sum(each)
        yield found
