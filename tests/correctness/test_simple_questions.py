"""Simple questions to the built-in model as its users get it, greedy, against exact arithmetic.

`simple_questions.json` has the questions, and an expression for what a right answer has in its first
sentence. A model of this size does not know them all; what is tested is that its own answers come out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from edge.hub.built_in import BUILT_IN
from edge.model.weights.checkpoint import reference_from_bundle
from edge.runtime import Model, load
from tests.steps import forward

QUESTIONS: list[dict[str, str]] = json.loads(Path(__file__).with_name("simple_questions.json").read_text())
CONTEXT = 512
MOST_TOKENS = 32
"""An answer's first sentence is cut here, on both sides alike."""
REFERENCE = ("What is 2+2?", "What is the capital of France?", "What is the opposite of happy?")
"""Those whose exact answers are compared with the PyTorch network's: it takes seconds for each."""


@dataclass(frozen=True)
class Answer:
    """The beginning of an answer. tokens: with the end token, if it came. prompt: ids before them."""

    text: str
    prompt: list[int]
    tokens: list[int]

    @property
    def sentence(self) -> str:
        """The first one, or what there is of it."""
        return re.split(r"(?<=[.!?])\s|\n", self.text.strip(), maxsplit=1)[0]


def answer(model: Model, question: str) -> Answer:
    """What a chat answers, until its first sentence is whole."""
    chat = model.chat(temperature=0, max_new_tokens=MOST_TOKENS)
    with chat.stream(question) as stream:
        text = ""
        for chunk in stream:
            text += chunk.text
            if re.search(r"[.!?]\s|\S\n", text):
                break
    done = stream.result
    end = model.config.eos_token_ids[:1] if done.stop_reason == "eos" else ()
    tokens = [*done.tokens, *end]
    return Answer(done.text, list(chat.session.tokens[: done.prompt_tokens]), tokens)


@pytest.fixture(scope="module")
def exact(smollm2_gguf: Path) -> Iterator[Model]:
    with load(BUILT_IN.name, context=CONTEXT, activations="float32", kv_type="float32") as model:
        yield model


def exact_logits(exact: Model, found: Answer) -> npt.NDArray[np.float32]:
    """After the same tokens: float32 [len(found.tokens), vocab_size]."""
    executor = exact.executor
    ids = [*found.prompt, *found.tokens[:-1]]
    return forward(executor, executor.new_cache(), ids, logits="all").logits[len(found.prompt) - 1 :]


def test_the_questions():
    assert len(QUESTIONS) == 40 and len({each["question"] for each in QUESTIONS}) == 40
    assert set(REFERENCE) <= {each["question"] for each in QUESTIONS}


def test_answers_are_those_of_exact_arithmetic(exact: Model):
    """Where every token is the exact network's own choice after the same tokens, so is the whole text."""
    with load(BUILT_IN.name, context=CONTEXT) as model:
        answers = {each["question"]: answer(model, each["question"]) for each in QUESTIONS}
    same = right = chosen = tokens = 0
    for each in QUESTIONS:
        found = answers[each["question"]]
        agree = exact_logits(exact, found).argmax(-1) == np.array(found.tokens)
        chosen, tokens = chosen + int(agree.sum()), tokens + len(agree)
        sentence = found.sentence if agree.all() else answer(exact, each["question"]).sentence
        same += found.sentence == sentence
        right += re.search(rf"\b({each['answer']})\b", found.sentence) is not None
    print(f"The same: {same} of {len(QUESTIONS)} sentences, {chosen} of {tokens} tokens; {right} are right")
    assert same >= 38  # 40
    assert chosen >= 0.99 * tokens  # all of them


def test_exact_arithmetic_is_that_of_the_reference(exact: Model):
    """The plain PyTorch network over the same weights, so that the judge is not our own kernels."""
    decoder = reference_from_bundle(exact.files, CONTEXT)
    for question in REFERENCE:
        found = answer(exact, question)
        logits = exact_logits(exact, found)
        wanted = decoder(torch.tensor([*found.prompt, *found.tokens[:-1]]))[len(found.prompt) - 1 :].numpy()
        assert np.abs(logits - wanted).max() / wanted.std() < 1e-4  # 1e-5
        assert (logits.argmax(-1) == wanted.argmax(-1)).all()
