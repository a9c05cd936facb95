"""Whatever a user gets wrong costs one clear sentence on stderr and a non-zero exit, never a traceback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.errors import EdgeError
from edge.hub.convert import convert


def assert_refused(process: subprocess.CompletedProcess[str], *words: str, code: int = 1) -> None:
    """One line on stderr that says all `words`, nothing on stdout."""
    assert process.returncode == code, process.stderr
    assert process.stdout == ""
    assert process.stderr.startswith("Error: ")
    assert process.stderr.count("\n") == 1, process.stderr
    assert "Traceback" not in process.stderr
    assert "Something unexpected" not in process.stderr
    for word in words:
        assert word in process.stderr


CHAT = ("chat", "smollm2-135m", "--prompt", "Hello")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--context", "9000"), ("9000", "8192", "flags: --context, --rope-override")),
        (("--context", "8"), ("context holds 8", "flags: --context, --overflow drop)")),
        (("--context", "8", "--overflow", "drop"), ("context holds 8", "flags: --context)")),
        (("--logit-bias", "99999999=1"), ("99999999",)),
        (("--rope-override", "{not json"), ("RoPE override",)),
        (("--rope-override", '{"rope_type": "spiral"}'), ("spiral",)),
        (("--think",), ("thinking",)),
        (("--attention", "sparse"), ("8192", "dense_len", "--attention dense")),
        (("--rope-regime", "long"), ("no long regime (--rope-regime)", "rope_type is default")),
    ],
)
def test_options_out_of_range(run_inside: Callable[..., Any], smollm2: str, options: tuple[str, ...], words):
    assert_refused(run_inside(*CHAT, *options), *words)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--threads", "0"),
        ("--threads", "1025"),
        ("--quantize", "int3"),
        ("--quantize", "int4-g7"),
        ("--head", "int3"),
        ("--temperature", "-1"),
        ("--temperature", "nan"),
        ("--top-k", "-3"),
        ("--top-p", "1.5"),
        ("--min-p", "-0.1"),
        ("--typical", "2"),
        ("--repetition-penalty", "0"),
        ("--seed", "-1"),
        ("--logprobs", "1000"),
        ("--logit-bias", "7=nan"),
        ("--max-tokens", "0"),
        ("--stop", ""),
    ],
)
def test_a_value_out_of_range_names_its_flag(run_inside: Callable[..., Any], flag: str, value: str):
    assert_refused(run_inside(*CHAT, flag, value), f"Invalid value for '{flag}': ", code=2)


@pytest.mark.parametrize(
    "options",
    [
        ("chat", "--context", "0"),
        ("chat", "--context", "many"),
        ("chat", "--kv", "float8"),
        ("chat", "--executor", "abacus"),
        ("chat", "--logit-bias", "5"),
        ("chat", "--no-such-option"),
        ("chat", "one", "two"),
        ("no-such-command",),
        ("inspect",),
        ("eval", "perplexity", "smollm2-135m"),
        ("cache", "remove"),
        ("cache", "remove", "something", "--all"),
    ],
)
def test_usage_errors_exit_with_2(run_inside: Callable[..., Any], options: tuple[str, ...]):
    assert_refused(run_inside(*options), "--help", code=2)


@pytest.mark.parametrize("prompt", ["", " \t ", "-"])
def test_empty_prompt(run_edge: Callable[..., Any], prompt: str):
    assert_refused(run_edge("chat", "./no-such-model", "--prompt", prompt, stdin=" \n"), "empty")


def test_prompt_longer_than_the_context(run_edge: Callable[..., Any], smollm2: str):
    process = run_edge("chat", smollm2, "--context", "64", "--prompt", "-", stdin="word " * 500)
    assert_refused(process, "the context holds 64", "flags: --context, --overflow drop)")


def test_prompt_longer_than_the_trained_context(run_edge: Callable[..., Any], smollm2: str):
    process = run_edge("chat", smollm2, "--prompt", "-", stdin="word " * 9000)
    assert_refused(process, "the context holds 8192", "--context with --rope-override, --overflow drop)")


def test_prompt_longer_than_the_context_in_a_pipe(run_edge: Callable[..., Any], smollm2: str):
    assert_refused(run_edge("chat", smollm2, "--context", "64", stdin="word " * 500), "the context holds 64")


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("smolm2-135m", ("smolm2-135m", "did you mean smollm2-135m")),
        ("random:gpt5", ("gpt5", "minicpm4-0.5b")),
        ("./nothing.gguf", ("./nothing.gguf",)),
        ("nobody/no-such-model", ("nobody/no-such-model",)),
        ("", ()),
    ],
)
@pytest.mark.parametrize("command", [("chat", "--prompt", "Hi"), ("inspect",)])
def test_unknown_model(run_edge: Callable[..., Any], command: tuple[str, ...], model: str, words):
    assert_refused(run_edge(command[0], model, *command[1:], "--offline"), *words)


def test_folder_without_a_config(run_edge: Callable[..., Any], tmp_path: Path):
    (tmp_path / "empty").mkdir()
    assert_refused(run_edge("chat", str(tmp_path / "empty"), "--prompt", "Hi"), "config.json")


def test_unreadable_file(run_edge: Callable[..., Any], tmp_path: Path):
    """A file whose bytes can't be read, whoever asks: not even root reads address 0 of a process."""
    if not Path("/proc/self/mem").exists():
        pytest.skip("needs Linux's /proc")
    link = tmp_path / "model.gguf"
    link.symlink_to("/proc/self/mem")
    assert_refused(run_edge("inspect", str(link)), "model.gguf")


def test_file_without_permission(run_edge: Callable[..., Any], tmp_path: Path):
    if os.geteuid() == 0:
        pytest.skip("root may read every file")
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    file.chmod(0)
    assert_refused(run_edge("inspect", str(file)), "ermission")


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF" + b"\xff" * 200, b"not a model at all"])
def test_damaged_gguf(run_edge: Callable[..., Any], tmp_path: Path, content: bytes):
    (tmp_path / "model.gguf").write_bytes(content)
    assert_refused(run_edge("inspect", str(tmp_path / "model.gguf")), "model.gguf")


def test_truncated_gguf(run_edge: Callable[..., Any], tmp_path: Path, smollm2_gguf: Path):
    with smollm2_gguf.open("rb") as file:
        (tmp_path / "model.gguf").write_bytes(file.read(4_000_000))
    assert_refused(run_edge("chat", str(tmp_path / "model.gguf"), "--prompt", "Hi"), "model.gguf")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite(run_edge: Callable[..., Any], tiny_checkpoint, value: float):
    def damage(tensors: dict[str, Any]) -> None:
        tensors["model.layers.0.mlp.up_proj.weight"][3, 5] = value

    folder = tiny_checkpoint(damage)
    assert_refused(run_edge("chat", str(folder), "--prompt", "Hi"), "mlp.up_proj.weight", "NaN")


def test_shapes_that_contradict_the_config(run_edge: Callable[..., Any], tiny_checkpoint):
    folder = tiny_checkpoint(intermediate_size=128)
    assert_refused(run_edge("inspect", str(folder)), "gate_proj", "128")


def test_config_with_a_missing_field(run_edge: Callable[..., Any], tiny_checkpoint):
    folder = tiny_checkpoint()
    config = json.loads((folder / "config.json").read_text())
    del config["hidden_size"]
    (folder / "config.json").write_text(json.dumps(config))
    assert_refused(run_edge("inspect", str(folder)), "hidden_size")


def test_unknown_architecture(run_edge: Callable[..., Any], tiny_checkpoint):
    folder = tiny_checkpoint(model_type="perceptron", architectures=["Perceptron"])
    assert_refused(run_edge("inspect", str(folder)), "perceptron")


def test_model_without_a_tokenizer(run_edge: Callable[..., Any], tiny_checkpoint):
    folder = tiny_checkpoint()
    (folder / "tokenizer.json").unlink()
    assert_refused(run_edge("chat", str(folder), "--prompt", "Hi"), "tokenizer.json")


def test_model_without_a_chat_template(run_edge: Callable[..., Any], tiny_checkpoint):
    assert_refused(run_edge("chat", str(tiny_checkpoint()), "--prompt", "Hi"), "chat template")


@pytest.fixture
def tiny_bundle(tiny_checkpoint, tmp_path: Path) -> Path:
    from edge.checkpoints.huggingface import HuggingFaceCheckpoint

    convert(HuggingFaceCheckpoint(tiny_checkpoint()), tmp_path / "bundle", quantize="int4")
    return tmp_path / "bundle"


def test_truncated_bundle(run_edge: Callable[..., Any], tiny_bundle: Path):
    weights = tiny_bundle / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert_refused(run_edge("inspect", str(tiny_bundle)), "weights.safetensors", "truncated")


def test_altered_bundle(run_edge: Callable[..., Any], tiny_bundle: Path):
    weights = tiny_bundle / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-200] ^= 1
    weights.write_bytes(data)
    assert_refused(run_edge("inspect", str(tiny_bundle)), "weights.safetensors", "checksum")


def test_bundle_of_a_newer_version(run_edge: Callable[..., Any], tiny_bundle: Path):
    manifest = json.loads((tiny_bundle / "manifest.json").read_text())
    (tiny_bundle / "manifest.json").write_text(json.dumps({**manifest, "version": 99}))
    assert_refused(run_edge("inspect", str(tiny_bundle)), "99", "update")


def test_bundle_cannot_be_quantized_again(run_edge: Callable[..., Any], tiny_bundle: Path):
    assert_refused(run_edge("inspect", str(tiny_bundle), "--quantize", "int8"), "bundle")


@pytest.mark.parametrize("text", ["missing", "folder", "binary", "empty"])
def test_text_of_an_evaluation(run_edge: Callable[..., Any], smollm2: str, tmp_path: Path, text: str):
    (tmp_path / "folder").mkdir()
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "empty").write_bytes(b"")
    process = run_edge("eval", "perplexity", smollm2, "--text", str(tmp_path / text))
    assert_refused(process, *(() if text == "empty" else (text,)))


@pytest.mark.parametrize(
    ("option", "code"),
    [
        (("--window", "9000"), 1),
        (("--window", "1"), 2),
        (("--stride", "3000"), 1),
        (("--stride", "0"), 2),
        (("--limit", "0"), 2),
    ],
)
def test_settings_of_an_evaluation(
    run_edge: Callable[..., Any], smollm2: str, tmp_path: Path, option: tuple[str, str], code: int
):
    (tmp_path / "text").write_text("Some words to score.")
    process = run_edge("eval", "perplexity", smollm2, "--text", str(tmp_path / "text"), *option)
    assert_refused(process, option[0].strip("-"), code=code)


def test_inspect_beyond_the_trained_context(run_edge: Callable[..., Any], smollm2: str):
    assert_refused(run_edge("inspect", smollm2, "--context", "8193"), "8193", "8192", "--rope-override")


@pytest.mark.parametrize(
    "line", ["/load nothing.json", "/load conftest.py", "/save", "/save /no/folder/x", "/dance"]
)
def test_commands_in_a_pipe(run_edge: Callable[..., Any], smollm2: str, line: str):
    """What can't be done is said, and the conversation goes on."""
    options = ("--temperature", "0", "--max-tokens", "4")
    folder = Path(__file__).parent
    process = run_edge("chat", smollm2, *options, stdin=f"{line}\nHello\n{line}\n", cwd=folder)
    assert process.returncode == 1
    assert process.stdout == run_edge("chat", smollm2, *options, stdin="Hello\n").stdout != ""
    errors = [text for text in process.stderr.splitlines() if text.startswith("Error: ")]
    assert len(errors) == 2
    assert line.split()[-1] in errors[0]


def test_json_needs_messages(run_edge: Callable[..., Any], smollm2: str):
    process = run_edge("chat", smollm2, "--json", "--context", "8", stdin="Hello there\n")
    assert_refused(process, "the context holds 8")


def test_unwritable_cache(run_edge: Callable[..., Any], tiny_checkpoint, environment: dict[str, str]):
    environment["EDGE_CACHE"] = "/proc/no-such-folder"
    assert_refused(run_edge("inspect", str(tiny_checkpoint())), "EDGE_CACHE")


def test_unknown_cache_entry(run_edge: Callable[..., Any], environment: dict[str, str], tmp_path: Path):
    environment["EDGE_CACHE"] = str(tmp_path / "cache")
    assert_refused(run_edge("cache", "remove", "no-such-model"), "no-such-model", "edge cache list")


@pytest.mark.parametrize("place", ["before", "after"])
def test_debug_shows_the_traceback(run_edge: Callable[..., Any], place: str):
    command = (
        ("--debug", "inspect", "./nothing") if place == "before" else ("inspect", "./nothing", "--debug")
    )
    process = run_edge(*command)
    assert process.returncode == 1
    assert "Traceback" in process.stderr
    assert process.stderr.splitlines()[-1].startswith("Error: ")


def test_unexpected_errors_ask_for_debug(capsys: pytest.CaptureFixture[str]):
    from edge.apps.cli.errors import run_safely

    def broken() -> None:
        raise KeyError("surprise")

    assert run_safely(broken, lambda: False) == 1
    assert "--debug" in capsys.readouterr().err
    assert run_safely(broken, lambda: True) == 1
    assert "Traceback" in capsys.readouterr().err


def test_messages_are_one_line(capsys: pytest.CaptureFixture[str]):
    from edge.apps.cli.errors import run_safely

    def fails() -> None:
        raise EdgeError("first\nsecond [bold]third[/bold]")

    assert run_safely(fails, lambda: False) == 1
    assert capsys.readouterr().err == "Error: first second [bold]third[/bold]\n"


def test_full_disk(edge_script: str, environment: dict[str, str], smollm2: str):
    """An answer that can't be written is an error, even if the last bytes of it are the first to fail."""
    if not Path("/dev/full").exists():
        pytest.skip("needs Linux's /dev/full")
    command = [edge_script, "chat", smollm2, "--prompt", "Hi", "--max-tokens", "4", "--json"]
    with Path("/dev/full").open("w") as full:
        process = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, env=environment, encoding="utf-8"
        )
    assert process.returncode == 1
    assert process.stderr == "Error: The system refused: No space left on device.\n"


def test_closed_streams(edge_script: str, environment: dict[str, str], smollm2: str):
    for redirection in ("<&-", ">&-"):
        command = f'"{edge_script}" chat {smollm2} --prompt Hi --max-tokens 4 --stop "#" {redirection}'
        process = subprocess.run(
            ["sh", "-c", command], env=environment, capture_output=True, encoding="utf-8"
        )
        assert process.returncode == 0
        assert "Error" not in process.stderr


def start(script: str, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    command = [
        script,
        "chat",
        "smollm2-135m",
        "--prompt",
        "Tell a very long story.",
        "--logit-bias",
        "2=-inf",
    ]
    # A shell starts background jobs with SIGINT ignored, and that is inherited.
    listening = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, preexec_fn=listening
    )


def test_interrupt_ends_a_single_answer(edge_script: str, environment: dict[str, str], smollm2: str):
    process = start(edge_script, environment)
    assert process.stdout is not None
    process.stdout.read(20)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert errors == b"Error: Interrupted.\n"


def test_reader_that_goes_away(edge_script: str, environment: dict[str, str], smollm2: str):
    process = start(edge_script, environment)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.read(20)
    process.stdout.close()
    started = time.monotonic()
    assert process.wait(timeout=20) == 1
    assert time.monotonic() - started < 20
    assert process.stderr.read() == b""
    process.stderr.close()
