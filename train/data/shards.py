"""Folders of token shards: tokenized documents in memory-mapped files, with an index and the tokenizer.

    index.json               schema, vocab_size, bos_token_id, eos_token_ids, dtype, tokenizer, shards
    shard-00000/tokens.bin   the ids of its documents, little-endian uint16 or uint32
    shard-00000/lengths.bin  tokens of each document, little-endian uint32
    shard-00000/shard.json   its entry of the index
    shard-00000/begins.bin   of a model's answers: the first token of each document's answer, uint32
    shard-00000/states.bin   hidden states of its tokens, little-endian float16
    tokenizer/               the tokenizer's files

A shard appears whole or not at all, and the index comes last. Who makes documents of texts:
`edge.train.data.tokenize`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from dataclasses import fields as fields_of
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.config.fields import Fields
from edge.formats.atomic import Partial, write_failure, write_file
from edge.formats.guarded_json import parse_object
from edge.formats.hashing import file_sha256, json_digest
from edge.formats.model_folder import read_regular
from edge.train.data.errors import DataError

SCHEMA = 1
_AGAIN = "make the folder again with `edge train tokenize`"
_LENGTH = np.dtype("<u4")


@dataclass(frozen=True)
class Shard:
    """A shard's entry in the index.

    text: digest of the texts, the tokenizer and the options that it was made of. bytes: of tokens.bin. The
    last two are empty where a shard has no states.
    """

    name: str
    text: str
    documents: int
    tokens: int
    bytes: int
    tokens_sha256: str
    lengths_sha256: str
    begins_sha256: str = ""
    states_sha256: str = ""


@dataclass(frozen=True)
class States:
    """What shards of a model's answers have besides. begins: place of the first token of each document's
    answer. hidden: float16 [n, width], a row for each of its tokens.
    """

    begins: Sequence[int]
    hidden: Sequence[npt.NDArray[np.float16]]


@dataclass(frozen=True)
class ShardFacts:
    """What all shards of a folder share. tokenizer: `tokenizer_digest` of the files. state_width: numbers of
    a token's hidden states, 0 where there are none. state_layers: layers whose residual streams these are,
    one behind the other; none for the hidden state after the final norm.
    """

    vocab_size: int
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    tokenizer: str
    state_width: int = 0
    state_layers: tuple[int, ...] = ()

    @property
    def dtype(self) -> np.dtype[Any]:
        """The smallest of two types that holds every id."""
        return np.dtype("<u2" if self.vocab_size <= 1 << 16 else "<u4")


class ShardFolder:
    """A finished folder, memory-mapped; make one with `open`. Holds no more than the lengths in memory."""

    def __init__(self, path: Path, facts: ShardFacts, shards: Sequence[Shard]) -> None:
        self.path = path
        self.facts = facts
        self.shards = tuple(shards)
        self._tokens, self._states = [], []
        lengths, begins = [], []
        for shard in self.shards:
            counts, tokens = _map_shard(path / shard.name, shard, facts.dtype)
            lengths.append(counts.astype(np.int64))
            self._tokens.append(tokens)
            if facts.state_width:
                firsts, states = _map_states(path / shard.name, shard, facts.state_width)
                if (firsts > counts).any():
                    raise _damaged(path / shard.name)
                begins.append(firsts.astype(np.int64))
                self._states.append(states)
        self.lengths = np.concatenate([np.zeros(0, np.int64), *lengths])
        """Tokens of each document: int64 [documents]."""
        self.begins = np.concatenate([np.zeros(0, np.int64), *begins])
        """Place of the first token of each document's answer: int64 [documents], empty without states."""
        self._first = np.cumsum([0, *(shard.documents for shard in self.shards)])
        self._begins = np.concatenate([np.zeros(0, np.int64), *(np.cumsum(each) - each for each in lengths)])

    @classmethod
    def open(cls, path: str | Path) -> ShardFolder:
        """Open a folder; DataError if it is unfinished, of another version, or a file's size is wrong, and
        ConfigError for a wrong field of its index.
        """
        path = Path(path)
        index = _read_object(path / "index.json", f"'{path}' is no finished folder of token shards")
        if index.get("schema") != SCHEMA:
            raise DataError(
                f"'{path}' is of version {index.get('schema')!r} of token shards, and this program reads "
                f"version {SCHEMA}; {_AGAIN}."
            )
        fields = Fields(index, f"'{path / 'index.json'}'")
        facts = ShardFacts(
            fields.integer("vocab_size"),
            fields.optional_integer("bos_token_id"),
            fields.ids("eos_token_ids"),
            fields.text("tokenizer"),
            fields.integer("state_width", 0),
            fields.ids("state_layers"),
        )
        try:
            shards = [_entry(each) for each in index["shards"]]
            if facts.vocab_size < 1 or index["dtype"] != facts.dtype.name:
                raise ValueError(f"dtype {index['dtype']!r} for {facts.vocab_size} tokens")
            if not 0 <= facts.state_width < 1 << 24:  # more would be no shape of an array
                raise ValueError(f"state_width {facts.state_width}")
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"'{path / 'index.json'}' is not understood ({error!r}); {_AGAIN}.") from None
        return cls(path, facts, shards)

    @property
    def documents(self) -> int:
        """How many there are."""
        return len(self.lengths)

    @property
    def tokens(self) -> int:
        """How many all documents have together."""
        return sum(shard.tokens for shard in self.shards)

    @property
    def vocab_size(self) -> int:
        return self.facts.vocab_size

    @property
    def bos_token_id(self) -> int | None:
        return self.facts.bos_token_id

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        return self.facts.eos_token_ids

    @cached_property
    def tokenizer_files(self) -> dict[str, bytes]:
        """Contents by file name; DataError if they are not those that the index names."""
        files = read_tokenizer_files(self.path / "tokenizer")
        if tokenizer_digest(files) != self.facts.tokenizer:
            raise DataError(f"The tokenizer in '{self.path}' was altered; {_AGAIN}.")
        return files

    def document(self, number: int) -> np.ndarray:
        """The ids of a document, a view of the file; raises what `part` does."""
        return self.part(number, 0, int(self.lengths[number]))

    def part(self, number: int, start: int, stop: int, *, following: bool = False) -> np.ndarray:
        """Tokens start..stop-1 of a document, and the one behind them if `following` and there is one.

        IndexError if there is no such document; DataError for an id outside the vocabulary: the file is
        damaged.
        """
        if not 0 <= number < self.documents:
            raise IndexError(f"document {number} of {self.documents}")
        shard = int(np.searchsorted(self._first, number, side="right")) - 1
        begin, stop = self._begins[number], min(stop + following, self.lengths[number])
        found = self._tokens[shard][begin + start : begin + stop]
        if found.size and int(found.max()) >= self.vocab_size:
            raise _damaged(self.path / self.shards[shard].name)
        return found

    def states(self, number: int, start: int, stop: int) -> npt.NDArray[np.float16]:
        """Hidden states of tokens start..stop-1 of a document, [stop - start, width], a view of the file."""
        shard = int(np.searchsorted(self._first, number, side="right")) - 1
        begin = self._begins[number]
        return self._states[shard][begin + start : begin + stop]

    def token_counts(self) -> npt.NDArray[np.int64]:
        """How often each token occurs: int64 [vocab_size]; in answers, in these alone."""
        counts = np.zeros(self.vocab_size, np.int64)
        for number in range(self.documents):
            begin = int(self.begins[number]) if len(self.begins) else 0
            counts += np.bincount(self.document(number)[begin:], minlength=self.vocab_size)
        return counts

    def verify(self) -> None:
        """Read everything; DataError for the first file that is not as it was written."""
        for shard in self.shards:
            folder = self.path / shard.name
            digests = {"tokens": shard.tokens_sha256, "lengths": shard.lengths_sha256}
            if self.facts.state_width:
                digests |= {"begins": shard.begins_sha256, "states": shard.states_sha256}
            for name, wanted in digests.items():
                if file_sha256(folder / f"{name}.bin") != wanted:
                    raise _damaged(folder)
        _ = self.tokenizer_files


def write_shard(
    folder: Path,
    name: str,
    text: str,
    documents: Sequence[Sequence[int] | np.ndarray],
    facts: ShardFacts,
    states: States | None = None,
) -> Shard:
    """Write a shard of documents; DataError if that is impossible. text: see `Shard`. states: of all of its
    documents, if `facts` say so.
    """
    target = folder / name
    if states is not None:
        counts = [len(each) for each in states.hidden]
        if counts != [len(each) for each in documents] or len(states.begins) != len(documents):
            raise DataError("Every token of a document must have hidden states, and every document a begin.")
    lengths = np.array([len(each) for each in documents], _LENGTH)
    ids = np.concatenate([np.zeros(0, np.int64), *(np.asarray(each, np.int64) for each in documents)])
    if ids.size and not 0 <= ids.min() <= ids.max() < facts.vocab_size:
        raise DataError(f"A token lies outside the vocabulary of {facts.vocab_size}; mend the tokenizer.")
    try:
        with Partial(target, folder=True) as partial:
            write_file(partial.path / "tokens.bin", ids.astype(facts.dtype).tobytes())
            write_file(partial.path / "lengths.bin", lengths.tobytes())
            shard = Shard(
                name,
                text,
                len(lengths),
                ids.size,
                ids.size * facts.dtype.itemsize,
                file_sha256(partial.path / "tokens.bin"),
                file_sha256(partial.path / "lengths.bin"),
                *(() if states is None else _write_states(partial.path, states)),
            )
            write_file(partial.path / "shard.json", _json(asdict(shard)))
            partial.keep()
    except OSError as error:
        raise DataError(write_failure(target, error)) from None
    return shard


def _write_states(folder: Path, states: States) -> tuple[str, str]:
    """Checksums of the two files."""
    write_file(folder / "begins.bin", np.array(states.begins, _LENGTH).tobytes())
    with (folder / "states.bin").open("wb") as file:
        for each in states.hidden:
            if not np.isfinite(each).all():
                raise DataError("A hidden state is beyond float16's range: no draft can be trained for it.")
            file.write(np.ascontiguousarray(each, "<f2").data)
    return file_sha256(folder / "begins.bin"), file_sha256(folder / "states.bin")


def read_shard(folder: Path, name: str) -> Shard | None:
    """The entry of a shard that a former run finished; None if there is none."""
    if not (folder / name).exists():
        return None
    found = _read_object(folder / name / "shard.json", f"'{folder / name}' is not a shard of tokens")
    try:
        return _entry(found)
    except (KeyError, TypeError, ValueError):
        raise _damaged(folder / name) from None


def write_index(
    folder: Path, facts: ShardFacts, shards: Sequence[Shard], tokenizer_files: Mapping[str, bytes]
) -> None:
    """Finish a folder: the tokenizer, then the index."""
    index = {
        "schema": SCHEMA,
        **asdict(facts),
        "dtype": facts.dtype.name,
        "documents": sum(shard.documents for shard in shards),
        "tokens": sum(shard.tokens for shard in shards),
        "shards": [asdict(shard) for shard in shards],
    }
    try:
        (folder / "tokenizer").mkdir(parents=True, exist_ok=True)
        for name, data in tokenizer_files.items():
            write_file(folder / "tokenizer" / name, data)
        write_file(folder / "index.json", _json(index))
    except OSError as error:
        raise DataError(write_failure(folder, error)) from None


TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
)
"""The files of a model's folder that belong to its tokenizer."""


def read_tokenizer_files(folder: Path) -> dict[str, bytes]:
    """Contents by file name of those that are there; DataError if no tokenizer is among them."""
    try:
        files = {name: read_regular(folder / name) for name in TOKENIZER_FILES if (folder / name).exists()}
    except OSError as error:
        raise DataError(f"Cannot read the tokenizer in '{folder}': {error.strerror or error}.") from None
    if not files.keys() & {"tokenizer.json", "tokenizer.model"}:
        raise DataError(
            f"'{folder}' has no tokenizer.json and no tokenizer.model; name a tokenizer's folder."
        )
    return files


def tokenizer_digest(files: Mapping[str, bytes]) -> str:
    """One digest of a tokenizer's files, whatever their order."""
    return json_digest({name: hashlib.sha256(data).hexdigest() for name, data in files.items()})


def write_documents(
    folder: str | Path,
    documents: Sequence[Sequence[int]],
    facts: ShardFacts,
    tokenizer_files: Mapping[str, bytes],
) -> ShardFolder:
    """A folder of one shard from documents in memory, opened."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shard = write_shard(folder, shard_name(0), "", documents, facts)
    write_index(folder, facts, [shard], tokenizer_files)
    return ShardFolder.open(folder)


def shard_name(number: int) -> str:
    return f"shard-{number:05}"


def _map_shard(folder: Path, shard: Shard, dtype: np.dtype[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Lengths and tokens of a shard, whose sizes are checked."""
    try:
        lengths = np.fromfile(folder / "lengths.bin", _LENGTH)
        tokens = (
            np.memmap(folder / "tokens.bin", dtype, "r") if shard.tokens else np.zeros(0, dtype)
        )  # an empty file can't be mapped
    except (OSError, ValueError):
        raise _damaged(folder) from None
    if (len(lengths), int(lengths.sum()), len(tokens)) != (shard.documents, shard.tokens, shard.tokens):
        raise _damaged(folder)
    return lengths, tokens


def _map_states(folder: Path, shard: Shard, width: int) -> tuple[npt.NDArray[Any], npt.NDArray[np.float16]]:
    """Begins of the answers and hidden states of a shard, whose sizes are checked."""
    path, empty = folder / "states.bin", np.zeros((0, width), np.float16)
    try:
        begins = np.fromfile(folder / "begins.bin", _LENGTH)
        states = np.memmap(path, "<f2", "r").reshape(-1, width) if shard.tokens else empty
    except (OSError, ValueError):
        raise _damaged(folder) from None
    if (len(begins), len(states)) != (shard.documents, shard.tokens):
        raise _damaged(folder)
    return begins, states


def _entry(found: Mapping[str, Any]) -> Shard:
    added = {"begins_sha256": "", "states_sha256": ""}
    shard = Shard(**{each.name: {**added, **found}[each.name] for each in fields_of(Shard)})
    name, digests = shard.name, [value for key, value in vars(shard).items() if key.endswith("_sha256")]
    digests.append(shard.text)
    if not all(isinstance(each, str) for each in (name, *digests)) or Path(name).name != name:
        raise ValueError(f"shard {name!r}")
    if not all(isinstance(each, int) and each >= 0 for each in (shard.documents, shard.tokens, shard.bytes)):
        raise ValueError(f"sizes of {name!r}")
    return shard


def _read_object(path: Path, otherwise: str) -> dict[str, Any]:
    try:
        return parse_object(read_regular(path), path, DataError, _AGAIN)
    except OSError:
        raise DataError(f"{otherwise}; {_AGAIN}.") from None


def _damaged(folder: Path) -> DataError:
    return DataError(f"The token shard '{folder}' is damaged or cut short; {_AGAIN}.")


def _json(data: Mapping[str, Any]) -> bytes:
    return (json.dumps(data, indent=2) + "\n").encode()
