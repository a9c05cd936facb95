"""Documents out of text files: plain texts, Markdown, JSON Lines, each also gzipped, and Parquet."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from edge.errors import EdgeError
from edge.formats.guarded_json import parse_object
from edge.formats.model_folder import open_regular
from edge.system.options import option
from edge.train.data.errors import DataError

SPLITS = ("file", "line", "blank", "heading")
_HEADING = re.compile(r" ?(= (?!=).*[^=] =|# .*)\s*")
_BATCH = 1024  # rows of a Parquet file that are read at once


@dataclass(frozen=True)
class ReadingOptions:
    """How documents are found in files."""

    field: str = option("text", "Field or column of JSON Lines and Parquet files that holds the text.")
    split: str = option(
        "file",
        "Where documents of a .txt or .md file begin: the file is one, each line is one, after blank lines, "
        "or at headings (' = Title =' of wikitext, '# Title' of Markdown).",
        choices=SPLITS,
    )
    separator: str | None = option(
        None,
        "A line that stands between the documents of such a file, instead of --split.",
        metavar="LINE",
    )


def read_documents(paths: Iterable[Path], options: ReadingOptions) -> Iterator[str]:
    """The documents of files, in order, without empty ones.

    DataError names the file, and the line or row, that can't be read; it comes when that is reached, but for
    files of an unknown kind, which are refused before anything is read.
    """
    readers = [(path, _reader(path)) for path in paths]
    for path, reader in readers:
        try:
            for text in reader(path, options):
                if text.strip():
                    yield text
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"Cannot read '{path}': {getattr(error, 'strerror', None) or error}.") from None


def _reader(path: Path) -> Callable[[Path, ReadingOptions], Iterator[str]]:
    kinds = {".txt": _plain, ".md": _plain, ".jsonl": _json_lines, ".parquet": _parquet}
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    reader = kinds.get(suffix)
    if reader is None or (path.suffix == ".gz" and reader is _parquet):
        raise DataError(
            f"'{path}' is none of .txt, .md, .jsonl (all also as .gz) and .parquet; convert or rename it."
        )
    return reader


def _lines(path: Path) -> Iterator[str]:
    """Lines with their ends; only a line feed ends one."""
    with open_regular(path) as raw:
        file: Iterable[bytes] = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw
        for number, line in enumerate(file, 1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise DataError(f"'{path}' line {number} is not UTF-8 text; convert the file.") from None


def _plain(path: Path, options: ReadingOptions) -> Iterator[str]:
    lines: list[str] = []
    for line in _lines(path):
        text = line.rstrip("\r\n")
        if options.separator is not None:
            begins = leaves_out = text == options.separator
        else:
            begins = options.split == "line" or (
                options.split == "heading" and bool(_HEADING.fullmatch(text))
            )
            begins |= (
                options.split == "blank" and bool(lines) and not lines[-1].strip() and bool(text.strip())
            )
            leaves_out = False
        if begins and lines:
            yield _joined(lines, options)
            lines = []
        if not leaves_out:
            lines.append(line)
    if lines:
        yield _joined(lines, options)


def _joined(lines: list[str], options: ReadingOptions) -> str:
    """A whole file stays as it is; around a part of one the empty lines belong to nobody."""
    text = "".join(lines)
    return text if options.split == "file" and options.separator is None else text.strip("\r\n")


def _json_lines(path: Path, options: ReadingOptions) -> Iterator[str]:
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        where = f"'{path}' line {number}"
        try:
            record = parse_object(line, path, DataError, "mend the file")
        except EdgeError as error:
            raise DataError(f"{where}: {error}") from None
        yield _text(record.get(options.field), options.field, where, record)


def _parquet(path: Path, options: ReadingOptions) -> Iterator[str]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise DataError(
            "Parquet files are read with pyarrow, which is not installed; install minicpm-edge[train]."
        ) from None
    try:
        with open_regular(path) as raw:
            file = ParquetFile(raw)
            names = file.schema_arrow.names
            if options.field not in names:
                raise DataError(
                    f"'{path}' has no column '{options.field}', but {', '.join(names)}; give --field."
                )
            number = 0
            for batch in file.iter_batches(_BATCH, columns=[options.field]):
                for value in batch.column(0).to_pylist():
                    number += 1
                    yield _text(value, options.field, f"'{path}' row {number}", names)
    except ArrowException as error:
        raise DataError(f"'{path}' is not a readable Parquet file ({error}); get it again.") from None


def _text(value: object, field: str, where: str, names: Iterable[str]) -> str:
    if not isinstance(value, str):
        raise DataError(
            f"{where} has no text in the field '{field}' (it has {', '.join(names)}); give another --field."
        )
    return value
