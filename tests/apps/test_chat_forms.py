"""`edge chat --schema`, `--grammar` and `--regex`: answers in a form, and what is wrong with a form."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

SCHEMA = {
    "type": "object",
    "properties": {"capital": {"type": "string", "maxLength": 20}, "people": {"type": "integer"}},
    "required": ["capital", "people"],
    "additionalProperties": False,
}


@pytest.fixture
def schema(tmp_path: Path) -> str:
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(SCHEMA))
    return str(path)


def test_forms_of_one_answer(run_edge: Callable[..., Any], smollm2: str, schema: str, tmp_path: Path):
    done = run_edge("chat", smollm2, "--schema", schema, "--prompt", "France?", "--temperature", "0")
    jsonschema.validate(json.loads(done.stdout), SCHEMA)
    assert done.returncode == 0 and not done.stderr
    grammar = tmp_path / "answer.lark"
    grammar.write_text('start: "yes" | "no" " because " /[a-z]{3,9}/\n')
    options = ("--max-tokens", "4", "--temperature", "0")
    lines = run_edge("chat", smollm2, "--grammar", str(grammar), *options, stdin="Is it?\nIs it not?\n")
    assert len(lines.stdout.splitlines()) == 2
    assert all(re.match("yes$|no because", line) for line in lines.stdout.splitlines())


def test_an_answer_that_is_cut_says_so(run_edge: Callable[..., Any], smollm2: str, schema: str):
    options = ("--prompt", "France?", "--max-tokens", "5", "--temperature", "0")
    plain = run_edge("chat", smollm2, "--schema", schema, *options)
    assert "(stopped: the limit of 5 tokens is reached; the answer is incomplete)" in plain.stderr
    document = json.loads(run_edge("chat", smollm2, "--schema", schema, "--json", *options).stdout)
    assert document["is_complete"] is False and document["stop_reason"] == "length"
    assert document["text"] + "\n" == plain.stdout


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "can't be read: No such file"),
        (b"{", "is not valid JSON"),
        (b"[]", "must hold a JSON object"),
        (b'{"not": {}}', "The keyword 'not' of JSON schema at # is not supported"),
        (b'{"enum": []}', "Nothing satisfies the JSON schema"),
    ],
)
def test_a_schema_that_is_refused(run_inside, smollm2: str, tmp_path: Path, content, sentence):
    path = tmp_path / "schema.json"
    if content is not None:
        path.write_bytes(content)
    done = run_inside("chat", smollm2, "--schema", str(path), "--prompt", "x")
    assert done.returncode == 1 and not done.stdout
    assert sentence in " ".join(done.stderr.split())


def test_other_forms_that_are_refused(run_inside, smollm2: str, schema: str, tmp_path: Path):
    path = tmp_path / "grammar.lark"
    path.write_text("start: name\n")
    done = run_inside("chat", smollm2, "--grammar", str(path), "--prompt", "x")
    assert done.returncode == 1 and 'unknown name: "name" (line 1, column 8)' in " ".join(done.stderr.split())
    path.write_bytes(b"start: \xff")
    done = run_inside("chat", smollm2, "--grammar", str(path), "--prompt", "x")
    assert done.returncode == 1 and "is not UTF-8 text" in " ".join(done.stderr.split())
    done = run_inside("chat", smollm2, "--regex", "(", "--prompt", "x")
    assert done.returncode == 1 and "unclosed group (character 1 of the regex)" in done.stderr
    done = run_inside("chat", smollm2, "--regex", "a", "--schema", schema, "--prompt", "x")
    assert done.returncode == 2 and "can't stand beside --schema" in " ".join(done.stderr.split())
