"""Checkpoints of a training run: weights, optimizer state and what the host remembers, whole or not at all.

FOLDER/step-00001000/ holds what torch.distributed.checkpoint writes (`.metadata`, `__RANK_N.distcp`),
`host.json`, and `manifest.json`, which lists all of them with their sizes and checksums. It is written beside
under a hidden name and renamed, so every step that stands there is complete; what a disk does to it later
shows in the checksums. Tensors are stored by name and place in the whole tensor, so any number of processes
reads what any other number wrote; all of them must see the same folder.

Settings (learning rates, betas, decay) are the configuration's and not in here. What `host` holds is the
loop's business: the loader's state, random generators, counts.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import CheckpointException, FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.optim import Optimizer

from edge.errors import EdgeError, TrainingError
from edge.formats.atomic import Partial, write_failure, write_file
from edge.formats.guarded_json import parse_object
from edge.formats.hashing import file_sha256, json_digest
from edge.train.distributed import World, from_all, from_first

SCHEMA = 1
MANIFEST, HOST = "manifest.json", "host.json"
_STEP = re.compile(r"step-([0-9]{8,})")
_NETWORK, _OPTIMIZER = "network", "optimizer"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Loaded:
    """Where a run goes on. step: optimizer steps done. host: what was given to `save`."""

    step: int
    host: dict[str, Any]


class CheckpointStore:
    """The checkpoints in `folder`, which all ranks use together: each method is called on every rank.

    keep: how many of the newest stay. keep_every: multiples of it stay for good (0: none), and so do
    milestones, so that a decay can begin at any of them.
    """

    def __init__(
        self,
        folder: str | Path,
        keep: int,
        world: World,
        *,
        keep_every: int = 0,
        milestones: Collection[int] = (),
    ) -> None:
        if keep < 1 or keep_every < 0:
            raise TrainingError(
                f"A run keeps 1 checkpoint or more, and keep_every is 0 or more: not {keep} and {keep_every}."
            )
        self.folder = Path(folder)
        self._keep, self._world = keep, world
        self._keep_every, self._milestones = keep_every, frozenset(milestones)
        self._at: int | None = None  # the step that this process has just written or read

    def steps(self) -> list[int]:
        """The steps that are there, ascending, damaged ones too; the same on every rank."""
        return from_first(lambda: _steps(self.folder), self._world)

    def save(
        self, step: int, network: nn.Module, optimizers: Iterable[Optimizer], host: dict[str, Any]
    ) -> None:
        """Write the checkpoint of `step`, then remove those that need not stay.

        Later steps are what a run did before it went on from an earlier one: they are removed, too. host:
        JSON. Raises TrainingError if it cannot be written; what was there is then as before, and the run may
        go on.
        """
        if step == self._at:
            return
        target, world = self._path(step), self._world
        try:
            with _shared_partial(target, world) as (path, keep):
                _save_tensors(_network_tensors(network) | _states(network, list(optimizers)), path, world)
                shards = from_all(lambda: _described(path.glob(f"__{world.rank}_*")), world)
                from_first(lambda: _finish(path, step, world, host, shards), world)
                from_first(keep, world)
        except OSError as error:
            raise TrainingError(write_failure(target, error)) from None
        self._at = step
        from_first(lambda: self._prune(step), self._world)

    def load(
        self, network: nn.Module, optimizers: Iterable[Optimizer], say: Say, step: int | None = None
    ) -> Loaded | None:
        """Read the newest whole checkpoint into network and optimizers; None if there is none at all.

        say: gets one sentence for each damaged one that was passed over, on rank 0. step: this one and no
        other. Raises TrainingError if none is whole, or if it is of another network or other optimizers.
        """
        chosen = self._choose(say, step)
        if chosen is None:
            return None
        path = self._path(chosen)
        optimizers = list(optimizers)
        with _reading(path):
            saved = _saved_tensors(path)
            wanted = _network_tensors(network)
            _check(wanted, saved, path)
            states = _empty_states(_places(network, optimizers), saved, path)
            _load_tensors(wanted | states, path, self._world)
            host = parse_object(
                (path / HOST).read_bytes(), path / HOST, TrainingError, "take another checkpoint"
            )
        _put_states(_places(network, optimizers), optimizers, states)
        self._at = chosen
        return Loaded(chosen, host)

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def _choose(self, say: Say, step: int | None) -> int | None:
        """The step to load, the same on every rank."""
        there = self.steps()
        if step is not None and step not in there:
            found = f"there are {', '.join(map(str, there))}" if there else "there are none"
            raise TrainingError(f"'{self.folder}' has no checkpoint of step {step}; {found}.")
        for candidate in reversed(there) if step is None else [step]:
            damage = _damage(self._path(candidate), candidate, self._world)
            if damage is None:
                return candidate
            sentence = f"The checkpoint '{self._path(candidate)}' is damaged ({damage})"
            if step is not None:
                raise TrainingError(f"{sentence}; choose another step.")
            if self._world.first:
                say(f"{sentence}; the one before it is tried.")
        if there:
            raise TrainingError(
                f"All checkpoints in '{self.folder}' are damaged; move them away to begin from scratch, or "
                "bring back a copy."
            )
        return None

    def _prune(self, step: int) -> None:
        """Remove what need not stay beside `step`, which is whole."""
        there = _steps(self.folder)
        newest = [each for each in there if each <= step][-self._keep :]
        for each in there:
            forever = each in self._milestones or (self._keep_every and each % self._keep_every == 0)
            if each > step or not (forever or each in newest):
                with suppress(OSError):  # it only takes room
                    _remove(self._path(each))


def load_weights(
    folder: str | Path,
    network: nn.Module,
    world: World,
    say: Say,
    *,
    step: int | None = None,
    prefix: str = "",
) -> Loaded:
    """The weights alone of a run's newest whole checkpoint, or of `step`, for another run to begin with.

    prefix: of the names in the checkpoint, where `network` is a part of what was saved ("decoder."). Raises
    TrainingError, also if there is no checkpoint; see `CheckpointStore.load`.
    """
    store = CheckpointStore(folder, 1, world)
    chosen = store._choose(say, step)
    if chosen is None:
        raise TrainingError(f"'{folder}' has no checkpoints; name the folder in which a run keeps them.")
    path = store._path(chosen)
    with _reading(path):
        wanted = _network_tensors(network, prefix)
        _check(wanted, _saved_tensors(path), path, prefix)
        _load_tensors(wanted, path, world)
        host = parse_object((path / HOST).read_bytes(), path / HOST, TrainingError, "take another checkpoint")
    return Loaded(chosen, host)


def step_of(folder: Path) -> int | None:
    """The step of a checkpoint's folder, None for the folder of something else."""
    match = _STEP.fullmatch(folder.name)
    return int(match[1]) if match else None


def _steps(folder: Path) -> list[int]:
    if not folder.is_dir():
        return []
    found = (_STEP.fullmatch(path.name) for path in folder.iterdir())
    return sorted(int(match[1]) for match in found if match)


def _remove(path: Path) -> None:
    """Away from its name at once, so that a kill leaves no half of it there; then for good."""
    with Partial(path, folder=True) as bin_:
        path.rename(bin_.path / path.name)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """The errors of a disk as sentences."""
    try:
        yield
    except OSError as error:
        raise TrainingError(f"Cannot read the checkpoint '{path}': {error.strerror or error}.") from None


# Tensors by name: "network/NAME" and "optimizer/CLASS/NAME OF THE PARAMETER/KEY".


def _network_tensors(network: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    return {f"{_NETWORK}/{prefix}{name}": tensor for name, tensor in network.state_dict().items()}


def _places(network: nn.Module, optimizers: Iterable[Optimizer]) -> dict[str, Tensor]:
    """The parameter behind each "optimizer/CLASS/NAME"."""
    names = {parameter: name for name, parameter in network.named_parameters()}
    return {
        f"{_OPTIMIZER}/{type(optimizer).__name__}/{names[parameter]}": parameter
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def _states(network: nn.Module, optimizers: list[Optimizer]) -> dict[str, Tensor]:
    """All state there is; a parameter that never had a gradient has none, and neither after loading."""
    state = {parameter: each for optimizer in optimizers for parameter, each in optimizer.state.items()}
    return {
        f"{place}/{key}": value
        for place, parameter in _places(network, optimizers).items()
        for key, value in state.get(parameter, {}).items()
        if value is not None
    }


def _empty_states(
    places: dict[str, Tensor], saved: dict[str, TensorStorageMetadata], path: Path
) -> dict[str, Tensor]:
    """Room for all the state in the checkpoint, sharded as its parameters are."""
    states: dict[str, Tensor] = {}
    for name, tensor in saved.items():
        place, _, _ = name.rpartition("/")
        if not place.startswith(f"{_OPTIMIZER}/"):
            continue
        if place not in places:
            _, kind, parameter = place.split("/")
            raise TrainingError(
                f"The checkpoint '{path}' has {kind}'s state of '{parameter}', which this run does not train "
                f"with {kind}; use the optimizers of that run."
            )
        like, dtype = places[place], tensor.properties.dtype
        if tensor.size == like.shape:
            states[name] = torch.empty_like(like, dtype=dtype, requires_grad=False)
        else:  # a count of steps
            states[name] = torch.empty(tensor.size, dtype=dtype)
    return states


def _put_states(places: dict[str, Tensor], optimizers: list[Optimizer], states: dict[str, Tensor]) -> None:
    owners = {p: optimizer for optimizer in optimizers for g in optimizer.param_groups for p in g["params"]}
    for optimizer in optimizers:
        optimizer.state.clear()
    for name, tensor in states.items():
        place, _, key = name.rpartition("/")
        owners[places[place]].state[places[place]][key] = tensor


def _check(
    wanted: dict[str, Tensor], saved: dict[str, TensorStorageMetadata], path: Path, prefix: str = ""
) -> None:
    """Raises TrainingError with the first tensor that one has and the other has not, or not in this shape."""
    start = f"{_NETWORK}/{prefix}"
    for name, tensor in wanted.items():
        short = name.removeprefix(f"{_NETWORK}/")
        if name not in saved:
            raise TrainingError(f"The checkpoint '{path}' has no '{short}'; it is of another network.")
        if saved[name].size != tensor.shape:
            raise TrainingError(
                f"'{short}' is {_shape(saved[name].size)} in the checkpoint '{path}' and "
                f"{_shape(tensor.shape)} here; it is of another network."
            )
    for name in saved:
        if name.startswith(start) and name not in wanted:
            short = name.removeprefix(f"{_NETWORK}/")
            raise TrainingError(
                f"The checkpoint '{path}' has '{short}' and this network has not; it is of another network."
            )


def _shape(size: torch.Size) -> str:
    return " x ".join(map(str, size)) or "a number"


# Files.


@contextmanager
def _shared_partial(target: Path, world: World) -> Iterator[tuple[Path, Callable[[], None]]]:
    """A hidden folder that rank 0 holds and all ranks write into, and what gives it its name, on rank 0."""
    with ExitStack() as stack:
        held: list[Partial] = []

        def begin() -> Path:
            target.parent.mkdir(parents=True, exist_ok=True)
            held.append(stack.enter_context(Partial(target, folder=True)))
            return held[0].path

        def keep() -> None:
            if target.exists():  # damaged, or of a run that went on from an earlier step
                _remove(target)
            held[0].keep()

        yield from_first(begin, world), keep


@contextmanager
def _quietly() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        yield


def _save_tensors(tensors: dict[str, Tensor], path: Path, world: World) -> None:
    """Every rank writes its shards; the first OSError of any rank is raised on all."""
    try:
        with _quietly():
            dcp.save(tensors, storage_writer=FileSystemWriter(path), no_dist=world.size == 1)
    except CheckpointException as error:
        causes = [cause for cause, _ in error.failures.values()]
        for cause in causes:
            if isinstance(cause, OSError):
                raise cause from None
        raise causes[0] from None


def _load_tensors(tensors: dict[str, Tensor], path: Path, world: World) -> None:
    """Into these tensors, in place."""
    with _quietly():
        dcp.load(tensors, storage_reader=FileSystemReader(path), no_dist=world.size == 1)


def _saved_tensors(path: Path) -> dict[str, TensorStorageMetadata]:
    found = FileSystemReader(path).read_metadata().state_dict_metadata
    return {name: each for name, each in found.items() if isinstance(each, TensorStorageMetadata)}


def _described(files: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Sizes and checksums by name."""
    return {path.name: {"bytes": path.stat().st_size, "sha256": file_sha256(path)} for path in files}


def _finish(path: Path, step: int, world: World, host: dict[str, Any], shards: list[dict[str, Any]]) -> None:
    """Write the host's part and the manifest of all files. shards: those of every rank."""
    write_file(path / HOST, json.dumps(host, allow_nan=False).encode())
    files = _described([path / ".metadata", path / HOST])
    for each in shards:
        files |= each
    manifest = {"schema": SCHEMA, "step": step, "world_size": world.size, "files": files}
    text = json.dumps({**manifest, "digest": json_digest(manifest)}, indent=1)
    write_file(path / MANIFEST, text.encode())


def _damage(path: Path, step: int, world: World) -> str | None:
    """What is wrong with a checkpoint, in a few words; the same on every rank, each of which reads a part."""

    def listed() -> dict[str, Any] | str:
        try:
            manifest = parse_object((path / MANIFEST).read_bytes(), MANIFEST, TrainingError, "it was changed")
        except FileNotFoundError:
            return f"it has no {MANIFEST}"
        except OSError as error:
            return f"{MANIFEST}: {error.strerror}"
        except TrainingError as error:
            return f"{error}".rstrip(".")
        digest = manifest.pop("digest", None)
        if digest != json_digest(manifest):
            return f"{MANIFEST} does not match its checksum"
        if manifest["schema"] != SCHEMA:
            raise TrainingError(
                f"The checkpoint '{path}' has version {manifest['schema']} of the format and this program "
                f"reads {SCHEMA}; use the program that wrote it."
            )
        return manifest["files"] if manifest["step"] == step else f"it is of step {manifest['step']}"

    files = from_first(listed, world)
    if isinstance(files, str):
        return files

    def first_bad() -> str | None:
        for name in sorted(files)[world.rank :: world.size]:
            try:
                same = (path / name).stat().st_size == files[name]["bytes"]
                same = same and file_sha256(path / name) == files[name]["sha256"]
            except OSError as error:
                return f"{name}: {error.strerror or error}"
            except EdgeError as error:
                return f"{error}".rstrip(".")
            if not same:
                return f"{name} does not match its checksum"
        return None

    return next((each for each in from_all(first_bad, world) if each), None)
