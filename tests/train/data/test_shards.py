"""Folders of token shards: what is written is read, and what is damaged is refused with one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edge.errors import EdgeError
from edge.train.data.errors import DataError
from edge.train.data.loader import Loader, LoaderPlan
from edge.train.data.shards import (
    ShardFacts,
    ShardFolder,
    read_tokenizer_files,
    tokenizer_digest,
    write_documents,
    write_shard,
)
from tests.fuzz.seeds import answer_shards
from tests.train.data.corpora import TOKENIZER, facts, write_corpus

DOCUMENTS = [[5, 6, 7], [], [59_999], [8] * 100, [1, 2]]


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_documents_come_back(tmp_path: Path, shards: int):
    folder = write_corpus(tmp_path / "c", DOCUMENTS, shards)
    assert [folder.document(number).tolist() for number in range(folder.documents)] == DOCUMENTS
    assert folder.lengths.tolist() == [3, 0, 1, 100, 2]
    assert (folder.documents, folder.tokens, folder.vocab_size) == (5, 106, 60_000)
    assert (folder.bos_token_id, folder.eos_token_ids) == (1, (2,))
    assert folder.tokenizer_files == TOKENIZER
    assert folder.part(3, 98, 99, following=True).tolist() == [8, 8]
    assert folder.part(3, 99, 100, following=True).tolist() == [8]
    folder.verify()
    with pytest.raises(IndexError):
        folder.document(5)


def test_a_large_vocabulary_has_four_bytes_a_token(tmp_path: Path):
    large = ShardFacts(73_448, None, (2, 73_440), tokenizer_digest(TOKENIZER))
    folder = write_documents(tmp_path / "c", [[73_447, 0], [70_000]], large, TOKENIZER)
    assert np.fromfile(tmp_path / "c/shard-00000/tokens.bin", "<u4").tolist() == [73_447, 0, 70_000]
    assert (folder.bos_token_id, folder.eos_token_ids) == (None, (2, 73_440))
    assert json.loads((tmp_path / "c/index.json").read_text())["dtype"] == "uint32"


def test_a_token_outside_the_vocabulary_is_not_written(tmp_path: Path):
    with pytest.raises(DataError, match="outside the vocabulary of 60000"):
        write_shard(tmp_path, "shard-00000", "", [[60_000]], facts())
    assert list(tmp_path.iterdir()) == []


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)


def _edit(**changes: object) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return edit


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("index.json", Path.unlink, "is no finished folder of token shards"),
        ("index.json", _edit(schema=2), "version 2 of token shards"),
        ("index.json", _edit(vocab_size="many"), "'vocab_size' of .*index.json' must be an integer"),
        ("index.json", _edit(dtype="uint32"), "is not understood"),
        ("index.json", _edit(shards=[{}]), "is not understood"),
        ("index.json", _cut, "not valid JSON"),
        ("shard-00001/tokens.bin", _cut, "shard-00001' is damaged or cut short"),
        ("shard-00001/tokens.bin", Path.unlink, "shard-00001' is damaged or cut short"),
        ("shard-00000/lengths.bin", _cut, "shard-00000' is damaged or cut short"),
        ("shard-00000/lengths.bin", _flip, "shard-00000' is damaged or cut short"),
    ],
)
def test_damage_is_seen_when_a_folder_is_opened(tmp_path: Path, name: str, damage, message: str):
    write_corpus(tmp_path / "c", DOCUMENTS, 2)
    damage(tmp_path / "c" / name)
    with pytest.raises(EdgeError, match=message):
        ShardFolder.open(tmp_path / "c")


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("index.json", _edit(state_width=-2), "state_width -2"),
        ("index.json", _edit(state_width=10**15), "state_width 10+"),
        ("index.json", _edit(state_width=3), "shard-00000' is damaged or cut short"),
        (
            "shard-00000/begins.bin",
            lambda path: np.array([1, 9], "<u4").tofile(path),
            "shard-00000' is damaged",
        ),
        ("shard-00000/states.bin", _cut, "shard-00000' is damaged or cut short"),
    ],
)
def test_damaged_answers_are_seen_when_their_folder_is_opened(
    tmp_path: Path, name: str, damage, message: str
):
    answer_shards(tmp_path)
    damage(tmp_path / name)
    with pytest.raises(DataError, match=message):
        ShardFolder.open(tmp_path)


@pytest.mark.parametrize("name", ["shard-00001/tokens.bin", "tokenizer/tokenizer.model"])
def test_changed_bytes_are_seen_by_verify(tmp_path: Path, name: str):
    write_corpus(tmp_path / "c", DOCUMENTS, 2)
    _flip(tmp_path / "c" / name)
    with pytest.raises(DataError, match=r"damaged|altered"):
        ShardFolder.open(tmp_path / "c").verify()


def test_a_token_that_no_vocabulary_has_is_seen_when_it_is_loaded(tmp_path: Path):
    source = write_corpus(tmp_path / "c", [[3] * 8])
    np.full(8, 65_535, "<u2").tofile(tmp_path / "c/shard-00000/tokens.bin")
    loader = Loader({"s": source}, LoaderPlan(1, 4, ((0, {"s": 1}),)))
    with pytest.raises(DataError, match="shard-00000' is damaged"):
        loader.next()


def test_a_folder_without_tokenizer_is_refused(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(DataError, match=r"no tokenizer\.json and no tokenizer\.model"):
        read_tokenizer_files(tmp_path)
