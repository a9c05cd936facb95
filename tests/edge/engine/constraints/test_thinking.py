"""Thinking before a form: free, within its budget, and never the end of an answer."""

from __future__ import annotations

import pytest

from edge.engine.constraints.grammar import Grammar, compile_grammar
from edge.engine.constraints.thinking import AfterThinking, LimitedThinking, ThinkingBudget
from edge.engine.generation import generate
from edge.engine.settings import merge_settings
from edge.text.tokenizer.base import Tokenizer
from tests.walks import allowed_bits

FORM = Grammar.regex("yes|no")


@pytest.fixture(scope="module")
def tokenizer(smollm2) -> Tokenizer:
    return smollm2.tokenizer


def advance(constraint: AfterThinking, tokens: list[int]) -> None:
    for token in tokens:
        constraint.advance(token)


def bits_of(constraint: AfterThinking, tokenizer: Tokenizer) -> set[int]:
    mask = constraint.allowed()
    assert mask is not None
    return {int(token) for token in allowed_bits(constraint, tokenizer.vocab_size).nonzero()[0]}


def test_a_mark_of_several_tokens(tokenizer):
    constraint = AfterThinking(compile_grammar(FORM, tokenizer), "</think>", tokenizer)
    thought = tokenizer.encode("So. No, yes </thin", continues=True)
    assert constraint.fits(thought) == len(thought) and not constraint.is_complete
    advance(constraint, thought)
    allowed = bits_of(constraint, tokenizer)
    assert not allowed & tokenizer.eos_ids and len(allowed) > 40_000
    # What would close it and begin the answer at once can't come: `k>{` has no token here, `k>` might.
    assert all(not tokenizer.token_bytes(token).startswith(b"k>{") for token in allowed)
    advance(constraint, tokenizer.encode("k>", continues=True))
    assert {tokenizer.token_bytes(token) for token in bits_of(constraint, tokenizer)} <= {
        *(b"y", b"ye", b"yes", b"n", b"no")
    }
    advance(constraint, tokenizer.encode("no", continues=True))
    assert constraint.is_complete and constraint.forced()[-1] in tokenizer.eos_ids


def test_tokens_beyond_the_mark_are_forbidden(tokenizer):
    """`>"` is one token, and would put a quote behind the mark that the grammar never sees."""
    constraint = AfterThinking(None, "x>", tokenizer)
    beyond = tokenizer.token_id('>"')
    assert beyond is not None and beyond in bits_of(constraint, tokenizer)
    advance(constraint, tokenizer.encode("x", continues=True))
    assert beyond not in bits_of(constraint, tokenizer)
    (close,) = tokenizer.encode(">", continues=True)
    advance(constraint, [close])
    assert constraint.allowed() is None and constraint.is_complete and constraint.forced() == ()


def test_a_budget_is_closed_by_force(tokenizer):
    closing = tuple(tokenizer.encode("\n</think>\n", continues=True))
    budget = ThinkingBudget(3, closing)
    constraint = AfterThinking(compile_grammar(FORM, tokenizer), "</think>", tokenizer, budget=budget)
    thought = tokenizer.encode("one two three four", continues=True)
    advance(constraint, thought[:2])
    assert constraint.forced() == ()
    advance(constraint, thought[2:3])
    assert constraint.forced() == closing and bits_of(constraint, tokenizer) == {closing[0]}
    assert constraint.fits([closing[0], thought[0]]) == 1
    advance(constraint, list(closing))
    assert not constraint.is_complete and constraint.fits(tokenizer.encode("yes", continues=True)) == 1
    none = AfterThinking(None, "</think>", tokenizer, budget=ThinkingBudget(0, closing))
    assert none.forced() == closing


def test_thinking_that_a_model_may_begin(tokenizer):
    opens, ends = tokenizer.special_tokens["<jupyter_start>"], tokenizer.special_tokens["<jupyter_text>"]
    for thinks in (True, False):
        constraint = AfterThinking(compile_grammar(FORM, tokenizer), ends, tokenizer, opens=opens)
        assert opens in bits_of(constraint, tokenizer) and not constraint.is_complete
        if thinks:
            advance(constraint, [opens, *tokenizer.encode("Hm.", continues=True), ends])
        assert (opens in bits_of(constraint, tokenizer)) is not thinks
        advance(constraint, tokenizer.encode("yes", continues=True))
        assert constraint.is_complete and opens not in bits_of(constraint, tokenizer)


def test_an_answer_that_thinks(smollm2):
    tokenizer = smollm2.tokenizer
    closing = tuple(tokenizer.encode("</think>", continues=True))
    settings = merge_settings(flags={"temperature": 0, "max_new_tokens": 40})
    texts = []
    for logprobs in (None, 0):
        constraint = AfterThinking(
            compile_grammar(FORM, tokenizer), "</think>", tokenizer, budget=ThinkingBudget(12, closing)
        )
        chosen = merge_settings(flags={"temperature": 0, "max_new_tokens": 40, "logprobs": logprobs})
        prompt = tokenizer.encode("Is the sky blue? <think>")
        chunks = generate(smollm2.session(), prompt, chosen, tokenizer, constraint=constraint)
        texts.append("".join(chunk.text for chunk in chunks))
    assert settings.max_new_tokens == 40 and texts[0] == texts[1]
    assert texts[0].partition("</think>")[2] in ("yes", "no")


def limited(tokenizer, most: int, form: Grammar | None = None) -> LimitedThinking:
    closing = tuple(tokenizer.encode("\n</think>", continues=True))
    inner = None if form is None else compile_grammar(form, tokenizer)
    return LimitedThinking(inner, ("<think>", "</think>"), tokenizer, ThinkingBudget(most, closing))


def test_thinking_between_plain_marks_has_a_budget(tokenizer):
    """As of MiniCPM4.1, whose marks are several tokens, and of Qwen3, whose marks are no control tokens."""
    constraint = limited(tokenizer, 3)
    assert constraint.allowed() is None and constraint.is_complete
    advance(constraint, tokenizer.encode("\n<think>", continues=True))
    closing = tuple(tokenizer.encode("\n</think>", continues=True))
    thought = tokenizer.encode(" one two three four", continues=True)
    for token in thought[:3]:
        assert constraint.forced() == () and not constraint.is_complete
        assert not bits_of(constraint, tokenizer) & tokenizer.eos_ids
        constraint.advance(token)
    assert constraint.forced() == closing and bits_of(constraint, tokenizer) == {closing[0]}
    assert constraint.fits([closing[0], thought[0]]) == 1
    advance(constraint, list(closing))
    assert constraint.allowed() is None and constraint.is_complete and constraint.forced() == ()
    advance(constraint, thought)  # it is free from now on
    assert constraint.forced() == () and constraint.fits(thought) == len(thought)


def test_thinking_that_ends_by_itself_or_never_begins(tokenizer):
    for text in ("<think>One</think>Yes <think> no more than text", "So <think> is no thinking", " <thing>"):
        constraint = limited(tokenizer, 9)
        for token in tokenizer.encode(f"{text} and so on and on", continues=True):
            assert constraint.forced() == ()
            constraint.advance(token)
        assert constraint.allowed() is None and constraint.is_complete
    none = limited(tokenizer, 0)
    advance(none, tokenizer.encode("<think>", continues=True))
    assert none.forced() == tuple(tokenizer.encode("\n</think>", continues=True))


def test_the_form_goes_along_with_plain_marks(tokenizer):
    form = Grammar.regex(r"(<think>[a-z ]{4,}\n</think>)?(yes|no)")
    constraint = limited(tokenizer, 2, form)
    advance(constraint, tokenizer.encode("<think>", continues=True))
    advance(constraint, tokenizer.encode("one two", continues=True))
    assert constraint.forced()[-1:] == tuple(tokenizer.encode("</think>", continues=True)[-1:])
    advance(constraint, list(constraint.forced()))
    assert constraint.fits(tokenizer.encode("yes", continues=True)) == 1 and not constraint.is_complete
    advance(constraint, tokenizer.encode("yes", continues=True))
    assert constraint.is_complete
