"""GGUF files in several parts, as llama.cpp's `gguf-split` makes them: `name-00001-of-00003.gguf`.

The parts lie in one folder. The first has the metadata, each has some of the tensors, and says in `split.no`,
`split.count` and `split.tensors.count` which part of what it is. The parts themselves are read by
`edge.formats.gguf_file`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from edge.errors import CheckpointError
from edge.formats.gguf_file import GGUFFile, GGUFTensor
from edge.formats.names import shown

_NUMBER, _COUNT, _TENSORS = "split.no", "split.count", "split.tensors.count"
_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.gguf)", re.IGNORECASE | re.DOTALL | re.ASCII)


class PartName(NamedTuple):
    """What the name of a part says; position: from 1 to parts."""

    stem: str
    position: int
    parts: int
    suffix: str

    def of(self, position: int) -> str:
        """The name of another part."""
        return f"{self.stem}-{position:05d}-of-{self.parts:05d}{self.suffix}"

    @property
    def all(self) -> tuple[str, ...]:
        """The names of all parts."""
        return tuple(self.of(position) for position in range(1, self.parts + 1))


class GGUFContent(NamedTuple):
    """What `GGUFFile` has, of all parts together."""

    metadata: Mapping[str, Any]
    tensors: list[GGUFTensor]


def part_name(name: str) -> PartName | None:
    """The name of a part, with its folder or without; None for any other name."""
    found = _NAME.fullmatch(name)
    part = None if found is None else PartName(found[1], int(found[2]), int(found[3]), found[4])
    return part if part is not None and 1 <= part.position <= part.parts else None


def parts_beside(path: Path) -> list[Path]:
    """`path`, and the files beside it whose names say that they are parts of the same; in order."""
    name = part_name(path.name)
    if name is None:
        return [path]
    found = {name.position}
    with suppress(OSError):  # a folder whose files may be opened, but not listed
        others = (part_name(file.name) for file in path.parent.iterdir())
        found |= {each.position for each in others if each and each.of(name.position) == path.name}
    return [path.with_name(name.of(position)) for position in sorted(found)]


def first_part(path: Path) -> Path:
    """The first part of the file that `path` is a later one of, if it is there; `path` itself for others."""
    name = part_name(path.name)
    if name is None or name.position == 1 or not path.with_name(name.of(1)).is_file():
        return path
    try:
        metadata = GGUFFile(path).metadata
    except CheckpointError:  # said by whoever opens it
        return path
    is_part = (metadata.get(_NUMBER), metadata.get(_COUNT)) == (name.position - 1, name.parts)
    return path.with_name(name.of(1)) if is_part else path


def open_gguf(path: Path) -> GGUFContent:
    """A GGUF file, all of it if `path` is one of its parts.

    Raises CheckpointError for what `GGUFFile` does, a part that is missing, and parts of different files.
    """
    file = GGUFFile(path)
    count = _field(file, _COUNT, 1)
    if count <= 1:
        return GGUFContent(file.metadata, file.tensors)
    number = _field(file, _NUMBER) + 1
    name = part_name(path.name)
    if name is None or (name.position, name.parts) != (number, count):
        raise CheckpointError(
            f"'{path}' is part {number} of {count} of a split GGUF file ({_NUMBER}, {_COUNT}), but its name "
            f"does not end in -{number:05d}-of-{count:05d}.gguf; give all parts the names they came with."
        )
    there = set(parts_beside(path))
    missing = [part for part in name.all if path.with_name(part) not in there]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(
            f"'{path}' is part {number} of {count} of a split GGUF file, and beside it is no "
            f"'{missing[0]}'{more}; put all parts into one folder."
        )
    parts = [file if part == path.name else GGUFFile(path.with_name(part)) for part in name.all]
    for index, part in enumerate(parts):
        _check_part(part, index, parts[0])
    return GGUFContent(parts[0].metadata, _joined(parts))


def _check_part(part: GGUFFile, index: int, first: GGUFFile) -> None:
    """Raise CheckpointError for a part of another file than the one that `first` begins."""
    wanted = {**first.metadata, _NUMBER: index}
    for key in (_NUMBER, _COUNT, _TENSORS):
        _field(part, key)
    for key, value in part.metadata.items():
        if value is not wanted.get(key) and value != wanted.get(key):
            raise CheckpointError(
                f"'{part.path}' is no part of the file that '{first.path.name}' begins: its field "
                f"{shown(key)} is {value!r:.40}, not {wanted.get(key)!r:.40}; download all parts of one file."
            )


def _joined(parts: list[GGUFFile]) -> list[GGUFTensor]:
    tensors: dict[str, GGUFTensor] = {}
    for part in parts:
        for tensor in part.tensors:
            if tensor.name in tensors:
                raise CheckpointError(
                    f"'{part.path}' has the tensor {shown(tensor.name)}, which another part of the file that "
                    f"'{parts[0].path.name}' begins has too; download all parts of one file."
                )
            tensors[tensor.name] = tensor
    announced = _field(parts[0], _TENSORS)
    if len(tensors) != announced:
        raise CheckpointError(
            f"The {len(parts)} parts of '{parts[0].path}' have {len(tensors)} tensors together, but "
            f"'{_TENSORS}' says {announced}; download all parts of one file."
        )
    return list(tensors.values())


def _field(file: GGUFFile, key: str, default: int | None = None) -> int:
    value = file.metadata.get(key, default)
    if type(value) is not int:
        found = "it is missing" if value is None else f"not {value!r:.40}"
        raise CheckpointError(
            f"The field '{key}' of '{file.path}' must be a whole number, {found}; download the file again."
        )
    return value
