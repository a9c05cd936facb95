"""The OpenAPI document at `/openapi.json`: kept by hand, and compared with the routes by a test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edge import __version__
from edge.apps.serve.anthropic import openapi as anthropic
from edge.apps.serve.asking import MOST_CHOICES
from edge.apps.serve.chat_request import MOST_TOOLS
from edge.apps.serve.openapi_terms import (
    COUNT,
    TEXT,
    TEXTS,
    Schema,
    fields_of,
    get,
    number,
    optional,
    post,
    ref,
)
from edge.apps.serve.responding import json_response
from edge.apps.serve.responses import openapi as responses
from edge.executors.native.library import MAX_LOGPROBS

if TYPE_CHECKING:
    from starlette.routing import Route

_FINISH: Schema = {"enum": ["stop", "length", "tool_calls"]}


def routes(names: Sequence[str]) -> list[Route]:
    """The document's own route. names: of the model."""
    from starlette.routing import Route

    found = document(names)

    async def openapi(request: Any) -> Any:
        return json_response(found)

    return [Route("/openapi.json", openapi)]


def document(names: Sequence[str]) -> dict[str, Any]:
    """The whole document. names: what the model may be asked by."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "MiniCPM Edge",
            "version": __version__,
            "description": "A model on this machine. Unknown fields of a body are ignored.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{}, {"bearer": []}],
        "paths": {**_posts(), **responses.paths(), **anthropic.paths(), **_gets()},
        "components": {
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
            "schemas": {
                "ModelName": {"enum": list(names)},
                **_SCHEMAS,
                **responses.SCHEMAS,
                **anthropic.SCHEMAS,
            },
        },
    }


def _posts() -> dict[str, Any]:
    return {
        "/v1/chat/completions": post("Answer a conversation.", "ChatRequest", "ChatCompletion", streams=True),
        "/v1/completions": post(
            "Continue texts or token ids.", "CompletionRequest", "Completion", streams=True
        ),
        "/tokenize": post("Token ids of a text or a conversation.", "TokenizeRequest", "Tokens"),
        "/detokenize": post("The text of token ids.", "DetokenizeRequest", "Text"),
        "/apply-template": post("What the model reads for a conversation.", "TemplateRequest", "Prompt"),
    }


def _gets() -> dict[str, Any]:
    text: Schema = {"type": "string"}
    return {
        "/v1/models": get("The names that the model may be asked by.", ref("Models")),
        "/v1/models/{name}": get("One of them.", ref("Model"), name=text),
        "/health": get("Whether the server takes requests; 503 while it ends.", ref("Health")),
        "/metrics": get("Counts for Prometheus.", text, "text/plain"),
        "/openapi.json": get("This document.", {"type": "object"}),
        "/": get("The page.", text, "text/html"),
        "/page/{name}": get("A file of the page.", text, "text/javascript", name=text),
    }


SAMPLING: dict[str, Schema] = {
    "model": ref("ModelName"),
    "max_tokens": optional(type="integer", minimum=1),
    "temperature": number(0, 100),
    "top_p": number(0, 1),
    "top_k": optional(type="integer", minimum=-1),
    "min_p": number(0, 1),
    "typical_p": number(0, 1),
    "frequency_penalty": number(-2, 2),
    "presence_penalty": number(-2, 2),
    "repetition_penalty": number(1e-3, 100),
    "seed": optional(type="integer"),
    "stop": {"anyOf": [{"type": "string", "minLength": 1}, TEXTS, {"type": "null"}]},
    "logit_bias": optional(type="object", additionalProperties={"type": "number"}),
    "n": optional(type="integer", minimum=1, maximum=MOST_CHOICES),
    "stream": optional(type="boolean"),
    "stream_options": optional(type="object", properties={"include_usage": {"type": ["boolean", "null"]}}),
}

_CONVERSATION: dict[str, Schema] = {
    "messages": {"type": "array", "minItems": 1, "items": ref("Message")},
    "tools": optional(type="array", maxItems=MOST_TOOLS, items=ref("Tool")),
    "tool_choice": optional(type=["string", "object"]),
    "parallel_tool_calls": optional(type="boolean"),
    "chat_template_kwargs": optional(type="object"),
    "reasoning_effort": optional(enum=["none", "minimal", "low", "medium", "high", "xhigh"]),
    "thinking_budget": optional(type="integer", minimum=0),
    "response_format": optional(
        type="object",
        properties={"type": {"enum": ["text", "json_object", "json_schema", "regex", "lark"]}},
        required=["type"],
    ),
}


def _head_of(kind: str) -> dict[str, Schema]:
    """What an answer begins with."""
    return {
        "id": TEXT,
        "object": {"const": kind},
        "created": COUNT,
        "model": TEXT,
        "system_fingerprint": TEXT,
    }


_SCHEMAS: dict[str, Any] = {
    "Error": fields_of(
        ("error",),
        error=fields_of(
            ("message", "type", "param", "code"),
            message=TEXT,
            type=TEXT,
            param={"type": ["string", "null"]},
            code={"type": ["string", "null"]},
        ),
    ),
    "Message": {
        "anyOf": [
            fields_of(
                ("role", "content"),
                role={"enum": ["system", "developer", "user"]},
                content=ref("Content"),
                name=optional(type="string"),
            ),
            fields_of(
                ("role",),
                role={"const": "assistant"},
                content=optional(**ref("Content")),
                name=optional(type="string"),
                reasoning_content=optional(type="string"),
                tool_calls=optional(type="array", items=ref("ToolCall")),
            ),
            fields_of(
                ("role", "content"),
                role={"const": "tool"},
                content=ref("Content"),
                name=optional(type="string"),
                tool_call_id=optional(type="string"),
            ),
        ]
    },
    "Content": {
        "anyOf": [
            TEXT,
            {"type": "array", "items": fields_of(("type", "text"), type={"const": "text"}, text=TEXT)},
        ]
    },
    "ToolCall": fields_of(
        ("function",),
        id={"type": ["string", "null"]},
        type={"const": "function"},
        function=fields_of(("name",), name=TEXT, arguments={"type": ["string", "object", "null"]}),
    ),
    "Tool": fields_of(
        ("type", "function"),
        type={"const": "function"},
        function=fields_of(
            ("name",),
            name=TEXT,
            description=optional(type="string"),
            parameters=optional(type="object"),
            strict=optional(type="boolean"),
        ),
    ),
    "ChatRequest": fields_of(
        ("messages",),
        **_CONVERSATION,
        **SAMPLING,
        max_completion_tokens=optional(type="integer", minimum=1),
        logprobs=optional(type="boolean"),
        top_logprobs=optional(type="integer", minimum=0, maximum=MAX_LOGPROBS),
    ),
    "ChatCompletion": fields_of(
        ("id", "object", "created", "model", "choices", "usage"),
        **_head_of("chat.completion"),
        choices={
            "type": "array",
            "items": fields_of(
                ("index", "message", "finish_reason"),
                index=COUNT,
                message=fields_of(
                    ("role", "content"),
                    role={"const": "assistant"},
                    content={"type": ["string", "null"]},
                    reasoning_content=TEXT,
                    tool_calls={"type": "array"},
                ),
                logprobs={"type": ["object", "null"]},
                finish_reason=_FINISH,
            ),
        },
        usage=ref("Usage"),
        x_edge={"type": "object"},
    ),
    "CompletionRequest": fields_of(
        ("prompt",),
        prompt={"type": ["string", "array"]},
        **SAMPLING,
        echo=optional(type="boolean"),
        logprobs=optional(type="integer", minimum=0, maximum=MAX_LOGPROBS),
    ),
    "Completion": fields_of(
        ("id", "object", "created", "model", "choices", "usage"),
        **_head_of("text_completion"),
        choices={
            "type": "array",
            "items": fields_of(
                ("index", "text", "finish_reason"),
                index=COUNT,
                text=TEXT,
                logprobs={"type": ["object", "null"]},
                finish_reason=_FINISH,
            ),
        },
        usage=ref("Usage"),
        x_edge={"type": "object"},
    ),
    "Usage": fields_of(
        ("prompt_tokens", "completion_tokens", "total_tokens"),
        prompt_tokens=COUNT,
        completion_tokens=COUNT,
        total_tokens=COUNT,
        prompt_tokens_details=fields_of(cached_tokens=COUNT),
        completion_tokens_details=fields_of(reasoning_tokens=COUNT),
    ),
    "TokenizeRequest": fields_of(
        content=optional(type="string"),
        prompt=optional(type="string"),
        messages=optional(type="array", items=ref("Message")),
        add_special_tokens=optional(type="boolean"),
        parse_special=optional(type="boolean"),
        with_pieces=optional(type="boolean"),
    ),
    "Tokens": fields_of(("tokens", "count"), tokens={"type": "array"}, count=COUNT, max_model_len=COUNT),
    "DetokenizeRequest": fields_of(("tokens",), tokens={"type": "array", "items": {"type": "integer"}}),
    "Text": fields_of(("content", "prompt"), content=TEXT, prompt=TEXT),
    "TemplateRequest": fields_of(("messages",), **_CONVERSATION),
    "Prompt": fields_of(("prompt",), prompt=TEXT),
    "Model": fields_of(
        ("id", "object"), id=TEXT, object={"const": "model"}, created=COUNT, max_model_len=COUNT
    ),
    "Models": fields_of(
        ("object", "data"), object={"const": "list"}, data={"type": "array", "items": ref("Model")}
    ),
    "Health": fields_of(
        ("status",), status={"enum": ["ok", "draining"]}, running=COUNT, waiting=COUNT, model=TEXT
    ),
}
