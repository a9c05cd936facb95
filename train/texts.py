"""The texts of a run: opened token shards, checked against each other, and the loader over them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edge.errors import TrainingError
from edge.train.config import DataSection, RunConfig
from edge.train.data.loader import Loader, LoaderPlan
from edge.train.data.shards import ShardFolder


@dataclass(frozen=True)
class Texts:
    """What a run learns from and what it is judged by; all of one tokenizer.

    held_out: by name. loader: of the texts that are learned from.
    """

    any: ShardFolder
    held_out: Mapping[str, ShardFolder]
    loader: Loader


def open_texts(config: RunConfig, processes: int = 1) -> Texts:
    """Open all sources; TrainingError for one that can't be read or has another tokenizer than the first,
    and for rows that so many processes can't share.
    """
    data = config.data
    _check_shared("data.rows", data.rows, processes)
    if data.buckets:
        _check_shared("data.divisor", data.divisor, processes)
    if config.evaluation.sources:
        _check_shared("evaluation.rows", config.evaluation.rows, processes)
    if not data.sources:
        raise TrainingError(
            "The run has no texts; name token shards under data.sources (edge train tokenize makes them)."
        )
    sources = {name: ShardFolder.open(path) for name, path in data.sources.items()}
    held_out = {name: ShardFolder.open(path) for name, path in config.evaluation.sources.items()}
    first_name, first = next(iter(sources.items()))
    for name, found in {**sources, **held_out}.items():
        if found.facts.tokenizer != first.facts.tokenizer:
            raise TrainingError(
                f"The texts '{name}' and '{first_name}' were made with different tokenizers; tokenize them "
                f"with one."
            )
    plan = LoaderPlan(
        rows=data.rows,
        length=data.length,
        phases=data_phases(
            data, config.schedule.steps, {name: max(each.tokens, 1) for name, each in sources.items()}
        ),
        buckets=data.buckets,
        seed=config.seed,
        divisor=data.divisor,
    )
    return Texts(first, held_out, Loader(sources, plan))


def _check_shared(name: str, rows: int, processes: int) -> None:
    if rows % processes:
        raise TrainingError(f"{name} is {rows}, which {processes} processes can't share; take a multiple.")


def data_phases(
    data: DataSection, steps: int, sizes: Mapping[str, float]
) -> tuple[tuple[int, Mapping[str, float]], ...]:
    """The weights of the sources from which step on. sizes: what they weigh if none are named, their tokens.

    TrainingError for a weight of an unknown source, or phases out of order.
    """
    first = data.weights or sizes
    found = [(0, first), *((round(phase.begins * steps), phase.weights) for phase in data.phases)]
    for _, weights in found:
        for name in weights:
            if name not in data.sources:
                raise TrainingError(
                    f"data weighs '{name}', which is none of its sources ({', '.join(data.sources)})."
                )
    if [step for step, _ in found] != sorted(step for step, _ in found):
        raise TrainingError("The phases of data are out of order; sort them by 'begins'.")
    return tuple(found)
