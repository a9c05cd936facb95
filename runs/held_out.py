"""Prints the texts of held-out token shards: what a perplexity is measured on."""

from __future__ import annotations

import sys

from edge.config.presets import preset
from edge.text.tokenizer.load import load_tokenizer
from edge.train.data.shards import ShardFolder


def main() -> None:
    """Arguments: folders of token shards."""
    for path in sys.argv[1:]:
        shards = ShardFolder.open(path)
        tokenizer = load_tokenizer(shards.tokenizer_files, preset("minicpm4-0.5b"))
        for number in range(shards.documents):
            print(tokenizer.decode(shards.document(number).tolist()), end="\n\n")


if __name__ == "__main__":
    main()
