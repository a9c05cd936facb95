"""Converted models in the user's cache folder: made once, found again in milliseconds, listed and removed.

A model's key is its source (path, size, modification time), the conversion's options and the versions of the
readers and of the bundle format. One process converts while others that want the same model wait for its
lock; the system drops the lock of a process that died.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from edge.checkpoints.base import READER_VERSION
from edge.errors import BundleError, EdgeError
from edge.formats.atomic import remove_leftovers
from edge.formats.bundle.manifest import MANIFEST, VERSION
from edge.formats.bundle.reader import Bundle
from edge.formats.bundle.stamps import remove_stamp
from edge.formats.guarded_json import parse_object
from edge.formats.model_folder import read_regular
from edge.quant.scheme import QuantScheme
from edge.system.file_locks import is_at, lock_descriptor
from edge.system.paths import cache_folder

Opened = TypeVar("Opened")


@dataclass(frozen=True)
class CacheKey:
    """What a converted model depends on.

    label: a readable name, part of the folder's name. facts: everything whose change asks for a new
    conversion, as JSON values.
    """

    label: str
    facts: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The name of the cache entry: the label and a digest of the facts."""
        text = json.dumps({"bundle_version": VERSION, **self.facts}, sort_keys=True, default=str)
        label = re.sub(r"[^A-Za-z0-9._-]+", "-", self.label).strip("-.") or "model"
        return f"{label[:80]}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


@dataclass(frozen=True)
class CacheEntry:
    """One converted model in the cache; created: seconds since the epoch.

    quantization: the schemes of its matrices, those of most weights first; empty for an unfinished one.
    """

    name: str
    path: Path
    source: str
    bytes: int
    created: float
    quantization: tuple[str, ...] = ()


def source_key(path: str | Path, options: Mapping[str, Any], parts: Iterable[Path] = ()) -> CacheKey:
    """The key of a file, or of a folder with all its files, converted with `options`; parts: of the file."""
    path = Path(path).resolve()
    try:
        files = sorted(child for child in path.iterdir() if child.is_file()) if path.is_dir() else [path]
        files += parts
        # Links are followed: a hub download is a folder of links to its blobs.
        found = [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    except OSError as error:
        raise EdgeError(f"Cannot read '{path}': {error.strerror or error}.") from None
    facts = {"path": str(path), "files": found, "readers": READER_VERSION, **options}
    return CacheKey(path.stem if path.is_file() else path.name, facts)


def cached_bundle(key: CacheKey, build: Callable[[Path], None], *, verify: bool = False) -> Bundle:
    """The bundle of a model; see `cached`."""
    return cached(key, build, Bundle.open, verify=verify)


def cached(
    key: CacheKey,
    build: Callable[[Path], None],
    open_it: Callable[[Path, bool], Opened],
    *,
    verify: bool = False,
) -> Opened:
    """What was made for `key`, converted by `build(folder)` if the cache does not hold a sound one.

    build must create the folder at the path it is given, which does not exist. open_it: opens it, given
    whether to recompute checksums (`verify`); it raises BundleError for a damaged one, which is made again.
    """
    path = _models() / key.name
    remove_leftovers(path.parent)
    if path.exists():
        try:
            return open_it(path, verify)
        except BundleError:
            pass  # damaged, or being removed: settled below, under the lock
    with _lock(key.name):
        if path.exists():
            try:
                return open_it(path, verify)
            except BundleError:
                _remove(path)
        build(path)
        return open_it(path, False)


def cached_models() -> list[CacheEntry]:
    """Every converted model in the cache, newest first."""
    entries = []
    for path in _folders():
        try:
            manifest = parse_object(read_regular(path / MANIFEST), path, BundleError, "remove it")
            source, created = str(manifest["source"]), (path / MANIFEST).stat().st_mtime
            schemes = _schemes(manifest["tensors"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, EdgeError):
            source, created, schemes = "unfinished or damaged", _modified(path), ()
        entries.append(CacheEntry(path.name, path, source, _size(path), created, schemes))
    return sorted(entries, key=lambda entry: entry.created, reverse=True)


def remove_cached(name: str | None = None) -> list[CacheEntry]:
    """Remove the converted model `name` (or a unique beginning of its name), or all of them; returns which.

    Those that another process is converting right now stay.
    """
    entries = cached_models()
    if name is not None:
        chosen = [entry for entry in entries if entry.name == name]
        chosen = chosen or [entry for entry in entries if entry.name.startswith(name)]
        if len(chosen) != 1:
            what = "matches several models" if chosen else "is not in the cache"
            raise EdgeError(f"'{name}' {what}; `edge cache list` shows their names.")
        entries = chosen
    removed = []
    for entry in entries:
        with _lock(_key_name(entry.path), wait=False) as free:
            if free:
                _remove(entry.path)
                remove_stamp(entry.path)
                for report in entry.path.parent.glob(f"{entry.name}.*.json"):  # a quantizer's, beside it
                    report.unlink(missing_ok=True)
                removed.append(entry)
    if name is not None and not removed:
        raise EdgeError(f"'{name}' is being converted by another process; try again when that has ended.")
    if name is None:
        shutil.rmtree(cache_folder() / "stamps", ignore_errors=True)
    return removed


def _models() -> Path:
    return cache_folder() / "models"


def _folders() -> list[Path]:
    try:
        return [path for path in _models().iterdir() if path.is_dir()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise EdgeError(f"Cannot read the cache folder '{_models()}': {error.strerror or error}.") from None


def _size(path: Path) -> int:
    total = 0
    for file in path.rglob("*"):
        try:
            total += file.stat().st_size if file.is_file() else 0
        except OSError:
            continue  # removed meanwhile
    return total


def _schemes(tensors: Any) -> tuple[str, ...]:
    """The schemes of a manifest's matrices, those of most weights first."""
    weights: Counter[str] = Counter()
    for tensor in tensors.values():
        if len(tensor["shape"]) == 2:
            scheme = str(QuantScheme.from_json(tensor["scheme"]))
            weights[scheme] += int(tensor["shape"][0]) * int(tensor["shape"][1])
    return tuple(name for name, _ in weights.most_common())


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _remove(path: Path) -> None:
    try:
        # Without its manifest a half-removed folder no longer looks like a bundle.
        (path / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise EdgeError(f"Cannot remove '{path}': {error.strerror or error}.") from None


def _key_name(folder: Path) -> str:
    """The key that a folder belongs to: finished, `.NAME.*.partial`, or the layers in `.NAME.quantizing`."""
    if folder.name.endswith(".partial"):
        return folder.name[1:].rsplit(".", 2)[0]
    return folder.name[1:].removesuffix(".quantizing") if folder.name.startswith(".") else folder.name


@contextmanager
def _lock(name: str, wait: bool = True) -> Iterator[bool]:
    """Hold the exclusive lock of one cache entry; without wait, yields False if another process has it.

    Whoever held a lock removes its file, so one that waited may get hold of a file which is no longer there:
    it then starts again.
    """
    path = cache_folder() / "locks" / f"{name}.lock"
    while True:
        with _open_lock(path) as file:  # closing it, or the end of the process, frees the lock
            held = lock_descriptor(file.fileno(), wait)
            if held and not is_at(path, file.fileno()):
                continue
            try:
                yield held
            finally:
                if held:
                    with suppress(OSError):  # Windows does not remove open files; there the empty one stays
                        path.unlink()
            return


def _open_lock(path: Path) -> IO[bytes]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _models().mkdir(parents=True, exist_ok=True)
        return path.open("a+b")
    except OSError as error:
        raise EdgeError(
            f"Cannot use the cache folder '{cache_folder()}' ({error.strerror or error}); "
            "set EDGE_CACHE to a folder that you may write to."
        ) from None
