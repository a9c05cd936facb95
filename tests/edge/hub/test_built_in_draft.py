"""The draft that comes with the package: of the built-in model alone, and one that has learned from it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import edge
from edge.engine.speculative.opening import open_speculation
from edge.formats.draft.files import DraftFiles
from edge.hub.built_in_draft import FOLDER, GUESSED, built_in_draft
from edge.hub.resolve import open_bundle
from edge.system.notices import EdgeWarning
from tests.planted import FreeRows

QUESTIONS = (
    "What is the capital of France, and what is it known for?",
    "Explain in three sentences why the sky is blue.",
    "Write a short story about a dog that finds a key.",
)


def test_it_is_the_built_in_models(smollm2_gguf: Path):
    """By its weights: also where its file is named, but not where it is quantized in another way."""
    draft = built_in_draft(open_bundle(smollm2_gguf))
    assert draft is not None and draft.config.kind == "eagle2"
    assert draft.token_ids is not None and len(draft.token_ids) == draft.config.head_rows == GUESSED
    assert built_in_draft(open_bundle("smollm2-135m", quantize="int8")) is None
    assert built_in_draft(open_bundle("random:smollm2-135m")) is None


def test_what_is_shipped_is_small_and_whole():
    draft = DraftFiles.open(FOLDER, verify=True)
    assert draft.weights_bytes < 10e6 and draft.config.head_rows is None
    assert draft.manifest.target.source == "smollm2-135m"


def test_a_model_opens_where_its_draft_can_not_be_kept(smollm2_gguf: Path, tmp_path: Path, monkeypatch):
    """Its folder needs no cache, so a cache that can't be written is no reason to refuse it."""
    path = open_bundle(smollm2_gguf).path
    (tmp_path / "blocked").write_text("a file, not a folder")
    monkeypatch.setenv("EDGE_CACHE", str(tmp_path / "blocked"))
    with pytest.warns(EdgeWarning, match="draft is left out"), edge.load(path, prefix_memory=0) as model:
        assert model.scheduler.speculation is not None and model.scheduler.speculation.name == "lookup"


def test_it_guesses_what_the_model_says(smollm2_gguf: Path):
    """With rows that cost nothing, so that it always guesses: some tokens a pass, and the same answers."""
    lengths = []
    with edge.load(smollm2_gguf, threads=2, prefix_memory=0, speculate="off") as model:
        model.scheduler.costs = FreeRows()
        for question in QUESTIONS:
            plain = model.chat(temperature=0, max_new_tokens=48).send(question)
            speculation = open_speculation("auto", model.files, model.executor, lambda: model.tokenizer)
            assert speculation is not None and speculation.name == "lookup+draft"
            model.scheduler.speculation = speculation
            guessed = model.chat(temperature=0, max_new_tokens=48).send(question)
            model.scheduler.speculation = None
            speculation.close()
            assert guessed.tokens == plain.tokens and guessed.speculation is not None
            lengths.append(guessed.speculation.mean_accepted_length)
    assert np.mean(lengths) > 1.6
