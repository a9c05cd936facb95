"""The OpenAPI document at `/openapi.json`: kept by hand, and compared with the routes by a test."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edge import __version__
from edge.apps.serve.asking import MOST_CHOICES
from edge.apps.serve.responding import json_response
from edge.executors.native.library import MAX_LOGPROBS

if TYPE_CHECKING:
    from starlette.routing import Route

Schema = Mapping[str, Any]


def routes() -> list[Route]:
    """The document's own route."""
    from starlette.routing import Route

    found = document()

    async def openapi(request: Any) -> Any:
        return json_response(found)

    return [Route("/openapi.json", openapi)]


def document() -> dict[str, Any]:
    """The whole document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "MiniCPM Edge",
            "version": __version__,
            "description": "A model on this machine. Unknown fields of a body are ignored.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{}, {"bearer": []}],
        "paths": {**_posts(), **_gets()},
        "components": {
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
            "schemas": _SCHEMAS,
        },
    }


def post(what: str, body: str, answer: str, *, streams: bool = False, error: str = "Error") -> dict[str, Any]:
    """A path that takes a JSON object. body, answer, error: names of schemas."""
    content = {"application/json": {"schema": _ref(answer)}}
    if streams:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    return {
        "post": {
            "summary": what,
            "requestBody": {"required": True, "content": {"application/json": {"schema": _ref(body)}}},
            "responses": {"200": {"description": "The answer.", "content": content}, **_errors(error)},
        }
    }


def get(what: str, schema: Schema, kind: str = "application/json", **parameters: Schema) -> dict[str, Any]:
    """A path that is read. parameters: in its name."""
    return {
        "get": {
            "summary": what,
            "parameters": [
                {"name": name, "in": "path", "required": True, "schema": each}
                for name, each in parameters.items()
            ],
            "responses": {
                "200": {"description": "What is so.", "content": {kind: {"schema": schema}}},
                **_errors("Error"),
            },
        }
    }


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _errors(schema: str) -> dict[str, Any]:
    return {
        "default": {
            "description": "What is wrong: 400 a field, 401 the key, 403 the host or the origin, 404 the "
            "model or the path, 408 a request that does not arrive, 413 one that is too large, 429 too many "
            "(with Retry-After), 500 a mistake of the server, 503 its end, 504 its time limit.",
            "content": {"application/json": {"schema": _ref(schema)}},
        }
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
        "/v1/models": get("The names that the model may be asked by.", _ref("Models")),
        "/v1/models/{name}": get("One of them.", _ref("Model"), name=text),
        "/health": get("Whether the server takes requests; 503 while it ends.", _ref("Health")),
        "/metrics": get("Counts for Prometheus.", text, "text/plain"),
        "/openapi.json": get("This document.", {"type": "object"}),
        "/": get("The page.", text, "text/html"),
        "/page/{name}": get("A file of the page.", text, "text/javascript", name=text),
    }


def _object(required: tuple[str, ...] = (), **properties: Schema) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required)}


def _optional(**schema: Any) -> dict[str, Any]:
    """A field that may be null, which counts as absent."""
    return {"anyOf": [schema, {"type": "null"}]}


_TEXT: Schema = {"type": "string"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_TEXTS: Schema = {"type": "array", "items": {"type": "string"}}
_FINISH: Schema = {"enum": ["stop", "length", "tool_calls"]}


def _number(least: float, most: float) -> dict[str, Any]:
    return _optional(type="number", minimum=least, maximum=most)


_SAMPLING: dict[str, Schema] = {
    "model": _optional(type="string"),
    "max_tokens": _optional(type="integer", minimum=1),
    "temperature": _number(0, 100),
    "top_p": _number(0, 1),
    "top_k": _optional(type="integer", minimum=-1),
    "min_p": _number(0, 1),
    "typical_p": _number(0, 1),
    "frequency_penalty": _number(-2, 2),
    "presence_penalty": _number(-2, 2),
    "repetition_penalty": _number(1e-3, 100),
    "seed": _optional(type="integer"),
    "stop": {"anyOf": [{"type": "string", "minLength": 1}, _TEXTS, {"type": "null"}]},
    "logit_bias": _optional(type="object", additionalProperties={"type": "number"}),
    "n": _optional(type="integer", minimum=1, maximum=MOST_CHOICES),
    "stream": _optional(type="boolean"),
    "stream_options": _optional(type="object", properties={"include_usage": {"type": ["boolean", "null"]}}),
}

_CONVERSATION: dict[str, Schema] = {
    "messages": {"type": "array", "minItems": 1, "items": _ref("Message")},
    "tools": _optional(type="array", items=_ref("Tool")),
    "tool_choice": _optional(type=["string", "object"]),
    "parallel_tool_calls": _optional(type="boolean"),
    "chat_template_kwargs": _optional(type="object"),
    "reasoning_effort": _optional(enum=["none", "minimal", "low", "medium", "high", "xhigh"]),
    "thinking_budget": _optional(type="integer", minimum=0),
    "response_format": _optional(
        type="object",
        properties={"type": {"enum": ["text", "json_object", "json_schema", "regex", "lark"]}},
        required=["type"],
    ),
}

_SCHEMAS: dict[str, Any] = {
    "Error": _object(
        ("error",),
        error=_object(
            ("message", "type", "param", "code"),
            message=_TEXT,
            type=_TEXT,
            param={"type": ["string", "null"]},
            code={"type": ["string", "null"]},
        ),
    ),
    "Message": _object(
        ("role",),
        role={"enum": ["system", "developer", "user", "assistant", "tool"]},
        content={"type": ["string", "array", "null"]},
        name=_optional(type="string"),
        tool_calls=_optional(type="array"),
        tool_call_id=_optional(type="string"),
        reasoning_content=_optional(type="string"),
    ),
    "Tool": _object(
        ("type", "function"),
        type={"const": "function"},
        function=_object(
            ("name",),
            name=_TEXT,
            description=_optional(type="string"),
            parameters=_optional(type="object"),
            strict=_optional(type="boolean"),
        ),
    ),
    "ChatRequest": _object(
        ("messages",),
        **_CONVERSATION,
        **_SAMPLING,
        max_completion_tokens=_optional(type="integer", minimum=1),
        logprobs=_optional(type="boolean"),
        top_logprobs=_optional(type="integer", minimum=0, maximum=MAX_LOGPROBS),
    ),
    "ChatCompletion": _object(
        ("id", "object", "created", "model", "choices", "usage"),
        id=_TEXT,
        object={"const": "chat.completion"},
        created=_COUNT,
        model=_TEXT,
        system_fingerprint=_TEXT,
        choices={
            "type": "array",
            "items": _object(
                ("index", "message", "finish_reason"),
                index=_COUNT,
                message=_object(
                    ("role", "content"),
                    role={"const": "assistant"},
                    content={"type": ["string", "null"]},
                    reasoning_content=_TEXT,
                    tool_calls={"type": "array"},
                ),
                logprobs={"type": ["object", "null"]},
                finish_reason=_FINISH,
            ),
        },
        usage=_ref("Usage"),
        x_edge={"type": "object"},
    ),
    "CompletionRequest": _object(
        ("prompt",),
        prompt={"type": ["string", "array"]},
        **_SAMPLING,
        echo=_optional(type="boolean"),
        logprobs=_optional(type="integer", minimum=0, maximum=MAX_LOGPROBS),
    ),
    "Completion": _object(
        ("id", "object", "created", "model", "choices", "usage"),
        id=_TEXT,
        object={"const": "text_completion"},
        created=_COUNT,
        model=_TEXT,
        system_fingerprint=_TEXT,
        choices={
            "type": "array",
            "items": _object(
                ("index", "text", "finish_reason"),
                index=_COUNT,
                text=_TEXT,
                logprobs={"type": ["object", "null"]},
                finish_reason=_FINISH,
            ),
        },
        usage=_ref("Usage"),
        x_edge={"type": "object"},
    ),
    "Usage": _object(
        ("prompt_tokens", "completion_tokens", "total_tokens"),
        prompt_tokens=_COUNT,
        completion_tokens=_COUNT,
        total_tokens=_COUNT,
        prompt_tokens_details=_object(cached_tokens=_COUNT),
        completion_tokens_details=_object(reasoning_tokens=_COUNT),
    ),
    "TokenizeRequest": _object(
        content=_optional(type="string"),
        prompt=_optional(type="string"),
        messages=_optional(type="array", items=_ref("Message")),
        add_special_tokens=_optional(type="boolean"),
        parse_special=_optional(type="boolean"),
        with_pieces=_optional(type="boolean"),
    ),
    "Tokens": _object(("tokens", "count"), tokens={"type": "array"}, count=_COUNT, max_model_len=_COUNT),
    "DetokenizeRequest": _object(("tokens",), tokens={"type": "array", "items": {"type": "integer"}}),
    "Text": _object(("content", "prompt"), content=_TEXT, prompt=_TEXT),
    "TemplateRequest": _object(("messages",), **_CONVERSATION),
    "Prompt": _object(("prompt",), prompt=_TEXT),
    "Model": _object(
        ("id", "object"), id=_TEXT, object={"const": "model"}, created=_COUNT, max_model_len=_COUNT
    ),
    "Models": _object(
        ("object", "data"), object={"const": "list"}, data={"type": "array", "items": _ref("Model")}
    ),
    "Health": _object(
        ("status",), status={"enum": ["ok", "draining"]}, running=_COUNT, waiting=_COUNT, model=_TEXT
    ),
}
