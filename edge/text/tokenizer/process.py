"""The process that a tokenizer file's own rules run in, and the sentences about its failures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from edge.errors import TokenizerError
from edge.text.isolation.worker import Setup, Worker, WorkerFailure

_SECONDS = 10.0
_CHARACTERS_PER_SECOND = 50_000
"""Less than a tenth of what the slowest tokenizer does on a slow machine."""
_BLOCK = 1024
"""Pieces are asked for in blocks: all at once would delay a first token, one by one all the others."""


class TokenizerProcess:
    """A `Worker` for one tokenizer file, opened at once."""

    def __init__(self, file: str, program: str, packages: tuple[str, ...], setup: Setup) -> None:
        """file: its name, for messages. The others: as for `Worker`."""
        self._file = file
        self._blocks: dict[int, list[Any]] = {}
        self._worker = Worker(program, packages, setup)
        with self._described():
            self.facts = self._worker.open()
            """What the program says about the file."""

    def encode(self, texts: Sequence[tuple[str, bool]]) -> list[list[int]]:
        """Ids of each text; beside it whether it is the beginning of a text."""
        seconds = round(_SECONDS + sum(len(text) for text, _ in texts) / _CHARACTERS_PER_SECOND)
        found: list[list[int]] = self.ask("encode", seconds, texts=texts)
        return found

    def piece(self, token_id: int) -> Any:
        """What the program's `pieces` says of a token."""
        block, at = divmod(token_id, _BLOCK)
        if block not in self._blocks:
            self._blocks[block] = self.ask("pieces", first=block * _BLOCK, count=_BLOCK)
        return self._blocks[block][at]

    def ask(self, method: str, seconds: float = _SECONDS, **arguments: Any) -> Any:
        """The result of a method of the program; TokenizerError if it fails or goes past a limit."""
        with self._described():
            return self._worker.call(method, seconds, **arguments)

    def close(self) -> None:
        """End the process; the next question starts another."""
        self._worker.close()

    @contextmanager
    def _described(self) -> Iterator[None]:
        try:
            yield
        except WorkerFailure as failure:
            raise TokenizerError(
                f"The rules in {self._file} can't be applied ({failure}); get the model's files again, or "
                "shorten the text."
            ) from None
