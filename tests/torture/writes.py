"""Every kind of write that must be whole or not there: how it is done, and what it may leave."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np

from edge.config import ModelConfig
from edge.engine.conversation_file import read_conversation, write_conversation
from edge.export.artifact import export_model
from edge.export.options import ExportOptions
from edge.export.source import Source
from edge.export.targets import get_target
from edge.formats.artifact.folder import Artifact
from edge.formats.bundle.reader import Bundle
from edge.formats.kv_file import read_cache, write_cache
from edge.hub.convert import convert
from edge.hub.store import CacheKey, cached_bundle
from tests.export.tiny import ArrayCheckpoint, llama_config, make_checkpoint

KV_BYTES = 8 << 20
MESSAGES = 2000


@dataclass(frozen=True)
class Write:
    """write: into a folder. check: that what stands under a final name there is whole (AssertionError or
    EdgeError if not). names: all that the folder may hold when nobody is writing. replaces: whether it can be
    done over what it wrote before. hidden: files that belong to what is written.
    """

    name: str
    write: Callable[[Path], object]
    check: Callable[[Path], object]
    names: frozenset[str]
    replaces: bool = True
    hidden: frozenset[str] = frozenset()

    def leftovers(self, place: Path) -> list[str]:
        """What does not belong in the folder, hidden files below it included."""
        top = [path.name for path in place.iterdir() if path.name not in self.names]
        inside = (path for path in place.rglob(".*") if path.name not in self.hidden.union(top))
        return top + [str(path.relative_to(place)) for path in inside]


def _save_conversation(place: Path) -> None:
    message = {"role": "user", "content": f"{os.getpid()} " * 50}
    data = {"system": None, "thinking": None, "settings": {}, "messages": [message] * MESSAGES}
    write_conversation(place / "chat.json", data)


def _check_conversation(place: Path) -> None:
    if (place / "chat.json").exists():
        assert len(read_conversation(place / "chat.json")["messages"]) == MESSAGES


def _save_cache(place: Path) -> None:
    rows = np.full(KV_BYTES, os.getpid() % 251, np.uint8)
    write_cache(place / "chat.kv", {"model": "m"}, np.arange(1000, dtype=np.int32), [rows])


def _check_cache(place: Path) -> None:
    if (place / "chat.kv").exists():
        assert read_cache(place / "chat.kv", {"model": "m"}).memory.nbytes == KV_BYTES


@cache
def _config() -> ModelConfig:
    return llama_config(num_hidden_layers=1)


@cache
def _checkpoint() -> ArrayCheckpoint:
    return make_checkpoint(_config())


def _convert(place: Path) -> None:
    convert(_checkpoint(), place / "out")


def _check_bundle(place: Path) -> None:
    if (place / "out").exists():
        Bundle.open(place / "out", verify=True)


def _cached(place: Path) -> None:
    os.environ["EDGE_CACHE"] = str(place / "cache")
    cached_bundle(CacheKey("tiny", {"a": 1}), lambda out: convert(_checkpoint(), out))


def _check_cached(place: Path) -> None:
    models = place / "cache" / "models"
    for path in models.iterdir() if models.exists() else ():
        if not path.name.startswith("."):
            Bundle.open(path, verify=True)
    stamps = place / "cache" / "stamps"
    for path in stamps.iterdir() if stamps.exists() else ():
        assert path.name.startswith(".") or path.read_bytes().endswith(b"}")


@cache
def _source() -> Source:
    folder = Path(mkdtemp(prefix="edge-torture-")) / "bundle"
    convert(_checkpoint(), folder)
    return Source(Bundle.open(folder))


def _export(target: str, place: Path) -> None:
    export_model(_source(), ExportOptions(target), place / "out")  # type: ignore[arg-type]


def _check_export(place: Path) -> None:
    if (place / "out").exists():
        Artifact.open(place / "out", verify=True)


def _save_checkpoint(place: Path) -> None:
    import torch

    from edge.model.weights.checkpoint import save_huggingface

    weights = {name: torch.zeros(tensor.shape) for name, tensor in _network().items()}
    save_huggingface(place / "out", _config(), weights)


def _network() -> dict[str, np.ndarray]:
    from edge.config.tensors import expected_tensors

    return {name: np.empty(shape, np.float32) for name, shape in expected_tensors(_config()).items()}


def _check_checkpoint(place: Path) -> None:
    from edge.formats.safetensors import SafetensorsFile

    if (place / "out").exists():
        assert (place / "out" / "config.json").stat().st_size
        assert set(SafetensorsFile(place / "out" / "model.safetensors").tensors) == set(_network())


def _train(place: Path) -> None:
    """One more step of a run, as a process that was started again writes it."""
    from edge.train.checkpoints import CheckpointStore
    from edge.train.distributed import World

    runs, network = CheckpointStore(place / "run", 2, World()), _linear()
    steps = runs.steps()
    runs.save(steps[-1] + 1 if steps else 0, network, [], {"seen": 3})


def _check_training(place: Path) -> None:
    from edge.train.checkpoints import CheckpointStore
    from edge.train.distributed import World

    said: list[str] = []
    loaded = CheckpointStore(place / "run", 2, World()).load(_linear(), [], said.append)
    assert loaded is not None and loaded.host == {"seen": 3} and not said


def _linear() -> Any:
    from torch import nn

    return nn.Sequential(*(nn.Linear(100, 100) for _ in range(8)))


_LIBRARIES = {"gguf": ("gguf",), "onnx": ("onnx", "onnxruntime"), "executorch": ("torch", "executorch.exir")}
_LIBRARIES |= {"coreml": ("coremltools",)}
OUT = frozenset({"out"})
WRITES = {
    write.name: write
    for write in (
        Write("conversation", _save_conversation, _check_conversation, frozenset({"chat.json"})),
        Write("KV cache", _save_cache, _check_cache, frozenset({"chat.kv"})),
        Write("conversion", _convert, _check_bundle, OUT, replaces=False),
        Write("cache entry", _cached, _check_cached, frozenset({"cache"}), replaces=False),
        Write(
            "training checkpoint",
            _train,
            _check_training,
            frozenset({"run"}),
            hidden=frozenset({".metadata"}),
        ),
        Write("checkpoint", _save_checkpoint, _check_checkpoint, OUT, replaces=False),
        *(
            Write(f"export to {target}", partial(_export, target), _check_export, OUT, replaces=False)
            for target in ("bundle", "gguf", "onnx", "executorch", "coreml")
        ),
    )
}


def prepare(name: str) -> None:
    """Load what a write needs, so that processes forked afterwards write at once."""
    _checkpoint()
    if name == "checkpoint":
        import_module("edge.model.weights.checkpoint")
    if name == "training checkpoint":
        import_module("edge.train.checkpoints")
    if name.startswith("export"):
        _source()
        target = name.rpartition(" ")[2]
        get_target(target)  # type: ignore[arg-type]
        for library in _LIBRARIES.get(target, ()):
            import_module(library)


def clean() -> None:
    """Remove the bundle that exports are made from."""
    if _source.cache_info().currsize:
        shutil.rmtree(_source().bundle.path.parent, ignore_errors=True)
        _source.cache_clear()
