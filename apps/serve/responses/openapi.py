"""The Responses API in the OpenAPI document."""

from __future__ import annotations

from typing import Any

from edge.apps.serve.chat_request import EFFORTS, MOST_TOOLS
from edge.apps.serve.openapi_terms import COUNT, TEXT, Schema, fields_of, get, number, optional, post, ref
from edge.apps.serve.responses.items import SUMMARY, THOUGHTS
from edge.apps.serve.responses.request import LONGEST_NAME, SUMMARIES, VERBOSITIES
from edge.executors.native.library import MAX_LOGPROBS


def paths() -> dict[str, Any]:
    """Its routes."""
    stored = get("A stored response.", ref("Response"), response_id=TEXT)
    gone = get("Forget a stored response.", ref("DeletedResponse"), response_id=TEXT)
    return {
        "/v1/responses": post("Answer an input.", "ResponseRequest", "Response", streams=True),
        "/v1/responses/compact": post("Not offered: always 404.", "CompactRequest", "Response"),
        "/v1/responses/{response_id}": {**stored, "delete": gone["get"]},
    }


_STATUS: Schema = {"enum": ["in_progress", "completed", "incomplete"]}
_NULL: Schema = {"type": "null"}


def _texts(*kinds: str) -> dict[str, Any]:
    return {"type": "array", "items": fields_of(("type", "text"), type={"enum": list(kinds)}, text=TEXT)}


_CONTENT: Schema = {"anyOf": [TEXT, _texts("input_text", "output_text", "text")]}

SCHEMAS: dict[str, Any] = {
    "ResponseRequest": fields_of(
        ("model",),
        model=ref("ModelName"),
        input=optional(anyOf=[TEXT, {"type": "array", "items": ref("ResponseInput")}]),
        previous_response_id=optional(type="string"),
        instructions=optional(type="string"),
        tools=optional(type="array", maxItems=MOST_TOOLS, items=ref("ResponseTool")),
        tool_choice=optional(anyOf=[{"enum": ["auto", "none", "required"]}, {"type": "object"}]),
        parallel_tool_calls=optional(type="boolean"),
        reasoning=optional(
            **fields_of(effort=optional(enum=list(EFFORTS)), summary=optional(enum=list(SUMMARIES)))
        ),
        thinking_budget=optional(type="integer", minimum=0),
        text=optional(
            **fields_of(
                format=optional(**fields_of(("type",), type=TEXT, schema=optional(type="object"))),
                verbosity=optional(enum=list(VERBOSITIES)),
            )
        ),
        max_output_tokens=optional(type="integer", minimum=1),
        temperature=number(0, 100),
        top_p=number(0, 1),
        top_logprobs=optional(type="integer", minimum=0, maximum=MAX_LOGPROBS),
        include=optional(type="array", items={"type": "string", "minLength": 1}),
        store=optional(type="boolean"),
        stream=optional(type="boolean"),
        truncation=optional(const="disabled"),
        metadata=optional(type="object", additionalProperties=TEXT),
        client_metadata=optional(type="object"),
        prompt_cache_key=optional(type="string", maxLength=LONGEST_NAME),
        safety_identifier=optional(type="string", maxLength=LONGEST_NAME),
        user=optional(type="string", maxLength=LONGEST_NAME),
    ),
    "ResponseTool": {
        "anyOf": [
            fields_of(
                ("type", "name"),
                type={"const": "function"},
                name={"type": "string", "pattern": "^[A-Za-z0-9_.-]{1,64}$"},
                description=optional(type="string"),
                parameters=optional(type="object"),
                strict=optional(type="boolean"),
            ),
            fields_of(("type",), type={"type": "string", "not": {"const": "function"}}),
        ]
    },
    "ResponseInput": {
        "anyOf": [
            fields_of(
                ("role", "content"),
                type={"const": "message"},
                role={"enum": ["user", "assistant", "system", "developer"]},
                content=_CONTENT,
            ),
            fields_of(
                ("type", "call_id", "name", "arguments"),
                type={"const": "function_call"},
                call_id=TEXT,
                name=TEXT,
                arguments=TEXT,
            ),
            fields_of(
                ("type", "call_id", "output"),
                type={"const": "function_call_output"},
                call_id=TEXT,
                output=_CONTENT,
            ),
            fields_of(
                ("type",),
                type={"const": "reasoning"},
                summary=optional(**_texts(*SUMMARY)),
                content=optional(**_texts(*THOUGHTS)),
                encrypted_content=optional(type="string"),
            ),
        ]
    },
    "CompactRequest": fields_of(model=TEXT),
    "Response": fields_of(
        ("id", "object", "created_at", "status", "model", "output", "error", "incomplete_details", "usage"),
        id=TEXT,
        object={"const": "response"},
        created_at=COUNT,
        completed_at={"type": ["integer", "null"]},
        status={"enum": ["in_progress", "completed", "incomplete", "failed"]},
        model=TEXT,
        output={"type": "array", "items": ref("ResponseItem")},
        error={"anyOf": [fields_of(("code", "message"), code=TEXT, message=TEXT), _NULL]},
        incomplete_details={"anyOf": [fields_of(("reason",), reason=TEXT), _NULL]},
        usage={"anyOf": [ref("ResponseUsage"), _NULL]},
        previous_response_id={"type": ["string", "null"]},
        tools={"type": "array"},
        metadata={"type": "object"},
        x_edge={"type": "object"},
    ),
    "ResponseItem": fields_of(
        ("id", "type", "status"),
        id=TEXT,
        type={"enum": ["message", "reasoning", "function_call"]},
        status=_STATUS,
        role={"const": "assistant"},
        content={"type": "array"},
        summary={"type": "array"},
        encrypted_content=TEXT,
        call_id=TEXT,
        name=TEXT,
        arguments=TEXT,
    ),
    "ResponseUsage": fields_of(
        ("input_tokens", "output_tokens", "total_tokens"),
        input_tokens=COUNT,
        input_tokens_details=fields_of(("cached_tokens",), cached_tokens=COUNT),
        output_tokens=COUNT,
        output_tokens_details=fields_of(("reasoning_tokens",), reasoning_tokens=COUNT),
        total_tokens=COUNT,
    ),
    "DeletedResponse": fields_of(("id", "deleted"), id=TEXT, deleted={"const": True}),
}
