"""The table of docs/drafts.md."""

from __future__ import annotations

from .declaration import Document, Lines, Table, percent


def coverage(document: Document) -> Lines:
    lines: Lines = [
        ["text", "tokens", "1/8 of the vocabulary", "1/4", "1/2", "1/4, counted in the text itself"]
    ]
    for row in document["texts"]:
        shares = [percent(share, 1) for share in (*row["other"], row["own"][1])]
        lines.append([row["text"], f"{row['tokens']:,}", *shares])
    return lines


TABLES = {"token-coverage": Table("docs/drafts.md", ("token-coverage",), coverage)}
