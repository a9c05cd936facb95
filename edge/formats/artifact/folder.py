"""An exported folder, opened and checked; what its manifest says is `edge.formats.artifact.manifest`."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
import numpy.typing as npt

from edge.config import KVType, ModelConfig
from edge.config.tensors import expected_tensors
from edge.errors import ArtifactError
from edge.formats.artifact.manifest import ARTIFACT, REFERENCE, ArtifactManifest
from edge.formats.bundle.manifest import WEIGHTS, BundleTensor
from edge.formats.guarded_json import decode_text, parse_object
from edge.formats.hashing import file_sha256, json_digest
from edge.formats.model_folder import member, read_member
from edge.formats.safetensors import SafetensorsFile
from edge.quant.scheme import QuantScheme

_TOKENIZER_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


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
        text = read_member(path, ARTIFACT, ArtifactError)
        if text is None:
            raise ArtifactError(
                f"'{path}' is not an exported model: it has no {ARTIFACT}; make one with `edge export`."
            )
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
    def source(self) -> str:
        """What was exported, in words."""
        return self.manifest.source

    @property
    def target(self) -> str:
        """The runtime that it was exported for."""
        return self.manifest.target

    @property
    def flavour(self) -> str:
        """Which form of the target it has."""
        return self.manifest.flavour

    @property
    def attention(self) -> Literal["dense", "sparse"]:
        """What it computes."""
        return self.manifest.attention

    @property
    def kv_type(self) -> KVType | None:
        """What its caches hold; None where the runtime chooses."""
        return self.manifest.kv_type

    @property
    def context(self) -> int:
        """Longest sequence in tokens."""
        return self.manifest.context

    @property
    def activations(self) -> None:
        """Part of the program."""

    def with_config(self, config: ModelConfig) -> NoReturn:
        """ArtifactError: the network is part of the program."""
        raise ArtifactError(
            f"'{self.path}' was exported as it is, so its network can't be changed; export the model again."
        )

    @property
    def model(self) -> Path:
        """The file (or folder) that the runtime opens."""
        return self.path / self.manifest.model

    @property
    def content_hash(self) -> str:
        """Hex digest of every file."""
        return json_digest({path: entry.sha256 for path, entry in self.manifest.files.items()})

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
        return None if name is None else decode_text(self._read(name), self.path / name, ArtifactError)

    @cached_property
    def generation_config(self) -> dict[str, Any]:
        """The model's own sampling settings, or an empty dict."""
        name = self.manifest.generation_config
        if name is None:
            return {}
        return parse_object(self._read(name), self.path / name, ArtifactError, "export the model again")

    @cached_property
    def reference(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        """(tokens [n], logits [k, vocab_size] after each of the last k tokens) of the exported weights."""
        file = SafetensorsFile(self.path / REFERENCE)
        return file.array("tokens"), file.array("logits")

    def _read(self, name: str) -> bytes:
        data = read_member(self.path, name, ArtifactError)
        if data is None:
            raise ArtifactError(f"'{self.path}' has lost its file '{name}'; export the model again.")
        return data


def _check_files(path: Path, manifest: ArtifactManifest, verify: bool) -> None:
    for name, entry in manifest.files.items():
        file = member(path, name, ArtifactError)
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
