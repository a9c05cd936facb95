"""What comes before an answer: a request's messages as a prompt."""

from __future__ import annotations

from edge.engine.request import Prepared, Request
from edge.engine.settings import merge_settings
from edge.errors import EdgeError
from edge.runtime import Model
from edge.text.prompts import PromptEncoder
from edge.text.reply import ContentText, ReplyParser, ReplyPart


class _Plain(ReplyParser):
    def push(self, text: str) -> list[ReplyPart]:
        return [ContentText(text)] if text else []

    def finish(self) -> list[ReplyPart]:
        return []


def prepare(model: Model, request: Request) -> Prepared:
    """See `Model.prepare`."""
    if hasattr(model, "prepare"):
        return model.prepare(request)
    if request.grammar is not None or request.tools:
        raise EdgeError("Not built yet.")
    prompt = PromptEncoder(model.chat_template, model.tokenizer).encode(
        request.messages, **request.template_variables
    )
    settings = merge_settings(model.generation_config, request.settings)
    return Prepared(tuple(prompt), settings, _Plain, lambda: None, frozenset())
