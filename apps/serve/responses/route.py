"""The routes: making a response, reading a stored one, forgetting it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edge.apps.serve.answering import End
from edge.apps.serve.blocks import Blocks, collect
from edge.apps.serve.errors import ApiError
from edge.apps.serve.responding import json_response
from edge.apps.serve.responses.form import Form
from edge.apps.serve.responses.request import read_request
from edge.apps.serve.responses.store import Stored
from edge.apps.serve.responses.stream import EventWriter
from edge.apps.serve.sse import EventStream
from edge.apps.serve.state import Asked, Served, works_of
from edge.text.messages import Message

if TYPE_CHECKING:
    from starlette.routing import Route

    from edge.apps.serve.keys import App


async def responses(served: Served, asked: Asked) -> App:
    """Answer an input."""
    previous = asked.fields.text("previous_response_id")
    before = () if previous is None else served.responses.previous(previous).messages
    wanted = read_request(served, asked.fields, before)
    prepared = await served.prepare(asked, wanted.request)
    answers = served.answers(asked, works_of(prepared, 1), [prepared.parser()])
    form = Form(served, asked.number, wanted, prepared)

    def ended(end: End, blocks: Blocks) -> dict[str, Any]:
        response = form.ended(end, blocks)
        if wanted.store:
            served.responses.add(Stored(response, (*wanted.messages, _answer(end, blocks))))
        return response

    if wanted.stream:
        return EventStream(answers, EventWriter(form).write(served, asked, answers, ended))
    blocks, end = await collect(answers)
    if not blocks.blocks:
        blocks.add_empty()
    return json_response(ended(end, blocks))


def _answer(end: End, blocks: Blocks) -> Message:
    """The answer as a message of the conversation that goes on from it."""
    reply, done = blocks.reply, end.completion
    # Ids for a whole answer only: a template ends an answer as the model does.
    tokens = done.tokens if done.stop_reason == "eos" else None
    return Message("assistant", reply.content, tokens, reply.reasoning or None, tuple(reply.calls))


async def compact(served: Served, asked: Asked) -> App:
    """Nothing: a conversation can't be made shorter here."""
    raise ApiError(
        404,
        "This server does not compact conversations: send the items that matter.",
        code="not_found",
    )


def routes(served: Served) -> list[Route]:
    """Those of a stored response."""
    from starlette.routing import Route

    async def stored(request: Any) -> Any:
        name = request.path_params["response_id"]
        if request.method == "DELETE":
            served.responses.remove(name)
            return json_response({"id": name, "object": "response", "deleted": True})
        return json_response(served.responses.get(name).response)

    return [Route("/v1/responses/{response_id}", stored, methods=["GET", "DELETE"])]
