"""What the settings of an answer mean for one model, and whether they fit it."""

from __future__ import annotations

from edge.engine.settings import GenerationSettings
from edge.errors import TokenizerError
from edge.text.end_tokens import named_token
from edge.text.tokenizer.base import Tokenizer


def check_settings(settings: GenerationSettings, tokenizer: Tokenizer) -> None:
    """TokenizerError for a token that the model does not have: said before anything is computed."""
    answer_ends(settings, tokenizer)
    largest = max(settings.sampling.logit_bias, default=0)
    if largest >= tokenizer.vocab_size:
        raise TokenizerError(
            f"logit_bias has the token id {largest}, which is outside the vocabulary of "
            f"{tokenizer.vocab_size}: give ids below that."
        )


def answer_ends(settings: GenerationSettings, tokenizer: Tokenizer) -> frozenset[int]:
    """The tokens that end an answer with these settings; TokenizerError for one that the model does not have.

    A stop string that is a control token is one of them: such a token has no text in an answer.
    """
    stops = {tokenizer.special_tokens[text] for text in settings.stop if text in tokenizer.special_tokens}
    if settings.ignore_eos:
        return frozenset(stops)
    instead = settings.eos_token_ids
    own = tokenizer.eos_ids if instead is None else [named_token(tokenizer, str(token)) for token in instead]
    return frozenset({*own, *stops, *(named_token(tokenizer, token) for token in settings.eos)})
