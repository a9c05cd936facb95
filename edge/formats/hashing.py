"""Checksums of files and of JSON documents."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from edge.formats.model_folder import open_regular


def file_sha256(path: Path) -> str:
    """Hex digest of a regular file, read in pieces; raises OSError."""
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def json_digest(data: Any) -> str:
    """Hex digest of a JSON document, whatever the order of its keys."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
