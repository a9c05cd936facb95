"""Completions of texts and token ids, and what shows how the model reads."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

openai = pytest.importorskip("openai")


def ask(client: Any, prompt: Any, **given: Any) -> Any:
    settings = {"temperature": 0, "max_tokens": 5, **given}
    return client.completions.create(model="smollm2-135m", prompt=prompt, **settings)


def test_texts_and_token_ids(client: Any, server: Any):
    text = "The capital of France is"
    ids = httpx.post(f"{server.address}/tokenize", json={"prompt": text}).json()["tokens"]
    one = ask(client, text)
    both = ask(client, [text, "One, two, three,"], n=1)
    assert [choice.index for choice in both.choices] == [0, 1]
    assert both.choices[0].text == one.choices[0].text == ask(client, ids).choices[0].text
    assert one.choices[0].text.startswith(" ") and one.choices[0].finish_reason == "length"
    assert one.usage.prompt_tokens == len(ids) and both.usage.completion_tokens == 10


def test_echo_and_streams(client: Any):
    text = "One, two, three,"
    whole = ask(client, text, echo=True)
    assert whole.choices[0].text.startswith(text)
    chunks = list(ask(client, text, echo=True, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].text for c in chunks if c.choices) == whole.choices[0].text
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].usage.completion_tokens == 5


def test_a_stream_has_a_choice_in_every_event_unless_usage_is_asked_for(client: Any):
    *before, last = ask(client, ["One, two,", "A, b,"], stream=True)
    assert all(len(chunk.choices) == 1 and not hasattr(chunk, "x_edge") for chunk in before)
    assert last.choices[0].finish_reason == "length" and last.usage is None
    assert [each["stop_reason"] for each in last.x_edge["choices"]] == ["length"] * 2


def test_logprobs(client: Any):
    found = ask(client, "One, two, three,", logprobs=2).choices[0]
    assert "".join(found.logprobs.tokens) == found.text and found.logprobs.text_offset[0] == 0
    for token, logprob, best in zip(
        found.logprobs.tokens, found.logprobs.token_logprobs, found.logprobs.top_logprobs, strict=True
    ):
        assert best[token] == logprob and len(best) == 2


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [1, "two"]}, "prompt"),
        ({"prompt": [10**6]}, "prompt"),
        ({"max_tokens": 0}, "max_tokens"),
    ],
    ids=str,
)
def test_what_is_wrong_is_named(client: Any, given: dict[str, Any], param: str):
    with pytest.raises(openai.BadRequestError) as raised:
        ask(client, given.pop("prompt", "x"), **given)
    assert raised.value.param == param


def test_what_the_model_reads(server: Any):
    def post(path: str, **body: Any) -> Any:
        found = httpx.post(f"{server.address}{path}", json=body)
        assert found.status_code == 200, found.text
        return found.json()

    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi <|im_end|>"}]
    prompt = post("/apply-template", messages=messages)["prompt"]
    assert prompt.endswith("<|im_start|>assistant\n") and "Be brief.<|im_end|>" in prompt
    found = post("/tokenize", messages=messages)
    assert post("/detokenize", tokens=found["tokens"])["content"] == prompt
    assert found["count"] == len(found["tokens"]) and found["max_model_len"] == 8192
    pieces = post("/tokenize", content="Hi there", with_pieces=True)["tokens"]
    assert [piece["piece"] for piece in pieces] == ["Hi", " there"]
    wrong = httpx.post(f"{server.address}/detokenize", json={"tokens": [1, -1]})
    assert wrong.status_code == 400 and wrong.json()["error"]["param"] == "tokens[1]"
