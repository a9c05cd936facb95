"""llm-comply, as its user runs it, over three APIs: what must pass, and what can't for a reason."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

IMAGES = "the model reads text only: images are refused by name"
REASONING = "llm-comply asks only models whose names it knows to think"

PASS = {
    "open-responses": [
        "basic-response",
        "system-prompt",
        "multi-turn",
        "tool-calling",
        "streaming-response",
        "streaming-usage",
        "assistant-phase",
        "response-output-phase-schema",
        "compact-response",  # a 404 passes: there is no compaction
        "compact-missing-model",
        "error-handling",
    ],
    "openai-chat": [
        "chat-basic-response",
        "chat-system-prompt",
        "chat-multi-turn",
        "chat-tool-calling",
        "chat-streaming-response",
        "chat-streaming-usage",
        "chat-error-handling",
    ],
    "anthropic": [
        "anth-basic-response",
        "anth-system-prompt",
        "anth-multi-turn",
        "anth-tool-calling",
        "anth-streaming-response",
        "anth-streaming-usage",
        "anth-error-handling",
    ],
}
FAIL = {
    "image-input": IMAGES,
    "chat-image-input": IMAGES,
    "anth-image-input": IMAGES,
}
SKIP = {
    "reasoning-summary": REASONING,
    "chat-reasoning-summary": REASONING,
    "anth-thinking-display": REASONING,
}


@pytest.mark.parametrize("form", PASS)
def test_llm_comply(server: Any, form: str):
    program = Path(sys.executable).parent / "llm-comply"
    if not program.exists():
        pytest.skip("llm-comply is not installed: pip install llm-comply")
    command = [str(program), "run", "--base-url", f"{server.address}/v1", "--api-key", "none", "--json"]
    command += ["--model", "smollm2-135m", "--format", form, "--timeout", "120"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    results = {each["id"]: each for each in json.loads(done.stdout)["results"]}
    found: dict[str, list[str]] = {"passed": [], "failed": [], "skipped": []}
    for name, each in results.items():
        found[each["status"]].append(name)
    assert found["passed"] == PASS[form], {name: results[name] for name in found["failed"]}
    assert set(found["failed"]) <= FAIL.keys() and set(found["skipped"]) <= SKIP.keys()
