"""How much of a text the most frequent tokens have that other texts, or the text itself, were counted for.

    python scripts/token_coverage.py FOLDER FILE FILE...

FOLDER: with the model's config and tokenizer. Files of JSON lines stand for the texts in them, one below the
other. The last line is one JSON document: per file, and for an eighth, a quarter and a half of the
vocabulary, the share of its tokens that a list of all other files (`other`) and one of its own (`own`) have.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from edge.hub.resolve import open_texts
from edge.measure.frequencies import TokenCounts, count_tokens
from edge.text.tokenizer.load import open_tokenizer


def texts_in(value: Any) -> Iterator[str]:
    """Every text in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from texts_in(each)


def plain(path: Path, folder: Path) -> Path:
    """The file itself, or its texts where it has JSON lines."""
    if path.suffix != ".jsonl":
        return path
    lines = path.read_text(encoding="utf-8").strip("\n").split("\n")
    out = folder / path.name
    out.write_text("\n".join("\n".join(texts_in(json.loads(line))) for line in lines), encoding="utf-8")
    return out


def main(model: str, *names: str) -> None:
    tokenizer = open_tokenizer(open_texts(model))
    with TemporaryDirectory() as folder:
        counts = {
            Path(name).name: count_tokens(tokenizer, [plain(Path(name), Path(folder))]) for name in names
        }
    tokenizer.close()
    rows = []
    for name, own in counts.items():
        others = TokenCounts(np.sum([each.counts for other, each in counts.items() if other != name], axis=0))
        shares = {
            kind: [
                round(own.coverage(found.ranked(size, tokenizer.end_tokens)), 4) for size in own.usual_sizes()
            ]
            for kind, found in (("other", others), ("own", own))
        }
        rows.append({"text": name, "tokens": own.tokens, "different": own.different, **shares})
        print(f"{name}: {own.tokens} tokens, {shares}")
    print(json.dumps({"vocabulary": tokenizer.vocab_size, "texts": rows}))


if __name__ == "__main__":
    main(*sys.argv[1:])
