"""How often a trained multi-token layer guesses the token after next: prints one JSON document."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import torch

from edge.model.network.multi_token import MultiTokenPrediction
from edge.model.weights.checkpoint import load_decoder
from edge.train.acceptance import measure_acceptance
from edge.train.data.shards import ShardFolder
from edge.train.saving import load_multi_token


def main() -> None:
    """Arguments: the folder of a run, and held-out token shards."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("texts", type=Path)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--places", type=int, default=50_000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    decoder = load_decoder(arguments.run / "model", arguments.length)
    guess: MultiTokenPrediction = load_multi_token(arguments.run, decoder.config)
    shards = ShardFolder.open(arguments.texts)
    documents = (shards.document(number) for number in range(shards.documents))
    found = measure_acceptance(decoder, guess, documents, arguments.length, arguments.places)
    print(json.dumps({"run": arguments.run.name, **asdict(found), "shares": found.shares()}))


if __name__ == "__main__":
    main()
