"""The loader: which rows every training step has, from which source, and where to go on after a stop.

Without buckets all documents of a source are one stream, which is cut into rows. With buckets every step has
rows of one length, made of whole documents. The sequence of global batches is a pure function of the plan and
the sources: it depends neither on the number of processes nor on where a run was stopped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from edge.train.data.batch import AnyBatch, Part, Piece, empty_batch, fill_row
from edge.train.data.errors import DataError
from edge.train.data.order import Bucket, Stream, cut_by_length
from edge.train.data.shards import ShardFolder

_SCHEMA = 1


@dataclass(frozen=True)
class LoaderPlan:
    """What the batches are like.

    rows, length: of a global batch; rows * length are the tokens of a step. phases: from which step on which
    source has which weight, the first from step 0; weights are shares of tokens and need not sum to 1.
    buckets: ascending lengths of rows, instead of `length`; every bucket gets the same share of the tokens,
    and each step as many rows as make the tokens of a step, rounded to a multiple of `divisor` and at least
    one. In a bucket a source's weight is multiplied by the share of its tokens that lie there, so that few
    short documents of a source of books are not repeated to fill its share. divisor: what the rows of every
    step are a multiple of: the largest number of processes. seed: of the order of documents. Raises DataError
    for a plan that means nothing.
    """

    rows: int
    length: int
    phases: Sequence[tuple[int, Mapping[str, float]]]
    buckets: Sequence[int] = ()
    seed: int = 0
    divisor: int = 1

    def __post_init__(self) -> None:
        for name in ("rows", "length", "divisor"):
            if getattr(self, name) < 1:
                raise DataError(f"{name} of the loader must be 1 or more, not {getattr(self, name)}.")
        if self.rows % self.divisor:
            raise DataError(
                f"{self.rows} rows of a batch cannot be shared by {self.divisor} processes; take a multiple."
            )
        if list(self.buckets) != sorted(set(self.buckets)) or any(each < 1 for each in self.buckets):
            raise DataError(f"Buckets must be ascending lengths, not {list(self.buckets)}.")
        steps = [step for step, _ in self.phases]
        if not steps or steps[0] != 0 or steps != sorted(set(steps)):
            raise DataError(f"Phases of the data must begin at step 0 and ascend, not at {steps}.")
        for step, weights in self.phases:
            if not all(isfinite(each) and each >= 0 for each in weights.values()) or not any(
                weights.values()
            ):
                raise DataError(
                    f"The weights of the sources from step {step} on must be 0 or more, and one positive, "
                    f"not {dict(weights)}."
                )

    def rows_of(self, length: int) -> int:
        """Rows of a step whose rows have this length."""
        wanted = self.rows * self.length / (length * self.divisor)
        return max(1, round(wanted)) * self.divisor

    def phase(self, step: int) -> tuple[int, dict[str, float]]:
        """First step of the phase that a step belongs to, and its positive weights, with the sum 1."""
        first, weights = max((each for each in self.phases if each[0] <= step), key=lambda each: each[0])
        total = sum(weights.values())
        return first, {name: weight / total for name, weight in weights.items() if weight > 0}


@dataclass
class _State:
    """Where a loader is.

    By source, or bucket of a source (`name@length`): drawn, tokens since the phase began; places, how many
    tokens or pieces were taken at all. filled: tokens of each bucket.
    """

    step: int = 0
    phase: int = 0
    weights: dict[str, float] = field(default_factory=dict)
    drawn: dict[str, int] = field(default_factory=dict)
    filled: dict[str, int] = field(default_factory=dict)
    places: dict[str, int] = field(default_factory=dict)


class Loader:
    """Batches without end. Not for several threads at once."""

    def __init__(self, sources: Mapping[str, ShardFolder], plan: LoaderPlan) -> None:
        """DataError if the sources do not fit each other or the plan."""
        self._plan = plan
        named = list(dict.fromkeys(name for _, weights in plan.phases for name in weights))
        for name in named:
            if name not in sources:
                raise DataError(f"The plan names the source '{name}'; there are {', '.join(sources)}.")
        self._sources = {name: sources[name] for name in named}
        first = named[0]
        for name, source in self._sources.items():
            if source.facts != self._sources[first].facts:
                raise DataError(
                    f"The sources '{first}' and '{name}' were made with different tokenizers; tokenize both "
                    "with the same."
                )
            if not source.tokens:
                raise DataError(f"The source '{name}' has no tokens; leave it out.")
        self._width = self._sources[first].facts.state_width
        self._lengths = [plan.length] if not plan.buckets else list(plan.buckets)
        self._orders: dict[str, Stream | Bucket] = {}
        for name, source in self._sources.items():
            if not plan.buckets:
                self._orders[name] = Stream(source.lengths, name, plan.seed)
                continue
            for length, pieces in zip(plan.buckets, cut_by_length(source.lengths, plan.buckets), strict=True):
                if len(pieces):
                    key = _key(name, length)
                    self._orders[key] = Bucket(pieces, length, key, plan.seed)
        for step, _ in plan.phases:
            for length in self._lengths:
                if not self._shares(length, plan.phase(step)[1]):
                    raise DataError(
                        f"No source from step {step} on has documents for rows of {length} tokens; leave "
                        "this bucket out."
                    )
        self._state = _State()

    @property
    def step(self) -> int:
        """How many batches were taken."""
        return self._state.step

    def next(self, rank: int = 0, world: int = 1) -> AnyBatch:
        """The rows of one process in the next global batch: the rank-th of `world` equal parts.

        Every process calls it for every step. DataError if the rows can't be shared by so many, or for
        damaged data; then the state is what it was.
        """
        state = deepcopy(self._state)
        self._enter_phase(state)
        length = self._next_length(state)
        rows = self._plan.rows_of(length) if self._plan.buckets else self._plan.rows
        if rows % world:
            raise DataError(
                f"{rows} rows of {length} tokens cannot be shared by {world} processes; set the loader's "
                "divisor to their number."
            )
        share = rows // world
        batch = empty_batch(share, length, self._width)
        weights = self._shares(length, state.weights)
        for row in range(rows):
            name, pieces = self._next_row(state, length, weights)
            if row // share == rank:
                source = self._sources[name]
                fill_row(batch, row - rank * share, (_part(source, each) for each in pieces))
        state.step += 1
        self._state = state
        return batch

    def epochs(self) -> dict[str, float]:
        """How often each source was read so far, 1.0 for once; with buckets, each bucket of a source
        (`name@length`).
        """
        places = self._state.places
        return {key: places.get(key, 0) / order.period for key, order in self._orders.items()}

    def state(self) -> dict[str, Any]:
        """What `restore` needs, as plain JSON data."""
        known = {
            name: {"documents": source.documents, "tokens": source.tokens}
            for name, source in self._sources.items()
        }
        return {
            "schema": _SCHEMA,
            "seed": self._plan.seed,
            "buckets": list(self._plan.buckets),
            "sources": known,
            **deepcopy(vars(self._state)),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken.

        Another number of rows, another length or other phases than then are fine, as of a decay that branches
        from a stable run; with other buckets these begin anew. DataError for a state of another seed, or of
        sources that have changed since.
        """
        if state.get("schema") != _SCHEMA:
            raise DataError("The loader's state is of another version of this program; begin a new run.")
        if state["seed"] != self._plan.seed:
            raise DataError(
                f"The loader's state is of seed {state['seed']}, and the plan's is {self._plan.seed}; give "
                "the same."
            )
        for name, known in state["sources"].items():
            source = self._sources.get(name)
            if source and (source.documents, source.tokens) != (known["documents"], known["tokens"]):
                raise DataError(
                    f"The source '{name}' has {source.tokens} tokens, and had {known['tokens']} when the run "
                    "was stopped; give the same data."
                )
        names = ("step", "phase", "weights", "drawn", "filled", "places")
        restored = _State(**{name: deepcopy(state[name]) for name in names})
        if list(state["buckets"]) != list(self._plan.buckets):
            restored.filled = {}
            restored.places = {key: place for key, place in restored.places.items() if "@" not in key}
        self._state = restored

    def _enter_phase(self, state: _State) -> None:
        """Proportions are kept within a phase: a new one counts from 0."""
        phase, weights = self._plan.phase(state.step)
        if (phase, weights) != (state.phase, state.weights):
            state.phase, state.weights, state.drawn = phase, weights, {}

    def _next_length(self, state: _State) -> int:
        """The bucket that has had the fewest tokens."""
        return min(self._lengths, key=lambda length: state.filled.get(str(length), 0))

    def _next_row(
        self, state: _State, length: int, weights: Mapping[str, tuple[str, float]]
    ) -> tuple[str, list[Piece]]:
        """The row of the source that lacks most of its share. weights: `_shares`."""
        total = sum(state.drawn.get(key, 0) for key in weights) + length
        key = max(weights, key=lambda each: weights[each][1] * total - state.drawn.get(each, 0))
        order, place = self._orders[key], state.places.get(key, 0)
        if isinstance(order, Stream):
            pieces = order.pieces(place, length)
            state.places[key] = place + length
        else:
            pieces = order.row(place)
            state.places[key] = place + len(pieces)
        taken = sum(piece.stop - piece.start for piece in pieces)
        state.drawn[key] = state.drawn.get(key, 0) + taken
        if self._plan.buckets:
            state.filled[str(length)] = state.filled.get(str(length), 0) + taken
        return weights[key][0], pieces

    def _shares(self, length: int, weights: Mapping[str, float]) -> dict[str, tuple[str, float]]:
        """Source and share of the tokens for everything that rows of a length may come from."""
        found = {}
        for name, weight in weights.items():
            key = _key(name, length) if self._plan.buckets else name
            if key in self._orders:
                found[key] = name, weight * self._orders[key].tokens / self._sources[name].tokens
        total = sum(share for _, share in found.values())
        return {key: (name, share / total) for key, (name, share) in found.items()}


def _part(source: ShardFolder, piece: Piece) -> Part:
    ids = source.part(*piece, following=True)
    if not source.facts.state_width:
        return Part(ids, piece.stop - piece.start)
    begin = int(source.begins[piece.document]) - piece.start
    return Part(ids, piece.stop - piece.start, begin, source.states(*piece))


def _key(source: str, bucket: int) -> str:
    return f"{source}@{bucket}"
