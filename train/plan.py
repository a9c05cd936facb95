"""What a run will cost, before it begins: parameters, memory, operations, tokens, and the schedule.

Memory of activations is an estimate for PyTorch's eager mode; the rest is counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from edge.config import ModelConfig
from edge.train.config import RunConfig
from edge.train.data.shards import ShardFolder
from edge.train.flops import count_parameters, flops_per_token
from edge.train.network import longest, model_config
from edge.train.scaling import loss_of_batch
from edge.train.schedule import decay_steps, rate

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
    sources = {name: _opened(path) for name, path in config.data.sources.items()}
    shape = model_config(config, next((each for each in sources.values() if each is not None), None))
    counted = count_parameters(shape)
    schedule, tokens = config.schedule, config.data.tokens_per_step * config.schedule.steps
    per_token = flops_per_token(shape, longest(config), config.loss.multi_token > 0)
    weights = config.data.weights or dict.fromkeys(sources, 1.0)
    total = sum(weights.values()) or 1.0
    return Plan(
        parameters=counted.all,
        active_parameters=counted.active,
        steps=schedule.steps,
        warm_up_steps=schedule.warm_up,
        decay_steps=decay_steps(schedule),
        tokens_per_step=config.data.tokens_per_step,
        suits_loss=loss_of_batch(config.data.tokens_per_step),
        tokens=tokens,
        flops_per_token=per_token,
        flops=per_token * tokens,
        processes=processes,
        memory=_memory(config, shape, counted.all, processes),
        epochs={
            name: None if found is None else tokens * weights.get(name, 0.0) / total / max(found.tokens, 1)
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


def _memory(config: RunConfig, shape: ModelConfig, parameters: int, processes: int) -> dict[str, int]:
    """Bytes per process. Weights, gradients and moments are sharded; a process computes its own rows."""
    moments = (
        1 if config.optimizer.kind == "muon" else 2
    )  # Muon has one for the matrices, which are nearly all
    shared = -(-parameters * _FLOAT // processes)
    rows = -(-config.data.rows // (processes * config.runtime.accumulation))
    tokens = rows * config.data.length
    width = 2 if config.runtime.precision == "bfloat16" else _FLOAT
    heads = (shape.num_attention_heads + shape.num_key_value_heads) * shape.head_dim
    # What backward needs of a layer: norms and residuals, projections before and after rotating, SwiGLU's
    # four.
    layer = tokens * width * (10 * shape.hidden_size + 4 * heads + 5 * shape.intermediate_size)
    stream = tokens * _FLOAT * shape.hidden_size * shape.num_hidden_layers
    kept = stream + layer if config.runtime.gradient_checkpointing else layer * shape.num_hidden_layers
    return {
        "weights": shared,
        "gradients": shared,
        "optimizer": moments * shared,
        "activations": kept,
    }
