"""The JSON document of an answer (`edge chat --json`). Fields are only ever added, or `schema` grows."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from edge.chat import Chat
from edge.engine.answer_settings import answer_ends
from edge.engine.completion import Completion
from edge.engine.speculative.sequence import SpeculationStatistics
from edge.executors.sampling import Sampled
from edge.runtime import Model

SCHEMA = 1


def answer_document(model: Model, chat: Chat, load_seconds: float, done: Completion) -> dict[str, Any]:
    """What was asked of the model, what it answered and what that cost, in plain JSON values."""
    plan = model.memory_plan
    return {
        "schema": SCHEMA,
        "model": model.name,
        "text": done.text,
        "reasoning": done.reasoning,
        "content": done.text if done.content is None else done.content,
        "calls": [call.as_openai() for call in done.calls],
        "stop_reason": done.stop_reason,
        "note": done.note,
        "is_complete": done.is_complete,
        "prompt_tokens": done.prompt_tokens,
        "reused_tokens": done.reused_tokens,
        "completion_tokens": len(done.tokens),
        "ttft_seconds": done.ttft_seconds,
        "prefill_tokens_per_second": done.prefill_tokens_per_second,
        "tokens_per_second": done.tokens_per_second,
        "speculation": None if done.speculation is None else _speculation(done.speculation),
        "load_seconds": load_seconds,
        "context": model.context,
        "attention": model.attention,
        "activations": model.executor.info.activations,
        "kv_type": model.executor.info.kv_type,
        "settings": _settings(model, chat),
        "memory": {
            "weights_bytes": plan.weights,
            "kv_cache_bytes": plan.kv_cache,
            "workspace_bytes": plan.workspace,
            "draft_bytes": plan.draft,
        },
        "logprobs": None if done.logprobs is None else [_token(model, token) for token in done.logprobs],
    }


def _speculation(found: SpeculationStatistics) -> dict[str, Any]:
    return {
        **asdict(found),
        "mean_accepted_length": found.mean_accepted_length,
        "draft_share": found.draft_share,
        "plain_tokens_per_second": found.plain_tokens_per_second,
        "speedup": found.speedup,
    }


def _settings(model: Model, chat: Chat) -> dict[str, Any]:
    merged = chat.chosen_settings()
    settings = asdict(merged)
    values: dict[str, Any] = {**settings.pop("sampling"), **settings}
    values["eos_token_ids"] = sorted(answer_ends(merged, model.tokenizer))
    # JSON has no infinity, and its keys are strings.
    values["logit_bias"] = {
        str(token): bias if math.isfinite(bias) else str(bias) for token, bias in values["logit_bias"].items()
    }
    return values


def _token(model: Model, sampled: Sampled) -> dict[str, Any]:
    def text(token: int) -> str:
        return model.tokenizer.token_bytes(token).decode("utf-8", "replace")

    return {
        "token": sampled.token,
        "text": text(sampled.token),
        "logprob": sampled.logprob,
        "top": [{"token": token, "text": text(token), "logprob": value} for token, value in sampled.top],
    }
