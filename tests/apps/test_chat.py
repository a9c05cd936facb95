"""`edge chat` without a terminal: one prompt, lines of a pipe, and the JSON document."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import edge
from edge.apps.chat.loop import ChatLoop
from edge.apps.chat.views import PlainView
from edge.errors import ContextError

COMPILER = "Explain what a compiler does."
GREEDY = ("--temperature", "0", "--max-tokens", "24")
FIELDS = {
    "schema": int,
    "model": str,
    "text": str,
    "reasoning": (str, type(None)),
    "content": str,
    "calls": list,
    "stop_reason": str,
    "note": (str, type(None)),
    "is_complete": bool,
    "prompt_tokens": int,
    "reused_tokens": int,
    "completion_tokens": int,
    "ttft_seconds": float,
    "prefill_tokens_per_second": float,
    "tokens_per_second": float,
    "speculation": dict,
    "load_seconds": float,
    "context": int,
    "attention": str,
    "activations": str,
    "kv_type": str,
    "settings": dict,
    "memory": dict,
    "logprobs": (list, type(None)),
}


@pytest.fixture
def ask(run_edge: Callable[..., Any], smollm2: str) -> Callable[..., dict[str, Any]]:
    """The JSON document of one answer, greedy unless the options say otherwise."""

    def ask(prompt: str, *options: str) -> dict[str, Any]:
        process = run_edge("chat", smollm2, "--prompt", prompt, "--json", *GREEDY, *options)
        assert process.returncode == 0, process.stderr
        document: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
        return document

    return ask


def test_one_prompt(run_edge: Callable[..., Any], smollm2: str):
    options = ("--temperature", "0", "--max-tokens", "200")
    process = run_edge("chat", smollm2, "--prompt", COMPILER, *options)
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith("A compiler is")
    assert process.stdout.endswith("\n")
    assert "\x1b" not in process.stdout
    assert process.stderr in ("", "(stopped: the limit of 200 tokens is reached)\n")


def test_end_tokens_and_notes(run_inside: Callable[..., Any], tiny_checkpoint: Callable[..., Path]):
    """The model wants to say <unk>, which ends no answer until somebody says so."""
    folder = tiny_checkpoint()
    (folder / "chat_template.jinja").write_text("{{ messages[-1].content }}")
    (folder / "generation_config.json").write_text(
        '{"do_sample": false, "temperature": 5.0, "eos_token_id": 4}'
    )
    asked = ("chat", str(folder), "--prompt", "Hi", "--json", "--max-tokens", "3", "--logit-bias", "0=1000")
    found, notes = {}, ""
    for options in ((), ("--eos", "<unk>"), ("--eos", "7", "--stop", "<unk>")):
        done = run_inside(*asked, *options)
        assert done.returncode == 0, done.stderr
        notes += done.stderr
        document = json.loads(done.stdout.splitlines()[-1])
        found[options] = document["stop_reason"], document["settings"]["eos_token_ids"]
    assert list(found.values()) == [("length", [2, 4]), ("eos", [0, 2, 4]), ("eos", [0, 2, 4, 7])]
    # Once in a process, as Python's warnings are.
    assert notes.count("Note: generation_config.json has do_sample false beside temperature 5:") == 1

    export = ("export", str(folder), "--to", "bundle", "--dry-run")
    for command in (asked, export):
        refused = run_inside(*command, "--eos", "<nothing>")
        assert refused.returncode == 1 and "has no token '<nothing>'" in refused.stderr
    assert run_inside(*export, "--eos", "<unk>").returncode == 0


def test_a_cache_file_spares_the_prompt(ask, run_edge: Callable[..., Any], smollm2: str, tmp_path: Path):
    file = str(tmp_path / "chat.kv")
    first = ask(COMPILER, "--cache", file)
    again = ask(COMPILER, "--cache", file)
    assert (first["reused_tokens"], again["reused_tokens"]) == (0, first["prompt_tokens"] - 1)
    assert again["text"] == first["text"]
    other = run_edge("chat", smollm2, "--prompt", COMPILER, "--cache", file, "--kv", "float32")
    assert other.returncode == 1
    assert "--kv" in other.stderr


def test_saving_keeps_the_kv_cache_beside_the_conversation(
    run_edge: Callable[..., Any], smollm2: str, tmp_path: Path
):
    file = tmp_path / "talk.json"
    saved = run_edge("chat", smollm2, *GREEDY, stdin=f"{COMPILER}\n/save {file}\n")
    assert "of KV cache" in " ".join(saved.stderr.split())
    loaded = run_edge("chat", smollm2, *GREEDY, stdin=f"/load {file}\n/stats\n")
    remarks = " ".join(loaded.stderr.split())
    assert "are in the KV cache already" in remarks
    assert "arithmetic int16 activations, int16 KV cache sampling greedy" in remarks
    beside = tmp_path / "talk.json.kv"
    beside.write_bytes(beside.read_bytes()[:-1])
    damaged = run_edge("chat", smollm2, *GREEDY, stdin=f"/load {file}\n")
    assert damaged.returncode == 0
    remarks = " ".join(damaged.stderr.split())
    assert "Loaded 2 messages" in remarks and "is damaged" in remarks


def test_the_default_model_needs_no_name(run_edge: Callable[..., Any], smollm2: str):
    assert run_edge("chat", "--prompt", COMPILER, *GREEDY).stdout.startswith("A compiler is")


def test_prompt_from_stdin_is_one_message(run_edge: Callable[..., Any], smollm2: str, ask):
    prompt = "What is the capital of France?\nAnswer with one word.\n"
    process = run_edge("chat", smollm2, "--prompt", "-", *GREEDY, stdin=prompt)
    assert process.stdout == ask(prompt)["text"] + "\n"


def test_json_schema(ask):
    answer = ask(COMPILER)
    assert set(answer) == set(FIELDS)
    for name, kind in FIELDS.items():
        assert isinstance(answer[name], kind), name
    assert answer["stop_reason"] in ("eos", "length")
    assert 0 < answer["completion_tokens"] <= 24
    assert answer["reused_tokens"] == 0
    assert answer["settings"]["temperature"] == 0
    assert answer["settings"]["max_new_tokens"] == 24
    assert (answer["activations"], answer["kv_type"]) == ("int16", "int16")
    assert set(answer["memory"]) == {"weights_bytes", "kv_cache_bytes", "workspace_bytes", "draft_bytes"}


def test_json_document_is_the_last_line_and_the_only_one(run_edge: Callable[..., Any], smollm2: str):
    process = run_edge("chat", smollm2, "--prompt", "Hi", "--json", *GREEDY)
    assert process.stdout.count("\n") == 1


def test_greedy_answers_repeat(ask):
    assert ask("Name three colours.")["text"] == ask("Name three colours.")["text"]


def test_seed_decides_a_sampled_answer(ask):
    def sampled(seed: str) -> str:
        return ask("Tell me a story.", "--temperature", "1", "--seed", seed)["text"]

    assert sampled("7") == sampled("7")
    assert sampled("7") != sampled("8")


def test_stop_string_ends_the_answer(ask):
    whole = ask("Count from one to ten in words.", "--max-tokens", "60")["text"]
    stop = whole[len(whole) // 3 : len(whole) // 3 + 8]
    answer = ask("Count from one to ten in words.", "--max-tokens", "60", "--stop", "#never#", "--stop", stop)
    assert answer["stop_reason"] == "stop"
    assert answer["text"] == whole[: whole.index(stop)]


def test_logit_bias_forbids_a_token(ask):
    first = ask(COMPILER, "--logprobs", "3")["logprobs"][0]
    assert len(first["top"]) == 3
    assert first["top"][0]["token"] == first["token"]
    assert first["top"][0]["logprob"] == first["logprob"] <= 0
    other = ask(COMPILER, "--logprobs", "3", "--logit-bias", f"{first['token']}=-inf")
    assert other["logprobs"][0]["token"] == first["top"][1]["token"]
    assert other["settings"]["logit_bias"] == {str(first["token"]): "-inf"}


def test_system_prompt_reaches_the_model(ask):
    plain = ask("Hello")
    told = ask("Hello", "--system", "You are a pirate captain who always speaks of the sea and of treasure.")
    assert told["prompt_tokens"] != plain["prompt_tokens"]
    assert told["text"] != plain["text"]


def test_exact_arithmetic_can_be_chosen(ask):
    options = ("--activations", "float32", "--kv", "float32", "--threads", "1")
    exact, default = (
        ask(COMPILER, "--logprobs", "0", "--max-tokens", "1", *o)["logprobs"][0] for o in (options, ())
    )
    assert exact["token"] == default["token"]
    assert exact["logprob"] != default["logprob"]
    assert abs(exact["logprob"] - default["logprob"]) < 0.1


def test_lines_of_a_pipe_are_turns_of_one_conversation(run_edge: Callable[..., Any], smollm2: str):
    lines = "My name is Bartholomew.\n\n   \nWhat is my name?\n"
    process = run_edge("chat", smollm2, "--json", *GREEDY, stdin=lines)
    first, second = (json.loads(line) for line in process.stdout.splitlines())
    assert second["prompt_tokens"] > first["prompt_tokens"] + first["completion_tokens"]
    # Everything but the end of the first answer is found in the cache.
    assert second["reused_tokens"] >= first["prompt_tokens"] + first["completion_tokens"] - 1


def test_plain_answers_in_a_pipe(run_edge: Callable[..., Any], smollm2: str, ask):
    process = run_edge(
        "chat", smollm2, *GREEDY, stdin="Explain what a compiler does.\n\n/exit\nNever asked\n"
    )
    assert process.stdout == ask(COMPILER)["text"] + "\n"
    assert "\x1b" not in process.stdout + process.stderr


def test_reset_in_a_pipe(run_edge: Callable[..., Any], smollm2: str):
    process = run_edge("chat", smollm2, "--json", *GREEDY, stdin="Hello\n/reset\nHello\n")
    first, second = (json.loads(line) for line in process.stdout.splitlines())
    assert second["text"] == first["text"]
    assert second["prompt_tokens"] == first["prompt_tokens"]


def test_save_and_load_in_a_pipe(run_edge: Callable[..., Any], smollm2: str, tmp_path: Path):
    path = tmp_path / "chat.json"
    stdin = f"My name is Bartholomew.\n/save {path}\nWhat is my name?\n"
    whole = run_edge("chat", smollm2, "--json", *GREEDY, stdin=stdin)
    again = run_edge("chat", smollm2, "--json", *GREEDY, stdin=f"/load {path}\nWhat is my name?\n")
    expected, continued = (json.loads(process.stdout.splitlines()[-1]) for process in (whole, again))
    assert continued["prompt_tokens"] == expected["prompt_tokens"]
    assert [message["role"] for message in json.loads(path.read_text())["messages"]] == ["user", "assistant"]


def test_flags_are_stronger_than_a_loaded_conversation(
    run_edge: Callable[..., Any], smollm2: str, tmp_path: Path
):
    def system_after_loading(*options: str) -> str:
        stdin = f"/load {tmp_path / 'old.json'}\n/save {tmp_path / 'new.json'}\n"
        assert run_edge("chat", smollm2, *options, stdin=stdin).returncode == 0
        return str(json.loads((tmp_path / "new.json").read_text())["system"])

    run_edge("chat", smollm2, stdin=f"/system You are a pirate.\n/save {tmp_path / 'old.json'}\n")
    assert system_after_loading() == "You are a pirate."
    assert system_after_loading("--system", "You are a nurse.") == "You are a nurse."


def test_two_slashes_send_a_message_with_one(run_edge: Callable[..., Any], smollm2: str, ask, tmp_path: Path):
    path = tmp_path / "chat.json"
    stdin = f"//help is what I need.\n/save {path}\n"
    process = run_edge("chat", smollm2, "--json", *GREEDY, stdin=stdin)
    assert process.returncode == 0, process.stderr
    assert json.loads(path.read_text())["messages"][0]["content"] == "/help is what I need."
    assert json.loads(process.stdout)["text"] == ask("/help is what I need.")["text"]


def test_mapped_weights_give_the_same_answer(ask):
    assert ask(COMPILER, "--mmap")["text"] == ask(COMPILER, "--no-mmap")["text"]


def test_flags_of_a_loop(smollm2_gguf: Path, tmp_path: Path):
    """Typed ones are stronger than a loaded conversation; those that help a full context are named."""
    path = tmp_path / "thinking.json"
    with edge.load(smollm2_gguf, context=64, threads=1) as model:
        saved = model.chat()
        saved.thinking = True
        saved.save(path)
        for typed, thinking in ((None, True), (False, False)):
            chat = model.chat()
            ChatLoop(model, chat, PlainView(64), thinking=typed).enter(f"/load {path}")
            assert chat.thinking is thinking
        for policy, flags in (("stop", "--context, --overflow drop"), ("drop", "--context")):
            loop = ChatLoop(model, model.chat(context_policy=policy), PlainView(64))  # type: ignore[arg-type]
            with pytest.raises(ContextError) as caught:
                loop.enter("sea " * 100)
            assert str(caught.value).endswith(f"(flags: {flags}).")


def test_conversation_that_outgrows_the_context(run_edge: Callable[..., Any], smollm2: str, tmp_path: Path):
    lines = "Tell me about the sea, please.\n" * 6
    options = ("chat", smollm2, "--context", "160", "--max-tokens", "30", "--temperature", "0", "--json")
    stopped = run_edge(*options, "--cache", str(tmp_path / "kv"), stdin=lines)
    assert stopped.returncode == 1
    assert (tmp_path / "kv").is_file(), "what there was of it is kept all the same"
    assert "context" in stopped.stderr
    dropped = run_edge(*options, "--overflow", "drop", stdin=lines)
    assert dropped.returncode == 0, dropped.stderr
    assert len(dropped.stdout.splitlines()) == 6


def test_bytes_that_are_no_text(run_edge: Callable[..., Any], smollm2: str):
    process = run_edge("chat", smollm2, *GREEDY, stdin="What is \udcff\udcfe this?\n")
    assert process.returncode == 0, process.stderr
    assert process.stdout.strip()


def test_output_that_the_locale_cannot_encode(run_edge: Callable[..., Any], environment, smollm2: str):
    environment |= {"PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    process = run_edge("chat", smollm2, "--prompt", "Repeat: 你好 🙂", *GREEDY)
    assert process.returncode == 0, process.stderr


def test_a_line_that_the_tokenizer_panics_on_leaves_the_others(run_edge: Callable[..., Any], tiny_checkpoint):
    """An expression of nested quantifiers makes the tokenizers package panic."""
    folder = tiny_checkpoint()
    document = json.loads((folder / "tokenizer.json").read_text())
    rule = {"type": "Split", "pattern": {"Regex": "(x+x+)+$"}, "behavior": "Isolated", "invert": False}
    parts = [rule, document["pre_tokenizer"]]
    document["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": parts}
    (folder / "tokenizer.json").write_text(json.dumps(document))
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    lines = ["hi", "x" * 60 + "b", "hi", "x" * 70 + "b", "bye"]
    done = run_edge("chat", str(folder), "--max-tokens", "2", "--json", stdin="\n".join(lines))
    assert done.returncode == 1
    assert done.stderr.count("rules in tokenizer.json can't be applied") == 2
    assert "panicked" not in done.stderr and "Traceback" not in done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["completion_tokens"] for answer in answers] == [2, 2, 2]
