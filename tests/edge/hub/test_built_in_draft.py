"""The draft that comes with the program, of the model that comes as a package."""

from __future__ import annotations

from pathlib import Path

import edge
from edge.checkpoints.frequency_list import read_frequency_list
from edge.formats.draft.files import DraftFiles
from edge.hub.built_in import BUILT_IN
from edge.hub.drafts import bundled_draft
from edge.hub.resolve import open_model
from tests.planted import FreeRows


def test_it_is_whole_and_says_nothing_of_where_it_was_trained():
    draft = DraftFiles.open(BUILT_IN.draft, verify=True)
    assert draft.config.kind == "eagle2" and draft.config.head_rows is None
    assert (draft.source, draft.manifest.target.source) == ("runs/draft_smollm2.sh", BUILT_IN.name)
    ids = read_frequency_list(BUILT_IN.draft / BUILT_IN.draft_tokens, draft.config.vocab_size)
    assert 8 * ids.size == draft.config.vocab_size
    assert sum(path.stat().st_size for path in BUILT_IN.draft.iterdir()) < 10e6


def test_it_guesses_for_the_model_by_name_and_by_path(smollm2_gguf: Path):
    for name in (BUILT_IN.name, smollm2_gguf):
        draft = bundled_draft(open_model(name))
        assert draft is not None and draft.config.head_rows == draft.config.vocab_size // 8
        assert draft.weights_bytes < 10e6


def test_other_forms_of_the_model_have_none(smollm2_gguf: Path):
    assert bundled_draft(open_model(smollm2_gguf, quantize="int8")) is None


def test_it_is_right_about_half_of_the_time_and_changes_nothing(smollm2_gguf: Path):
    question = "Write three sentences about the sea."
    said = {}
    for speculate in ("auto", "off"):
        with edge.load(BUILT_IN.name, context=512, speculate=speculate, prefix_memory=0) as model:
            found = model.scheduler.speculation
            assert (found and found.name) == ("lookup+draft" if speculate == "auto" else None)
            model.scheduler.costs = FreeRows()
            said[speculate] = model.chat(temperature=0, max_new_tokens=64).send(question)
    assert said["auto"].tokens == said["off"].tokens
    guesses = said["auto"].speculation
    assert guesses is not None and guesses.offered_at[0] > 20
    assert guesses.accepted_at[0] > 0.4 * guesses.offered_at[0]
