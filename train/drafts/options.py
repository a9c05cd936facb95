"""How `edge train answers` makes answers; read without what makes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast, get_args

from edge.checkpoints.bita import KIND as BITA
from edge.checkpoints.synthetic_draft import draft_shape
from edge.config import ModelConfig
from edge.config.draft import DraftKind
from edge.system.options import option

DRAFT_KINDS = (*get_args(DraftKind), BITA)
"""Kinds of drafts that can be trained."""


@dataclass(frozen=True)
class AnswerOptions:
    """How prompts are answered."""

    kind: str = option(
        DRAFT_KINDS[0],
        "Kind of draft that learns, which reads hidden states of its own layers.",
        choices=DRAFT_KINDS,
    )
    answer_tokens: int = option(320, "Longest answer in tokens.", least=16)
    prompt_tokens: int = option(512, "Longest prompt in tokens; longer ones are left out.", least=16)
    sampled_at: float = option(0.7, "Temperature of every second answer; the others are greedy.", least=0)
    answers_at_once: int = option(8, "Answers that are made at the same time.", least=1)
    shard_prompts: int = option(256, "Prompts whose answers make a shard.", least=1)
    first_seed: int = option(0, "Seed of the first answer; each further one adds 1.", least=0)


def state_layers(kind: str, target: ModelConfig) -> tuple[int, ...]:
    """Layers of the target whose residual streams a draft of some kind learns from, the last one at the end
    for what the target says; none for the hidden states after the final norm.
    """
    if kind == BITA:  # it learns from the tokens alone
        return ()
    taps = draft_shape(target, cast(DraftKind, kind)).taps
    last = target.num_hidden_layers - 1
    return taps if not taps or taps[-1] == last else (*taps, last)
