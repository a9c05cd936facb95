"""What others say of the protocols: the schemas that llm-comply ships, and streams as they come."""

from __future__ import annotations

import json
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest


@cache
def _loader(document: str) -> Any:
    pytest.importorskip("llm_comply", reason="llm-comply, whose schemas judge this, is not installed")
    from llm_comply.schema import SpecLoader

    spec = find_spec("llm_comply")
    assert spec is not None and spec.origin is not None
    return SpecLoader(str(Path(spec.origin).parent / "specs" / document))


def complaints(document: str, value: Any, schema: str) -> list[str]:
    """What a schema of a document has to say against a value."""
    loader = _loader(document)
    assert loader.get_schema(schema) is not None, schema
    found: list[str] = loader.validate(value, schema)
    return found


def events(address: str, path: str, body: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The events of a stream, each with its name, as they are sent; `[DONE]` is one without data."""
    found = []
    with httpx.stream("POST", f"{address}{path}", json={**body, "stream": True}, timeout=60) as response:
        assert response.status_code == 200, response.read()
        name = ""
        for line in response.iter_lines():
            if line.startswith("event: "):
                name = line[7:]
            elif line.startswith("data: "):
                found.append((name, {}) if line == "data: [DONE]" else (name, json.loads(line[6:])))
    return found
