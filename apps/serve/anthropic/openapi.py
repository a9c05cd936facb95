"""Anthropic's API in the OpenAPI document."""

from __future__ import annotations

from typing import Any

from edge.apps.serve.chat_request import EFFORTS, MOST_TOOLS
from edge.apps.serve.openapi_terms import COUNT, TEXT, Schema, fields_of, number, optional, post, ref


def paths() -> dict[str, Any]:
    """Its routes."""
    error = "MessagesError"
    return {
        "/v1/messages": post(
            "Answer a conversation.", "MessagesRequest", "AnthropicMessage", streams=True, error=error
        ),
        "/v1/messages/count_tokens": post(
            "How many tokens a request would be.", "CountRequest", "CountedTokens", error=error
        ),
    }


def _blocks(*kinds: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [TEXT, {"type": "array", "items": {"anyOf": list(kinds)}}]}


_TEXT_BLOCK = fields_of(("type", "text"), type={"const": "text"}, text=TEXT)
_RESULT = fields_of(
    ("type", "tool_use_id"),
    type={"const": "tool_result"},
    tool_use_id=TEXT,
    content=_blocks(_TEXT_BLOCK),
    is_error=optional(type="boolean"),
)
_THINKING = fields_of(("type", "thinking"), type={"const": "thinking"}, thinking=TEXT, signature=TEXT)
_CALL = fields_of(
    ("type", "id", "name", "input"),
    type={"const": "tool_use"},
    id=TEXT,
    name=TEXT,
    input={"type": "object"},
)
_MESSAGE: Schema = {
    "anyOf": [
        fields_of(("role", "content"), role={"const": "user"}, content=_blocks(_TEXT_BLOCK, _RESULT)),
        fields_of(
            ("role", "content"),
            role={"const": "assistant"},
            content=_blocks(_TEXT_BLOCK, _THINKING, _CALL),
        ),
        fields_of(("role", "content"), role={"const": "system"}, content=_blocks(_TEXT_BLOCK)),
    ]
}
_REQUEST: dict[str, Schema] = {
    "model": ref("ModelName"),
    "messages": {
        "type": "array",
        "minItems": 1,
        "items": _MESSAGE,
    },
    "system": optional(**_blocks(_TEXT_BLOCK)),
    "tools": optional(
        type="array",
        maxItems=MOST_TOOLS,
        items=fields_of(
            ("name", "input_schema"),
            type=optional(const="custom"),
            name=TEXT,
            description=optional(type="string"),
            input_schema={"type": "object"},
            strict=optional(type="boolean"),
        ),
    ),
    "tool_choice": optional(
        **fields_of(
            ("type",),
            type={"enum": ["auto", "any", "tool", "none"]},
            name=TEXT,
            disable_parallel_tool_use=optional(type="boolean"),
        )
    ),
    "thinking": optional(
        **fields_of(
            ("type",),
            type={"enum": ["enabled", "adaptive", "disabled"]},
            budget_tokens=optional(type="integer", minimum=1024),
            display=optional(enum=["summarized", "omitted"]),
        )
    ),
    "output_config": optional(
        **fields_of(
            effort=optional(enum=[*EFFORTS, "max"]),
            format=optional(
                **fields_of(("type", "schema"), type={"const": "json_schema"}, schema={"type": "object"})
            ),
        )
    ),
}

SCHEMAS: dict[str, Any] = {
    "MessagesRequest": fields_of(
        ("model", "messages", "max_tokens"),
        **_REQUEST,
        max_tokens={"type": "integer", "minimum": 1},
        stop_sequences=optional(type="array", items={"type": "string", "minLength": 1}),
        stream=optional(type="boolean"),
        temperature=number(0, 100),
        top_p=number(0, 1),
        top_k=optional(type="integer", minimum=-1),
        metadata=optional(**fields_of(user_id=optional(type="string"))),
    ),
    "CountRequest": fields_of(("model", "messages"), **_REQUEST),
    "AnthropicMessage": fields_of(
        ("id", "type", "role", "model", "content", "stop_reason", "stop_sequence", "usage"),
        id=TEXT,
        type={"const": "message"},
        role={"const": "assistant"},
        model=TEXT,
        content={
            "type": "array",
            "items": fields_of(
                ("type",),
                type={"enum": ["text", "thinking", "tool_use"]},
                text=TEXT,
                thinking=TEXT,
                signature=TEXT,
                id=TEXT,
                name=TEXT,
                input={"type": "object"},
            ),
        },
        stop_reason={
            "enum": ["end_turn", "stop_sequence", "max_tokens", "tool_use", "model_context_window_exceeded"]
        },
        stop_sequence={"type": ["string", "null"]},
        usage=fields_of(
            ("input_tokens", "output_tokens"),
            input_tokens=COUNT,
            output_tokens=COUNT,
            cache_read_input_tokens=COUNT,
            cache_creation_input_tokens=COUNT,
        ),
        x_edge={"type": "object"},
    ),
    "CountedTokens": fields_of(("input_tokens",), input_tokens=COUNT),
    "MessagesError": fields_of(
        ("type", "error", "request_id"),
        type={"const": "error"},
        error=fields_of(("type", "message"), type=TEXT, message=TEXT),
        request_id={"type": ["string", "null"]},
    ),
}
