"""Encodes with Hugging Face's `tokenizers`, whose normalizers and expressions a tokenizer.json chooses.

Served in a process of its own (`worker`): an expression may take forever or make the library panic, and a
normalizer may turn each character into a million.
"""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from edge.errors import TokenizerError
from edge.text.isolation.server import one_line

Added = tuple[int, str, bool, bool, bool]
"""id, text, special, lstrip, rstrip."""


class Program:
    """What the process offers, for one tokenizer.json. Control tokens are ordinary text here."""

    def open(self, data: str, added: Sequence[Added], size: int) -> dict[str, Any]:
        """Read a tokenizer.json, and add the ordinary tokens that only the files beside it list.

        data: base64. size: of the vocabulary; added tokens beyond it stay ordinary text.
        Returns `added`, the file's own added tokens; `pieces`, how many others it has; `decoder`, the JSON of
        its decoder; `first`, the id that its post-processor puts in front of a text.
        """
        from tokenizers import Tokenizer

        try:
            backend = Tokenizer.from_buffer(b64decode(data))
        except (ValueError, TypeError) as error:
            raise TokenizerError(
                f"tokenizer.json cannot be read ({one_line(error)}); get the model's files again."
            ) from None
        # A prompt is never cut or padded here, whatever its author's training pipeline did.
        backend.no_truncation()
        backend.no_padding()
        own = [
            (token_id, token.content, token.special, token.lstrip, token.rstrip)
            for token_id, token in backend.get_added_tokens_decoder().items()
        ]
        if any(token[0] >= size for token in own):
            backend = _without_tokens_beyond(backend, size)
        known = {token[0] for token in own}
        _add(backend, [token for token in added if token[0] not in known and not token[2]])
        encoded = backend.encode("a")
        leads = encoded.special_tokens_mask[:1] == [1]
        backend.encode_special_tokens = True
        self._backend = backend
        return {
            "added": own,
            "pieces": backend.get_vocab_size(with_added_tokens=False),
            "decoder": None if backend.decoder is None else json.loads(backend.decoder.__getstate__()),
            "first": encoded.ids[0] if leads else None,
        }

    def encode(self, texts: Sequence[tuple[str, bool]]) -> list[list[int]]:
        """Ids of each text, without the post-processor's; beside it whether it is the beginning of a text."""
        return [
            (self._backend if at_start else self._later).encode(text, add_special_tokens=False).ids
            for text, at_start in texts
        ]

    def ids(self, pieces: Sequence[str]) -> list[int | None]:
        """The id of each token, by how the file writes it."""
        return [self._backend.token_to_id(piece) for piece in pieces]

    def pieces(self, first: int, count: int) -> list[str | None]:
        """How the file writes the tokens with ids from `first` on; None for an id without a token."""
        return [self._backend.id_to_token(token_id) for token_id in range(first, first + count)]

    @cached_property
    def _later(self) -> Any:
        """For text after a control token: Metaspace's scheme `first` puts a space only at the start."""
        return _without_first_space(self._backend)


def _add(backend: Any, tokens: Sequence[Added]) -> None:
    from tokenizers import AddedToken

    for token_id, text, _, lstrip, rstrip in tokens:
        backend.add_tokens([AddedToken(text, lstrip=lstrip, rstrip=rstrip, normalized=False)])
        if backend.token_to_id(text) != token_id:
            raise TokenizerError(
                f"tokenizer.json and the files beside it disagree on the id of '{one_line(text)}'; get the "
                "model's files again."
            )


def _without_tokens_beyond(backend: Any, size: int) -> Any:
    """The same tokenizer without added tokens of ids from `size` on, so that no text becomes one."""
    from tokenizers import Tokenizer

    document = json.loads(backend.to_str())
    document["added_tokens"] = [token for token in document["added_tokens"] if token["id"] < size]
    return Tokenizer.from_str(json.dumps(document))


def _without_first_space(backend: Any) -> Any:
    """The same tokenizer (the vocabulary is shared) with the prefix scheme `first` turned into `never`."""
    if backend.pre_tokenizer is None:
        return backend
    state = backend.pre_tokenizer.__getstate__().decode()
    changed = state.replace('"prepend_scheme":"first"', '"prepend_scheme":"never"')
    if changed == state:
        return backend
    from tokenizers import Tokenizer
    from tokenizers.pre_tokenizers import Whitespace

    later = Tokenizer(backend.model)
    if backend.normalizer is not None:
        later.normalizer = backend.normalizer
    later.pre_tokenizer = Whitespace()
    pre_tokenizer = later.pre_tokenizer
    pre_tokenizer.__setstate__(changed.encode())
    later.pre_tokenizer = pre_tokenizer
    added = sorted(backend.get_added_tokens_decoder().items())
    later.add_special_tokens([token for _, token in added if token.special])
    later.add_tokens([token for _, token in added if not token.special])
    later.encode_special_tokens = True
    return later
