"""Puts a trained draft into the program, as that of the built-in model.

    python runs/built_in_draft.py build/runs/draft/eagle2-int4

Stored is the draft without a head, and the list of the tokens that it guesses: rows for them are taken from
the model's head when it is opened.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

from edge.checkpoints.frequency_list import read_frequency_list, write_frequency_list
from edge.formats.bundle.manifest import MANIFEST
from edge.formats.draft.files import DraftFiles
from edge.hub.built_in import BUILT_IN
from edge.hub.drafts import bundled_draft, open_draft
from edge.hub.resolve import open_model


def main(run: str) -> None:
    """Write the folder, and open it."""
    model = open_model(BUILT_IN.name)
    trained = Path(run) / "model"
    draft = open_draft(trained, model, vocabulary="all")
    out = BUILT_IN.draft
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(draft.path, out)
    # Not the paths of the machine where it was trained.
    target = replace(draft.manifest.target, source=BUILT_IN.name)
    manifest = replace(draft.manifest, source="runs/draft_smollm2.sh", target=target)
    (out / MANIFEST).write_bytes(manifest.encode())
    (tokens,) = trained.glob("freq_*.pt")
    kept = int(BUILT_IN.draft_tokens.removeprefix("freq_").removesuffix(".pt"))
    ids = read_frequency_list(tokens, model.config.vocab_size)[:kept]
    write_frequency_list(out / BUILT_IN.draft_tokens, ids.tolist())
    DraftFiles.open(out, verify=True)
    opened = bundled_draft(model)
    assert opened is not None
    print(f"{out}: {opened.weights_bytes / 1e6:.1f} MB in memory")


if __name__ == "__main__":
    main(*sys.argv[1:])
