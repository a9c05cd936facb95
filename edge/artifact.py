"""The manifest of an exported folder (`artifact.json`), and the open folder that executors run.

Every target of `edge export` writes this file; nothing in it is optional, so that a folder
without its metadata can't be written. Version 1:

* `format`, `version`, `created_by`;
* `target`, `flavour`, `model` (the file that the runtime opens), `runtime` (name and version range);
* `operators`: every operator that the runtime must have, with its version;
* `source`, `source_sha256`: what was exported; `config`: `ModelConfig.to_json()`;
* `quantization`: name, method, smooth, and how each tensor is stored;
* `context` in tokens, `attention` (`dense` or `sparse`);
* `tokenizer`: its file, `chat_template` and `generation_config`: their files, or null for a model without;
* `files`: path -> bytes, sha256; `sha256`: checksum of all of the above.

This file owns schema, reading and verification; `export.artifact` writes.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edge.bundle.manifest import GENERATION_CONFIG, WEIGHTS, BundleTensor, FileEntry
from edge.config import ModelConfig
from edge.errors import ArtifactError, ConfigError
from edge.safetensors_file import SafetensorsFile
from edge.scheme import QuantScheme
from edge.tensors import expected_tensors

FORMAT = "minicpm-edge-artifact"
VERSION = 1
ARTIFACT = "artifact.json"
REFERENCE = "reference.safetensors"
"""Tokens of a fixed prompt and the logits that the exported weights give for it."""

_TOKENIZER_SETTINGS = (
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    GENERATION_CONFIG,
)


@dataclass(frozen=True)
class RuntimeRange:
    """Which versions of a runtime may open an artifact: from `minimum`, up to but not `below` ("" = any)."""

    name: str
    minimum: str
    below: str = ""

    def __post_init__(self) -> None:
        for name in ("name", "minimum"):
            if not getattr(self, name):
                raise ArtifactError(
                    f"The artifact's field 'runtime.{name}' is empty; export the model again."
                )

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

    name: `int4`, `int4-g32`, `int8`, `ternary`, `none`, or `source` when the source's own types were kept.
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
    tokenizer: str
    chat_template: str | None
    generation_config: str | None
    files: Mapping[str, FileEntry]
    created_by: str

    def __post_init__(self) -> None:
        names = ("target", "flavour", "model", "source", "source_sha256", "tokenizer", "created_by")
        for name in names:
            value = getattr(self, name)
            if not isinstance(value, str) or not value.strip():
                raise _missing(name)
        if not self.operators:
            raise _missing("operators")
        for operator, version in self.operators.items():
            if isinstance(version, bool) or not isinstance(version, int) or version < 1:
                raise _missing(f"operators.{operator}")
        for name in ("name", "method"):
            if not getattr(self.quantization, name):
                raise _missing(f"quantization.{name}")
        for tensor in expected_tensors(self.config):
            if not self.quantization.tensors.get(tensor):
                raise _missing(f"quantization.tensors.{tensor}")
        if isinstance(self.context, bool) or not isinstance(self.context, int) or self.context < 1:
            raise _missing("context")
        if self.attention not in ("dense", "sparse"):
            raise _missing("attention")
        if not self.config.eos_token_ids:
            raise _missing("config.eos_token_ids")
        for name in ("model", "tokenizer", "chat_template", "generation_config"):
            path = getattr(self, name)
            # a model may be a folder of files (Core ML's .mlpackage)
            if path is not None and not any(f == path or f.startswith(f"{path}/") for f in self.files):
                raise _missing(f"files.{path}")
        if REFERENCE not in self.files:
            raise _missing(f"files.{REFERENCE}")
        for path, entry in self.files.items():
            parts = PurePosixPath(path).parts
            if not parts or path.startswith("/") or "\\" in path or ".." in parts or path == ARTIFACT:
                raise ArtifactError(f"The artifact names a file '{path}' that cannot belong to it.")
            if len(entry.sha256) != 64 or entry.bytes < 0:
                raise _missing(f"files.{path}.sha256")

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
        return {**body, "sha256": _digest(body)}

    @classmethod
    def parse(cls, text: bytes, where: str) -> ArtifactManifest:
        """Read `artifact.json`; ArtifactError if it is damaged, altered, newer or lacks something."""
        advice = "export the model again"
        try:
            data = json.loads(text)
        except (ValueError, RecursionError):
            raise ArtifactError(f"'{where}' is not valid JSON; {advice}.") from None
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise ArtifactError(f"'{where}' is not a manifest of the format '{FORMAT}'; {advice}.")
        version = data.get("version")
        if not isinstance(version, int) or not 1 <= version <= VERSION:
            raise ArtifactError(
                f"'{where}' has format version {version}, but this program reads versions up to {VERSION}; "
                f"update minicpm-edge or {advice}."
            )
        body = {name: value for name, value in data.items() if name != "sha256"}
        if data.get("sha256") != _digest(body):
            raise ArtifactError(
                f"'{where}' was altered after it was written (its checksum does not match); {advice}."
            )
        try:
            values = {field.name: body[field.name] for field in fields(cls)}
            values["runtime"] = RuntimeRange(**values["runtime"])
            values["config"] = ModelConfig.from_json(values["config"])
            values["quantization"] = Quantization(**values["quantization"])
            values["files"] = {
                path: FileEntry(entry["bytes"], entry["sha256"]) for path, entry in values["files"].items()
            }
            return cls(**values)
        except KeyError as missing:
            raise ArtifactError(f"'{where}' lacks the field {missing}; {advice}.") from None
        except (TypeError, ValueError, AttributeError):
            raise ArtifactError(f"'{where}' has a field of the wrong type; {advice}.") from None
        except ConfigError as error:
            raise ArtifactError(f"'{where}' has an unusable config, {advice}: {error}") from None


class Artifact:
    """An open exported folder; what a runtime above it needs (config, tokenizer, template) is read here."""

    def __init__(self, path: Path, manifest: ArtifactManifest) -> None:
        self.path = path
        self.manifest = manifest

    @classmethod
    def open(cls, path: str | Path, *, target: str | None = None, verify: bool = True) -> Artifact:
        """Check the folder `path` and open it.

        target: the only target that the caller can run. verify: recompute every checksum; sizes are always
        compared. Raises ArtifactError with one sentence.
        """
        path = Path(path)
        try:
            text = (path / ARTIFACT).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise ArtifactError(
                f"'{path}' is not an exported model: it has no {ARTIFACT}; make one with `edge export`."
            ) from None
        except OSError as error:
            raise ArtifactError(f"Cannot read '{path / ARTIFACT}': {error.strerror or error}.") from None
        manifest = ArtifactManifest.parse(text, str(path / ARTIFACT))
        if target is not None and manifest.target != target:
            raise ArtifactError(
                f"'{path}' was exported to {manifest.target}, but {target} is needed; export the model with "
                f"`--to {target}`."
            )
        _check_files(path, manifest, verify)
        return cls(path, manifest)

    @property
    def config(self) -> ModelConfig:
        """The network."""
        return self.manifest.config

    @property
    def model(self) -> Path:
        """The file (or folder) that the runtime opens."""
        return self.path / self.manifest.model

    @property
    def content_hash(self) -> str:
        """Hex digest of every file."""
        return _digest({path: entry.sha256 for path, entry in self.manifest.files.items()})

    @property
    def tensors(self) -> dict[str, BundleTensor]:
        """Every tensor of the network, for targets that store them in edge's own quantization schemes."""
        stored = self.manifest.quantization.tensors
        return {
            name: BundleTensor(name, shape, QuantScheme.parse(stored[name]), self.manifest.target, exact=True)
            for name, shape in expected_tensors(self.config).items()
        }

    @property
    def weights_file(self) -> Path:
        """The file of packed tensors, in folders that hold a bundle's."""
        return self.path / WEIGHTS

    @cached_property
    def _weights(self) -> SafetensorsFile:
        return SafetensorsFile(self.weights_file)

    def offset(self, name: str) -> int:
        """Where the packed bytes of a tensor start in that file."""
        return self._weights.offset(name)

    def data(self, name: str) -> npt.NDArray[np.uint8]:
        """The packed bytes of a tensor, mapped and read-only."""
        return self._weights.array(name)

    @cached_property
    def tokenizer_files(self) -> dict[str, bytes]:
        """The tokenizer's files by name; one that was only made for the target's own runner is left out."""
        names = {self.manifest.tokenizer, *_TOKENIZER_SETTINGS} & self.manifest.files.keys()
        return {name: self._read(name) for name in sorted(names)}

    @cached_property
    def chat_template(self) -> str | None:
        """The Jinja chat template, or None."""
        name = self.manifest.chat_template
        return None if name is None else self._read(name).decode()

    @cached_property
    def generation_config(self) -> dict[str, Any]:
        """The model's own sampling settings, or an empty dict."""
        name = self.manifest.generation_config
        data: dict[str, Any] = {} if name is None else json.loads(self._read(name))
        return data

    @cached_property
    def reference(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        """(tokens [n], logits [k, vocab_size] after each of the last k tokens) of the exported weights."""
        file = SafetensorsFile(self.path / REFERENCE)
        return file.array("tokens"), file.array("logits")

    def _read(self, name: str) -> bytes:
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            raise ArtifactError(f"Cannot read '{self.path / name}': {error.strerror or error}.") from None


def version_key(version: str) -> tuple[int, ...]:
    """The leading numbers of a version, comparable: `1.20.1rc2` is (1, 20, 1)."""
    leading = itertools.takewhile(str.isdigit, re.split(r"[.+-]|(?<=\d)(?=[a-z])", version))
    return tuple(int(part) for part in leading)


def file_sha256(path: Path) -> str:
    """Hex digest of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _check_files(path: Path, manifest: ArtifactManifest, verify: bool) -> None:
    for name, entry in manifest.files.items():
        file = path / name
        try:
            size = file.stat().st_size
            if size != entry.bytes:
                raise ArtifactError(
                    f"'{file}' has {size} bytes instead of {entry.bytes}: it is truncated or was replaced; "
                    "copy or export the model again."
                )
            if verify and file_sha256(file) != entry.sha256:
                raise ArtifactError(
                    f"'{file}' was altered or damaged (its checksum does not match); copy or export the "
                    "model again."
                )
        except FileNotFoundError:
            raise ArtifactError(
                f"'{file}' is missing from the exported folder; copy or export the model again."
            ) from None
        except OSError as error:
            raise ArtifactError(f"Cannot read '{file}': {error.strerror or error}.") from None


def _digest(data: Any) -> str:
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _missing(field: str) -> ArtifactError:
    return ArtifactError(f"The artifact's field '{field}' is missing or empty, so it can't be used.")
