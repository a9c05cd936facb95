"""What `speculate` names, rightly or wrongly; and a smaller model that lacks what its target has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import edge
from edge.config.draft_names import MULTI_TOKEN
from edge.engine.speculative.small_model import SmallModel
from edge.errors import EdgeError, WrongTypeError
from edge.formats.bundle.reader import Bundle
from edge.quant.scheme import QuantScheme
from edge.system.notices import EdgeWarning
from tests import conftest
from tests.drafts import (
    block_fields,
    block_state,
    draft_fields,
    eagle3_fields,
    eagle3_state,
    multi_token_state,
    write_draft,
)
from tests.planted import FreeRows

INT4 = QuantScheme("int4", 32)


@pytest.fixture
def target(make_bundle, tiny_config) -> Bundle:
    return make_bundle(
        replace(tiny_config, vocab_size=120, max_position_embeddings=128), INT4, tokenizer=True
    )


@pytest.mark.parametrize("wrong", [None, True, 5, b"lookup", "", ["lookup"]])
def test_what_is_no_name(target, wrong):
    with pytest.raises(WrongTypeError, match="speculate is 'auto', 'off', 'lookup' or the name"):
        edge.load(target.path, speculate=wrong)


@pytest.mark.parametrize("name", ["lokup", "./nothing/here", Path("nothing")])
def test_what_is_not_there(target, name):
    with pytest.raises(EdgeError, match=r"auto, off or lookup.*(nothing|lokup)"):
        edge.load(target.path, speculate=name)


@pytest.mark.parametrize("name", ["owner/some-eagle", "owner/small"])
def test_offline_holds_for_drafts_too(target, name, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(EdgeError, match=f"'{name}'.* offline mode is on"):
        edge.load(target.path, speculate=name, offline=True)


def test_names_of_kinds(target):
    for name, drafter in (("auto", "lookup"), ("off", None), ("lookup", "lookup")):
        with edge.load(target.path, speculate=name) as model:
            found = model.scheduler.speculation
            assert (None if found is None else found.name) == drafter


@pytest.mark.parametrize("beside", ["", "lookup+"])
@pytest.mark.parametrize("kind", ["eagle3", "mtp", "dspark"])
def test_answers_with_public_files(make_bundle, tiny_config, tmp_path, kind, beside):
    """As a person has them: the names of others, rounded to int4, beside a model with all its defaults."""
    shape = replace(tiny_config, vocab_size=120, num_hidden_layers=7, max_position_embeddings=512)
    target = make_bundle(shape, INT4, tokenizer=True)
    if kind == "eagle3":
        write_draft(tmp_path, eagle3_fields(shape, 100), eagle3_state(shape, 100))
    elif kind == "dspark":
        write_draft(tmp_path, block_fields(shape), block_state(shape))
    else:
        fields = draft_fields(shape, num_hidden_layers=7)
        write_draft(tmp_path, fields, multi_token_state(shape), name=MULTI_TOKEN)
    accepted = 0
    with edge.load(target.path, speculate=f"{beside}{tmp_path}") as model:
        speculation = model.scheduler.speculation
        assert speculation is not None and speculation.memory_bytes > 0
        assert speculation.name == f"{beside}{tmp_path}"
        model.scheduler.costs = FreeRows()
        for settings in ({"temperature": 0}, {"temperature": 1.0, "seed": 3}):
            wanted: dict[str, Any] = {**settings, "max_new_tokens": 100, "ignore_eos": True}
            plain = model.complete([5, 6, 7], session=model.session(speculate=False), **wanted)
            guessed = model.complete([5, 6, 7], **wanted)
            assert guessed.tokens == plain.tokens and guessed.text == plain.text
            assert guessed.speculation is not None and guessed.speculation.drafted > 5
            accepted += guessed.speculation.accepted
    assert accepted > 0


@pytest.mark.parametrize("lacks", [{"vocab_size": 97}, {"max_position_embeddings": 64}], ids=str)
def test_a_smaller_model_that_lacks_tokens_or_context(make_bundle, tiny_config, target, monkeypatch, lacks):
    """Where it can't follow there are no guesses, and the answer goes on."""
    monkeypatch.setattr(SmallModel, "pays", lambda *_: True)
    fields = {"vocab_size": 120, "max_position_embeddings": 128, **lacks}
    draft = make_bundle(replace(tiny_config, **fields), INT4, tokenizer=True, seed=1)
    settings: dict[str, Any] = {"temperature": 1.2, "seed": 2, "max_new_tokens": 90, "ignore_eos": True}
    with edge.load(target.path, speculate=draft.path) as model:
        model.scheduler.costs = FreeRows()
        plain = model.complete([5, 6, 7], session=model.session(speculate=False), **settings)
        session = model.session()
        if "vocab_size" in lacks:
            assert max(plain.tokens) >= 97
            with pytest.warns(EdgeWarning, match="have ended.*outside the vocabulary"):
                guessed = model.complete([5, 6, 7], session=session, **settings)
        else:
            guessed = model.complete([5, 6, 7], session=session, **settings)
        assert guessed.tokens == plain.tokens
        assert guessed.speculation is not None and guessed.speculation.drafted > 0


def test_a_model_of_another_tokenizer(make_bundle, tiny_config, target, monkeypatch):
    letters = conftest.letter_tokenizer
    monkeypatch.setattr(conftest, "letter_tokenizer", lambda size: letters(size).replace(b'"B"', b'"<B>"'))
    draft = make_bundle(replace(tiny_config, vocab_size=120), INT4, tokenizer=True, seed=11)
    with pytest.raises(EdgeError, match="another token 33; name a draft that was made for the model"):
        edge.load(target.path, speculate=draft.path)
