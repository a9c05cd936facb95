"""The options of `scripts/bench_peers.py`, checked."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Collection
from pathlib import Path

from .parts import PARTS
from .programs import PEERS


def counts(text: str) -> tuple[int, ...]:
    """Numbers of busy processes; 0 comes first, since shares are of the speed alone."""
    try:
        found = tuple(sorted({int(word) for word in text.split(",")}))
    except ValueError:
        found = ()
    if not found or found[0] < 0:
        raise argparse.ArgumentTypeError(f"'{text}' is no list of numbers of processes, such as 0,1,2")
    return found


def names_of(parts: Collection[str]) -> Callable[[str], tuple[str, ...]]:
    """Takes names of parts, by commas, each once."""

    def part_names(text: str) -> tuple[str, ...]:
        names = tuple(dict.fromkeys(text.split(",")))
        if unknown := [name for name in names if name not in parts]:
            raise argparse.ArgumentTypeError(f"there is no part '{unknown[0]}'; choose of {', '.join(parts)}")
        return names

    return part_names


def at_least_one(text: str) -> int:
    """A count."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no number of 1 or more")
    return int(text)


def python_file(text: str) -> str:
    """A Python that exists; its links are not followed, since that would leave its environment."""
    if not os.access(text, os.X_OK) or Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"'{text}' is no program; name the Python of the peer's environment")
    return str(Path(text).absolute())


def options_of(arguments: list[str] | None = None, description: str | None = None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", type=names_of(PARTS), default=tuple(PARTS), help="by default all")
    parser.add_argument("--model", default="random:minicpm4-0.5b")
    parser.add_argument("--models", type=Path, help="where the peers' models are kept")
    parser.add_argument("--threads", type=at_least_one, default=2)
    parser.add_argument("--rounds", type=at_least_one, default=5)
    parser.add_argument("--busy", type=counts, default=(0, 1, 2), help="numbers of busy processes beside")
    parser.add_argument(
        "--need-all", action="store_true", help="stop where a peer is missing, instead of leaving it out"
    )
    for peer in PEERS:
        parser.add_argument(
            f"--{peer.option}",
            type=python_file,
            metavar="PYTHON",
            help=f"that has {peer.package}; by default ${peer.variable}, else the Python of this script",
        )
    return parser.parse_args(arguments)
