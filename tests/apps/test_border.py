"""What leaves the program: messages, JSON, commands to paste. Files of others must not reach the terminal."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge.apps.cli.errors import say
from edge.apps.cli.terminal import output_console, print_json
from edge.errors import EdgeError, readable
from edge.hub.store import CacheEntry

# Clears the screen, sets the title, an 8-bit CSI, reverses the text, half of a character, ends of lines.
EVIL = "\x1b[2J\x1b]0;pwned\x07\x9b31m\u202eabc\ud800\u2028\r\nx"
UNSAFE = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2028\ud800-\udfff]")


def test_messages_have_no_control_characters():
    text = str(EdgeError(f"The tensor '{EVIL}' is missing."))
    assert not UNSAFE.search(text) and "\n" not in text
    assert (
        text.startswith(r"The tensor '\x1b[2J\x1b]0;pwned\x07\x9b31m\u202eabc\ud800") and "missing." in text
    )
    assert readable("Grüße, 你好, it's 5 °C: a\\b") == "Grüße, 你好, it's 5 °C: a\\b"


def test_a_long_name_leaves_beginning_and_end():
    text = str(EdgeError(f"The tensor '{'x' * 10**7}' is missing; load it again."))
    assert len(text) < 2100
    assert text.startswith("The tensor 'xxx") and text.endswith("xxx' is missing; load it again.")


def test_errors_of_every_kind_are_shown_clean(capsys: pytest.CaptureFixture[str]):
    say(EVIL)
    shown = capsys.readouterr().err
    assert not UNSAFE.search(shown) and shown.count("\n") == 1 and shown.startswith("Error: ")


def test_tables_and_remarks_are_shown_clean(capsys: pytest.CaptureFixture[str]):
    from rich.table import Table
    from rich.text import Text

    table = Table(title=EVIL)
    table.add_column(EVIL)
    table.add_row(EVIL)
    output_console().print(EVIL, Text(EVIL), table, style="red")
    shown = capsys.readouterr().out
    assert "pwned" in shown and not re.search("[\x1b\x07\x9b\r]", shown)


def test_names_of_a_model_reach_no_terminal(run_inside: Callable[..., Any], tiny_checkpoint):
    """In a refusal, in the tables of `inspect`, and in the list of the cache."""
    folder = tiny_checkpoint(model_type=EVIL.replace("\ud800", ""))  # which is no JSON
    refused = run_inside("inspect", str(folder))
    assert refused.returncode == 1 and not UNSAFE.search(refused.stderr) and "pwned" in refused.stderr
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "llama"}))
    named = folder.rename(folder.with_name("tiny\x1b[31m"))
    for command in (("inspect", str(named)), ("cache", "list"), ("cache", "remove", "--all")):
        shown = run_inside(*command)
        assert shown.returncode == 0, shown.stderr
        assert not UNSAFE.search(shown.stdout + shown.stderr)
    assert not UNSAFE.search(run_inside("inspect", str(named), "--json").stdout)


class Stdout(io.TextIOWrapper):
    """A stdout of some encoding, as `main` leaves it: what can't be printed becomes a question mark."""

    def __init__(self, encoding: str) -> None:
        super().__init__(io.BytesIO(), encoding=encoding, errors="replace")

    def bytes(self) -> bytes:
        self.flush()
        return self.buffer.getvalue()  # type: ignore[attr-defined,no-any-return]


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "cp1252", "koi8-r", "utf-8", "UTF8"])
def test_json_loses_nothing_on_any_stdout(monkeypatch: pytest.MonkeyPatch, encoding: str):
    document = {"text": f"😀 ü 你 {EVIL}", "ключ": [1, 2.5, None, True]}
    stdout = Stdout(encoding)
    monkeypatch.setattr(sys, "stdout", stdout)
    print_json(document)
    raw = stdout.bytes()
    assert json.loads(raw.decode()) == document
    assert raw.count(b"\n") == 1 and ("😀".encode() in raw) == encoding.lower().startswith("utf")
    assert not re.search("[\x00-\x09\x1b\x7f-\x9f]", raw.decode())


def test_json_has_no_infinity(capsys: pytest.CaptureFixture[str]):
    print_json({"a": float("inf"), "b": [float("nan"), 1.5], "c": (1, float("-inf"))})
    assert capsys.readouterr().out == '{"a": null, "b": [null, 1.5], "c": [1, null]}\n'


def test_answers_as_json_in_another_encoding(run_edge: Callable[..., Any], smollm2: str, environment):
    """The logit bias lets the model say nothing but é."""
    options = ("--max-tokens", "4", "--temperature", "0", "--json")
    prompt = ("--prompt", "Say 😀", "--system", "ü", "--logit-bias", "2756=100")
    environment["PYTHONIOENCODING"] = "latin-1"
    done = run_edge("chat", smollm2, *prompt, *options)
    assert done.stdout.isascii() and json.loads(done.stdout)["text"].strip() == "éééé"


@pytest.mark.parametrize("columns", [24, 60])
def test_errors_wrap_between_words(edge_script: str, environment: dict[str, str], columns: int):
    pexpect = pytest.importorskip("pexpect")
    path = "/no/such/" + "x" * 70 + ".gguf"
    environment.pop("COLUMNS")
    child = pexpect.spawn(
        edge_script,
        ["inspect", path],
        env={**environment, "TERM": "xterm"},
        encoding="utf-8",
        dimensions=(24, columns),
        timeout=60,
    )
    shown = re.sub(r"\x1b\[[0-9;]*m", "", child.read()).strip("\r\n")
    assert shown.startswith("Error: ") and path in shown  # a path stays whole
    lines = shown.split("\r\n")
    assert len(lines) > 2 and all(len(line.rstrip()) <= columns or path in line for line in lines)
    piped = subprocess.run([edge_script, "inspect", path], env=environment, capture_output=True, text=True)
    assert piped.stderr.count("\n") == 1
    assert " ".join(shown.split()) == piped.stderr.strip()


def test_printed_commands_can_be_pasted(run_inside: Callable[..., Any], tiny_checkpoint, tmp_path: Path):
    out = tmp_path / "my model; echo $HOME 'x'"
    done = run_inside("export", str(tiny_checkpoint()), "--to", "bundle", "--out", str(out))
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("Check it with: ")]
    assert shlex.split(line.removeprefix("Check it with: ")) == ["edge", "export", "--check", str(out)]


def test_commands_of_other_messages_are_quoted(monkeypatch, tmp_path: Path):
    from edge.measure import doctor
    from edge.measure.alignment import align

    monkeypatch.setenv("EDGE_CACHE", str(tmp_path))
    entry = CacheEntry("a b", tmp_path / "a b", "", 0, 0.0)
    monkeypatch.setattr(doctor, "cached_models", lambda: [entry])
    (finding,) = [found for found in doctor._cache() if found.check == "cached model"]
    assert finding.mend == "edge cache remove 'a b'"
    (tmp_path / "my trace.json").write_text("{}")
    with pytest.raises(EdgeError, match=r"EDGE_TRACE='my trace\.json' edge chat"):
        align(tmp_path / "my trace.json", tmp_path / "my trace.json")


def test_saved_conversations_are_private(smollm2_gguf: Path, tmp_path: Path):
    """Whatever the umask, and when a file that others may read is replaced."""
    import edge

    (tmp_path / "chat.json").write_text("old")
    (tmp_path / "chat.json").chmod(0o644)
    before = os.umask(0)
    try:
        with edge.load(smollm2_gguf, context=64) as model:
            chat = model.chat(max_new_tokens=1)
            chat.send("Hi")
            chat.save(tmp_path / "chat.json")
            chat.session.save(tmp_path / "chat.json.kv")
    finally:
        os.umask(before)
    for name in ("chat.json", "chat.json.kv"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("command", "flag", "word"),
    [
        (("profile", "x", "--context", "100"), "--context", "belongs to --plan"),
        (("profile", "x", "--memory", "8G"), "--memory", "belongs to --plan"),
        (("profile", "x", "--bandwidth", "8"), "--bandwidth", "belongs to --plan"),
        (("profile", "x", "--plan", "--depth", "0"), "--depth", "needs --device or --bandwidth"),
        (("profile", "x", "--plan", "--repeat", "5"), "--repeat", "means nothing with --plan"),
        (("profile", "x", "--plan", "--html", "p.html"), "--html", "means nothing with --plan"),
        (("profile", "x", "--plan", "--kv", "int8,float16"), "--kv", "give one"),
        (("profile", "a", "b", "--compare", "--kv", "int8"), "--kv", "means nothing with --compare"),
        (("profile", "a", "b", "--compare", "--csv", "t.csv"), "--csv", "means nothing with --compare"),
        (("profile", "a", "b", "--compare", "--memory", "8G"), "--memory", "means nothing with --compare"),
        (("profile", "x", "--serial", "1"), "--serial", "belongs to --adb"),
        (("chat", "--prompt", "x", "--logprobs", "2"), "--logprobs", "belongs to --json"),
        (("export", "--check", "x", "--offline"), "--offline", "means nothing with --check"),
        (("export", "--check", "x", "--dry-run"), "--dry-run", "means nothing with --check"),
    ],
)
def test_options_without_a_meaning_are_refused(run_inside: Callable[..., Any], command, flag, word):
    refused = run_inside(*command)
    assert refused.returncode == 2 and f"Invalid value for '{flag}': " in refused.stderr
    assert word in refused.stderr


def test_explicit_options_reach_the_executor(run_inside: Callable[..., Any], tiny_checkpoint):
    """A default that was typed counts as asked for."""
    pytest.importorskip("torch")
    command = ("chat", str(tiny_checkpoint()), "--executor", "torch", "--prompt", "x")
    for flag, value in (("--kv", "float16"), ("--activations", "int8")):
        refused = run_inside(*command, flag, value)
        assert refused.returncode == 1 and f"({flag}) can't be {value}" in refused.stderr


def test_a_cache_that_could_not_be_kept_is_refused_first(run_inside, tiny_checkpoint, tmp_path: Path):
    pytest.importorskip("torch")
    folder = tiny_checkpoint()
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    command = ("chat", str(folder), "--executor", "torch", "--prompt", "x")
    refused = run_inside(*command, "--cache", str(tmp_path / "kv"))
    assert refused.returncode == 1 and "can't keep its KV cache" in refused.stderr and refused.stdout == ""


def test_python_m_edge(environment: dict[str, str], tmp_path: Path):
    command = [sys.executable, "-m", "edge", "--version"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("edge 0.")
