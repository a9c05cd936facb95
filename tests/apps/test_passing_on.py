"""What commands pass on to the functions that do the work, and how they show what these return."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from edge.apps.chat.views import stop_note
from edge.apps.cli.errors import _sentence, _wrapped, run_safely
from edge.apps.cli.loading import keywords, naming_flags
from edge.apps.cli.terminal import print_json, printable, state_folder
from edge.errors import ConfigError, ContextError
from edge.executors.options import RunOptions
from edge.hub.options import SourceOptions
from edge.measure.divergence import Divergence
from edge.measure.perplexity import PerplexityResult


class Loaded:
    """A model that is never run."""

    attention = "dense"

    def __init__(self, source, run):
        self.source, self.run = source, run
        info = {"activations": run.activations, "kv_type": run.kv_type, "name": run.executor or "native"}
        self.executor = SimpleNamespace(info=SimpleNamespace(**info))

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None


@pytest.fixture
def calls(monkeypatch):
    """What was loaded, and how it was measured."""
    found = SimpleNamespace(loaded=[], measured=None)

    def load(model, source, run, rope_override=None):
        found.loaded.append((model, source, run, rope_override))
        return Loaded(source, run)

    def perplexity(model, text, *, progress, **options):
        found.measured = (text, options)
        return PerplexityResult(12.345678, 2.5, 300, "a protocol", 2.0)

    def divergence(a, b, text, **options):
        found.measured = (a.source.quantize, b.source.quantize, text, options)
        numbers = (0.0012345, 0.001, 0.002, 0.003, 0.5, 0.98765, 10.5, 11.25, 99)
        return Divergence(*numbers, "a protocol", 1.0)

    monkeypatch.setattr("edge.apps.evaluate.load_model", load)
    monkeypatch.setattr("edge.measure.perplexity.perplexity", perplexity)
    monkeypatch.setattr("edge.measure.divergence.divergence", divergence)
    return found


def test_perplexity(calls, run_inside, tmp_path):
    text = tmp_path / "text"
    text.write_text("été")
    command = ("eval", "perplexity", "some", "--text", str(text))
    page = run_inside(*command)
    assert calls.measured == ("été", {"window": None, "stride": None, "bos": False, "max_tokens": None})
    assert calls.loaded == [("some", SourceOptions(), RunOptions(), None)]
    assert page.stdout.splitlines() == [
        "Perplexity 12.3457 (2.50000 nats per token)",
        "Protocol: a protocol",
        "Arithmetic: auto activations, auto KV cache, attention dense",
        "150 tokens/s",
    ]
    more = ("--window", "9", "--stride", "4", "--bos", "--limit", "7", "--kv", "int8", "--json")
    found = json.loads(run_inside(*command, *more, "--quantize", "int4", "--rope-override", "{}").stdout)
    assert calls.measured[1] == {"window": 9, "stride": 4, "bos": True, "max_tokens": 7}
    assert calls.loaded[1] == ("some", SourceOptions(quantize="int4"), RunOptions(kv_type="int8"), "{}")
    assert (found["perplexity"], found["tokens"], found["kv_type"], found["schema"]) == (
        12.345678,
        300,
        "int8",
        1,
    )
    assert (found["model"], found["text"], found["attention"]) == ("some", str(text), "dense")


def test_compare(calls, run_inside, tmp_path):
    """Each side has its own options; threads are those of both."""
    text = tmp_path / "text"
    text.write_text("words")
    command = ("eval", "compare", "one", "two", "--text", str(text), "--threads", "3")
    sides = (
        "--quantize-a",
        "int8",
        "--kv-a",
        "float32",
        "--activations-b",
        "float32",
        "--executor-b",
        "torch",
    )
    found = json.loads(run_inside(*command, *sides, "--window", "9", "--limit", "7", "--json").stdout)
    assert calls.loaded == [
        ("one", SourceOptions(quantize="int8"), RunOptions(threads=3, kv_type="float32"), None),
        ("two", SourceOptions(), RunOptions(threads=3, activations="float32", executor="torch"), None),
    ]
    assert calls.measured == ("int8", None, "words", {"window": 9, "max_tokens": 7})
    assert (found["a"]["model"], found["a"]["quantize"], found["a"]["kv_type"]) == ("one", "int8", "float32")
    assert (found["b"]["model"], found["b"]["activations"], found["b"]["executor"]) == (
        "two",
        "float32",
        "torch",
    )
    assert (found["perplexity_a"], found["perplexity_b"]) == (10.5, 11.25)
    assert run_inside(*command).stdout.splitlines() == [
        "KL divergence 0.00123 (p50 0.00100, p90 0.00200, p99 0.00300, max 0.5000)",
        "Top-1 agreement 98.77%",
        "Perplexity: A 10.5000, B 11.2500",
        "Protocol: a protocol",
    ]


def test_texts_that_can_not_be_read(calls, run_inside, tmp_path):
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x80")
    for name, words in (("bytes", "is not a UTF-8 text"), ("absent", "No such file")):
        run = run_inside("eval", "perplexity", "some", "--text", str(tmp_path / name))
        assert run.returncode == 1 and words in run.stderr and name in run.stderr
    assert calls.loaded == []


def trace(path, *sketches, shape=(1, 2), layer=0):
    """A trace of the operators `o` of so many calls."""
    events = [
        {
            **{"name": "o", "ts": 1, "dur": 1, "tid": 1},
            "args": {
                **{"call": call, "layer": layer},
                "checksum": {"shape": shape, "norm": 4.0, "sketch": [sketch]},
            },
        }
        for call, sketch in enumerate(sketches, 1)
    ]
    path.write_text(json.dumps({"traceEvents": events}))
    return str(path)


def test_align(run_inside, tmp_path):
    a, b = trace(tmp_path / "a", 4.0, 4.0), trace(tmp_path / "b", 4.0, 3.0)
    differ = run_inside("align", a, b)
    assert differ.returncode == 1
    assert "First difference: o of layer 0 in call 2: 0.25 of its norm" in differ.stdout
    assert "Largest difference: o of layer 0 in call 2: 0.25 of its norm" in differ.stdout
    found = json.loads(run_inside("align", a, b, "--json").stdout)
    assert found["first"] == found["worst"]
    assert (found["first"]["call"], found["first"]["difference"], found["stages"]) == (2, 0.25, 2)
    for more in ((), ("--json",)):
        assert run_inside("align", a, b, *more).returncode == 1
        assert run_inside("align", a, b, "--tolerance", "0.25", *more).returncode == 0
    close = json.loads(run_inside("align", a, b, "--tolerance", "0.25", "--json").stdout)
    assert (close["tolerance"], close["first"], close["worst"]["difference"]) == (0.25, None, 0.25)
    assert "2 stages agree within 0.25." in run_inside("align", a, b, "--tolerance", "0.25").stdout


def test_align_of_other_shapes(run_inside, tmp_path):
    a, b = trace(tmp_path / "a", 4.0), trace(tmp_path / "b", 4.0, shape=(3, 2))
    run = run_inside("align", a, b)
    assert "o of layer 0 in call 1: shape (1, 2) in A, (3, 2) in B" in run.stdout
    assert json.loads(run_inside("align", a, b, "--json").stdout)["first"]["difference"] is None


@pytest.mark.parametrize(
    ("reason", "note"),
    [
        ("length", "(stopped: the limit of 3 tokens is reached)"),
        ("context", "(stopped: the context of 64 tokens is full; /reset begins anew)"),
        ("cancelled", "(stopped: cancelled)"),
        ("stop", "(stopped: a stop string came up)"),
        ("end", None),
    ],
)
def test_why_an_answer_ended(reason, note):
    done = SimpleNamespace(stop_reason=reason, tokens=[1, 2, 3], is_complete=True, note=None, reasoning=None)
    assert stop_note(done, 64) == note


@pytest.mark.parametrize("reason", ["length", "eos"])
def test_why_nothing_was_said(reason):
    """Of a model that thinks: its limit was spent, or it ended."""
    note = {"length": "The answer ended while it was thinking.", "eos": "It ended."}[reason]
    done = SimpleNamespace(stop_reason=reason, tokens=[1, 2, 3], is_complete=True, note=note, reasoning="Hm.")
    wanted = "(stopped: the limit of 3 tokens is reached; it was still thinking)"
    assert stop_note(done, 64) == (wanted if reason == "length" else "(It ended.)")


def test_lines_as_wide_as_the_terminal():
    assert _wrapped("aaa bbb cc", 7) == "aaa bbb\ncc"
    assert _wrapped("aaa bbb cc", 6) == "aaa\nbbb cc"
    assert _wrapped("aaa bbb cc", 10) == "aaa bbb cc"
    assert _wrapped("a /a/long/path b", 5) == "a\n/a/long/path\nb"
    assert _wrapped("好好 a", 5) == "好好\na" and _wrapped("好好 a", 6) == "好好 a"  # two columns each


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ConfigError("So it is."), "So it is."),
        (OSError(2, "No such file", "x.txt"), "The system refused: No such file ('x.txt')."),
        (OSError(28, "No space left"), "The system refused: No space left."),
        (OSError("odd"), "Something unexpected went wrong (OSError: odd); run this again with --debug"),
        (ZeroDivisionError(), "Something unexpected went wrong (ZeroDivisionError); run"),
        (MemoryError(), "The memory is exhausted; choose a smaller model"),
    ],
)
def test_errors_as_sentences(error, sentence):
    assert _sentence(error).startswith(sentence)


def test_exit_codes(capsys):
    def code(result, debug=False):
        def program():
            if isinstance(result, BaseException):
                raise result
            return result

        return run_safely(program, lambda: debug)

    assert [code(result) for result in (None, 0, 1, 3, "text", math.pi)] == [0, 0, 1, 3, 0, 0]
    assert capsys.readouterr().err == ""
    assert code(130) == 130 and "Interrupted." in capsys.readouterr().err
    assert code(KeyboardInterrupt()) == 130 and "Interrupted." in capsys.readouterr().err
    assert code(ConfigError("Wrong\n it is.")) == 1
    assert capsys.readouterr().err == "Error: Wrong it is.\n"
    assert code(ConfigError("Wrong."), debug=True) == 1 and "Traceback" in capsys.readouterr().err


def test_flags_that_help_are_named():
    with (
        pytest.raises(ContextError, match=r"^Too long \(flags: --context, --quantize\)\.$"),
        naming_flags("--context", "--quantize"),
    ):
        raise ContextError("Too long.")
    with pytest.raises(ConfigError, match=r"^As it is\.$"), naming_flags("--context"):
        raise ConfigError("As it is.")


def test_keywords_are_what_differs_from_the_defaults_or_was_typed(monkeypatch):
    assert keywords(RunOptions()) == {}
    with monkeypatch.context() as patch:
        patch.setattr("edge.apps.cli.loading.given_flags", lambda: {"kv_type": "--kv", "quantize": "-q"})
        assert keywords(RunOptions(context=5)) == {"context": 5, "kv_type": "auto"}
    assert keywords(RunOptions(context=5, mmap=False, kv_type="auto")) == {"context": 5, "mmap": False}


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a\tb\nc", "a\tb\nc"), ("\x1b[31mred\x07", "[31mred"), ("\x00\x08\x0b\x1f\x7f\x9f\ud800\udfff", "")],
)
def test_what_could_steer_a_terminal_is_left_out(text, shown):
    assert printable(text) == shown
    assert printable("\x20\x7e\xa0é\ue000") == "\x20\x7e\xa0é\ue000"


def test_documents_are_one_line_of_json(capsys):
    print_json({"a": [math.inf, -math.inf, math.nan, 1.5], "b": {"c": (math.nan, "\x7f\x9f é\n")}, "d": True})
    line = capsys.readouterr().out
    assert line.count("\n") == 1 and "\\u007f\\u009f" in line
    assert json.loads(line) == {
        **{"a": [None, None, None, 1.5], "b": {"c": [None, "\x7f\x9f é\n"]}},
        "d": True,
    }


@pytest.mark.skipif(sys.platform in ("darwin", "win32"), reason="other systems have other folders")
def test_where_the_history_is(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert state_folder() == tmp_path / "minicpm-edge"
    for unset in ("", None):
        monkeypatch.delenv("XDG_STATE_HOME") if unset is None else monkeypatch.setenv("XDG_STATE_HOME", unset)
        assert state_folder() == Path.home() / ".local" / "state" / "minicpm-edge"
