"""Draft bundles, opened and written: checks as for a model's bundle, weights mapped into memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge.config.draft import DraftConfig, draft_tensors
from edge.errors import BundleError, CheckpointError
from edge.formats.bundle.manifest import (
    MANIFEST,
    WEIGHTS,
    BundleTensor,
    FileEntry,
    required_operators,
)
from edge.formats.bundle.reader import Bundle, check_files, check_stored
from edge.formats.bundle.writer import WEIGHTS_METADATA, PackedWriter, created_by, weight_specs
from edge.formats.draft.manifest import FOLDER, FORMAT, TOKEN_IDS, DraftManifest, TargetIdentity
from edge.formats.guarded_json import parse_object
from edge.formats.model_folder import read_member
from edge.formats.safetensors import SafetensorsFile, safetensors_layout

TokenIds = npt.NDArray[np.int32]


class DraftFiles:
    """An open draft bundle: a `PackedFiles` with its config and token ids. Make one with `DraftFiles.open`.

    path: its folder. manifest: everything it says.
    """

    def __init__(self, path: Path, manifest: DraftManifest, weights: SafetensorsFile) -> None:
        self.path = path
        self.manifest = manifest
        self._weights = weights

    @classmethod
    def open(cls, path: str | Path, verify: bool = False) -> DraftFiles:
        """Check and map the draft in folder `path`; verify recomputes every checksum.

        Raises BundleError, with one sentence, for a folder that is no draft bundle and for one that is
        truncated, altered, newer than this program, or contradicts its own config.
        """
        path = Path(path)
        text = read_member(path, MANIFEST, BundleError)
        if text is None:
            raise BundleError(
                f"'{path}' is not a draft bundle: it has no {MANIFEST}; convert the draft again or name "
                "another."
            )
        manifest = DraftManifest.parse(text, str(path / MANIFEST))
        check_files(path, manifest.files, verify)
        try:
            weights = SafetensorsFile(path / WEIGHTS)
        except CheckpointError as error:
            raise BundleError(str(error)) from None
        expected = {name: tensor.shape for name, tensor in draft_tensors(manifest.config).items()}
        check_stored(path, manifest.tensors, expected, weights)
        files = cls(path, manifest, weights)
        files._check_ids()
        return files

    @property
    def config(self) -> DraftConfig:
        """The network."""
        return self.manifest.config

    @property
    def source(self) -> str:
        """Where the weights came from, in words."""
        return self.manifest.source

    @property
    def tensors(self) -> Mapping[str, BundleTensor]:
        """Every packed tensor by name, in the order of the file; see `edge.config.draft.draft_tensors`."""
        return self.manifest.tensors

    @property
    def weights_file(self) -> Path:
        """The file that holds the packed bytes of all tensors."""
        return self._weights.path

    @property
    def weights_bytes(self) -> int:
        """Size of that file."""
        return self.manifest.files[WEIGHTS].bytes

    @property
    def content_hash(self) -> str:
        """Hex digest of what the draft computes."""
        return self.manifest.content_hash

    @cached_property
    def token_ids(self) -> TokenIds | None:
        """The token of every row of the draft's own head, int32 [head_rows]; None if it has the target's."""
        return None if self.config.head_rows is None else self._weights.array(TOKEN_IDS)

    def data(self, name: str) -> npt.NDArray[np.uint8]:
        """The packed bytes of a tensor, mapped and read-only: uint8 [tensor.bytes], aligned to 64 bytes."""
        if name not in self.tensors:
            raise BundleError(f"'{self.path}' has no tensor '{name}'.")
        return self._weights.array(name)

    def offset(self, name: str) -> int:
        """Where the packed bytes of a tensor start in the weights file, a multiple of 64."""
        return self._weights.offset(name)

    def check_target(self, target: Bundle) -> None:
        """Raise BundleError unless the draft was made for this very bundle."""
        self.config.check_target(target.config, f"'{self.path}'")
        different = self.manifest.target.difference(TargetIdentity.of(target))
        if different is not None:
            raise BundleError(
                f"'{self.path}' is a draft for '{self.manifest.target.source}' with other {different} than "
                f"'{target.path}' has; name the draft's own checkpoint, which is converted for this model."
            )

    def _check_ids(self) -> None:
        rows = self.config.head_rows
        if rows is None:
            return
        stored = self._weights.tensors.get(TOKEN_IDS)
        if stored is None or stored.dtype != "I32" or stored.shape != (rows,):
            raise BundleError(
                f"'{self.path}' lacks the {rows} token ids of its head ('{TOKEN_IDS}'); convert the draft "
                "again."
            )
        ids = self.token_ids
        assert ids is not None
        sound = ids.min() >= 0 and ids.max() < self.config.vocab_size and np.unique(ids).size == rows
        if not sound:
            raise BundleError(
                f"The token ids of '{self.path}' are not {rows} different tokens of its vocabulary; convert "
                "the draft again."
            )


@dataclass(frozen=True)
class PlannedDraft:
    """A draft bundle before it is written. tensors: the packed ones, by name."""

    config: DraftConfig
    tensors: Mapping[str, BundleTensor]

    @property
    def weights_bytes(self) -> int:
        """Size of its weights file."""
        specs = [*weight_specs(self.tensors.values()), *_id_specs(self.config)]
        header, _ = safetensors_layout(specs, WEIGHTS_METADATA)
        ids = 4 * (self.config.head_rows or 0)
        return len(header) + sum(tensor.bytes for tensor in self.tensors.values()) + ids


class DraftWriter(PackedWriter):
    """Writes a draft bundle; see `PackedWriter`. token_ids: of a draft with a head of its own; write them as
    the last tensor, TOKEN_IDS.
    """

    def __init__(
        self,
        path: str | Path,
        config: DraftConfig,
        source: str,
        target: TargetIdentity,
        tensors: Sequence[BundleTensor],
    ) -> None:
        expected = {name: tensor.shape for name, tensor in draft_tensors(config).items()}
        if {tensor.name: tensor.shape for tensor in tensors} != expected:
            raise ValueError("the tensors do not match the config")
        super().__init__(path, tensors, {}, _id_specs(config))
        self._config, self._source, self._target = config, source, target

    def manifest(self, tensors: Mapping[str, BundleTensor], files: Mapping[str, FileEntry]) -> bytes:
        """See `edge.formats.draft.manifest`."""
        return DraftManifest(
            config=self._config,
            source=self._source,
            target=self._target,
            tensors=tensors,
            files=files,
            operators=required_operators(tensors),
            created_by=created_by(),
        ).encode()

    def check(self, folder: Path) -> None:
        """Open it, with every checksum."""
        DraftFiles.open(folder, verify=True)


def _id_specs(config: DraftConfig) -> list[tuple[str, str, tuple[int, ...]]]:
    """The token ids in the weights file, as `SafetensorsWriter` takes them."""
    return [] if config.head_rows is None else [(TOKEN_IDS, "I32", (config.head_rows,))]


def is_draft(folder: Path) -> bool:
    """Whether a folder is a draft bundle, as its manifest says; False where that can't be read."""
    try:
        text = read_member(folder, MANIFEST, BundleError)
        return text is not None and parse_object(text, folder, BundleError, "").get("format") == FORMAT
    except BundleError:
        return False


def draft_folder(target: Path) -> Path | None:
    """Where the draft in a model's bundle lies; None if it has none."""
    folder = target / FOLDER
    return folder if (folder / MANIFEST).is_file() else None
