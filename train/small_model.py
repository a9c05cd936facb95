"""Trains a small float model on texts: a network whose weights no quantizer has touched.

Llama-shaped, byte-level BPE made from the texts themselves. Trained for long enough to have something to lose
by rounding; it is for measuring quantizers, not for talking to.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from edge.config import ModelConfig, RopeConfig
from edge.model.network.decoder import Decoder, fused_attention
from edge.model.weights.checkpoint import save_huggingface

_SPECIAL = ("<unk>", "<s>", "</s>")


def small_config(vocabulary: int) -> ModelConfig:
    """About 2.8 M parameters with a vocabulary of 1024."""
    return ModelConfig(
        model_type="llama",
        vocab_size=vocabulary,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=64,
        rms_norm_eps=1e-5,
        max_position_embeddings=1024,
        rope=RopeConfig(),
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_ids=(2,),
    )


def train_tokenizer(text: str, vocabulary: int) -> bytes:
    """`tokenizer.json` of a byte-level BPE with so many tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text.splitlines(keepends=True), trainer)
    return tokenizer.to_str().encode()


def batches(ids: Tensor, batch: int, length: int, make: torch.Generator) -> Iterator[Tensor]:
    """Random pieces int64 [batch, length + 1], without end."""
    while True:
        starts = torch.randint(len(ids) - length, (batch, 1), generator=make)
        yield ids[starts + torch.arange(length + 1)]


def train(decoder: Decoder, ids: Tensor, steps: int, seed: int) -> Iterator[float]:
    """AdamW with warm-up and linear decay; yields the loss of every step, in nats per token."""
    for name, parameter in decoder.named_parameters():
        if parameter.dim() > 1:
            scale = 0.5 if "o_proj" in name or "down_proj" in name else 1.0
            nn.init.normal_(parameter, std=0.02 if "embed" in name else scale * parameter.shape[1] ** -0.5)
    decoder.use_attention(fused_attention).train()
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 40, (steps - step) / (0.6 * steps), 1.0)
    )
    source = batches(ids, 4, 256, torch.Generator().manual_seed(seed))
    for _ in range(steps):
        tokens = next(source)
        logits = decoder(tokens[:, :-1])
        loss = functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        yield loss.item()


def main() -> None:
    """Trains and saves a Hugging Face folder; the last line is a JSON document."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("out", type=Path, help="folder that must not exist")
    parser.add_argument("texts", type=Path, nargs="+", help="UTF-8 files, learned as they are")
    parser.add_argument(
        "--skip", type=float, default=0.1, help="share of the first text left unseen, from its start"
    )
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--vocabulary", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    first, *others = (path.read_text(encoding="utf-8") for path in arguments.texts)
    text = "".join((first[int(len(first) * arguments.skip) :], *others))
    files = {"tokenizer.json": train_tokenizer(text, arguments.vocabulary)}
    config = small_config(arguments.vocabulary)
    from edge.text.tokenizer.load import load_tokenizer

    ids = torch.tensor(load_tokenizer(files, config).encode(text, add_bos=False))
    decoder, losses, started = Decoder(config), [], time.process_time()
    for loss in train(decoder, ids, arguments.steps, arguments.seed):
        losses.append(loss)
        if len(losses) % 40 == 0:
            print(f"step {len(losses)}: loss {sum(losses[-40:]) / 40:.3f}", flush=True)
    save_huggingface(arguments.out, config, decoder.state_dict(), tokenizer_files=files)
    document = {
        "parameters": sum(parameter.numel() for parameter in decoder.parameters()),
        "text_tokens": len(ids),
        "steps": len(losses),
        "loss": round(sum(losses[-40:]) / len(losses[-40:]), 4),
        "processor_seconds": round(time.process_time() - started, 1),
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main()
