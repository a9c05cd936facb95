"""What every tokenizer shares: control tokens cut out of the text, BOS, decoding.

The kinds of tokenizer below it only encode plain text and know the bytes of a token.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from edge.errors import TokenizerError
from edge.text.tokenizer.base import LITERAL_MARK, StreamDecoder

SPACE_SYMBOL = "▁"
"""How SentencePiece writes a space inside a token."""
_SPACES = re.compile(r"\s*")


@dataclass(frozen=True)
class AddedToken:
    """A token that is matched as a whole before the text is encoded.

    special: a control token, matched only on request. lstrip, rstrip: it swallows the whitespace on that
    side.
    """

    id: int
    text: str
    special: bool
    lstrip: bool = False
    rstrip: bool = False

    def __post_init__(self) -> None:
        try:
            self.text.encode()
        except (UnicodeEncodeError, AttributeError):  # half a character, or another type of JSON
            raise TokenizerError(
                f"The tokenizer's added token {self.id} is {self.text!a:.40}, which is no text; get the "
                "model's files again."
            ) from None


@dataclass(frozen=True)
class Vocabulary:
    """What the files and the model's configuration say about ids.

    size: of the model's vocabulary. pieces: how many tokens the tokenizer file itself has. added: control
    tokens, and those ordinary tokens that this package must match by itself. add_bos: default of `encode`.
    unk_id: may come out of ordinary text, unlike other control tokens. named: texts of tokens by role.
    strip_leading_space: encoding puts a space in front of the text, so decoding takes it away.
    """

    size: int
    pieces: int
    added: tuple[AddedToken, ...]
    bos_id: int | None
    unk_id: int | None
    named: Mapping[str, str]
    add_bos: bool
    strip_leading_space: bool


class SegmentTokenizer(ABC):
    """Implements the `Tokenizer` protocol over plain-text encoding and a table of token bytes."""

    def __init__(self, vocabulary: Vocabulary, match_ordinary: bool) -> None:
        """match_ordinary: ordinary added tokens are matched here, not by `_encode_plain`."""
        ids = [token.id for token in vocabulary.added]
        if min(ids, default=0) < 0:
            raise TokenizerError(
                f"The tokenizer gives a token the id {min(ids)}; use the tokenizer files that belong to this "
                "model."
            )
        highest = max([vocabulary.pieces - 1, *ids])
        if highest >= vocabulary.size:
            raise TokenizerError(
                f"The tokenizer has ids up to {highest}, but the model's vocabulary only {vocabulary.size} "
                "tokens; use the tokenizer files that belong to this model."
            )
        self.end_tokens: tuple[int, ...] = ()  # `load_tokenizer`, which knows all their sources, fills it
        self._pieces = vocabulary.pieces
        self._vocabulary = vocabulary
        # A token without a text, as some vocabularies have, can't be written: it never matches.
        self._added = {token.text: token for token in vocabulary.added if token.text}
        self._added_bytes = {token.id: token.text.encode() for token in vocabulary.added}
        self._special = {token.text: token.id for token in self._added.values() if token.special}
        self._special_ids = frozenset(token.id for token in vocabulary.added if token.special)
        self._control_ids = self._special_ids - {vocabulary.unk_id}
        ordinary = [text for text in self._added if match_ordinary and text not in self._special]
        self._match_all = _pattern([*self._special, *ordinary])
        self._match_special = _pattern(self._special)
        self._match_ordinary = _pattern(ordinary)
        self._bytes: dict[int, bytes] = {}

    @abstractmethod
    def close(self) -> None:
        """End the process that encodes; a later encoding starts another."""

    @abstractmethod
    def _encode_plain(self, texts: Sequence[tuple[str, bool]]) -> list[list[int]]:
        """Ids of non-empty texts without control tokens, each with whether nothing stands before it."""

    @abstractmethod
    def _piece_bytes(self, token_id: int) -> bytes:
        """Bytes of a token that is not an added one; empty where the vocabulary has no such id."""

    @abstractmethod
    def _piece_id(self, piece: bytes) -> int | None:
        """The id of the ordinary token that stands for these bytes (a character or a single byte)."""

    @property
    def vocab_size(self) -> int:
        return self._vocabulary.size

    @property
    def bos_id(self) -> int | None:
        return self._vocabulary.bos_id

    @property
    def eos_ids(self) -> frozenset[int]:
        return frozenset(self.end_tokens)

    @property
    def special_tokens(self) -> Mapping[str, int]:
        return self._special

    @property
    def named_tokens(self) -> Mapping[str, str]:
        return self._vocabulary.named

    def encode(
        self,
        text: str,
        *,
        add_bos: bool | None = None,
        parse_special: bool = False,
        continues: bool = False,
    ) -> list[int]:
        text = _without_surrogates(text)
        pattern = self._match_all if parse_special else self._match_ordinary
        segments = list(self._split(text, pattern))
        if parse_special:
            segments = [(segment.replace(LITERAL_MARK, ""), token) for segment, token in segments]
        plain = [(segment, at == 0 and not continues) for at, (segment, _) in enumerate(segments) if segment]
        encoded = iter(self._encode_plain(plain) if plain else ())
        ids: list[int] = []
        for segment, token in segments:
            if segment:
                ids += self._without_control(next(encoded))
            if token is not None:
                ids.append(token.id)
        bos = self._vocabulary.bos_id
        wanted = self._vocabulary.add_bos and not continues if add_bos is None else add_bos
        if wanted and bos is not None and not (parse_special and ids[:1] == [bos]):
            ids.insert(0, bos)
        return ids

    def protect(self, text: str) -> str:
        if self._match_special is None:
            return text
        return self._match_special.sub(lambda match: match[0][0] + LITERAL_MARK + match[0][1:], text)

    def decode(self, ids: Iterable[int], *, skip_special: bool = True, continues: bool = False) -> str:
        stream = self.stream(skip_special=skip_special, continues=continues)
        return "".join([stream.push(token_id) for token_id in ids]) + stream.flush()

    def stream(
        self, *, skip_special: bool = True, continues: bool = False, visible: Collection[int] = ()
    ) -> StreamDecoder:
        skipped = self._special_ids.difference(visible) if visible else self._special_ids
        return StreamDecoder(
            self.token_bytes,
            skipped if skip_special else (),
            self._vocabulary.strip_leading_space and not continues,
        )

    def token_id(self, text: str) -> int | None:
        if text in self._added:
            return self._added[text].id
        return self._piece_id(_without_surrogates(text).encode()) if text else None

    def token_bytes(self, token_id: int) -> bytes:
        found = self._bytes.get(token_id)
        if found is None:
            if not 0 <= token_id < self._vocabulary.size:
                raise TokenizerError(
                    f"Token id {token_id} lies outside the vocabulary of {self._vocabulary.size} tokens."
                )
            found = self._added_bytes.get(token_id)
            if found is None:
                found = self._piece_bytes(token_id)
            self._bytes[token_id] = found
        return found

    @cached_property
    def longest_token(self) -> int:
        return max(len(self.token_bytes(token_id)) for token_id in range(self.vocab_size))

    def _split(self, text: str, pattern: re.Pattern[str] | None) -> Iterator[tuple[str, AddedToken | None]]:
        """Pieces of plain text, each with the added token that follows it (None for the last piece)."""
        start = 0
        while pattern is not None and (match := pattern.search(text, start)):
            token = self._added[match[0]]
            segment = text[start : match.start()]
            start = match.end()
            if token.rstrip:
                start = _SPACES.match(text, start).end()  # type: ignore[union-attr]  # it always matches
            yield segment.rstrip() if token.lstrip else segment, token
        yield text[start:], None

    def _without_control(self, ids: list[int]) -> list[int]:
        """Ids of plain text; a control token that the vocabulary's own merges build is taken apart again."""
        if self._control_ids.isdisjoint(ids):
            return ids
        return [part for token_id in ids for part in self._spelled(token_id)]

    def _spelled(self, token_id: int) -> list[int]:
        if token_id not in self._control_ids:
            return [token_id]
        parts: list[int] = []
        for character in self._added_bytes[token_id].decode():
            data = character.encode()
            whole = self._piece_id(data)
            pieces = [whole] if whole is not None else [self._piece_id(bytes([byte])) for byte in data]
            parts += [piece for piece in pieces if piece is not None]
        return parts


def sentencepiece_name(data: bytes) -> str:
    """How a SentencePiece vocabulary writes the token of one character, or of one byte of a longer one."""
    if len(data) == 1 and data[0] >= 128:
        return f"<0x{data[0]:02X}>"
    return data.decode().replace(" ", SPACE_SYMBOL)


def _pattern(texts: Iterable[str]) -> re.Pattern[str] | None:
    """Matches the longest of these texts at the leftmost place; None when there are none."""
    longest_first = sorted(texts, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def _without_surrogates(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
