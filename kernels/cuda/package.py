"""The folder that kernels are loaded from: archives and a manifest, see `edge.executors.cuda.manifest`."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from edge.executors.cuda.manifest import MANIFEST, Kernel, Manifest, Variant
from edge.formats.atomic import write_file
from edge.kernels.entry import Entry
from edge.kernels.store import Store, sources_of
from edge.kernels.targets import PTX, TARGETS

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the same files give the same archive


def pack(folder: Path, entries: Iterable[Entry], store: Store) -> Manifest:
    """Write all that the store has of these entries as they are now and that breaks no rule."""
    images: dict[Variant, dict[str, bytes]] = {}
    kernels = {}
    for entry in entries:
        found = _images(entry, store)
        if found:
            kernels[entry.id] = _kernel(entry, store, found)
            for variant, image in found.items():
                images.setdefault(variant, {})[entry.id] = image
    manifest = Manifest({variant.name: variant for variant in sorted(images, key=_order)}, kernels)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)  # half a folder is none
    for path in folder.glob("*.zip"):
        path.unlink()
    for variant, members in images.items():
        named = {variant.member(id): image for id, image in members.items()}
        write_file(folder / variant.file, _archive(named))
    write_file(folder / MANIFEST, json.dumps(manifest.to_json(), indent=1).encode())
    return manifest


def _order(variant: Variant) -> tuple[bool, int]:
    return variant.is_ptx, variant.architecture


def _images(entry: Entry, store: Store) -> dict[Variant, bytes]:
    sources = sources_of(entry)
    lowered = store.lowered(sources)
    if lowered is None:
        return {}
    found = {PTX: lowered.ptx.encode()}
    for target in TARGETS.values():
        usage = store.usage(sources, target)
        if usage is not None:
            if usage.faults(target, warps=lowered.warps, dynamic_shared=lowered.shared):
                return {}
            found[target.variant] = store.cubin(sources, target)
    return found


def _kernel(entry: Entry, store: Store, images: Mapping[Variant, bytes]) -> Kernel:
    lowered = store.lowered(sources_of(entry))
    assert lowered is not None
    return Kernel(
        id=entry.id,
        symbol=lowered.symbol,
        signature=dict(entry.signature),
        aligned=tuple(entry.aligned),
        warps=lowered.warps,
        shared=lowered.shared,
        scratch=lowered.scratch,
        sources=sources_of(entry),
        images={variant.name: hashlib.sha256(image).hexdigest() for variant, image in images.items()},
    )


def _archive(members: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(members):
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), members[name], zipfile.ZIP_DEFLATED)
    return buffer.getvalue()
