"""The real SmolLM2-135M-Instruct: native against the fp32 reference over the same dequantized weights.

Figures in comments were measured on an AVX-512 VNNI server; the bounds leave room for other CPUs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch.nn import functional

from edge.measure.perplexity import perplexity
from edge.model.network.decoder import Decoder
from edge.model.weights.checkpoint import reference_from_bundle
from edge.runtime import Model, load
from tests.steps import forward

CONTEXT = 2048
NEW_TOKENS = 64
EPSILON = 1e-3
"""Logits closer than this are a tie, which may go either way; the two sides differ by at most 1e-4."""
MOST_TIES = 1
"""Prompts out of ten that may come to a tie that goes the other way; here none does."""

PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "def fibonacci(n):\n    ",
    "The three laws of thermodynamics are",
    "Question: What is 17 + 25?\nAnswer:",
    "Dear Sir or Madam,\n\nI am writing to",
    "1, 1, 2, 3, 5, 8, 13,",
    "Ingredients: flour, sugar, two eggs, butter.\nMethod:",
    "<|im_start|>user\nName three colours.<|im_end|>\n<|im_start|>assistant\n",
    "Il était une fois une petite fille qui",
]


@pytest.fixture(scope="module")
def exact(smollm2_gguf: Path) -> Iterator[Model]:
    with load(smollm2_gguf, context=CONTEXT, activations="float32", kv_type="float32") as model:
        yield model


@pytest.fixture(scope="module")
def fast(smollm2_gguf: Path) -> Iterator[Model]:
    """The settings that users get: int8 activations and a float16 cache."""
    with load(smollm2_gguf, context=CONTEXT) as model:
        yield model


@pytest.fixture(scope="module")
def decoder(exact: Model) -> Decoder:
    return reference_from_bundle(exact.files, CONTEXT)


@pytest.fixture(scope="module")
def text(shared_data: Path) -> str:
    return (shared_data / "wikitext-2-raw.valid.txt").read_text(encoding="utf-8")


def logits_of(model: Model, tokens: list[int]) -> npt.NDArray[np.float32]:
    """Logits of every token of a sequence, float32 [n, vocab_size]."""
    executor, cache = model.executor, model.executor.new_cache()
    step = executor.max_batch
    pieces = [tokens[start : start + step] for start in range(0, len(tokens), step)]
    return np.concatenate([forward(executor, cache, piece, logits="all").logits for piece in pieces])


def greedy(model: Model, prompt: list[int]) -> list[int]:
    """The prompt and its NEW_TOKENS most likely continuations, end-of-text tokens included."""
    executor, cache = model.executor, model.executor.new_cache()
    tokens, fed = list(prompt), 0
    while len(tokens) < len(prompt) + NEW_TOKENS:
        logits = forward(executor, cache, tokens[fed:]).logits
        fed = len(tokens)
        tokens.append(int(logits[-1].argmax()))
    return tokens


def test_logits_of_exact_activations(exact: Model, decoder: Decoder):
    tokens = [token for prompt in PROMPTS for token in exact.tokenizer.encode(prompt)]
    found, wanted = torch.from_numpy(logits_of(exact, tokens)), decoder(torch.tensor(tokens))
    error = ((found - wanted).abs().max() / wanted.std()).item()
    assert error < 1e-4  # 1.2e-5


def test_greedy_text_equals_the_reference(exact: Model, decoder: Decoder):
    """If every choice is the reference's own after the same tokens, then so is the whole text."""
    ties = []
    for prompt in PROMPTS:
        ids = exact.tokenizer.encode(prompt, parse_special=True)
        tokens = greedy(exact, ids)
        wanted = decoder(torch.tensor(tokens[:-1]))[len(ids) - 1 :]
        for step, (logits, token) in enumerate(zip(wanted, tokens[len(ids) :], strict=True)):
            if token == int(logits.argmax()):
                continue
            best, second = logits.topk(2).values.tolist()
            gap = best - logits[token].item()
            assert gap < EPSILON, (
                f"{prompt!r}: token {step} is {token}, {gap:.4f} below the reference's (the second is at "
                f"{best - second:.4f})"
            )
            ties.append(prompt)
            break  # from here on the two texts may differ
    assert len(ties) <= MOST_TIES, ties


def test_int8_activations_stay_close(fast: Model, decoder: Decoder, text: str):
    """Teacher-forced over 1024 tokens of Wikipedia: KL divergence and agreement of the most likely token."""
    tokens = fast.tokenizer.encode(text)[:1024]
    found = torch.from_numpy(logits_of(fast, tokens)).double().log_softmax(-1)
    wanted = decoder(torch.tensor(tokens)).double().log_softmax(-1)
    divergence = functional.kl_div(found, wanted, reduction="none", log_target=True).sum(-1)
    agreement = (found.argmax(-1) == wanted.argmax(-1)).double().mean().item()
    most = divergence.quantile(0.99)  # the largest of all goes by luck: 0.06 to 0.38 by the kernels' tier
    print(f"KL {divergence.mean():.5f} (of 99 % {most:.4f} at most), top-1 agreement {agreement:.4f}")
    assert divergence.mean() < 0.005  # 0.0026 nats
    assert most < 0.05  # 0.016
    assert agreement > 0.96  # 0.980


def reference_perplexity(decoder: Decoder, tokens: list[int], window: int) -> tuple[float, int]:
    """(perplexity, scored tokens) over disjoint windows, in which every token but the first is scored."""
    loss, scored = 0.0, 0
    for start in range(0, len(tokens), window):
        ids = torch.tensor(tokens[start : start + window])
        if len(ids) > 1:
            logits = decoder(ids)
            loss += functional.cross_entropy(logits[:-1], ids[1:], reduction="sum").item()
            scored += len(ids) - 1
    return math.exp(loss / scored), scored


@pytest.fixture(scope="module")
def wanted_perplexity(decoder: Decoder, exact: Model, text: str) -> Callable[[int], tuple[float, int]]:
    """The reference's perplexity of the first so many tokens of the text."""
    known: dict[int, tuple[float, int]] = {}

    def of(length: int) -> tuple[float, int]:
        if length not in known:
            known[length] = reference_perplexity(decoder, exact.tokenizer.encode(text)[:length], 1024)
        return known[length]

    return of


def check_perplexity(model: Model, text: str, length: int, wanted: tuple[float, int]) -> None:
    result = perplexity(model, text, window=1024, stride=1024, max_tokens=length)
    print(f"perplexity {result.perplexity:.4f} against {wanted[0]:.4f} ({result.protocol})")
    assert result.tokens == wanted[1]
    assert abs(result.perplexity / wanted[0] - 1) < 0.01  # exact: 1e-5, int8: 0.002


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_perplexity(request, text: str, wanted_perplexity, mode: str):
    check_perplexity(request.getfixturevalue(mode), text, 3072, wanted_perplexity(3072))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_perplexity_of_the_whole_text(request, text: str, wanted_perplexity, mode: str):
    check_perplexity(request.getfixturevalue(mode), text, 10**9, wanted_perplexity(10**9))
