"""The loop: from a `RunConfig` to a trained model. Pre-training, QAT and the long-context stage are all
this one.

A step reads the next rows, computes losses and gradients, and changes the weights; everything around that
is keeping the run alive: checkpoints, what happens at a loss that is no number, and stopping when asked.
Nothing here is random but the weights' first values: a run that is resumed repeats the losses of one that
never stopped, bit for bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from edge.errors import TrainingError
from edge.train.checkpoints import CheckpointStore
from edge.train.config import RunConfig
from edge.train.data.batch import AnyBatch, parts_of
from edge.train.distributed import World, alike, all_sum, clip, from_first, joined, together
from edge.train.evaluation import Evaluation
from edge.train.flops import measured_peak
from edge.train.folder import RunFolder
from edge.train.metrics import Metrics
from edge.train.mup import set_rates
from edge.train.network import Network, build
from edge.train.objective import Term
from edge.train.schedule import rate
from edge.train.starting import continue_other
from edge.train.stopping import StopSignals
from edge.train.texts import Texts, open_texts

_MOST_SKIPPED = 10
"""Steps in a row without a finite loss after which a run that skips them stops all the same."""


class Watcher(Protocol):
    """Who is told of a run's progress; only the first process tells."""

    def begin(self, first: int, steps: int) -> None:
        """The run goes from step `first` to `steps`."""

    def step(self, record: dict[str, Any]) -> None:
        """A line of the log."""

    def say(self, sentence: str) -> None:
        """Something that happened."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended. step: the last one done. signal: of the stop, None if it came to its end. model: the
    folder of the trained model, None before the end. first: whether this process is the one that tells.
    """

    step: int
    signal: int | None
    model: Path | None
    first: bool


def train(config: RunConfig, out: Path, watcher: Watcher) -> Outcome:
    """Run, or resume what stands in `out`; raises EdgeError for all that a user can mend."""
    with ExitStack() as stack:
        if config.runtime.threads is not None:
            torch.set_num_threads(config.runtime.threads)
        world = stack.enter_context(joined(config.runtime.device))
        folder = stack.enter_context(RunFolder(out, config, world))
        texts = together(lambda: open_texts(config, world.size), world)
        told = watcher if world.first else Unwatched()
        with alike(world):
            network = build(config, texts, world, told.say, is_resumed=folder.is_begun)
            trainer = Trainer(config, folder, texts, network, world, told)
        signals = stack.enter_context(StopSignals())
        metrics = together(
            lambda: stack.enter_context(folder.metrics(trainer.step, told.say)) if world.first else None,
            world,
        )
        return trainer.run(metrics, signals)


class Trainer:
    """A run's state between two steps, and what a step does. step: how many are done."""

    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder,
        texts: Texts,
        network: Network,
        world: World,
        watcher: Watcher,
    ) -> None:
        self._config, self._folder, self._world, self._watcher = config, folder, world, watcher
        self._network, self._loader = network, texts.loader
        self._evaluation = Evaluation(config, texts, network, world)
        options = config.checkpoints
        self._store = CheckpointStore(
            folder.checkpoints,
            options.keep,
            world,
            keep_every=options.keep_every,
            milestones=options.keep_at,
        )
        self._window, self._speed = Window(), Speed()
        self.step = self._tokens = self._skipped = 0
        self._restore()
        self._peak = measured_peak(world.device, network.precision) * world.size

    def _restore(self) -> None:
        """Continue from this run's last checkpoint, or from another run's where that is asked for."""
        network, start = self._network, self._config.start
        found = self._store.load(network.objective, network.optimizers, self._watcher.say)
        if found is None:
            found = continue_other(
                start, network.objective, network.optimizers, self._watcher.say, self._world
            )
        if found is None:
            return
        if found.step > self._config.schedule.steps:
            raise TrainingError(
                f"The checkpoint has {found.step} steps already, and schedule.steps is "
                f"{self._config.schedule.steps}: ask for more."
            )
        self._loader.restore(found.host["loader"])
        self._window = Window(*found.host["window"])
        self.step, self._tokens = found.step, found.host["tokens"]

    def run(self, metrics: Metrics | None, signals: StopSignals) -> Outcome:
        """All steps that are left, then the model; or until a signal says stop."""
        steps = self._config.schedule.steps
        self._watcher.begin(self.step, steps)
        self._speed.take()
        while self.step < steps:
            self.one_step(signals)
            self.step += 1
            with self._speed.paused():
                evaluated = self._evaluated()
            if self.step % self._config.log.every == 0 or self.step == steps or evaluated:
                self._log(metrics, evaluated)
            if self._is_checkpoint_due() or signals.agreed is not None:
                with self._speed.paused():
                    self._save(metrics)
            if signals.agreed is not None and self.step < steps:
                self._watcher.say(f"Stopped after step {self.step}; the same command goes on from there.")
                return Outcome(self.step, signals.agreed, None, self._world.first)
        return Outcome(self.step, None, self._folder.save_model(self._network), self._world.first)

    def _is_checkpoint_due(self) -> bool:
        options = self._config.checkpoints
        is_last = self.step == self._config.schedule.steps
        return is_last or self.step % options.every == 0 or self.step in options.keep_at

    def _evaluated(self) -> dict[str, float]:
        """Losses on texts held out, when they are due."""
        is_due = self.step % self._config.evaluation.every == 0 or self.step == self._config.schedule.steps
        return self._evaluation.losses() if is_due else {}

    def one_step(self, signals: StopSignals) -> None:
        """Read rows, go forward and backward, and change the weights unless the loss is no number."""
        config, network = self._config, self._network
        batch = self._loader.next(self._world.rank, self._world.size)
        terms = network.objective.terms
        targets_here = torch.tensor(network.objective.counts(batch), dtype=torch.float64)
        counts = all_sum(targets_here, self._world).tolist()
        sums = torch.zeros(len(terms), dtype=torch.float64)
        network.objective.train()
        size = -(-len(batch.tokens) // config.runtime.accumulation)
        for part in parts_of(batch, size, self._world.device):
            with network.autocast():
                losses = network.objective(*part)
            weights = [term.weight / max(counts[term.counted], 1.0) for term in terms]
            torch.stack(
                [loss * weight for loss, weight in zip(losses, weights, strict=True)]
            ).sum().backward()
            sums += torch.stack([each.detach() for each in losses]).double().cpu()
        norm = clip(network.objective, config.optimizer.clip or math.inf)
        signal = torch.tensor([signals.received], dtype=torch.float64)
        *found, signal_sum = all_sum(torch.cat([sums, signal]), self._world).tolist()
        signals.agree(int(signal_sum))
        self._tokens += int(counts[0])
        self._speed.add(*self._cost(batch))
        if all(map(math.isfinite, (*found, norm))):
            set_rates(network.optimizers, rate(config.schedule, self.step))
            for optimizer in network.optimizers:
                optimizer.step()
            self._window = self._window.plus(found, counts, norm)
            self._skipped = 0
        else:
            self._no_number(batch)
        for optimizer in network.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def _cost(self, batch: AnyBatch) -> tuple[int, float]:
        """Tokens of a step and the operations that they take, all processes together."""
        tokens, length = batch.tokens.numel() * self._world.size, batch.tokens.shape[1]
        return tokens, tokens * self._network.flops_per_token(length)

    def _no_number(self, batch: AnyBatch) -> None:
        """Save the rows of a step whose loss or gradient is no number; TrainingError unless it may be
        skipped.
        """
        path = self._folder.save_batch(batch, self.step + 1)
        self._skipped += 1
        sentence = f"The loss of step {self.step + 1} is no number; its rows are in '{path}'."
        if self._config.runtime.on_nan == "stop" or self._skipped >= _MOST_SKIPPED:
            with alike(self._world):
                raise TrainingError(
                    f"{sentence} Lower optimizer.learning_rate, or set runtime.on_nan=skip; the run goes on "
                    "from its last checkpoint."
                )
        self._watcher.say(f"{sentence} Skipped.")

    def _log(self, metrics: Metrics | None, evaluated: dict[str, float]) -> None:
        """A line of the log about the steps since the one before."""
        config, (tokens, operations) = self._config, self._speed.take()
        record = {
            "step": self.step,
            "tokens": self._tokens,
            "learning_rate": config.optimizer.learning_rate * rate(config.schedule, self.step - 1),
            **self._window.figures(self._network.objective.terms),
            **evaluated,
            **{f"epochs/{name}": round(value, 4) for name, value in self._loader.epochs().items()},
            "tokens_per_second": round(tokens, 1),
            "utilisation": round(operations / self._peak, 4),
        }
        if metrics is not None:
            metrics.write(record)
        self._watcher.step(record)
        self._window = Window()

    def _save(self, metrics: Metrics | None) -> None:
        """A checkpoint; a full disk doesn't end the run before its last step: an older one is still there."""
        host = {
            "loader": self._loader.state(),
            "tokens": self._tokens,
            "window": list(self._window),
            "config": self._config.to_json(),
        }
        try:
            from_first(lambda: None if metrics is None else metrics.sync(), self._world)
            self._store.save(self.step, self._network.objective, self._network.optimizers, host)
        except TrainingError as error:
            if self.step == self._config.schedule.steps:
                raise
            self._watcher.say(f"No checkpoint at step {self.step}: {error} The run goes on.")


class Window(NamedTuple):
    """Sums over the steps since the last line of the log; a checkpoint holds them, so that lines stay the
    same. sums, counts: of the terms, and of their targets.
    """

    steps: int = 0
    norm: float = 0.0
    sums: Sequence[float] = ()
    counts: Sequence[float] = ()

    def plus(self, sums: Sequence[float], counts: Sequence[float], norm: float) -> Window:
        """With another step's figures."""
        if not self.steps:
            return Window(1, norm, list(sums), list(counts))
        return Window(
            self.steps + 1,
            self.norm + norm,
            list(map(float.__add__, self.sums, sums)),
            list(map(float.__add__, self.counts, counts)),
        )

    def figures(self, terms: Sequence[Term]) -> dict[str, float | None]:
        """Means for the log; the first None where every step was skipped."""
        if not self.counts or not self.counts[0]:
            return {terms[0].name: None}
        means = {
            term.name: total / self.counts[term.counted]
            for term, total in zip(terms, self.sums, strict=True)
            if term.is_logged and self.counts[term.counted]
        }
        return {**means, "gradient_norm": self.norm / self.steps}


class Speed:
    """Tokens and operations per second since the last line of the log, without pauses (evaluations,
    checkpoints).
    """

    def __init__(self) -> None:
        self._tokens = self._operations = 0.0
        self._began = time.perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside takes no time."""
        start = time.perf_counter()
        yield
        self._began += time.perf_counter() - start

    def add(self, tokens: int, operations: float) -> None:
        """A step is done."""
        self._tokens += tokens
        self._operations += operations

    def take(self) -> tuple[float, float]:
        """(tokens, operations) per second; begins anew."""
        seconds = max(time.perf_counter() - self._began, 1e-9)
        found = self._tokens / seconds, self._operations / seconds
        self._tokens = self._operations = 0.0
        self._began = time.perf_counter()
        return found


class Unwatched:
    """A watcher of the processes that tell nothing."""

    def begin(self, first: int, steps: int) -> None:
        """Nothing."""

    def step(self, record: dict[str, Any]) -> None:
        """Nothing."""

    def say(self, sentence: str) -> None:
        """Nothing."""
