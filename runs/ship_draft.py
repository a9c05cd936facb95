"""Puts a trained draft of the built-in model into the package: `python runs/ship_draft.py DRAFT`."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

from edge.checkpoints.frequency_list import read_frequency_list, write_frequency_list
from edge.formats.draft.files import DraftWriter
from edge.hub.built_in import BUILT_IN
from edge.hub.built_in_draft import FOLDER, FREQUENT, GUESSED
from edge.hub.drafts import WHOLE, open_draft
from edge.hub.resolve import open_bundle

SOURCE = "EAGLE-2, trained by runs/draft_smollm2.sh"


def main(trained: str) -> None:
    """trained: its folder, or the name of a random draft, which guesses the first tokens of all."""
    target = open_bundle(BUILT_IN.name)
    draft = open_draft(trained, target, vocabulary=WHOLE)
    size = draft.config.vocab_size
    lists = sorted(Path(trained).glob("freq_*.pt"))
    ids = read_frequency_list(lists[0], size).tolist() if lists else range(size)
    shutil.rmtree(FOLDER, ignore_errors=True)
    identity = replace(draft.manifest.target, source=BUILT_IN.name)
    with DraftWriter(FOLDER, draft.config, SOURCE, identity, list(draft.tensors.values())) as writer:
        for name in draft.tensors:
            writer.write(name, draft.data(name))
    write_frequency_list(FREQUENT, ids[:GUESSED])
    print(f"{FOLDER}: {draft.weights_bytes} bytes")


if __name__ == "__main__":
    main(*sys.argv[1:])
