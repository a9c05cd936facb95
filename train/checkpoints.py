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
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.optim import Optimizer

from edge.errors import EdgeError, TrainingError
from edge.formats.atomic import Partial, write_failure, write_file
from edge.formats.guarded_json import parse_object
from edge.formats.hashing import file_sha256, json_digest
from edge.train.checkpoint_tensors import (
    check_network,
    empty_states,
    load_tensors,
    network_tensors,
    optimizer_tensors,
    places_of,
    put_states,
    save_tensors,
    saved_tensors,
)
from edge.train.distributed import World, from_all, from_first

SCHEMA = 1
MANIFEST, HOST = "manifest.json", "host.json"
_STEP = re.compile(r"step-([0-9]{8,})")

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
        tensors = network_tensors(network) | optimizer_tensors(places_of(network, optimizers))
        try:
            with _shared_partial(target, world) as (path, keep):
                save_tensors(tensors, path, world)
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
        path, places = self._path(chosen), places_of(network, optimizers)
        saved, host = _contents(path, self._world)
        wanted = network_tensors(network)
        check_network(wanted, saved, path)
        states = empty_states(places, saved, path)
        _read(wanted | states, path, self._world)
        put_states(places, states)
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
    saved, host = _contents(path, world)
    wanted = network_tensors(network, prefix)
    check_network(wanted, saved, path, prefix)
    _read(wanted, path, world)
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


def _contents(path: Path, world: World) -> tuple[dict[str, TensorStorageMetadata], dict[str, Any]]:
    """(what tensors there are, the host's part) on every rank."""

    def read() -> tuple[dict[str, TensorStorageMetadata], dict[str, Any]]:
        data = (path / HOST).read_bytes()
        return saved_tensors(path), parse_object(data, path / HOST, TrainingError, "take another checkpoint")

    try:
        return from_first(read, world)
    except OSError as error:
        raise _unreadable(path, error) from None


def _read(tensors: dict[str, Tensor], path: Path, world: World) -> None:
    try:
        load_tensors(tensors, path, world)
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> TrainingError:
    return TrainingError(
        f"The checkpoint '{path}' cannot be read: {error.strerror or error}; look after the disk."
    )


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
        if manifest.get("schema") != SCHEMA:
            raise TrainingError(
                f"The checkpoint '{path}' has version {manifest.get('schema')} of the format, and this "
                f"program reads {SCHEMA}; use the one that wrote it."
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
