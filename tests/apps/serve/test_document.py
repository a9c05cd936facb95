"""The OpenAPI document says what there is, the page's headers keep it to itself, and metrics have names."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest

from edge.apps.serve.app import make_app
from edge.apps.serve.openapi import document


def routed(app: Any) -> set[tuple[str, str]]:
    """Paths and methods of the application's router."""
    while not hasattr(app, "routes"):
        app = app._app
    found = set()
    for route in app.routes:
        found |= {(re.sub(":path}", "}", route.path), method) for method in route.methods - {"HEAD"}}
    return found


class _Served:
    """What making the routes asks for."""

    class options:
        cors = ()

    name = "model"
    listed_names = ("model",)


def test_the_document_has_every_route():
    app = make_app(_Served())  # type: ignore[arg-type]
    said = {
        (path, method.upper())
        for path, each in document(_Served.listed_names)["paths"].items()
        for method in each
    }
    assert said == routed(app)


def test_references_lead_somewhere():
    found = document(_Served.listed_names)
    names = set(re.findall(r"#/components/schemas/(\w+)", repr(found)))
    assert names == set(found["components"]["schemas"])


def test_answers_keep_to_the_document(server: Any):
    validator = pytest.importorskip("jsonschema").Draft202012Validator
    said = httpx.get(f"{server.address}/openapi.json").json()

    def check(response: httpx.Response, schema: str) -> None:
        whole = {"$ref": f"#/components/schemas/{schema}", "components": said["components"]}
        validator(whole).validate(response.json())

    chat = {"model": "default", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
    check(httpx.post(f"{server.address}/v1/chat/completions", json=chat, timeout=60), "ChatCompletion")
    check(
        httpx.post(
            f"{server.address}/v1/completions", json={"model": "default", "prompt": "Hi", "max_tokens": 2}
        ),
        "Completion",
    )
    check(httpx.get(f"{server.address}/v1/models"), "Models")
    check(httpx.get(f"{server.address}/health"), "Health")
    check(httpx.post(f"{server.address}/tokenize", json={"prompt": "Hi"}), "Tokens")
    check(httpx.post(f"{server.address}/detokenize", json={"tokens": [1]}), "Text")
    check(httpx.post(f"{server.address}/apply-template", json=chat), "Prompt")
    check(httpx.get(f"{server.address}/nothing"), "Error")


def test_the_page_may_load_nothing_else(server: Any):
    response = httpx.get(f"{server.address}/")
    assert response.status_code == 200
    if response.headers["content-type"].startswith("text/html"):
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        assert response.headers["x-content-type-options"] == "nosniff"
    assert httpx.get(f"{server.address}/page/nothing.js").status_code == 404


def test_metrics(server: Any):
    text = httpx.get(f"{server.address}/metrics").text
    for name in (
        "num_requests_running",
        "num_requests_waiting",
        "time_to_first_token_seconds_bucket",
        "inter_token_latency_seconds_sum",
        "e2e_request_latency_seconds_count",
        "prompt_tokens_total",
        "generation_tokens_total",
        "prefix_cache_queries_total",
        "prefix_cache_hits_total",
        "spec_decode_num_draft_tokens_total",
        "spec_decode_num_accepted_tokens_total",
    ):
        assert f"edge_{name}{{" in text, name
