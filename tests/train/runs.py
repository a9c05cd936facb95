"""Tiny training runs for tests: texts of 64 tokens, and a network of two layers that learns them."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edge.apps.cli.main import main
from edge.checkpoints.huggingface import HuggingFaceCheckpoint
from edge.model.weights.checkpoint import load_tensors
from edge.train.config import RunConfig, run_from
from edge.train.data.shards import ShardFacts, ShardFolder, tokenizer_digest, write_documents
from edge.train.distributed import World
from edge.train.metrics import read_log
from edge.train.network import build
from edge.train.objective import Objective
from edge.train.pretrain import Outcome, train
from edge.train.schedule import rate
from edge.train.texts import open_texts

ROOT = Path(__file__).resolve().parents[2]
VOCABULARY = 64
EOS = 2
TOKENIZER = {"tokenizer.json": b"any"}
MODEL: dict[str, Any] = {
    "preset": "minicpm4-0.5b",
    "hidden_size": 32,
    "dim_model_base": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "rope": {"type": "default"},
}
_SPEEDS = ("tokens_per_second", "utilisation")


def write_texts(
    folder: Path,
    seed: int = 0,
    documents: int = 60,
    longest: int = 40,
    tokenizer: Mapping[str, bytes] = TOKENIZER,
) -> ShardFolder:
    """Documents that count up by a step of their own, 3 to `longest` tokens."""
    make = random.Random(seed)
    found = []
    for _ in range(documents):
        at, step = make.randrange(60), make.randrange(1, 4)
        found.append([3 + (at + step * i) % 61 for i in range(make.randrange(2, longest))] + [EOS])
    return write_documents(folder, found, facts(tokenizer), tokenizer)


def facts(tokenizer: Mapping[str, bytes] = TOKENIZER) -> ShardFacts:
    return ShardFacts(VOCABULARY, 1, (EOS,), tokenizer_digest(tokenizer))


def options(folder: Path, **sections: Any) -> dict[str, Any]:
    """A run's TOML document, over the texts in folder/texts; sections: what differs."""
    texts = folder / "texts"
    if not texts.exists():
        write_texts(texts)
    found: dict[str, Any] = {
        "model": MODEL,
        "data": {"sources": {"t": str(texts)}, "length": 16, "rows": 4},
        "schedule": {"steps": 6, "warm_up": 2, "decay": 0.3},
        "optimizer": {"base_width": 16},
        "checkpoints": {"every": 2},
        "evaluation": {"sources": {"t": str(texts)}, "every": 4, "rows": 4},
        "log": {"every": 1, "tensorboard": False},
    }
    for name, values in sections.items():
        found[name] = {**found.get(name, {}), **values} if isinstance(values, Mapping) else values
    return found


def run_config(folder: Path, **sections: Any) -> RunConfig:
    return run_from(options(folder, **sections))


class Said:
    """A watcher that keeps what it is told. steps: the lines of the log."""

    def __init__(self) -> None:
        self.sentences: list[str] = []
        self.steps: list[dict[str, Any]] = []

    def begin(self, first: int, steps: int) -> None:
        pass

    def step(self, record: dict[str, Any]) -> None:
        self.steps.append(record)

    def say(self, sentence: str) -> None:
        self.sentences.append(sentence)


def run(folder: Path, name: str = "run", **sections: Any) -> tuple[Outcome, Said]:
    """Train in folder/name."""
    said = Said()
    return train(run_config(folder, **sections), folder / name, said), said


def curve(run: Path) -> list[dict[str, Any]]:
    """The log without speeds."""
    return [{key: each[key] for key in each if key not in _SPEEDS} for each in read_log(run)]


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in read_log(run)]


def weights(run: Path) -> dict[str, Tensor]:
    """Those of the saved model."""
    return load_tensors(HuggingFaceCheckpoint(run / "model"))


def assert_same_run(one: Path, other: Path) -> None:
    """Logs and models are the same, bit for bit."""
    assert curve(one) == curve(other)
    mine, theirs = weights(one), weights(other)
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        assert torch.equal(tensor, theirs[name]), name


def plain_steps(
    config: RunConfig, skip: Collection[int] = (), steps: int | None = None
) -> tuple[Objective, list[tuple[float, float]]]:
    """What the run learns, by a loop of plain PyTorch over `torch.optim.AdamW`; no muP at base_width.

    skip: steps whose gradient is thrown away. Returns the module and (loss, gradient norm) of every step.
    """
    texts, world = open_texts(config), World()
    objective = build(config, texts, world, print).objective
    rates = {
        parameter: config.optimizer.learning_rate
        * (config.optimizer.base_width / MODEL["hidden_size"] if hidden(name, parameter) else 1)
        for name, parameter in objective.named_parameters()
    }
    optimizer = torch.optim.AdamW(
        [
            {"params": [each], "weight_decay": config.optimizer.weight_decay if each.dim() > 1 else 0.0}
            for each in rates
        ],
        betas=config.optimizer.betas,
        eps=config.optimizer.epsilon,
        foreach=False,
    )
    found = []
    for step in range(steps or config.schedule.steps):
        batch = texts.loader.next()
        logits = objective.decoder(batch.tokens, positions=batch.positions)
        loss = functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=-100)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(objective.parameters(), config.optimizer.clip)
        for group in optimizer.param_groups:
            group["lr"] = rate(config.schedule, step) * rates[group["params"][0]]
        if step + 1 not in skip:
            optimizer.step()
        optimizer.zero_grad()
        found.append((loss.item(), norm.item()))
    return objective, found


def hidden(name: str, parameter: Tensor) -> bool:
    return ".layers." in name and parameter.dim() == 2


def toml(data: Mapping[str, Any]) -> str:
    """A TOML document; JSON's values are TOML's, but for mappings."""
    return "".join(f"{name} = {_toml(value)}\n" for name, value in data.items())


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(name)} = {_toml(each)}" for name, each in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value)


def write_config(folder: Path, **sections: Any) -> Path:
    path = folder / "run.toml"
    path.write_text(toml(options(folder, **sections)))
    return path


class Program:
    """`edge train WORDS...` in a process of its own, forked from one that has imported PyTorch already."""

    def __init__(
        self,
        *words: object,
        out: Path,
        limit: int | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """out: a folder for what it prints. limit: bytes that a file of it may have: a full disk."""
        out.mkdir(exist_ok=True)
        self._files = out / "stdout", out / "stderr"
        _FORKS.set_forkserver_preload([__name__])
        self.process = _FORKS.Process(
            target=_program, args=([*map(str, words)], self._files, limit, environment)
        )
        self.process.start()

    def signal(self, number: int) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def wait(self) -> int:
        """The exit code."""
        self.process.join(120)
        assert self.process.exitcode is not None, "it hangs"
        return self.process.exitcode

    @property
    def printed(self) -> str:
        return self._files[0].read_text()

    @property
    def complained(self) -> str:
        return self._files[1].read_text()


_FORKS = multiprocessing.get_context("forkserver")


def _program(
    words: list[str], files: tuple[Path, Path], limit: int | None, environment: Mapping[str, str] | None
) -> None:
    os.environ.update(environment or {})
    for number, path in enumerate(files, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ["COLUMNS"] = "1000"
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    torch.set_num_threads(1)
    sys.argv = ["edge", "train", *words]
    sys.exit(main())


def finished(*words: object, out: Path, limit: int | None = None) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of `edge train WORDS...`."""
    program = Program(*words, out=out, limit=limit)
    return program.wait(), program.printed, program.complained


def ranks(count: int, *words: object, out: Path) -> list[Program]:
    """`edge train WORDS...` in so many processes that know each other as torchrun's do."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    there = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    return [
        Program(
            *words,
            out=out.with_name(f"{out.name}-{rank}"),
            environment={**there, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(count)
    ]


def until(path: Path, lines: int, program: Program) -> None:
    """Wait until a log has so many lines, or the program has ended."""
    while program.process.is_alive() and (not path.exists() or path.read_bytes().count(b"\n") < lines):
        time.sleep(0.001)


def torchrun(processes: int, *words: object) -> subprocess.CompletedProcess[str]:
    """`torchrun -m edge train WORDS...`, to its end."""
    return subprocess.run(
        torchrun_command(processes, *words),
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "1000"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def torchrun_command(processes: int, *words: object) -> list[str]:
    here = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [*here, "-m", "edge", "train", *map(str, words)]
