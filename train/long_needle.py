"""The needle test at 32K on an executor: what KV types, or sparse attention as published, leave of retrieval.

The network is that of `edge.train.needle`, trained with dense attention only. The published constants have
kernels four times as long as those of that test, so a fact is told four times as often.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from edge.config import SparseConfig
from edge.executors.protocol import Executor, SequenceStep
from edge.formats.bundle.manifest import BundleTensor
from edge.formats.bundle.reader import Bundle
from edge.formats.bundle.writer import BundleWriter
from edge.model.network.decoder import Decoder
from edge.quant.packing import pack
from edge.quant.scheme import QuantScheme
from edge.train import needle

LENGTH = 32768
SPAN = 4 * needle.SPAN
PHASES = (needle.SHORT, needle.Phase(100, (1024, 2048, 4096, 2048, 8192), 8192, 2e-3))

Questions = tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]
"""The tokens of a sequence, and the answers to its last tokens, which ask for all its facts."""


def train(seed: int = 0, say: Callable[[str], None] = print) -> Decoder:
    """The network after both phases; say: gets the progress."""
    decoder = needle.new_decoder(LENGTH, seed)
    make = torch.Generator().manual_seed(seed)
    for phase in PHASES:
        losses = list(needle.run_phase(decoder, phase, needle.KINDS["dense"], make))
        say(f"{phase.steps} steps up to {max(phase.lengths)} tokens: loss {sum(losses[-10:]) / 10:.3f}")
    return decoder.eval()


def write_bundle(decoder: Decoder, folder: Path, sparse: SparseConfig | None = None) -> Bundle:
    """The network for executors, in float16. sparse: the constants, by default the published ones."""
    config = replace(decoder.config, sparse=sparse or SparseConfig())
    tensors = {name: tensor.detach().numpy() for name, tensor in decoder.state_dict().items()}
    schemes = {name: QuantScheme("f32" if values.ndim == 1 else "f16") for name, values in tensors.items()}
    infos = [BundleTensor(name, values.shape, schemes[name], "F32", True) for name, values in tensors.items()]
    with BundleWriter(folder, config, "the needle test", infos) as writer:
        for name, values in tensors.items():
            writer.write(name, pack(np.atleast_2d(values), schemes[name]))
    return Bundle.open(folder)


def questions(sequences: int, length: int = LENGTH) -> Iterator[Questions]:
    """The same sequences for every executor."""
    make = torch.Generator().manual_seed(length)
    for _ in range(sequences):
        tokens, targets = needle.recall_batch(1, length, needle.KEYS, make, ask_late=True, span=SPAN)
        yield tokens[0].numpy().astype(np.int32), targets[0, -needle.KEYS :].numpy()


def answers(executor: Executor, tokens: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """The likeliest token after each of the last tokens, which are questions."""
    cache, asked, step = executor.new_cache(), len(tokens) - needle.KEYS, executor.max_batch
    for start in range(0, asked, step):
        executor.forward([SequenceStep(cache, tokens[start : min(start + step, asked)], logits="none")])
    (found,) = executor.forward([SequenceStep(cache, tokens[asked:], logits="all")])
    assert found.logits is not None
    return found.logits.argmax(axis=1)


def recall(executor: Executor, sequences: int, length: int = LENGTH) -> float:
    """Share of right answers."""
    right = [answers(executor, tokens) == wanted for tokens, wanted in questions(sequences, length)]
    return float(np.mean(right))
