"""The needle test through `edge train`: texts of facts in noise with questions and answers, and what a
model recalls.

A text is one of `edge.train.needle` with the answer written behind every question, so that predicting the
next token is what the test asks for; the noise stays unpredictable.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from edge.checkpoints.synthetic import RandomCheckpoint
from edge.model.attention.mode import SparseAttention
from edge.model.network.decoder import Attend, Decoder, fused_attention
from edge.model.weights.checkpoint import load_tensors, open_checkpoint
from edge.quant.scheme import QuantScheme
from edge.train.data.shards import ShardFacts, tokenizer_digest, write_documents
from edge.train.needle import IGNORED, KEYS, SPAN, recall_batch, tiny_config, window_attention

LENGTHS = {"short": (64, 64, 128, 64, 64, 256), "long": (512, 1024, 512, 2048, 512, 1024, 4096)}
"""Tokens of the documents of each stage, in turn."""


def main() -> None:
    """`texts OUT` writes token shards of both stages; `score MODEL` prints a JSON document."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("task", choices=("texts", "score"))
    parser.add_argument("path", type=Path)
    parser.add_argument("--tokens", type=int, default=2_000_000, help="of each stage's texts")
    parser.add_argument("--sequences", type=int, default=8)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.task == "texts":
        write_texts(arguments.path, arguments.tokens)
    else:
        print(
            json.dumps({"model": str(arguments.path), "accuracy": score(arguments.path, arguments.sequences)})
        )


def write_texts(out: Path, tokens: int) -> None:
    """Token shards in the folders `short` and `long`."""
    config = tiny_config(4096)
    files = dict(RandomCheckpoint(config, QuantScheme("int8")).tokenizer_files)
    facts = ShardFacts(config.vocab_size, None, (), tokenizer_digest(files))
    for seed, (stage, lengths) in enumerate(LENGTHS.items()):
        make = torch.Generator().manual_seed(seed)
        write_documents(out / stage, list(_documents(lengths, tokens, make)), facts, files)


def _documents(lengths: tuple[int, ...], tokens: int, make: torch.Generator) -> Iterator[list[int]]:
    while tokens > 0:
        for length in lengths:
            facts = min(length // (2 * SPAN + 1) - 1, KEYS)
            yield told(*recall_batch(1, length - facts, facts, make))[0].tolist()
            tokens -= length


def told(tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """A sequence of `recall_batch` with its answers written in: (tokens [n], places of the questions
    [facts]).
    """
    asked = (targets[0] != IGNORED).nonzero().flatten()
    text = torch.cat([tokens[0], targets[0, asked]])
    places = torch.cat([torch.arange(tokens.shape[1]), asked + 0.5])
    return text[places.argsort()], asked + torch.arange(len(asked))


@torch.no_grad()
def score(model: Path, sequences: int) -> dict[str, dict[str, float]]:
    """Share of questions answered rightly, by length and kind of attention: at the short length, 4 and 16
    times it.
    """
    checkpoint = open_checkpoint(model)
    sparse = checkpoint.config.sparse or tiny_config(4096).sparse
    assert sparse is not None
    kinds: dict[str, Attend] = {
        "dense": fused_attention,
        "sparse": SparseAttention(sparse),
        "window": window_attention(sparse.local_blocks),
        "wide window": window_attention(sparse.topk + sparse.local_blocks),
    }
    found: dict[str, dict[str, float]] = {}
    tensors = load_tensors(checkpoint, torch.float32)
    for length in (256, 1024, 4096):
        decoder = Decoder.from_tensors(
            checkpoint.config, tensors, max(length, checkpoint.config.max_position_embeddings)
        )
        found[str(length)] = {
            name: _recall(decoder, attend, length, sequences) for name, attend in kinds.items()
        }
    return found


def _recall(decoder: Decoder, attend: Attend, length: int, sequences: int) -> float:
    decoder.use_attention(attend)
    make = torch.Generator().manual_seed(length)
    right = asked = 0
    for _ in range(sequences):
        text, places = told(*recall_batch(1, length - KEYS, KEYS, make, ask_late=True))
        guesses = decoder.logits(decoder.trunk(text.unsqueeze(0)).hidden[0, places]).argmax(-1)
        right += int((guesses == text[places + 1]).sum())
        asked += len(places)
    return right / asked


if __name__ == "__main__":
    main()
