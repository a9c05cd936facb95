"""The routes: making a message, and counting the tokens of a request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge.apps.serve.anthropic.errors import anthropic_shape
from edge.apps.serve.anthropic.form import Form
from edge.apps.serve.anthropic.request import read_request
from edge.apps.serve.blocks import collect
from edge.apps.serve.responding import json_response
from edge.apps.serve.sse import EventStream
from edge.apps.serve.state import Asked, Served, works_of
from edge.apps.serve.streaming import with_errors

if TYPE_CHECKING:
    from edge.apps.serve.keys import App


async def messages(served: Served, asked: Asked) -> App:
    """Answer a conversation."""
    wanted = read_request(served, asked.fields)
    prepared = await served.prepare(asked, wanted.request)
    answers = served.answers(asked, works_of(prepared, 1), [prepared.parser()])
    form = Form(served, asked, wanted, prepared)
    if wanted.stream:
        return EventStream(
            answers, with_errors(served, asked, form.stream(answers), anthropic_shape, "error")
        )
    blocks, end = await collect(answers)
    return json_response(form.whole(end, blocks))


async def count_tokens(served: Served, asked: Asked) -> App:
    """How many tokens a request would be."""
    wanted = read_request(served, asked.fields, counts=True)
    prepared = await served.prepare(asked, wanted.request)
    return json_response({"input_tokens": len(prepared.prompt)})
