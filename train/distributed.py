"""One process or many: torchrun's group, parameters sharded by FSDP2, and what all ranks agree on.

Weights and optimizer state on disk are in `edge.train.checkpoints`; which rows a rank trains on is the
loader's business. Every function here does nothing, or the plain thing, in a world of one process.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from edge.errors import EdgeError, TrainingError
from edge.model.network.decoder import Layer

T = TypeVar("T")

_DEVICES = ("auto", "cpu", "cuda")
_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


class ToldByFirst(TrainingError):
    """A failure of all processes, in one that is not the first: nobody has to hear of it twice."""


@dataclass(frozen=True)
class World:
    """The processes that train together. rank: this one's number, of `size`. device: of its tensors."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def first(self) -> bool:
        """Whether this process is the one that prints and writes."""
        return self.rank == 0


@contextmanager
def joined(device: str = "auto") -> Iterator[World]:
    """The world that torchrun's environment describes, one process without it; left at the end of the block.

    device: "cpu" (gloo), "cuda" (NCCL, the GPU of LOCAL_RANK), or "auto": CUDA where there is a GPU. Raises
    TrainingError.
    """
    if device not in _DEVICES:
        raise TrainingError(f"There is no device '{device}'; choose one of {', '.join(_DEVICES)}.")
    if device == "cuda" and not torch.cuda.is_available():
        raise TrainingError("PyTorch finds no CUDA device here; choose the device cpu.")
    kind = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    rank, size, local = _torchrun()
    place = torch.device(kind, local) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        if local >= torch.cuda.device_count():
            raise TrainingError(
                f"This machine has {torch.cuda.device_count()} GPUs and torchrun started process {local + 1} "
                "on it; start as many processes as there are GPUs."
            )
        torch.cuda.set_device(place)
    if size == 1:
        yield World(rank, size, place)
        return
    try:
        # Counts and sums are on the CPU in both.
        dist.init_process_group("cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo")
    except (RuntimeError, ValueError, OSError) as error:
        raise TrainingError(
            f"The {size} processes did not find each other ({error}); check torchrun's address and port."
        ) from None
    try:
        yield World(rank, size, place)
    finally:
        dist.destroy_process_group()


def _torchrun() -> tuple[int, int, int]:
    """(rank, size, rank on this machine) from the environment."""
    given = [name for name in _TORCHRUN if name in os.environ]
    if "RANK" not in given and "WORLD_SIZE" not in given:
        return 0, 1, 0
    missing = [name for name in _TORCHRUN if name not in given]
    if missing:
        raise TrainingError(
            f"The environment has {given[0]} but not {', '.join(missing)}; start the processes with "
            f"torchrun, or unset {given[0]}."
        )
    numbers = []
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        if not os.environ[name].isdecimal():
            raise TrainingError(
                f"{name} must be a whole number, not '{os.environ[name]}'; start the processes with torchrun."
            )
        numbers.append(int(os.environ[name]))
    rank, size, local = numbers
    if rank >= size:
        raise TrainingError(f"RANK is {rank} and WORLD_SIZE {size}; start the processes with torchrun.")
    return rank, size, local


def shard(module: nn.Module, world: World) -> None:
    """Shard the parameters of `module` over the ranks, in place: each decoder layer inside, then the rest.

    All ranks must have made the same weights. Losses go through the module's own forward: a call of a method
    beside it would see shards. Gradients become the sums over ranks (FSDP's default is their mean), so a loss
    that every rank divides by the global number of targets gives the gradient of the global mean.
    """
    if world.size == 1:
        return
    mesh = init_device_mesh(world.device.type, (world.size,))
    for part in (*(each for each in module.modules() if isinstance(each, Layer)), module):
        fully_shard(part, mesh=mesh)
        assert isinstance(part, FSDPModule)
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)  # gloo has none but sums


def clip(module: nn.Module, limit: float) -> float:
    """Scale all gradients down to a global L2 norm of at most `limit`; returns the norm before.

    The norm is that of the whole gradient in both worlds; infinity or NaN are returned as they are, and then
    the gradients are useless. limit: infinity only measures.
    """
    gradients = [each.grad for each in module.parameters() if each.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    if limit != float("inf"):
        nn.utils.clip_grads_with_norm_(module.parameters(), limit, norm)
    return float(norm)


def all_sum(tensor: Tensor, world: World) -> Tensor:
    """The sum of the tensor over all ranks, a new tensor; every rank passes the same shape.

    TrainingError if another rank has ended.
    """
    total = tensor.detach().to(world.device, copy=True)  # NCCL sums on its device only
    if world.size > 1:
        try:
            dist.all_reduce(total)
        except RuntimeError as error:
            raise TrainingError(
                f"Process {world.rank} lost the others; look for why one of them ended, then start the run "
                "again."
            ) from error
    return total.to(tensor.device)


def from_first(work: Callable[[], T], world: World) -> T:
    """What `work` returns on rank 0, on every rank; an exception there is raised on every rank.

    The result is pickled on its way. Others don't call `work`, and get an EdgeError as `ToldByFirst`.
    """
    if world.size == 1:
        return work()
    answer: list[Any] = [None, None]
    if world.first:
        try:
            answer[0] = work()
        except Exception as error:
            answer[1] = error
    dist.broadcast_object_list(answer, src=0, device=world.device)
    if answer[1] is not None:
        raise _as_told(answer[1], world)
    return answer[0]


def from_all(work: Callable[[], T], world: World) -> list[T]:
    """What `work` returns on every rank, in their order; the first exception is raised on every rank, as
    `from_first` does.
    """
    if world.size == 1:
        return [work()]
    mine: tuple[T | None, Exception | None]
    try:
        mine = (work(), None)
    except Exception as error:
        mine = (None, error)
    answers: list[Any] = [None] * world.size
    dist.all_gather_object(answers, mine)
    for _, failure in answers:
        if failure is not None:
            raise _as_told(failure, world)
    return [result for result, _ in answers]


def together(work: Callable[[], T], world: World) -> T:
    """What `work` returns on this rank; an exception on any is raised on every rank, as `from_all` does."""
    found: list[T] = []
    from_all(lambda: found.append(work()), world)
    return found[0]


@contextmanager
def alike(world: World) -> Iterator[None]:
    """What fails inside fails on every rank: others than the first raise an EdgeError as `ToldByFirst`."""
    try:
        yield
    except EdgeError as error:
        raise _as_told(error, world) from error


def _as_told(error: Exception, world: World) -> Exception:
    if world.first or not isinstance(error, EdgeError):
        return error
    return ToldByFirst(str(error))


@torch.no_grad()
def assign(parameter: Tensor, values: Tensor) -> None:
    """Give a parameter these values: a whole tensor, of which a sharded parameter takes its part."""
    if isinstance(parameter, DTensor):
        mesh, placements = parameter.device_mesh, parameter.placements
        values = distribute_tensor(values.to(mesh.device_type), mesh, placements, src_data_rank=None)
    parameter.copy_(values)
