"""Documents out of files: every kind, every way to split one, and the place of what can't be read."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from edge.train.data.errors import DataError
from edge.train.data.texts import ReadingOptions, read_documents

WIKI = " \n = One = \n \n First . \n = = Part = = \n More . \n = Two = \n Second . \n"


def read(*paths: Path, **options: str) -> list[str]:
    return list(read_documents(paths, ReadingOptions(**options)))


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.md"])
@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, [WIKI]),
        (
            {"split": "heading"},
            [" = One = \n \n First . \n = = Part = = \n More . ", " = Two = \n Second . "],
        ),
        ({"split": "line"}, [line for line in WIKI.split("\n") if line.strip()]),
        (
            {"split": "blank"},
            [" = One = \n ", " First . \n = = Part = = \n More . \n = Two = \n Second . "],
        ),
        ({"separator": " More . "}, [" \n = One = \n \n First . \n = = Part = = ", " = Two = \n Second . "]),
    ],
)
def test_plain_texts_are_split_as_told(tmp_path: Path, name: str, options, wanted):
    path = tmp_path / name
    path.write_bytes(gzip.compress(WIKI.encode()) if path.suffix == ".gz" else WIKI.encode())
    assert read(path, **options) == wanted


def test_json_lines_and_parquet_give_a_field(tmp_path: Path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    texts = ["Grüße\n\n", "", "  x", *map(str, range(3000))]
    lines = [json.dumps({"text": "other", "body": text}) for text in texts]
    (tmp_path / "a.jsonl").write_text("\n\n".join(lines), "utf-8")
    write_table(pyarrow.table({"id": range(len(texts)), "body": texts}), tmp_path / "a.parquet")
    wanted = [text for text in texts if text]
    assert read(tmp_path / "a.jsonl", tmp_path / "a.parquet", field="body") == wanted * 2


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.pdf", b"x", "a.pdf' is none of .txt, .md, .jsonl"),
        ("a.parquet.gz", b"x", "is none of .txt, .md, .jsonl"),
        ("a.txt", b"good\nb\xffd\n", "a.txt' line 2 is not UTF-8"),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', "a.jsonl' line 2: .*not valid JSON"),
        ("a.jsonl", b'["a"]\n', "a.jsonl' line 1: .*must hold a JSON object"),
        (
            "a.jsonl",
            b'{"text": "a"}\n\n{"body": "b"}\n',
            "a.jsonl' line 3 has no text in the field 'text' .it has body",
        ),
        ("a.jsonl", b'{"text": 5}\n', "line 1 has no text"),
        ("a.txt.gz", gzip.compress(b"a" * 1000, mtime=0)[:-9], "Cannot read .*a.txt.gz'"),
        ("a.txt.gz", b"no gzip", "Cannot read .*a.txt.gz'"),
        ("a.parquet", b"PAR1 but not really PAR1", "a.parquet' is not a readable Parquet file"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_place(tmp_path: Path, name: str, data: bytes, message: str):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path / name)
    assert str(caught.value).endswith(".")


def test_a_missing_file_and_a_missing_column_are_named(tmp_path: Path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    with pytest.raises(DataError, match=r"Cannot read .*none.txt': No such file"):
        read(tmp_path / "none.txt")
    write_table(pyarrow.table({"body": ["a"], "n": [1]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="has no column 'text', but body, n; give --field"):
        read(tmp_path / "a.parquet")
    with pytest.raises(DataError, match="row 1 has no text"):
        read(tmp_path / "a.parquet", field="n")
