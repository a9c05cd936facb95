"""How the Responses API writes a response and its items."""

from __future__ import annotations

import time
from typing import Any

from edge.apps.serve.answering import End
from edge.apps.serve.asking import details
from edge.apps.serve.blocks import Block, Blocks
from edge.apps.serve.errors import ApiError
from edge.apps.serve.logprobs import TokenTexts
from edge.apps.serve.responses.items import sealed
from edge.apps.serve.responses.request import Wanted
from edge.apps.serve.state import Served
from edge.engine.request import Prepared

_PREFIXES = {"text": "msg", "reasoning": "rs", "call": "fc"}
_INCOMPLETE = ("length", "context")


class Form:
    """The response to one request. number: of the request, which all ids are made of."""

    def __init__(self, served: Served, number: str, wanted: Wanted, prepared: Prepared) -> None:
        sampling = prepared.settings.sampling
        self.number, self.wanted = number, wanted
        self.texts = TokenTexts(served.model.tokenizer)
        self._head = {
            "id": f"resp_{number}",
            "object": "response",
            "created_at": int(time.time()),
            "model": served.name,
            **wanted.echoed,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "presence_penalty": sampling.presence_penalty,
            "frequency_penalty": sampling.frequency_penalty,
        }

    # ---- Items ---------------------------------------------------------------------------------------------

    def item_id(self, block: Block) -> str:
        """The id of a block's item, the same in all events and in the response."""
        return f"{_PREFIXES[block.kind]}_{self.number}{block.index:02d}"

    def item(self, block: Block, status: str) -> dict[str, Any]:
        """A block as an item. status: `in_progress` for one that has just begun, else what came of it."""
        begins = status == "in_progress"
        head = {"id": self.item_id(block), "type": "message", "status": status}
        if block.kind == "text":
            return {**head, "role": "assistant", "content": [] if begins else [self.part(block)]}
        if block.kind == "call":
            call = {"call_id": block.call_id, "name": block.name, "arguments": "" if begins else block.text}
            return {**head, "type": "function_call", **call}
        parts = [] if begins else [self.part(block)]
        item: dict[str, Any] = {**head, "type": "reasoning", "summary": [], "content": []}
        item["summary" if self.wanted.summary else "content"] = parts
        if self.wanted.sealed and not begins:
            item["encrypted_content"] = sealed(block.text)
        return item

    def part(self, block: Block, *, begins: bool = False) -> dict[str, Any]:
        """The one part of a text or of a thought."""
        text = "" if begins else block.text
        if block.kind == "reasoning":
            return {"type": "summary_text" if self.wanted.summary else "reasoning_text", "text": text}
        logprobs = self.texts.chat(block.chunks) if self.wanted.logprobs and not begins else []
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}

    @staticmethod
    def status(block: Block) -> str:
        """Of an item that has ended."""
        return "completed" if block.is_whole else "incomplete"

    # ---- The response --------------------------------------------------------------------------------------

    def begun(self) -> dict[str, Any]:
        """The response before anything has come."""
        return self._response("in_progress")

    def failed(self, error: ApiError, blocks: Blocks) -> dict[str, Any]:
        """The response that an error has ended."""
        what = {"code": error.code or "server_error", "message": error.message}
        return self._response("failed", output=self._output(blocks), error=what)

    def ended(self, end: End, blocks: Blocks) -> dict[str, Any]:
        """The whole response."""
        done = end.completion
        cut = done.stop_reason in _INCOMPLETE
        note = blocks.reply.note(done)
        answer = len(done.tokens)
        return self._response(
            "incomplete" if cut else "completed",
            output=self._output(blocks),
            completed_at=None if cut else int(time.time()),
            incomplete_details={"reason": "max_output_tokens"} if cut else None,
            usage={
                "input_tokens": done.prompt_tokens,
                "input_tokens_details": {"cached_tokens": done.reused_tokens},
                "output_tokens": answer,
                "output_tokens_details": {"reasoning_tokens": blocks.reply.reasoning_tokens},
                "total_tokens": done.prompt_tokens + answer,
            },
            x_edge={**details(done), **({"note": note} if note else {})},
        )

    def _output(self, blocks: Blocks) -> list[dict[str, Any]]:
        return [self.item(block, self.status(block)) for block in blocks.blocks]

    def _response(self, status: str, **fields: Any) -> dict[str, Any]:
        empty: dict[str, Any] = {
            "output": [],
            "error": None,
            "completed_at": None,
            "incomplete_details": None,
            "usage": None,
        }
        return {**self._head, "status": status, **empty, **fields}
