"""Vocabularies of every kind: which tokens a text may be made of."""

from __future__ import annotations

import gc
import json
import re
import weakref
from pathlib import Path

import pytest

from edge.config import ModelConfig
from edge.config.huggingface import config_from_hf
from edge.engine.constraints.grammar import Grammar, compile_grammar
from edge.engine.constraints.vocabulary import usable_bytes, vocabulary_of
from edge.errors import EdgeError
from edge.text.tokenizer.load import load_tokenizer
from tests.conftest import letter_tokenizer
from tests.walks import allowed_tokens, walk


@pytest.fixture(scope="module")
def minicpm4(shared_data: Path):
    folder = shared_data / "minicpm4-0.5b"
    if not folder.is_dir():
        pytest.skip("the tokenizer of MiniCPM4 is not in the shared data")
    config = config_from_hf(json.loads((folder / "config.json").read_text()))
    tokenizer = load_tokenizer({path.name: path.read_bytes() for path in folder.iterdir()}, config)
    yield tokenizer
    tokenizer.close()


def letters(tiny_config: ModelConfig, ends: tuple[int, ...] = (2, 3)):
    from dataclasses import replace

    config = replace(tiny_config, vocab_size=120, eos_token_ids=ends)
    return load_tokenizer({"tokenizer.json": letter_tokenizer(120)}, config)


def test_of_tokens_for_the_same_bytes_the_written_one_stays(minicpm4):
    """MiniCPM4 has two tokens for ".", one that it writes and one that it never saw."""
    usable = usable_bytes(minicpm4)
    raw = [minicpm4.token_bytes(token) for token in range(minicpm4.vocab_size)]
    for data in (b".", b"\n", b'"', b"+"):
        assert raw.count(data) > 1 and usable.count(data) == 1
        assert [usable.index(data)] == minicpm4.encode(data.decode(), continues=True)
    constraint = compile_grammar(Grammar.regex("[.]+"), minicpm4)
    mask = {minicpm4.token_bytes(token): token for token in allowed_tokens(constraint, minicpm4.vocab_size)}
    assert mask[b"."] == minicpm4.encode(".", continues=True)[0]


def test_walks_with_sentencepiece(minicpm4):
    """Bytes of characters that it has no token for, and marks that are ordinary text elsewhere."""
    for pattern in (r"(?:🫠|𓀀|漢){2}", r"<s>|</s>x", r'\{"name": "\w{1,4}"\}'):
        grammar = Grammar.regex(pattern)
        for seed in range(3):
            text, whole = walk(lambda grammar=grammar: compile_grammar(grammar, minicpm4), minicpm4, seed)  # type: ignore[misc]
            assert whole and re.fullmatch(pattern, text), text


def test_forced_text_is_cut_as_the_tokenizer_cuts_it(minicpm4):
    constraint = compile_grammar(Grammar.regex("The quick brown fox jumps over the lazy dog"), minicpm4)
    tokens = []
    while run := constraint.forced():
        tokens += run
        for token in run:
            constraint.advance(token)
    text = "The quick brown fox jumps over the lazy dog"
    assert tokens[:-1] == minicpm4.encode(text, add_bos=False, continues=True)


def test_a_vocabulary_is_made_once_and_goes_with_its_tokenizer(tiny_config):
    tokenizer = letters(tiny_config)
    made = vocabulary_of(tokenizer)
    assert vocabulary_of(tokenizer) is made
    compile_grammar(Grammar.regex("a"), tokenizer)
    kept = weakref.ref(tokenizer)
    tokenizer.close()
    del tokenizer, made
    gc.collect()
    assert kept() is None


def test_ids_without_a_token_are_never_allowed(tiny_config):
    """The network has more rows than the tokenizer has tokens."""
    from dataclasses import replace

    config = replace(tiny_config, vocab_size=131, eos_token_ids=(2,))
    tokenizer = load_tokenizer({"tokenizer.json": letter_tokenizer(120)}, config)
    constraint = compile_grammar(Grammar.regex("(?s:.)*"), tokenizer)
    mask = constraint.allowed()
    assert mask.shape == (5,) and max(allowed_tokens(constraint, 131)) < 120
    tokenizer.close()


def test_a_model_without_an_end_token(tiny_config):
    tokenizer = letters(tiny_config, ends=())
    with pytest.raises(EdgeError, match="names no end token"):
        compile_grammar(Grammar.regex("a"), tokenizer)
    tokenizer.close()
