"""How `edge train answers` makes answers; read without what makes them."""

from __future__ import annotations

from dataclasses import dataclass

from edge.system.options import option


@dataclass(frozen=True)
class AnswerOptions:
    """How prompts are answered."""

    tokens: int = option(320, "Longest answer in tokens.", least=16)
    prompt_tokens: int = option(512, "Longest prompt in tokens; longer ones are left out.", least=16)
    temperature: float = option(0.7, "Of every second answer; the others are greedy.", least=0)
    streams: int = option(8, "Answers at the same time.", least=1)
    shard: int = option(256, "Prompts whose answers make a shard.", least=1)
    seed: int = option(0, "Of the answers that are drawn.", least=0)
