"""The manifest of a bundle: what is in the folder, as frozen dataclasses and as JSON.

This file owns the schema and its version. Version 1 of `manifest.json`:

* `format`, `version`, `created_by`, `source` (where the weights came from);
* `config`: `ModelConfig.to_json()`;
* `operators`: names of the operators that a runtime must have, for example `linear.int4`;
* `tensors`: name -> shape, scheme (with its layout), source_type, exact;
* `files`: name -> bytes, sha256;
* `sha256`: checksum of all of the above.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from edge.config import ModelConfig
from edge.errors import BundleError, ConfigError
from edge.formats.guarded_json import parse_object
from edge.formats.hashing import json_digest
from edge.formats.names import accept_file_name
from edge.quant.base3 import base3_bytes
from edge.quant.layout import NATIVE, MatrixLayout
from edge.quant.scheme import QuantScheme

FORMAT = "minicpm-edge-bundle"
VERSION = 1
MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
CHAT_TEMPLATE = "chat_template.jinja"
GENERATION_CONFIG = "generation_config.json"

_ADVICE = "convert or copy the model again"
_SHA256 = re.compile("[0-9a-f]{64}")
_ATTENTION = "attention.dense"
OPERATORS = frozenset(
    operator
    for layout in NATIVE
    for minimum in ((False, True) if layout.minimum else (False,))
    for operator in MatrixLayout(layout, minimum=minimum).operators
) | {_ATTENTION}
"""Every operator of this version; layouts of other packages may add theirs."""


@dataclass(frozen=True)
class BundleTensor:
    """One packed tensor.

    shape: (rows, columns), or (n,) for a norm. source_type: what the checkpoint called its type, for example
    `Q4_1`. exact: False when its values were rounded on the way from the checkpoint. compact: stored in
    base 3 (`edge.quant.base3`), which is smaller and must be unpacked before it runs.
    """

    name: str
    shape: tuple[int, ...]
    scheme: QuantScheme
    source_type: str
    exact: bool
    compact: bool = False

    @property
    def rows(self) -> int:
        """Rows of the matrix; 1 for a norm."""
        return self.shape[0] if len(self.shape) == 2 else 1

    @property
    def columns(self) -> int:
        """Columns of the matrix; the length of a norm."""
        return self.shape[-1]

    @property
    def bytes(self) -> int:
        """Size in the file."""
        if self.compact:
            return base3_bytes(self.scheme, self.rows, self.columns)
        return self.scheme.packed_bytes(self.rows, self.columns)

    @property
    def layout(self) -> str:
        """Identifier of its byte layout in the file."""
        return (self.scheme.compact_layout if self.compact else None) or self.scheme.layout


@dataclass(frozen=True)
class FileEntry:
    """Size and checksum of one file of the bundle."""

    bytes: int
    sha256: str

    @classmethod
    def parse(cls, entry: dict[str, Any]) -> FileEntry:
        """From a manifest; KeyError or ValueError for one that is not a size and a checksum."""
        size, sha256 = entry["bytes"], entry["sha256"]
        if type(size) is not int or size < 0 or not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
            raise ValueError(entry)
        return cls(size, sha256)


@dataclass(frozen=True)
class Manifest:
    """Everything that `manifest.json` says; see the head of this file."""

    config: ModelConfig
    source: str
    tensors: Mapping[str, BundleTensor]
    files: Mapping[str, FileEntry]
    operators: tuple[str, ...]
    created_by: str

    @cached_property
    def content_hash(self) -> str:
        """Hex digest of what the bundle computes: config, tensors and every file, not who made it."""
        body = self._body()
        return json_digest({name: body[name] for name in ("config", "tensors", "files")})

    @property
    def is_compact(self) -> bool:
        """Whether some tensors are stored in base 3."""
        return any(tensor.compact for tensor in self.tensors.values())

    def to_json(self) -> dict[str, Any]:
        """The contents of `manifest.json`."""
        body = self._body()
        return {**body, "sha256": json_digest(body)}

    def encode(self) -> bytes:
        """The bytes of `manifest.json`."""
        return json.dumps(self.to_json(), indent=1, ensure_ascii=False).encode()

    def _body(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": VERSION,
            "created_by": self.created_by,
            "source": self.source,
            "operators": list(self.operators),
            "config": self.config.to_json(),
            "files": files_to_json(self.files),
            "tensors": tensors_to_json(self.tensors),
        }

    @classmethod
    def parse(cls, text: bytes, where: str) -> Manifest:
        """Read `manifest.json`; BundleError if it is damaged, altered, newer or unknown."""
        data = read_body(text, where, FORMAT, VERSION)
        try:
            manifest = cls(
                config=ModelConfig.from_json(data["config"]),
                source=str(data["source"]),
                tensors=tensors_from_json(data["tensors"]),
                files=files_from_json(data["files"], where),
                operators=tuple(str(operator) for operator in data["operators"]),
                created_by=str(data["created_by"]),
            )
        except WRONG_FIELDS as error:
            raise wrong_field(error, where) from None
        check_contents(where, manifest.tensors, manifest.operators, manifest.files)
        return manifest


def required_operators(tensors: Mapping[str, BundleTensor]) -> tuple[str, ...]:
    """The operators that a network with these tensors needs."""
    layouts = {tensor.scheme.packing for tensor in tensors.values() if len(tensor.shape) == 2}
    return tuple(sorted({_ATTENTION, *(name for layout in layouts for name in layout.operators)}))


def read_body(text: bytes, where: str, form: str, newest: int) -> dict[str, Any]:
    """The fields of a manifest whose format, version and checksum are right; BundleError for any other.

    where: its path. form: the name of the format. newest: the newest version that can be read.
    """
    data = parse_object(text, Path(where), BundleError, _ADVICE)
    if data.get("format") != form:
        raise damaged(where, f"is not a manifest of the format '{form}'")
    version = data.get("version")
    if not isinstance(version, int) or not 1 <= version <= newest:
        raise BundleError(
            f"'{where}' has format version {version}, but this program reads versions up to {newest}; "
            "update minicpm-edge or convert the model again."
        )
    body = {name: value for name, value in data.items() if name != "sha256"}
    if data.get("sha256") != json_digest(body):
        raise damaged(where, "was altered after it was written (its checksum does not match)")
    return data


WRONG_FIELDS = (KeyError, TypeError, ValueError, AttributeError, OverflowError, ConfigError)
"""What reading the fields of a manifest raises where one is missing or wrong; see `wrong_field`."""


def wrong_field(error: Exception, where: str) -> BundleError:
    """The sentence for it."""
    if isinstance(error, ConfigError):
        return BundleError(f"'{where}' has an unusable config, convert the model again: {error}")
    if isinstance(error, KeyError):
        return damaged(where, f"lacks the field {error}")
    return damaged(where, "has a field of the wrong type")


def damaged(where: str, what: str) -> BundleError:
    """The error for a manifest that can't be believed."""
    return BundleError(f"'{where}' {what}; {_ADVICE}.")


def tensors_to_json(tensors: Mapping[str, BundleTensor]) -> dict[str, Any]:
    """Their entry in a manifest."""
    return {
        tensor.name: {
            "shape": list(tensor.shape),
            "scheme": {**tensor.scheme.to_json(), "layout": tensor.layout},
            "source_type": tensor.source_type,
            "exact": tensor.exact,
        }
        for tensor in tensors.values()
    }


def tensors_from_json(entries: Mapping[str, Any]) -> dict[str, BundleTensor]:
    """Inverse of `tensors_to_json`; raises one of WRONG_FIELDS, or BundleError for an unknown scheme."""
    return {name: _tensor(name, entry) for name, entry in entries.items()}


def files_to_json(files: Mapping[str, FileEntry]) -> dict[str, Any]:
    """Their entry in a manifest."""
    return {name: {"bytes": file.bytes, "sha256": file.sha256} for name, file in files.items()}


def check_contents(
    where: str,
    tensors: Mapping[str, BundleTensor],
    operators: Sequence[str],
    files: Mapping[str, FileEntry],
) -> None:
    """Raise BundleError for an operator that is unknown, and for a manifest that lists itself."""
    known = OPERATORS | set(required_operators(tensors))
    for operator in operators:
        if operator not in known:
            raise BundleError(
                f"'{where}' needs the operator '{operator}', which this version does not have; "
                "update minicpm-edge or convert it again."
            )
    if MANIFEST in files:
        raise damaged(where, "names itself among its files")


def files_from_json(entries: Mapping[str, Any], where: str) -> dict[str, FileEntry]:
    """Inverse of `files_to_json`; raises one of WRONG_FIELDS, or BundleError for a name that leads away."""
    return {
        accept_file_name(name, Path(where), BundleError): FileEntry.parse(entry)
        for name, entry in entries.items()
    }


def _tensor(name: str, entry: dict[str, Any]) -> BundleTensor:
    shape = tuple(int(size) for size in entry["shape"])
    if len(shape) not in (1, 2):
        raise ValueError(name)
    scheme = QuantScheme.from_json(entry["scheme"])
    compact = entry["scheme"]["layout"] == scheme.compact_layout
    return BundleTensor(name, shape, scheme, str(entry["source_type"]), bool(entry["exact"]), compact)
