"""MiniCPM4.1 and MiniCPM5 from a folder with their published fields, in a small shape: from the files to
thinking, calls, settings and the end of an answer.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import edge
from edge.engine.constraints.grammar import Grammar
from edge.engine.request import Request
from edge.measure.inspection import inspect_model
from edge.runtime import Model
from edge.text.messages import REQUIRED, Message, Tool
from edge.text.reply import CallEnd, ContentText, ReasoningText, joined
from tests.published import PUBLISHED, SETTINGS, write_folder

ASKED = Message("user", "Is it nice?")
CHOICE = {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"]}
WEATHER = Tool("weather", "The weather.", CHOICE)


@pytest.fixture(scope="module", params=["minicpm4.1-8b", "minicpm5-1b", "minicpm5-2b"])
def named(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Model]]:
    root = tmp_path_factory.mktemp("version")
    folder = write_folder(root / "model", request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGE_CACHE", str(root / "cache"))
        with edge.load(folder, quantize="source", context=2048, threads=1) as model:
            yield request.param, model


def text_of(model: Model, ids: tuple[int, ...]) -> str:
    return model.tokenizer.decode(ids, skip_special=False)


def test_what_is_read(named: tuple[str, Model]) -> None:
    name, model = named
    config, fields = model.config, PUBLISHED[name]
    facts = inspect_model(model.files)
    assert facts.thinking and facts.chat_template and facts.config == config
    assert config.max_position_embeddings == facts.memory.context == fields["max_position_embeddings"]
    assert config.rope.type == ("longrope" if name == "minicpm4.1-8b" else "default")
    assert config.rope.theta == (1e4 if name == "minicpm4.1-8b" else 5e6)
    assert not config.tie_word_embeddings and config.has_mup_scales == (name == "minicpm4.1-8b")
    chosen = model.chat().chosen_settings().sampling
    assert (chosen.temperature, chosen.top_p) == (SETTINGS["temperature"], SETTINGS["top_p"])
    special = model.tokenizer.special_tokens
    assert [*model.tokenizer.end_tokens] == [special["</s>"], special["<|im_end|>"]]


def test_the_switch_of_thinking(named: tuple[str, Model]) -> None:
    """MiniCPM4.1's template leaves it to the model, unless it is switched off."""
    name, model = named
    ends = {
        thinking: text_of(model, model.prepare(Request((ASKED,), thinking=thinking)).prompt).rpartition(
            "assistant"
        )[2]
        for thinking in (None, True, False)
    }
    open_ = "\n" if name == "minicpm4.1-8b" else "\n<think>\n"
    assert ends == {None: open_, True: open_, False: "\n<think>\n\n</think>\n\n"}
    begun = "<think>\n" if name == "minicpm4.1-8b" else ""
    parser = model.prepare(Request((ASKED,))).parser()
    parts = [*parser.push(f"{begun}Hm.\n</think>\n\nYes."), *parser.finish()]
    assert joined(parts) == [ReasoningText("Hm."), ContentText("Yes.")]
    said = Message("user", "Is it nice? /no_think")  # the model knows that word, the template does not
    assert "nice? /no_think<|im_end|>" in text_of(model, model.prepare(Request((said,))).prompt)


def test_a_spent_limit_and_a_budget(named: tuple[str, Model]) -> None:
    """An answer that only thinks says so, and a budget ends its thinking. The weights have learnt nothing:
    what is open stays open, and what they write begins with thinking where a form makes it.
    """
    name, model = named
    special = model.tokenizer.special_tokens
    line = model.tokenizer.encode("\n", add_bos=False)
    never = dict.fromkeys((*model.tokenizer.end_tokens, *line, special.get("</think>", 0)), -100.0)
    settings = {"seed": 3, "max_new_tokens": 60, "logit_bias": never}
    form = None
    if name == "minicpm4.1-8b":  # its marks are plain text, and the model begins by itself
        form = Grammar.regex(r"<think>[a-z]{6,}\n</think>\n\n[a-z]{40}")
    done = model.reply(Request((ASKED,), grammar=form, settings=settings)).result
    assert (done.stop_reason, done.content) == ("length", "") and len(done.reasoning or "") > 20
    assert done.note == "The answer ended while it was thinking: allow more tokens, or a thinking_budget."
    done = model.reply(Request((ASKED,), grammar=form, thinking_budget=8, settings=settings)).result
    closing = model.tokenizer.encode("\n</think>", add_bos=False, parse_special=True)
    begun = len("<think>") if form else 0  # a token for each letter
    assert [*done.tokens[begun + 8 :][: len(closing)]] == closing
    assert done.content and done.note is None
    if form is None:
        chat = model.chat(thinking_budget=8, **settings)
        for _ in range(2):
            done = chat.send("Is it nice?")
            assert [*done.tokens[8 : 8 + len(closing)]] == closing and done.content


def test_calls_keep_their_control_tokens(named: tuple[str, Model]) -> None:
    """MiniCPM5's tags of calls are control tokens, which other text does not show."""
    name, model = named
    settings = {"seed": 2, "max_new_tokens": 120}
    request = Request((ASKED,), (WEATHER,), REQUIRED, False, thinking=False, settings=settings)
    stream = model.reply(request)
    parts = joined([part for chunk in stream for part in chunk.parts])
    done = stream.result
    assert (
        [call.name for call in done.calls] == ["weather"] and done.content == "" and done.stop_reason == "eos"
    )
    assert done.calls[0].arguments in ({"city": "Rome"}, {"city": "Oslo"})
    (end,) = (part for part in parts if isinstance(part, CallEnd))
    assert end.call.arguments == done.calls[0].arguments
    if name == "minicpm4.1-8b":  # its template knows no tools
        assert done.text.startswith("<tool_call>")
        return
    city = done.calls[0].arguments["city"]
    assert done.text == f'<function name="weather"><param name="city">{city}</param></function>'
    special = model.tokenizer.special_tokens
    tags = [special[tag] for tag in ("<function", "<param", "</param>", "</function>")]
    assert [token for token in done.tokens if token in tags] == tags
    # The next turn has them again, as tokens.
    called = Message("assistant", "", done.tokens, calls=done.calls)
    result = Message("tool", "Sunny.", call_id=done.calls[0].id, name="weather")
    again = model.prepare(Request((ASKED, called, result), (WEATHER,))).prompt
    assert [token for token in again if token in tags][-4:] == tags
