"""A needle test that can fail: a tiny model recalls facts from noise by dense, sparse and windowed attention.

It is trained as InfLLM-V2 is (arXiv 2509.24663): short and dense first, then long and sparse.

Facts are strewn over the noise, and later each is asked for by a question. The answer is only where the fact
stands, so what attention doesn't read must be guessed. A fact is one token (it names a key and a value) a few
times over, a question one token (it names the key): two layers learn that in a minute.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edge.config import ModelConfig, RopeConfig, SparseConfig
from edge.formats.atomic import write_file
from edge.model.attention.mode import SparseAttention
from edge.model.network.decoder import Attend, Decoder, fused_attention

KEYS, VALUES, NOISE = 32, 8, 32
SPAN = 4  # tokens that tell one fact: a needle is a sentence, and the means of keys rely on that
QUESTIONS_AT = KEYS * VALUES  # a fact is one token for a key and its value, a question one for a key
ANSWERS_AT = QUESTIONS_AT + KEYS
NOISE_AT = ANSWERS_AT + VALUES
IGNORED = -100  # cross_entropy's mark for positions that ask nothing
SPARSE = SparseConfig(
    kernel_size=8, kernel_stride=4, init_blocks=1, block_size=16, window_size=64, topk=8, dense_len=256
)
"""The published constants scaled down: a query beyond 256 tokens reads 12 blocks of 16 tokens."""


@dataclass(frozen=True)
class Phase:
    """steps of batches that have `tokens` tokens, in sequences of one of the lengths in turn."""

    steps: int
    lengths: tuple[int, ...]
    tokens: int
    learning_rate: float
    warm_up: int = 20


SHORT = Phase(260, (64, 64, 128, 64, 64, 256), 4096, 4e-3)
LONG = Phase(70, (512, 1024, 512, 2048, 512, 1024, 4096), 4096, 2e-3)


def tiny_config(context: int) -> ModelConfig:
    """0.1 M parameters. With this theta most dimensions hardly turn, so that keys match over any distance."""
    return ModelConfig(
        model_type="llama",
        vocab_size=NOISE_AT + NOISE,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=64,
        rms_norm_eps=1e-5,
        max_position_embeddings=context,
        rope=RopeConfig(theta=1e12),
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_ids=(),
        sparse=SPARSE,
    )


def recall_batch(
    batch: int, length: int, facts: int, make: torch.Generator, ask_late: bool = False, span: int = SPAN
) -> tuple[Tensor, Tensor]:
    """(tokens [batch, length], targets alike: the answer where a question stands, elsewhere IGNORED).

    Every fact is asked for once, at a random later place; ask_late: all in the last places, in random order.
    span: tokens that tell a fact.
    """

    def drawn(count: int, among: int) -> Tensor:
        """`count` different numbers below `among` in random order, for every sequence."""
        return torch.rand(batch, among, generator=make).argsort(-1)[:, :count]

    tokens = NOISE_AT + torch.randint(NOISE, (batch, length), generator=make)
    targets = torch.full((batch, length), IGNORED)
    keys, values = drawn(facts, KEYS), torch.randint(VALUES, (batch, facts), generator=make)
    shift = int(torch.randint(span, (), generator=make))  # facts must not always fit the kernels' stride
    if ask_late:
        told = span * drawn(facts, (length - facts - shift) // span) + shift
        asked = length - 1 - drawn(facts, facts)
    else:
        both = span * drawn(2 * facts, (length - shift) // span).unflatten(1, (2, facts)) + shift
        told, asked = both.amin(1), both.amax(1)
    for offset in range(span):
        tokens.scatter_(1, told + offset, keys * VALUES + values)
    tokens.scatter_(1, asked, QUESTIONS_AT + keys)
    targets.scatter_(1, asked, ANSWERS_AT + values)
    return tokens, targets


def window_attention(blocks: int) -> Attend:
    """Attention over the query's own block and those just before it, nothing else."""

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        block = positions // SPARSE.block_size
        near = block.unsqueeze(-1) - block.unsqueeze(-2) < blocks
        return fused_attention(q, k, v, mask & near, positions)

    return attend


KINDS: dict[str, Attend] = {
    "dense": fused_attention,
    "sparse": SparseAttention(SPARSE),
    "window": window_attention(SPARSE.local_blocks),
    "wide window": window_attention(SPARSE.topk + SPARSE.local_blocks),
}
"""What is compared. window: the local blocks alone; wide window: as many tokens as sparse attention sees."""


def new_decoder(context: int, seed: int) -> Decoder:
    torch.manual_seed(seed)
    decoder = Decoder(tiny_config(context))
    for name, parameter in decoder.named_parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.5 if "embed" in name else parameter.shape[1] ** -0.5)
    return decoder


def run_phase(decoder: Decoder, phase: Phase, attend: Attend, make: torch.Generator) -> Iterator[float]:
    """Trains; yields the loss of every step."""
    decoder.use_attention(attend).train()
    optimizer = torch.optim.AdamW(
        decoder.parameters(), lr=phase.learning_rate, betas=(0.9, 0.95), weight_decay=0.01
    )
    decay = phase.steps // 5

    def rate(step: int) -> float:  # warm up, stay, decay linearly
        return min((step + 1) / phase.warm_up, 1.0, (phase.steps - step) / decay)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    for step in range(phase.steps):
        length = phase.lengths[step % len(phase.lengths)]
        tokens, targets = recall_batch(
            phase.tokens // length, length, min(length // (2 * SPAN) - 1, KEYS), make
        )
        trunk = decoder.trunk(tokens)
        asked = targets != IGNORED
        loss = functional.cross_entropy(decoder.logits(trunk.hidden[asked]), targets[asked])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        yield loss.item()


@torch.no_grad()
def accuracy(decoder: Decoder, attend: Attend, length: int, sequences: int, facts: int = KEYS) -> float:
    """Share of pairs recalled at the end of sequences of `length` tokens that no training has seen."""
    decoder.use_attention(attend).eval()
    make = torch.Generator().manual_seed(length)
    right = 0
    for _ in range(sequences):
        tokens, targets = recall_batch(1, length, facts, make, ask_late=True)
        asked = targets != IGNORED
        found = decoder.logits(decoder.trunk(tokens).hidden[asked]).argmax(-1)
        right += int((found == targets[asked]).sum())
    return right / (sequences * facts)


def evaluate(decoder: Decoder, sequences: int) -> dict[str, dict[str, float]]:
    """Accuracy by length and kind of attention: at the dense length, at 4 times and at 16 times that."""
    return {
        str(length): {name: accuracy(decoder, attend, length, sequences) for name, attend in KINDS.items()}
        for length in (SPARSE.dense_len, 4 * SPARSE.dense_len, 16 * SPARSE.dense_len)
    }


def run(seed: int = 0, sequences: int = 8, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Both phases and the judgement after each; a JSON document. say: gets the progress."""
    decoder = new_decoder(16 * SPARSE.dense_len, seed)
    make = torch.Generator().manual_seed(seed)
    document: dict[str, Any] = {
        "parameters": sum(parameter.numel() for parameter in decoder.parameters()),
        "sparse": asdict(SPARSE),
        "threads": torch.get_num_threads(),
        "seed": seed,
        "questions_per_length": sequences * KEYS,
    }
    for name, phase, attend in (("short", SHORT, KINDS["dense"]), ("long", LONG, KINDS["sparse"])):
        start, processor = time.perf_counter(), time.process_time()
        losses = []
        for loss in run_phase(decoder, phase, attend, make):
            losses.append(loss)
            if len(losses) % 20 == 0:
                say(f"{name}, step {len(losses)}: loss {sum(losses[-20:]) / 20:.3f}")
        document[name] = {
            "phase": asdict(phase),
            "seconds": round(time.perf_counter() - start, 1),
            "processor_seconds": round(time.process_time() - processor, 1),
            "accuracy": evaluate(decoder, sequences),
        }
        for length, found in document[name]["accuracy"].items():
            say(f"after {name}, {length} tokens: " + ", ".join(f"{k} {v:.1%}" for k, v in found.items()))
    return document


def main() -> None:
    """Runs the test; the last line of the output is the JSON document."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, help="write the JSON document here, too")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    text = json.dumps(run(arguments.seed))
    if arguments.out:
        write_file(arguments.out, text.encode())
    print(text)


if __name__ == "__main__":
    main()
