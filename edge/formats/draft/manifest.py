"""The manifest of a draft bundle: its schema and version.

A draft bundle is a folder like a model's (`edge.formats.bundle.manifest`), with `manifest.json` and
`weights.safetensors`; it may lie in the folder `draft` of its target's bundle. Version 1 of the manifest:

* `format`, `version`, `created_by`, `source` (where the weights came from);
* `draft`: `DraftConfig.to_json()`;
* `target`: what it was made for: `source` in words, `weights` (sha256 of the weights file of the target's
  bundle), `tokenizer` (digest of the target's tokenizer files, null without);
* `operators`, `tensors`, `files`, `sha256`: as in a model's.

A draft with a head of its own (`draft.head_rows`) has the tensor `lm_head.weight`, whose rows stand for the
token ids in `token_ids` (int32 [head_rows], no packed tensor): rows of the target's head, or of one that was
trained with the draft. Kinds of drafts other than EAGLE-2 came later, as did the fields of `draft` that only
they have; programs from before name such a field as unknown.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from edge.config.draft import DraftConfig
from edge.formats.bundle.manifest import (
    WEIGHTS,
    WRONG_FIELDS,
    BundleTensor,
    FileEntry,
    check_contents,
    files_from_json,
    files_to_json,
    read_body,
    tensors_from_json,
    tensors_to_json,
    wrong_field,
)
from edge.formats.bundle.reader import Bundle
from edge.formats.hashing import json_digest

FORMAT = "minicpm-edge-draft"
VERSION = 1
FOLDER = "draft"
"""The folder of a model's bundle in which its draft may lie."""
TOKEN_IDS = "token_ids"


@dataclass(frozen=True)
class TargetIdentity:
    """Which model a draft was made for; see the head of this file."""

    source: str
    weights: str
    tokenizer: str | None

    @classmethod
    def of(cls, target: Bundle) -> TargetIdentity:
        """That of a bundle."""
        files = target.manifest.files
        tokenizer = {name: files[name].sha256 for name in target.tokenizer_names}
        return cls(target.source, files[WEIGHTS].sha256, json_digest(tokenizer) if tokenizer else None)

    def difference(self, other: TargetIdentity) -> str | None:
        """What another target has not in common with this one, in words; None for the same one."""
        if self.weights != other.weights:
            return "weights"
        return "tokenizer" if self.tokenizer != other.tokenizer else None


@dataclass(frozen=True)
class DraftManifest:
    """Everything that the manifest of a draft bundle says."""

    config: DraftConfig
    source: str
    target: TargetIdentity
    tensors: Mapping[str, BundleTensor]
    files: Mapping[str, FileEntry]
    operators: tuple[str, ...]
    created_by: str

    def encode(self) -> bytes:
        """The bytes of `manifest.json`."""
        body = self._body()
        document = {**body, "sha256": json_digest(body)}
        return json.dumps(document, indent=1, ensure_ascii=False).encode()

    @property
    def content_hash(self) -> str:
        """Hex digest of what the draft computes: config, tensors and every file."""
        body = self._body()
        return json_digest({name: body[name] for name in ("draft", "tensors", "files")})

    def _body(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": VERSION,
            "created_by": self.created_by,
            "source": self.source,
            "draft": self.config.to_json(),
            "target": asdict(self.target),
            "operators": list(self.operators),
            "files": files_to_json(self.files),
            "tensors": tensors_to_json(self.tensors),
        }

    @classmethod
    def parse(cls, text: bytes, where: str) -> DraftManifest:
        """Read `manifest.json`; BundleError if it is damaged, altered, newer or unknown."""
        data = read_body(text, where, FORMAT, VERSION)
        try:
            target = data["target"]
            tokenizer = target["tokenizer"]
            manifest = cls(
                config=DraftConfig.from_json(data["draft"]),
                source=str(data["source"]),
                target=TargetIdentity(
                    str(target["source"]),
                    str(target["weights"]),
                    None if tokenizer is None else str(tokenizer),
                ),
                tensors=tensors_from_json(data["tensors"]),
                files=files_from_json(data["files"], where),
                operators=tuple(str(operator) for operator in data["operators"]),
                created_by=str(data["created_by"]),
            )
        except WRONG_FIELDS as error:
            raise wrong_field(error, where) from None
        check_contents(where, manifest.tensors, manifest.operators, manifest.files)
        return manifest
