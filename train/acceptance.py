"""How often a multi-token-prediction layer guesses right: what it would save as a draft model.

A second token is accepted by greedy speculation where the guess is the token that the network itself would
choose. The text that came before is the true one in both.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edge.errors import ConfigError
from edge.model.network.decoder import Decoder
from edge.model.network.multi_token import MultiTokenPrediction


@dataclass(frozen=True)
class Acceptance:
    """Counts of places i + 2 of a text, each guessed from tokens 0 .. i + 1 by both.

    own: guesses that are the network's own greedy token. text: guesses that are the text's token. network:
    the network's greedy tokens that are the text's.
    """

    places: int = 0
    own: int = 0
    text: int = 0
    network: int = 0

    def __add__(self, other: Acceptance) -> Acceptance:
        return Acceptance(
            self.places + other.places,
            self.own + other.own,
            self.text + other.text,
            self.network + other.network,
        )

    def shares(self) -> dict[str, float]:
        """`own`, `text` and `network` as shares of the places."""
        return {name: getattr(self, name) / self.places for name in ("own", "text", "network")}


@torch.inference_mode()
def measure_acceptance(
    decoder: Decoder,
    guess: MultiTokenPrediction,
    documents: Iterable[npt.NDArray[np.integer]],
    length: int | None = None,
    places: int | None = None,
) -> Acceptance:
    """Greedy guesses over held-out documents, token ids [n] each.

    length: longest piece of a document in tokens, by default the decoder's context. places: enough to stop
    at. Raises ConfigError where no document has three tokens.
    """
    found = Acceptance()
    for piece in _pieces(documents, length or decoder.context):
        found += _of_piece(decoder, guess, piece.to(decoder.model.norm.weight.device))
        if places is not None and found.places >= places:
            break
    if not found.places:
        raise ConfigError("Acceptance needs a text of 3 tokens or more; give longer documents.")
    return found


def _of_piece(decoder: Decoder, guess: MultiTokenPrediction, tokens: Tensor) -> Acceptance:
    """tokens: int [1, n]."""
    trunk = decoder.trunk(tokens)
    own = decoder.logits(trunk.hidden)[:, 1:-1].argmax(-1)
    guessed = guess(decoder, tokens, trunk.stream[-1])[:, :-1].argmax(-1)
    text = tokens[:, 2:]
    right = ((guessed == own).sum(), (guessed == text).sum(), (own == text).sum())
    return Acceptance(text.numel(), *(int(count) for count in right))


def _pieces(documents: Iterable[npt.NDArray[np.integer]], length: int) -> Iterable[Tensor]:
    for document in documents:
        for start in range(0, len(document) - 2, length):
            tokens = torch.from_numpy(document[start : start + length].astype(np.int64))
            if len(tokens) > 2:
                yield tokens.unsqueeze(0)
