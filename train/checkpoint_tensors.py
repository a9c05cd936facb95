"""The tensors of a checkpoint: their names, and how torch.distributed.checkpoint writes and reads them.

"network/NAME" for parameters and buffers, "optimizer/CLASS/NAME OF THE PARAMETER/KEY" for what an optimizer
remembers. A tensor may be sharded (DTensor) or not, on either side. Folders, checksums and which checkpoint
is taken are in `edge.train.checkpoints`.

Optimizer state is named here and not by `get_optimizer_state_dict`, which invents state for parameters that
never had a gradient, and takes a step of the optimizer for it.
"""

from __future__ import annotations

import io
import pickle
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import CheckpointException, FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future
from torch.optim import Optimizer

from edge.errors import TrainingError
from edge.train.distributed import World

_NETWORK, _OPTIMIZER = "network", "optimizer"
_METADATA = {
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    *(
        ("torch.distributed.checkpoint.metadata", name)
        for name in (
            "_MEM_FORMAT_ENCODING",
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "Metadata",
            "MetadataIndex",
            "StorageMeta",
            "TensorProperties",
            "TensorStorageMetadata",
        )
    ),
}
_PATHS = {"PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"}


class Place(NamedTuple):
    """A parameter, and the optimizer and the group of its settings that train it."""

    parameter: Tensor
    optimizer: Optimizer
    group: dict[str, Any]


def network_tensors(network: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    """Parameters and buffers by the names that they have in a checkpoint, not copied."""
    return {f"{_NETWORK}/{prefix}{name}": tensor for name, tensor in network.state_dict().items()}


def places_of(network: nn.Module, optimizers: Iterable[Optimizer]) -> dict[str, Place]:
    """What is behind each "optimizer/CLASS/NAME"."""
    names = {parameter: name for name, parameter in network.named_parameters()}
    return {
        f"{_OPTIMIZER}/{type(optimizer).__name__}/{names[parameter]}": Place(parameter, optimizer, group)
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def optimizer_tensors(places: dict[str, Place]) -> dict[str, Tensor]:
    """All state there is; a parameter that never had a gradient has none, and neither after loading."""
    return {
        f"{name}/{key}": value
        for name, place in places.items()
        for key, value in place.optimizer.state.get(place.parameter, {}).items()
        if value is not None
    }


def empty_states(
    places: dict[str, Place], saved: dict[str, TensorStorageMetadata], path: Path
) -> dict[str, Tensor]:
    """Room for all the state in the checkpoint, sharded as its parameters are.

    Raises TrainingError if it is of other optimizers.
    """
    states: dict[str, Tensor] = {}
    for full, tensor in saved.items():
        name, _, _ = full.rpartition("/")
        if not name.startswith(f"{_OPTIMIZER}/"):
            continue
        if name not in places:
            _, kind, trained = name.split("/")
            raise TrainingError(
                f"The checkpoint '{path}' has {kind}'s state of '{trained}', which this run does not train "
                f"with {kind}; use the optimizers of that run."
            )
        parameter, _, group = places[name]
        dtype = tensor.properties.dtype
        if tensor.size == parameter.shape:
            states[full] = torch.empty_like(parameter, dtype=dtype, requires_grad=False)
        else:  # AdamW's count of steps, which it wants on the device only if its kernel reads it there
            there = group.get("fused") or group.get("capturable")
            states[full] = torch.empty(tensor.size, dtype=dtype, device=parameter.device if there else "cpu")
    return states


def put_states(places: dict[str, Place], states: dict[str, Tensor]) -> None:
    """Replace all that the optimizers remember."""
    for place in places.values():
        place.optimizer.state.pop(place.parameter, None)
    for full, tensor in states.items():
        name, _, key = full.rpartition("/")
        place = places[name]
        place.optimizer.state[place.parameter][key] = tensor


def check_network(
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


class _Writer(FileSystemWriter):
    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """The same, with the disk's own error: torch's zip writer hides it behind a RuntimeError."""
        try:
            return super().write_data(plan, planner)
        except RuntimeError as error:
            inner: BaseException | None = error
            while inner is not None and not isinstance(inner, OSError):
                inner = inner.__context__
            raise inner or error from None


class _MetadataUnpickler(pickle.Unpickler):
    """A pickle is a program: this one may make what a checkpoint's description consists of, and no more."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _METADATA or (module.startswith("pathlib") and name in _PATHS):
            return super().find_class(module, name)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it wants to run {module}.{name}")


class _Reader(FileSystemReader):
    def read_metadata(self, *args: Any, **options: Any) -> Metadata:
        """The same, after a look at what the pickle would run."""
        path = Path(self.path) / ".metadata"
        try:
            _MetadataUnpickler(io.BytesIO(path.read_bytes())).load()
        except OSError:
            raise
        except Exception as error:  # whatever a pickle can do wrong
            raise TrainingError(
                f"'{path}' does not describe a checkpoint ({error}); take another one."
            ) from None
        return super().read_metadata(*args, **options)


def save_tensors(tensors: dict[str, Tensor], path: Path, world: World) -> None:
    """Every rank writes its shards into the folder; raises the first OSError of any rank on all."""
    with _plainly():
        dcp.save(tensors, storage_writer=_Writer(path), no_dist=world.size == 1)


def load_tensors(tensors: dict[str, Tensor], path: Path, world: World) -> None:
    """Read the folder into these tensors, in place; raises the first OSError of any rank on all."""
    with _plainly():
        dcp.load(tensors, storage_reader=_Reader(path), no_dist=world.size == 1)


def saved_tensors(path: Path) -> dict[str, TensorStorageMetadata]:
    """Shape and type of each tensor in the folder. Raises OSError and TrainingError."""
    found = _Reader(path).read_metadata().state_dict_metadata
    return {name: each for name, each in found.items() if isinstance(each, TensorStorageMetadata)}


@contextmanager
def _plainly() -> Iterator[None]:
    """An error of any rank as itself: DCP's own is a BaseException, which handlers of a loop would miss."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        try:
            yield
        except CheckpointException as error:
            causes = [cause for cause, _ in error.failures.values()]
            raise next((each for each in causes if isinstance(each, OSError)), causes[0]) from None
