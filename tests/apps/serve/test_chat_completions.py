"""Chat completions through OpenAI's own client, which checks the types of what it gets."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

openai = pytest.importorskip("openai")

ASK = {"model": "smollm2-135m", "messages": [{"role": "user", "content": "Name a colour."}], "seed": 1}


def ask(client: Any, **given: Any) -> Any:
    return client.chat.completions.create(**{**ASK, "max_tokens": 8, **given})


def streamed(client: Any, **given: Any) -> tuple[dict[int, str], dict[int, str], list[Any]]:
    """The text and the finish reason of each choice, and all chunks."""
    texts: dict[int, str] = {}
    reasons: dict[int, str] = {}
    chunks = list(ask(client, stream=True, **given))
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
            if choice.finish_reason:
                assert choice.index not in reasons
                reasons[choice.index] = choice.finish_reason
    return texts, reasons, chunks


@pytest.fixture(scope="module")
def whole(client: Any) -> Any:
    return ask(client, temperature=0)


def test_a_whole_answer(client: Any, whole: Any):
    (choice,) = whole.choices
    assert choice.finish_reason == "length" and choice.message.role == "assistant"
    assert whole.id.startswith("chatcmpl-") and whole.model == "smollm2-135m"
    assert whole.system_fingerprint.startswith("edge-")
    usage = whole.usage
    assert (usage.completion_tokens, usage.total_tokens) == (8, usage.prompt_tokens + 8)
    found = whole.x_edge["choices"][0]
    assert found["stop_reason"] == "length" and found["ttft_seconds"] > 0
    assert found["speculation"]["tokens"] == 7


def test_a_stream_is_the_same_text(client: Any, whole: Any):
    texts, reasons, chunks = streamed(client, temperature=0, stream_options={"include_usage": True})
    assert texts == {0: whole.choices[0].message.content} and reasons == {0: "length"}
    assert chunks[0].choices[0].delta.role == "assistant"
    assert len({chunk.id for chunk in chunks}) == 1
    last = chunks[-1]
    assert last.choices == [] and last.usage.completion_tokens == 8
    assert last.usage.prompt_tokens == whole.usage.prompt_tokens
    assert last.x_edge["choices"][0]["stop_reason"] == "length"
    assert all(chunk.usage is None for chunk in chunks[:-1])


@pytest.mark.parametrize("n", [1, 3])
def test_a_stream_has_a_choice_in_every_event_unless_usage_is_asked_for(client: Any, n: int):
    *before, last = streamed(client, n=n)[2]
    assert all(len(chunk.choices) == 1 and not hasattr(chunk, "x_edge") for chunk in before)
    assert last.choices[0].finish_reason == "length" and last.usage is None
    assert [each["stop_reason"] for each in last.x_edge["choices"]] == ["length"] * n


def test_choices_are_numbered_and_repeatable(client: Any):
    found = ask(client, n=3, temperature=1.0)
    texts = {choice.index: choice.message.content for choice in found.choices}
    assert set(texts) == {0, 1, 2} and len(set(texts.values())) > 1
    assert streamed(client, n=3, temperature=1.0)[0] == texts
    assert ask(client, temperature=1.0).choices[0].message.content == texts[0]
    assert found.usage.completion_tokens <= 24


def test_logprobs(client: Any):
    found = ask(client, logprobs=True, top_logprobs=2, temperature=0, max_tokens=4)
    entries = found.choices[0].logprobs.content
    assert "".join(entry.token for entry in entries) == found.choices[0].message.content
    for entry in entries:
        assert bytes(entry.bytes).decode() == entry.token and len(entry.top_logprobs) == 2
        assert entry.top_logprobs[0].token == entry.token and entry.logprob <= 0
        assert entry.top_logprobs[0].logprob >= entry.top_logprobs[1].logprob
    _, _, chunks = streamed(client, logprobs=True, temperature=0, max_tokens=4)
    parts = [c.logprobs.content for chunk in chunks for c in chunk.choices if c.logprobs is not None]
    assert [e.token for part in parts for e in part] == [entry.token for entry in entries]
    assert [e.logprob for part in parts for e in part] == [entry.logprob for entry in entries]


def test_stop_strings(client: Any, whole: Any):
    text = whole.choices[0].message.content
    word = text.split()[1]
    found = ask(client, temperature=0, stop=[word, "never"])
    assert found.choices[0].finish_reason == "stop"
    assert found.choices[0].message.content == text[: text.index(word)]
    assert streamed(client, temperature=0, stop=word)[0] == {0: text[: text.index(word)]}


def test_an_empty_answer_says_why(client: Any, whole: Any):
    found = ask(client, temperature=0, stop=whole.choices[0].message.content[0])
    assert found.choices[0].message.content == ""
    assert found.x_edge["choices"][0]["note"] == "The answer began with a stop string."


def test_settings_reach_the_sampler(client: Any, whole: Any):
    first = ask(client, temperature=0, logprobs=True, max_tokens=1)
    token = client.post("../tokenize", body={"content": first.choices[0].message.content}, cast_to=object)
    (banned,) = token["tokens"]
    found = ask(client, temperature=0, logit_bias={str(banned): -100}, max_tokens=1)
    assert found.choices[0].message.content != first.choices[0].message.content
    greedy = ask(client, temperature=1.0, extra_body={"top_k": 1, "min_p": 0.1})
    assert greedy.choices[0].message.content == whole.choices[0].message.content
    assert ask(client, max_completion_tokens=2).usage.completion_tokens == 2


def test_earlier_turns_are_found_in_the_cache(client: Any):
    said = {"role": "user", "content": "Here are some words to remember. " * 12}
    first = ask(client, messages=[said], max_tokens=4)
    answer = {"role": "assistant", "content": first.choices[0].message.content}
    again = [said, answer, {"role": "user", "content": [{"type": "text", "text": "Which?"}]}]
    second = ask(client, messages=again, max_tokens=2)
    assert second.usage.prompt_tokens_details.cached_tokens >= 64
    assert second.usage.prompt_tokens > first.usage.prompt_tokens


@pytest.mark.parametrize(
    ("given", "param", "code"),
    [
        ({"model": "gpt-4"}, "model", "model_not_found"),
        ({"extra_body": {"model": None}}, "model", "missing_required_parameter"),
        ({"messages": []}, "messages", None),
        ({"messages": [{"role": "poet", "content": "x"}]}, "messages[0]", None),
        ({"messages": [{"role": "user", "content": "long " * 9000}]}, "messages", "context_length_exceeded"),
        ({"n": 99}, "n", None),
        ({"temperature": -1}, "temperature", None),
        ({"top_logprobs": 2}, "top_logprobs", None),
        ({"logit_bias": {"word": 1}}, "logit_bias", None),
        ({"modalities": ["text", "audio"]}, "modalities", "unsupported_parameter"),
        ({"extra_body": {"functions": [{"name": "f"}]}}, "functions", "unsupported_parameter"),
        ({"response_format": {"type": "poem"}}, "response_format.type", None),
        ({"extra_body": {"chat_template_kwargs": {"messages": []}}}, "chat_template_kwargs.messages", None),
        ({"tool_choice": "sometimes"}, "tool_choice", None),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_wrong_is_named(client: Any, given: Any, param: str | None, code: str | None):
    with pytest.raises(openai.APIStatusError) as raised:
        ask(client, **given)
    error = raised.value
    assert (error.status_code, error.param, error.code) == (
        404 if code == "model_not_found" else 400,
        param,
        code,
    )
    assert error.type == "invalid_request_error" and "\n" not in error.message


def test_pictures_are_refused_by_name(client: Any):
    parts = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": "data:,"}}]
    with pytest.raises(openai.BadRequestError, match="reads text only") as raised:
        ask(client, messages=[{"role": "user", "content": parts}])
    assert raised.value.param == "messages[0].content[1]"


def test_models(client: Any):
    names = [model.id for model in client.models.list()]
    assert names == ["smollm2-135m", "default"]
    assert client.models.retrieve("default").id == "default"
    assert ask(client, model="default", max_tokens=1).model == "smollm2-135m"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt/4")


def test_an_answer_that_comes_back_need_not_be_computed_again(server: Any):
    """Also where its text would be encoded to other ids than the model wrote, as in hot samples."""
    for seed in range(3):
        messages = [{"role": "user", "content": f"Invent ten strange words, {seed}."}]
        body = {"model": "default", "messages": messages, "temperature": 2, "seed": seed, "max_tokens": 80}
        first = httpx.post(f"{server.address}/v1/chat/completions", json=body, timeout=60).json()
        messages += [first["choices"][0]["message"], {"role": "user", "content": "More."}]
        again = httpx.post(f"{server.address}/v1/chat/completions", json=body, timeout=60).json()
        cached = again["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert cached >= first["usage"]["prompt_tokens"] + first["usage"]["completion_tokens"] - 2
