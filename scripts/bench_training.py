"""Speed of the training loop beside plainer ones on the same network, in turn: tokens per second and their
ratios.

`loop` is `edge train run` without its log: loader, packed attention, chunked loss, clipping, AdamW. `plain`
is the same network in the loop of a tutorial: random pieces of one long text, whole logits. `gpt` is a
network of the same shape written the way small training codes write it (fused norm, causal attention
without documents, no muP scales).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from edge.config import ModelConfig
from edge.measure.profile.machine import cpu_name, load
from edge.model.network.decoder import Decoder, fused_attention
from edge.train.config import RunConfig, read
from edge.train.data.shards import ShardFolder
from edge.train.distributed import World
from edge.train.flops import flops_per_token, measured_peak
from edge.train.folder import RunFolder
from edge.train.network import build
from edge.train.pretrain import Trainer, Unwatched
from edge.train.stopping import StopSignals
from edge.train.texts import Texts, open_texts

_RATE = 1e-3
Step = Callable[[], None]


def main() -> None:
    """Arguments: a run's configuration, changes of it, and how much is measured."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("config", nargs="?", default="runs/small.toml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=3, help="of each loop in a round")
    arguments = parser.parse_args()
    config = read(arguments.config, arguments.set)
    if config.runtime.threads is not None:
        torch.set_num_threads(config.runtime.threads)
    texts = open_texts(config)
    with TemporaryDirectory() as folder:
        shape, loop = _loop(config, texts, Path(folder))
    steps: dict[str, Step] = {
        "loop": loop,
        "plain": _plain(config, shape, texts.any),
        "gpt": _gpt(config, shape, texts.any),
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    before = load()
    for turn in range(arguments.rounds + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            for _ in range(arguments.steps):
                step()
            if turn:  # the first one compiles and warms up
                seconds[name].append(time.perf_counter() - start)
    tokens = config.data.tokens_per_step * arguments.steps
    peak = measured_peak(torch.device("cpu"), torch.float32)
    per_token = flops_per_token(shape, config.data.length)
    document = {
        "schema": 1,
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "load_before": before,
        "parameters": sum(each.numel() for each in Decoder(shape).parameters()),
        "tokens_per_step": config.data.tokens_per_step,
        "length": config.data.length,
        "compiled": config.runtime.compile,
        "peak_flops": peak,
        "tokens_per_second": {name: tokens / statistics.median(found) for name, found in seconds.items()},
        "utilisation": {
            name: tokens / statistics.median(found) * per_token / peak for name, found in seconds.items()
        },
        "loop_over": {
            name: statistics.median(b / a for a, b in zip(seconds["loop"], seconds[name], strict=True))
            for name in ("plain", "gpt")
        },
    }
    print(json.dumps(document))


def _loop(config: RunConfig, texts: Texts, folder: Path) -> tuple[ModelConfig, Step]:
    """The loop's own step, at the learning rate of the first one."""
    world = World()
    network = build(config, texts, world, print)
    trainer = Trainer(config, RunFolder(folder, config, world), texts, network, world, Unwatched())
    signals = StopSignals()
    return network.config, lambda: trainer.one_step(signals)


def _plain(config: RunConfig, shape: ModelConfig, shards: ShardFolder) -> Step:
    decoder = Decoder(shape, config.data.length).use_attention(fused_attention)
    return _tutorial(config, decoder, decoder, shards)


def _gpt(config: RunConfig, shape: ModelConfig, shards: ShardFolder) -> Step:
    network = Gpt(shape, config.data.length)
    return _tutorial(config, network, network, shards)


def _tutorial(
    config: RunConfig, network: nn.Module, logits: Callable[[Tensor], Tensor], shards: ShardFolder
) -> Step:
    """A step on random pieces of all documents strung together."""
    text = torch.from_numpy(
        np.concatenate([shards.document(number) for number in range(shards.documents)]).astype(np.int64)
    )
    make = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=_RATE, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    if config.runtime.compile:
        network.compile()
    offsets = torch.arange(config.data.length + 1)

    def step() -> None:
        starts = torch.randint(len(text) - config.data.length, (config.data.rows, 1), generator=make)
        pieces = text[starts + offsets]
        loss = functional.cross_entropy(logits(pieces[:, :-1]).flatten(0, 1), pieces[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


class GptLayer(nn.Module):
    """Attention and SwiGLU, as a small training code writes them."""

    def __init__(self, shape: ModelConfig) -> None:
        super().__init__()
        hidden, inner, self.head_dim = shape.hidden_size, shape.intermediate_size, shape.head_dim
        self.heads, self.kv_heads = shape.num_attention_heads, shape.num_key_value_heads
        self.qkv = nn.Linear(hidden, (self.heads + 2 * self.kv_heads) * self.head_dim, bias=False)
        self.out = nn.Linear(self.heads * self.head_dim, hidden, bias=False)
        self.gate_up = nn.Linear(hidden, 2 * inner, bias=False)
        self.down = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x [rows, n, hidden] -> the same shape."""
        normed = functional.rms_norm(x, x.shape[-1:])
        heads = self.qkv(normed).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        q, k, v = heads.split((self.heads, self.kv_heads, self.kv_heads), 1)
        q, k = _turned(q, cos, sin), _turned(k, cos, sin)
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        gate, up = self.gate_up(functional.rms_norm(x, x.shape[-1:])).chunk(2, -1)
        return x + self.down(functional.silu(gate) * up)


class Gpt(nn.Module):
    """The whole network; the head is the embedding if the shape ties them."""

    cos: Tensor
    sin: Tensor

    def __init__(self, shape: ModelConfig, length: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(GptLayer(shape) for _ in range(shape.num_hidden_layers))
        self.head = nn.Linear(shape.hidden_size, shape.vocab_size, bias=False)
        if shape.tie_word_embeddings:
            self.head.weight = self.embed.weight
        inverse = shape.rope.theta ** (-torch.arange(0, shape.head_dim, 2) / shape.head_dim)
        angles = torch.arange(length).unsqueeze(1) * inverse
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens [rows, n] -> logits."""
        x = functional.rms_norm(self.embed(tokens), (self.embed.embedding_dim,))
        for layer in self.layers:
            x = layer(x, self.cos, self.sin)
        logits: Tensor = self.head(functional.rms_norm(x, x.shape[-1:]))
        return logits


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


if __name__ == "__main__":
    main()
