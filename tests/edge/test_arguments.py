"""Wrong arguments of the Python API: one sentence each, and no number is cut or wrapped on its way to C."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edge
from edge.engine.session import Session
from edge.errors import CheckpointError, ConfigError, EdgeError, NativeError, TokenizerError, WrongTypeError
from edge.executors.native import library as native
from edge.executors.native import operators
from edge.executors.options import RunOptions
from edge.text.prompts import Message
from tests.steps import forward, memory_of

GREEDY = {"temperature": 0, "max_new_tokens": 3}
WRAPPING = [2**31, 2**32 + 1, 2**33 + 1, 2**63, 2**64 + 1, -(2**32) + 1]
NO_INTEGER = [1.0, 1.7, True, "5", None, [1], np.float32(2), np.True_, 1j]


@pytest.mark.parametrize(
    "prompt",
    [
        *(b"text", bytearray(b"text"), None, 5, 1.5, {5: 6}, {5, 6}, Path()),
        *([1.7], [1.0], ["5"], ["text"], [True], [None], [[5, 6]], [5, np.float32(6)], [5, np.True_]),
        *(np.array([1.0, 2.0]), np.array([True]), np.array([[5, 6]]), np.array(5), np.array(["5"])),
        [{"role": "user", "content": "Hi"}],
    ],
    ids=repr,
)
def test_a_prompt_is_a_text_or_token_ids(smollm2, prompt):
    with pytest.raises(WrongTypeError) as raised:
        smollm2.complete(prompt, **GREEDY)
    assert isinstance(raised.value, TypeError) and isinstance(raised.value, EdgeError)
    assert str(raised.value).startswith("A prompt is a text or a list of token ids")


def test_integers_of_every_kind_are_token_ids(smollm2):
    ids = smollm2.tokenizer.encode("The capital of France is")
    wanted = smollm2.complete(ids, **GREEDY).tokens
    forms: list[Any] = [tuple(ids), [np.int64(i) for i in ids], [np.uint16(i) for i in ids]]
    forms += [np.array(ids, kind) for kind in (np.int32, np.int64, np.uint64, np.uint16, ">i4")]
    for form in forms:
        assert smollm2.complete(form, **GREEDY).tokens == wanted
    assert smollm2.complete(range(5, 9), **GREEDY).prompt_tokens == 4


@pytest.mark.parametrize("token", WRAPPING)
def test_token_ids_do_not_wrap(smollm2, tiny_executor, token):
    for prompt in ([5, token], np.array([5, token], object if abs(token) >= 2**63 else np.int64)):
        with pytest.raises(EdgeError):
            smollm2.complete(prompt, **GREEDY)
    session = Session(tiny_executor)
    for call in (session.step, lambda t: session.prefill([t]), lambda t: session.shared_prefix([t])):
        with pytest.raises(TokenizerError, match="far outside the vocabulary"):
            call(token)
    with pytest.raises(TokenizerError):
        forward(tiny_executor, tiny_executor.new_cache(), [token])


@pytest.mark.parametrize("number", [*WRAPPING, *NO_INTEGER], ids=repr)
def test_lengths_and_rows_do_not_wrap(tiny_executor, number):
    executor, cache = tiny_executor, tiny_executor.new_cache()
    forward(executor, cache, [5, 9, 33, 2, 61])
    memory = memory_of(executor, cache)
    calls = [
        lambda: executor.truncate(cache, number),
        lambda: executor.keep(cache, number, []),
        lambda: executor.keep(cache, 1, [number]),
        lambda: executor.repeat(cache, number),
        lambda: executor.restore(cache, number, memory),
        lambda: forward(executor, cache, [7], layers=[number]),
        lambda: forward(executor, cache, [7], positions=np.array([number])),
        lambda: forward(executor, cache, [7], tree=np.array([number])),
    ]
    for at, call in enumerate(calls):
        if at == 7 and type(number) is int and number == 2**63:
            continue  # a tree's mask has 64 bits; its meaning is refused elsewhere
        with pytest.raises(EdgeError):
            call()
        assert cache.length == 5
    session = Session(executor)
    session.prefill([5, 9, 33])
    if type(number) is int and 0 < number < 2**63:
        session.truncate(number)  # nothing is that long
    else:
        with pytest.raises(EdgeError):
            session.truncate(number)
    assert session.length == 3


FUNCTIONS = [
    (name, at)
    for table in (
        {name: arguments for name, (_, arguments) in native._FUNCTIONS.items()},
        operators._FUNCTIONS,
    )
    for name, arguments in table.items()
    for at, kind in enumerate(arguments)
    if kind in native._INTEGERS
]


def test_every_integer_of_the_c_interface_is_checked():
    """No call reaches the library: the check comes first."""
    operators._library()
    assert len(FUNCTIONS) > 30
    for name, at in FUNCTIONS:
        for value in (2**64, -(2**63) - 1, 1.5, None, "1"):
            with pytest.raises(NativeError, match=f"{name}'s argument {at + 1} must be a whole number"):
                getattr(native.library(), name)(*(value if i == at else 0 for i in range(14)))


def test_every_integer_of_a_structure_is_checked():
    records = [
        native.Matrix,
        native.Sparse,
        native.Config,
        native.Weight,
        native.Step,
        native.Sampling,
        native.Draw,
    ]
    for record in (*records, operators.LayerCache):
        integers = [name for name, kind, *_ in record._fields_ if kind in native._INTEGERS]
        assert integers
        for name in integers:
            for value in (2**64, -(2**63) - 1, 1.5):
                with pytest.raises(NativeError, match=rf"{record.__name__}\.{name} must be a whole number"):
                    record(**{name: value})
    with pytest.raises(NativeError, match=r"Weight\.layer"):
        native.Weight(0, 2**31)


@pytest.mark.parametrize("options", [{"max_batch": 0}, {"max_batch": 1.5}, {"max_batch": True}, {"tier": 5}])
def test_options_without_a_flag_are_checked_too(options):
    with pytest.raises(EdgeError, match=next(iter(options))):
        RunOptions(**options)


@pytest.mark.parametrize("model", [None, 5, b"smollm2-135m", ["smollm2-135m"], "a\0b"])
def test_a_model_is_a_name(model):
    with pytest.raises(WrongTypeError, match="A model is named by"):
        edge.load(model)


def test_an_empty_name_is_not_the_current_folder():
    with pytest.raises(CheckpointError, match="Unknown model ''"):
        edge.load("")


@pytest.mark.parametrize(
    ("message", "word"),
    [
        (None, "not None"),
        (b"Hi", "not the bytes"),
        (5, "not the int 5"),
        ({"role": "user", "content": "Hi"}, "a list of messages, not the dict"),
        (["Hi"], "an object with role and content, not the str 'Hi'"),
        ([{"role": "root", "content": "Hi"}], "role 'root'; choose one of system, user"),
        ([{"content": "Hi"}], "role None"),
        ([{"role": ["user"], "content": "Hi"}], r"role \['user'\]"),
        ([{"role": "user"}], "content of the user's message must be a text, not None"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "'image_url'; this model"),
        ([{"role": "user", "content": "Hi", "images": ["x"]}], "'images', which means nothing"),
        ([Message("user", 5)], "must be a text"),  # type: ignore[arg-type]
        ([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}], "the assistant's"),
        ([{"role": "system", "content": "Be brief."}], "empty"),
        ([], "empty"),
        ("", "empty"),
    ],
    ids=repr,
)
def test_what_is_no_message_is_refused(smollm2, message, word):
    chat = smollm2.chat()
    with pytest.raises(EdgeError, match=word):
        chat.send(message)
    assert chat.messages == () and chat.system is None


@pytest.mark.parametrize(
    "change",
    [
        lambda chat: setattr(chat, "system", b"x"),
        lambda chat: setattr(chat, "system", 5),
        lambda chat: setattr(chat, "messages", "Hi"),
        lambda chat: setattr(chat, "messages", [{"role": "user"}]),
        lambda chat: setattr(chat, "messages", None),
    ],
)
def test_a_conversation_of_wrong_types_is_refused(smollm2, change):
    chat = smollm2.chat("Be brief.", max_new_tokens=1)
    chat.send("Hi")
    with pytest.raises(WrongTypeError):
        change(chat)
    assert chat.system == "Be brief." and len(chat.messages) == 2


@pytest.mark.parametrize(
    "call",
    [
        lambda model: model.chat(system=5),
        lambda model: model.chat(thinking="yes"),
        lambda model: model.chat(thinking_budget="5"),
        lambda model: model.chat(thinking_budget=-1),
        lambda model: model.stream("Hi", session="mine"),
        lambda model: edge.load("smollm2-135m", rope_override=5),
    ],
)
def test_other_arguments_of_wrong_types(smollm2, call):
    with pytest.raises(WrongTypeError):
        call(smollm2)


@pytest.mark.parametrize("path", [None, 5, b"file", "a\0b"], ids=repr)
def test_a_file_is_named_by_a_path(smollm2, path):
    for use in (smollm2.chat().save, smollm2.chat().load, smollm2.session().save, smollm2.session().load):
        with pytest.raises(WrongTypeError, match="A file is named by a text or a path"):
            use(path)


def test_a_session_of_another_model_is_refused(smollm2, tiny_executor):
    with pytest.raises(EdgeError, match="belongs to another model"):
        smollm2.stream("Hi", session=Session(tiny_executor))


def test_numbers_of_numpy_are_settings(smollm2, tmp_path):
    settings: dict[str, Any] = {
        **{"temperature": np.float32(0.5), "top_k": np.int64(7), "seed": np.uint8(3), "do_sample": np.True_},
        **{"max_new_tokens": np.int32(3), "logit_bias": {np.int64(5): np.float64(1)}, "eos": [np.int64(2)]},
    }
    plain = {"temperature": 0.5, "top_k": 7, "seed": 3, "max_new_tokens": 3, "logit_bias": {5: 1.0}}
    assert smollm2.complete("Hi", **settings).tokens == smollm2.complete("Hi", **plain).tokens
    chat = smollm2.chat(**settings)
    chat.save(tmp_path / "chat.json")
    smollm2.chat().load(tmp_path / "chat.json")
    with pytest.raises(EdgeError, match="top_k must be a whole number"):
        smollm2.complete("Hi", top_k=np.float32(2))
    with pytest.raises(EdgeError, match=r"no token '99999999'"):
        smollm2.complete("Hi", eos_token_id=99999999)
    with pytest.raises(EdgeError, match="eos_token_id must be a token id"):
        smollm2.complete("Hi", eos_token_id=True)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("{", "not valid JSON"),
        ('{"factor": 2, "factor": 4}', "gives 'factor' two values"),
        ("{" * 99, "not valid JSON"),
        ("nowhere.json", "neither a JSON object nor a file"),
    ],
)
def test_a_rope_override_is_read_before_the_model(override, said):
    with pytest.raises(ConfigError, match=said):
        edge.load("nowhere", rope_override=override)


HISTORY = [
    {"role": "system", "content": "You are a pirate."},
    {"role": "user", "content": "Name a colour."},
    {"role": "assistant", "content": "Red."},
    {"role": "user", "content": "And another?"},
]


def test_a_list_of_messages_is_the_conversation(smollm2):
    """Sent at once, set and continued, or said turn by turn: the model reads the same prompt."""
    sent = smollm2.chat(**GREEDY)
    done = sent.send(HISTORY)
    assert sent.system == "You are a pirate."
    assert [(m.role, m.content) for m in sent.messages] == [
        *((m["role"], m["content"]) for m in HISTORY[1:]),
        ("assistant", done.text),
    ]
    prompt = smollm2.tokenizer.decode(sent.session.tokens[: done.prompt_tokens].tolist(), skip_special=False)
    assert prompt == smollm2.chat_template.render(HISTORY, add_generation_prompt=True)
    continued = smollm2.chat(**GREEDY)
    continued.messages = HISTORY[:3]
    assert continued.send("And another?").tokens == done.tokens
    assert continued.system == sent.system and continued.messages == sent.messages
    copied = smollm2.chat(**GREEDY)
    copied.messages = sent.messages
    assert copied.system is None and [m.content for m in copied.messages] == [
        m.content for m in sent.messages
    ]
    assert all(message.tokens is None for message in copied.messages)  # they might be another model's


def test_two_system_prompts_contradict(smollm2):
    chat = smollm2.chat("Be brief.", **GREEDY)
    with pytest.raises(EdgeError, match="has a system prompt, and the messages begin with another"):
        chat.send(HISTORY)
    assert chat.send([{"role": "system", "content": "Be brief."}, *HISTORY[1:]]).tokens
    assert len(chat.messages) == 4
