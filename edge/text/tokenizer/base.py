"""The tokenizer protocol, and the decoder that turns a stream of token ids into whole characters."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Protocol

LITERAL_MARK = "\ufdd0"
"""Stands inside the text of a control token that must stay text. A noncharacter: no real text contains it."""


class StreamDecoder:
    """Decodes token by token; what it returns, joined, equals decoding all ids at once.

    A character whose bytes are spread over several tokens appears with its last byte, never in halves. Bytes
    that can't become UTF-8 any more turn into U+FFFD as soon as that is certain (one per maximal invalid
    part, as Unicode recommends and Python's and Rust's decoders do; SentencePiece's own decoder writes one
    per byte).
    """

    def __init__(
        self, token_bytes: Callable[[int], bytes], skipped: Collection[int], strip_leading_space: bool
    ) -> None:
        """strip_leading_space: drop one space that the first visible token begins with."""
        self._token_bytes = token_bytes
        self._skipped = skipped
        self._strip = strip_leading_space
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The characters that are complete now; TokenizerError for an id outside the vocabulary."""
        data = self._token_bytes(token_id)
        if not data or token_id in self._skipped:
            return ""
        if self._strip:
            self._strip = False
            data = data.removeprefix(b" ")
        return self._decoder.decode(data)

    def flush(self) -> str:
        """End of the text: U+FFFD if it stopped in the middle of a character, else an empty string."""
        return self._decoder.decode(b"", final=True)


class Tokenizer(Protocol):
    """Text to token ids and back. All methods may be called from several threads."""

    @property
    def vocab_size(self) -> int:
        """The model's vocabulary: ids lie in 0 .. vocab_size - 1 (some may stand for no text)."""

    @property
    def bos_id(self) -> int | None:
        """The beginning-of-sequence token."""

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """Every token that ends an answer (`edge.text.end_tokens`), the config's own first."""

    @property
    def eos_ids(self) -> frozenset[int]:
        """The same as a set."""

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """Control tokens by their text; ordinary text never encodes to them."""

    @property
    def named_tokens(self) -> Mapping[str, str]:
        """Texts of the tokens with a role (`bos_token`, `eos_token`, ...), which chat templates may use."""

    def encode(
        self,
        text: str,
        *,
        add_bos: bool | None = None,
        parse_special: bool = False,
        continues: bool = False,
    ) -> list[int]:
        """Token ids of a text.

        add_bos: put the BOS token in front; None does what the tokenizer's files say. A BOS that a template
        has written (parse_special) is not doubled. parse_special: let the text of a control token stand for
        that token, as rendered chat templates need; without it such text is spelled out in ordinary tokens.
        continues: the text follows earlier tokens, so it gets no BOS unless asked for, and not the space that
        some tokenizers put in front of a text. Lone surrogates (undecodable bytes read with
        `surrogateescape`, broken JSON) become U+FFFD; surrogate pairs become their character.
        """

    def protect(self, text: str) -> str:
        """Mark the control tokens in foreign text, so that `encode(parse_special=True)` spells them out.

        For messages that go through a chat template. The mark is the noncharacter U+FDD0, which `encode`
        removes.
        """

    def decode(self, ids: Iterable[int], *, skip_special: bool = True, continues: bool = False) -> str:
        """The text of token ids; TokenizerError for an id outside the vocabulary.

        continues: the ids follow earlier text, so that a leading space which belongs to the first word stays.
        """

    def stream(
        self, *, skip_special: bool = True, continues: bool = False, visible: Collection[int] = ()
    ) -> StreamDecoder:
        """A decoder to push generated ids into; parameters as for `decode`. visible: control tokens that are
        not skipped.
        """

    def token_id(self, text: str) -> int | None:
        """The token that stands for exactly this text, a control token or any other; None without one."""

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for (a control token's own text; empty for an id without a token).

        Raises TokenizerError for an id outside the vocabulary.
        """

    @property
    def longest_token(self) -> int:
        """Bytes of the longest token. All tokens are fetched for it, so that `token_bytes` never has to wait
        for an encoding afterwards.
        """

    def close(self) -> None:
        """End the process that encodes; a later encoding starts another."""
