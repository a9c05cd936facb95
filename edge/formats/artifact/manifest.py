"""The manifest of an exported folder (`artifact.json`): its schema, and reading it.

Every target of `edge export` writes this file; nothing in it is optional, so that a folder
without its metadata can't be written. Version 2:

* `format`, `version`, `created_by`;
* `target`, `flavour`, `model` (the file that the runtime opens), `runtime` (name and version range);
* `operators`: every operator that the runtime must have, with its version;
* `source`, `source_sha256`: what was exported; `config`: `ModelConfig.to_json()`;
* `quantization`: name, method, smooth, and how each tensor is stored;
* `context` in tokens, `attention` (`dense` or `sparse`), `kv_type` of the cache, null where the runtime
  chooses (version 1 did not have it: the full flavour's caches were float16);
* `tokenizer`: its file, `chat_template` and `generation_config`: their files, or null for a model without;
* `files`: path -> bytes, sha256; `sha256`: checksum of all of the above.

`edge.formats.artifact.folder` opens and verifies the files; `edge.export.artifact` writes them.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from edge.config import KVType, ModelConfig
from edge.config.tensors import expected_tensors
from edge.errors import ArtifactError, ConfigError
from edge.formats.bundle.manifest import FileEntry
from edge.formats.guarded_json import parse_object
from edge.formats.hashing import json_digest
from edge.formats.names import accept_inner_path

FORMAT = "minicpm-edge-artifact"
VERSION = 2
ARTIFACT = "artifact.json"
_KV_TYPES_OF_VERSION_1 = {"full": "float16", "portable": "float32"}
REFERENCE = "reference.safetensors"
"""Tokens of a fixed prompt and the logits that the exported weights give for it."""


@dataclass(frozen=True)
class RuntimeRange:
    """Which versions of a runtime may open an artifact: from `minimum`, up to but not `below` ("" = any)."""

    name: str
    minimum: str
    below: str = ""

    def __post_init__(self) -> None:
        for name in ("name", "minimum"):
            if not _is_text(getattr(self, name)):
                raise _missing(f"runtime.{name}")
        if not isinstance(self.below, str):
            raise _missing("runtime.below")

    def check(self, version: str) -> None:
        """Raise ArtifactError if `version` of this runtime is outside the range."""
        found = version_key(version)
        if found < version_key(self.minimum) or (self.below and found >= version_key(self.below)):
            raise ArtifactError(
                f"The artifact needs {self}, but version {version} is installed; install a supported version "
                "or export the model again."
            )

    def __str__(self) -> str:
        return f"{self.name} >= {self.minimum}" + (f", < {self.below}" if self.below else "")


@dataclass(frozen=True)
class Quantization:
    """How the weights of an artifact were made.

    name: `int4`, `int4-g32`, `int8`, `ternary`, `f16`, or `source` when the layers' own types were kept.
    method: `rtn`, `gptq`, `p-gptq`, or `source`. tensors: edge's tensor name -> the target's type.
    """

    name: str
    method: str
    smooth: bool
    tensors: Mapping[str, str]


@dataclass(frozen=True)
class ArtifactManifest:
    """Everything that `artifact.json` says; see the head of this file. ArtifactError for a missing value."""

    target: str
    flavour: str
    model: str
    runtime: RuntimeRange
    operators: Mapping[str, int]
    source: str
    source_sha256: str
    config: ModelConfig
    quantization: Quantization
    context: int
    attention: Literal["dense", "sparse"]
    kv_type: KVType | None
    tokenizer: str
    chat_template: str | None
    generation_config: str | None
    files: Mapping[str, FileEntry]
    created_by: str

    def __post_init__(self) -> None:
        names = ("target", "flavour", "model", "source", "source_sha256", "tokenizer", "created_by")
        for name in names:
            if not _is_text(getattr(self, name)):
                raise _missing(name)
        if not self.operators:
            raise _missing("operators")
        for operator, version in self.operators.items():
            if isinstance(version, bool) or not isinstance(version, int) or version < 1:
                raise _missing(f"operators.{operator}")
        for name in ("name", "method"):
            if not _is_text(getattr(self.quantization, name)):
                raise _missing(f"quantization.{name}")
        for tensor in expected_tensors(self.config):
            if not _is_text(self.quantization.tensors.get(tensor)):
                raise _missing(f"quantization.tensors.{tensor}")
        if isinstance(self.context, bool) or not isinstance(self.context, int) or self.context < 1:
            raise _missing("context")
        if self.attention not in ("dense", "sparse"):
            raise _missing("attention")
        if self.kv_type is not None and self.kv_type not in get_args(KVType):
            raise _missing("kv_type")
        if not self.config.eos_token_ids:
            raise _missing("config.eos_token_ids")
        for name in ("model", "tokenizer", "chat_template", "generation_config"):
            path = getattr(self, name)
            # a model may be a folder of files (Core ML's .mlpackage)
            if path is not None and not any(f == path or f.startswith(f"{path}/") for f in self.files):
                raise _missing(f"files.{path}")
        if REFERENCE not in self.files:
            raise _missing(f"files.{REFERENCE}")
        for path in self.files:
            accept_inner_path(path, "The artifact", ArtifactError)
        if ARTIFACT in self.files:
            raise ArtifactError(f"The artifact names itself ('{ARTIFACT}') among its files.")

    @property
    def total_bytes(self) -> int:
        """Size of all files together."""
        return sum(entry.bytes for entry in self.files.values())

    def to_json(self) -> dict[str, Any]:
        """The contents of `artifact.json`."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        body = {
            "format": FORMAT,
            "version": VERSION,
            **values,
            "runtime": vars(self.runtime).copy(),
            "operators": dict(self.operators),
            "config": self.config.to_json(),
            "quantization": {**vars(self.quantization), "tensors": dict(self.quantization.tensors)},
            "files": {path: {"bytes": f.bytes, "sha256": f.sha256} for path, f in self.files.items()},
        }
        return {**body, "sha256": json_digest(body)}

    @classmethod
    def parse(cls, text: bytes, where: str) -> ArtifactManifest:
        """Read `artifact.json`; ArtifactError if it is damaged, altered, newer or lacks something."""
        advice = "export the model again"
        data = parse_object(text, Path(where), ArtifactError, advice)
        if data.get("format") != FORMAT:
            raise ArtifactError(f"'{where}' is not a manifest of the format '{FORMAT}'; {advice}.")
        version = data.get("version")
        if not isinstance(version, int) or not 1 <= version <= VERSION:
            raise ArtifactError(
                f"'{where}' has format version {version}, but this program reads versions up to {VERSION}; "
                f"update minicpm-edge or {advice}."
            )
        body = {name: value for name, value in data.items() if name != "sha256"}
        if data.get("sha256") != json_digest(body):
            raise ArtifactError(
                f"'{where}' was altered after it was written (its checksum does not match); {advice}."
            )
        if version == 1:
            body["kv_type"] = _KV_TYPES_OF_VERSION_1.get(str(body.get("flavour")))
        try:
            values = {field.name: body[field.name] for field in fields(cls)}
            values["runtime"] = RuntimeRange(**values["runtime"])
            values["config"] = ModelConfig.from_json(values["config"])
            values["quantization"] = Quantization(**values["quantization"])
            values["files"] = {path: FileEntry.parse(entry) for path, entry in values["files"].items()}
            return cls(**values)
        except KeyError as missing:
            raise ArtifactError(f"'{where}' lacks the field {missing}; {advice}.") from None
        except (TypeError, ValueError, AttributeError):
            raise ArtifactError(f"'{where}' has a field of the wrong type; {advice}.") from None
        except ConfigError as error:
            raise ArtifactError(f"'{where}' has an unusable config, {advice}: {error}") from None


def version_key(version: str) -> tuple[int, ...]:
    """The leading numbers of a version, comparable: `1.20.1rc2` is (1, 20, 1)."""
    parts = re.split(r"[.+-]|(?<=\d)(?=[a-z])", version)
    leading = itertools.takewhile(re.compile("[0-9]{1,18}").fullmatch, parts)
    return tuple(int(part) for part in leading)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _missing(field: str) -> ArtifactError:
    return ArtifactError(f"The artifact's field '{field}' is missing or empty, so it can't be used.")
