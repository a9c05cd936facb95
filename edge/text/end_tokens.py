"""Which tokens end an answer: every source that a model has, united.

Files contradict each other here more often than not: a fine-tune ends turns with a token that only its chat
template writes, and a `generation_config.json` of the base model names another. A token too few lets the
model invent the user's next turn, so each source adds its tokens and none replaces another's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from edge.config import ModelConfig
from edge.config.fields import unique
from edge.config.generation import read_generation_config
from edge.errors import EdgeError, TokenizerError
from edge.system.notices import notice
from edge.text.chat_template import ChatTemplate, TemplateLimitError

if TYPE_CHECKING:
    from edge.text.tokenizer.base import Tokenizer

END_TOKENS = (
    *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>"),
    *("<end_of_turn>", "<turn|>", "<|endoftext|>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]"),
    *("<|end_of_text|>", "<end_of_utterance>", "<｜end▁of▁sentence｜>"),
)
"""Tokens that end an answer wherever they exist, by their text (llama.cpp's list)."""
_SPECIAL_END_TOKENS = ("</s>", "[EOS]", "<eos>")
"""Those that other vocabularies have as ordinary text: they count as control tokens only."""
_QUESTION, _ANSWER = "edgequestion", "edgeanswer"


def end_tokens(
    tokenizer: Tokenizer,
    config: ModelConfig,
    named: Iterable[str],
    chat_template: str | None,
    generation_config: Mapping[str, Any],
) -> tuple[int, ...]:
    """All of a model's end tokens, each once: the config's own first, then generation_config's, the `named`
    ones (texts in the tokenizer's files), the chat template's turn terminator, and those known by their text.

    Ids outside the vocabulary can't come up; they are left out with a note.
    """
    recommended = read_generation_config(generation_config).eos_token_ids
    for token in recommended:
        if token >= config.vocab_size:
            notice(
                f"generation_config.json names the end token {token}, but the vocabulary has only "
                f"{config.vocab_size} tokens: it is ignored."
            )
    special = tokenizer.special_tokens
    terminator = None
    if chat_template is not None:
        names = tuple(sorted(tokenizer.named_tokens.items()))
        terminator = turn_terminator(chat_template, names, tuple(special))
    texts = [*named, *([] if terminator is None else [terminator]), *_known(tokenizer)]
    found = [*config.eos_token_ids, *recommended, *map(tokenizer.token_id, texts)]
    return unique(token for token in found if token is not None and token < config.vocab_size)


def _known(tokenizer: Tokenizer) -> list[str]:
    """Texts of the tokens that end an answer wherever they exist."""
    found = [text for text in END_TOKENS if tokenizer.token_id(text) is not None]
    if {"<|return|>", "<|call|>"} <= {*found} or {"<|calls|>", "<|flush|>"} <= {*found}:
        found.remove("<|end|>")  # there it ends a part of an answer, see gpt-oss
    return [*found, *(text for text in _SPECIAL_END_TOKENS if text in tokenizer.special_tokens)]


@lru_cache(maxsize=32)
def turn_terminator(
    template: str, named_tokens: tuple[tuple[str, str], ...], special: tuple[str, ...]
) -> str | None:
    """The control token that a chat template writes behind every answer; None if there is none.

    It must follow both the last answer and one before a further question: otherwise it belongs to what comes
    next. named_tokens: the template's variables. special: texts of the control tokens.
    """
    question, answer = {"role": "user"}, {"role": "assistant"}
    for wrap in (str, _as_parts):
        asked = {**question, "content": wrap(_QUESTION)}
        answered = {**answer, "content": wrap(_ANSWER)}
        try:
            rendering = ChatTemplate(template, dict(named_tokens))
            texts = [
                rendering.render(messages, add_generation_prompt=False)
                for messages in ([asked, answered], [asked, answered, asked])
            ]
        except TemplateLimitError:  # whoever renders with it is told so
            return None
        except EdgeError:  # a template may refuse such a conversation
            continue
        if all(_ANSWER in text for text in texts):
            first, second = (_leading_token(text.rpartition(_ANSWER)[2], special) for text in texts)
            return first if first == second else None
    return None


def _as_parts(text: str) -> Any:
    return [{"type": "text", "text": text}]


def _leading_token(text: str, special: Iterable[str]) -> str | None:
    """The longest control token at the start of a text, behind spaces and line ends."""
    text = text.lstrip()
    return max((token for token in special if token and text.startswith(token)), key=len, default=None)


def named_token(tokenizer: Tokenizer, given: str) -> int:
    """The id of a token that somebody named by its text, or by its id in digits; TokenizerError if there is
    no such token.
    """
    token = int(given) if given.isdecimal() and len(given) < 20 else tokenizer.token_id(given)
    if token is None or token >= tokenizer.vocab_size:
        raise TokenizerError(
            f"The model has no token {given!r} among its {tokenizer.vocab_size}; give the whole text of one "
            "token, such as <|im_end|>, or its id."
        )
    return token
