"""The draft of the built-in model, which comes with this package (docs/speculation.md, "Trained drafts")."""

from __future__ import annotations

from pathlib import Path

from edge.formats.bundle.reader import Bundle
from edge.formats.draft.files import DraftFiles
from edge.formats.draft.manifest import TargetIdentity
from edge.formats.model_files import ModelFiles
from edge.hub.drafts import open_draft

FOLDER = Path(__file__).with_name("smollm2-135m-draft")
"""A draft bundle that guesses with its target's head."""
GUESSED = 6144
"""Tokens that it guesses, the most frequent ones of the model's answers (FR-Spec): an eighth of all."""
FREQUENT = FOLDER / f"freq_{GUESSED}.json"
"""Their list."""
HEAD_SCHEME = "int4"
"""Of the rows of the model's head that it guesses with."""


def built_in_draft(target: ModelFiles) -> DraftFiles | None:
    """The built-in model's draft; None for every other model, and for other weights than its own."""
    if not isinstance(target, Bundle):
        return None
    draft = DraftFiles.open(FOLDER)
    if draft.manifest.target.difference(TargetIdentity.of(target)) is not None:
        return None
    return open_draft(FOLDER, target, vocabulary=FREQUENT, head=HEAD_SCHEME)
