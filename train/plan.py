"""What a run will cost, before it begins: parameters, memory, operations, tokens, and the schedule.

Memory of activations is an estimate for PyTorch's eager mode; the rest is counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from edge.config import ModelConfig
from edge.errors import ConfigError
from edge.train.config import RunConfig
from edge.train.data.shards import ShardFolder
from edge.train.flops import active_parameters
from edge.train.mup import is_hidden_matrix
from edge.train.network import empty_objective, flops_of, longest, model_config
from edge.train.objective import Objective
from edge.train.scaling import loss_of_batch
from edge.train.schedule import decay_steps, rate
from edge.train.texts import data_phases

_FLOAT = 4


@dataclass(frozen=True)
class Plan:
    """Numbers of a run.

    suits_loss: the loss, in nats per token, that steps of this size are best for. memory: bytes per
    process, by what they hold. epochs: how often each source is read, None for texts that are not there.
    rates: the learning rate at some steps, evenly from the first to the last.
    """

    parameters: int
    active_parameters: int
    steps: int
    warm_up_steps: int
    decay_steps: int
    tokens_per_step: int
    suits_loss: float
    tokens: int
    flops_per_token: float
    flops: float
    processes: int
    memory: Mapping[str, int]
    epochs: Mapping[str, float | None]
    rates: Sequence[float]

    def to_json(self) -> dict[str, object]:
        """Plain JSON values."""
        return asdict(self)


def plan(config: RunConfig, processes: int = 1, points: int = 60) -> Plan:
    """The plan of a run on so many processes; EdgeError for options that don't fit each other.

    Texts may be missing: then the network has the preset's vocabulary.
    """
    if config.draft.target is not None:
        raise ConfigError("What a draft costs can't be said before: train it without the dry run.")
    sources = {name: _opened(path) for name, path in config.data.sources.items()}
    shape = model_config(config, next((each for each in sources.values() if each is not None), None))
    objective = empty_objective(config, shape)
    parameters = sum(each.numel() for each in objective.parameters())
    schedule, tokens = config.schedule, config.data.tokens_per_step * config.schedule.steps
    per_token = flops_of(config, shape, longest(config))
    shares = _shares(config, sources)
    return Plan(
        parameters=parameters,
        active_parameters=active_parameters(shape),
        steps=schedule.steps,
        warm_up_steps=schedule.warm_up,
        decay_steps=decay_steps(schedule),
        tokens_per_step=config.data.tokens_per_step,
        suits_loss=loss_of_batch(config.data.tokens_per_step),
        tokens=tokens,
        flops_per_token=per_token,
        flops=per_token * tokens,
        processes=processes,
        memory=_memory(config, shape, objective, processes),
        epochs={
            name: None if found is None else tokens * shares[name] / max(found.tokens, 1)
            for name, found in sources.items()
        },
        rates=[
            config.optimizer.learning_rate
            * rate(schedule, round(at * (schedule.steps - 1) / max(points - 1, 1)))
            for at in range(points)
        ],
    )


def draw_schedule(config: RunConfig, out: str | Path) -> None:
    """A PNG of the learning rate over the steps."""
    from matplotlib.figure import Figure

    from edge.train.plot import save_figure

    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    steps = range(0, config.schedule.steps, max(config.schedule.steps // 2000, 1))
    axes.plot(steps, [config.optimizer.learning_rate * rate(config.schedule, step) for step in steps])
    axes.set_xlabel("step")
    axes.set_ylabel("learning rate")
    axes.grid(alpha=0.3)
    save_figure(figure, out)


def _opened(path: str) -> ShardFolder | None:
    return ShardFolder.open(path) if Path(path).exists() else None


def _shares(config: RunConfig, sources: Mapping[str, ShardFolder | None]) -> dict[str, float]:
    """The share of the run's tokens that each source gives, over all phases."""
    sizes = {name: 1.0 if found is None else float(found.tokens) for name, found in sources.items()}
    phases, steps = data_phases(config.data, config.schedule.steps, sizes), config.schedule.steps
    found = dict.fromkeys(config.data.sources, 0.0)
    for (begin, weights), end in zip(phases, [*(first for first, _ in phases[1:]), steps], strict=True):
        total = sum(weights.values()) or 1.0
        for name, weight in weights.items():
            found[name] += weight / total * (end - begin) / steps
    return found


def _memory(config: RunConfig, shape: ModelConfig, objective: Objective, processes: int) -> dict[str, int]:
    """Bytes per process. Weights, gradients and moments are sharded; a process computes its own rows."""
    parameters = moments = 0
    for name, each in objective.named_parameters():
        parameters += each.numel()
        # Muon has one moment, AdamW two.
        has_one = config.optimizer.kind == "muon" and is_hidden_matrix(name, each)
        moments += each.numel() * (1 if has_one else 2)
    shared = -(-parameters * _FLOAT // processes)
    rows = -(-config.data.rows // (processes * config.runtime.accumulation))
    tokens = rows * config.data.length
    width = 2 if config.runtime.precision == "bfloat16" else _FLOAT
    heads = (shape.num_attention_heads + shape.num_key_value_heads) * shape.head_dim
    # What backward needs of a layer: norms and residuals, projections before and after rotating, SwiGLU's
    # four.
    layer = tokens * width * (10 * shape.hidden_size + 4 * heads + 5 * shape.intermediate_size)
    layers = shape.num_hidden_layers + (config.loss.multi_token > 0)
    stream = tokens * _FLOAT * shape.hidden_size * layers
    kept = stream + layer if config.runtime.gradient_checkpointing else layer * layers
    # Logits and their logarithms of the softmax, where a loss needs them all at a time.
    whole = (config.loss.z > 0) + (config.loss.multi_token > 0)
    kept += whole * 2 * tokens * shape.vocab_size * _FLOAT
    return {
        "weights": shared,
        "gradients": shared,
        "optimizer": -(-moments * _FLOAT // processes),
        "activations": kept,
    }
