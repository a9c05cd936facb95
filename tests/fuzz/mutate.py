"""Changes files in ways that readers get wrong: lengths, types, names, nesting, pieces lost and doubled."""

from __future__ import annotations

import copy
import json
import random
import struct
from collections.abc import Callable
from typing import Any

NUMBERS = (0, 1, 2, 3, 7, 8, 31, 32, 64, 127, 128, 255, 256, 32767, 65535, 65536, 1 << 20, (1 << 31) - 1)
NUMBERS += (1 << 31, (1 << 32) - 1, 1 << 32, 1 << 40, (1 << 53) + 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0.5, -1, -0.0, 1e-320, 1e308, float("inf"), float("nan"), 10**18, 10**40, 10**299),
    *("", " ", "x", "\0", "\x1b[2J", "\ud800", "ä", "²", "1", "-1", "../x", "a/b", "C:\\x", "x" * 300),
    *([], {}, [[]], [None], [0], ["x"], {"": 0}, {"x": None}, [1, 2, 3], list(range(50))),
)
SPOILED = (
    b"\xff",
    b"\0",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    b"[" * 2000,
    b'{"a":' * 200,
    b"9" * 400,
    b"9" * 5000,
)


def mutate_bytes(data: bytes, chance: random.Random, others: list[bytes]) -> bytes:
    """One to four changes of single bytes, numbers, ranges and ends."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        _change(changed, chance, others)
    return bytes(changed)


def _change(data: bytearray, chance: random.Random, others: list[bytes]) -> None:
    # The headers of binary files stand at their beginning.
    end = len(data) if chance.random() < 0.4 else min(len(data), 1024)
    at = chance.randrange(end) if end else 0
    length = min(chance.choice((1, 2, 4, 8, 16, 100)), len(data) - at)
    kind = chance.randrange(9)
    if kind == 0 and data:
        data[at] ^= 1 << chance.randrange(8)
    elif kind == 1 and data:
        data[at] = chance.randrange(256)
    elif kind in (2, 3):
        size = chance.choice((1, 2, 4, 8, 8))
        number = chance.choice(NUMBERS) & ((1 << 8 * size) - 1)
        data[at : at + size] = number.to_bytes(size, "little")
    elif kind == 4:
        del data[at : at + length]
    elif kind == 5:
        data[at:at] = data[at : at + length] * chance.choice((1, 1, 3))
    elif kind == 6:
        del data[at:]
    elif kind == 7 and others:
        other = chance.choice(others)
        start = chance.randrange(len(other) + 1)
        data[at : at + length] = other[start : start + chance.choice((4, 16, 64))]
    else:
        data[at:at] = chance.choice(SPOILED)


def mutate_json(data: bytes, chance: random.Random, others: list[bytes]) -> bytes:
    """One to three changes of a document's tree, sometimes of its text."""
    if chance.random() < 0.1:
        return mutate_bytes(data, chance, others)
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        return mutate_bytes(data, chance, others)
    for _ in range(chance.choice((1, 1, 2, 3))):
        places = list(_places(tree))
        if not places:
            return json.dumps(chance.choice(VALUES)).encode()
        _replant(chance.choice(places), places, chance)
    return json.dumps(tree).encode()


def mutate_framed(start: int) -> Callable[[bytes, random.Random, list[bytes]], bytes]:
    """For files with a JSON header after its length (8 bytes, at `start`): the header's tree or any byte."""

    def mutate(data: bytes, chance: random.Random, others: list[bytes]) -> bytes:
        first = start + 8
        end = first + int.from_bytes(data[start:first], "little")
        if chance.random() < 0.4 or end > len(data):
            return mutate_bytes(data, chance, others)
        header = mutate_json(data[first:end], chance, [])
        header += b" " * (-len(header) % 64)
        return data[:start] + len(header).to_bytes(8, "little") + header + data[end:]

    return mutate


def _places(tree: Any) -> Any:
    """(container, key) of every value, down to any depth."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        items = list(
            node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        )
        for key, value in items:
            yield node, key
            waiting.append(value)


def _replant(place: tuple[Any, Any], places: list[tuple[Any, Any]], chance: random.Random) -> None:
    node, key = place
    value = node[key]
    kind = chance.randrange(9)
    if kind <= 1:
        node[key] = copy.deepcopy(chance.choice(VALUES))
    elif kind == 2 and isinstance(value, int | float):
        node[key] = chance.choice(
            (value + 1, value - 1, -value, 2 * value, value / 2, str(value), chance.choice(NUMBERS))
        )
    elif kind == 3:
        del node[key]
    elif kind == 4 and isinstance(node, dict):
        node[str(chance.choice(VALUES))] = node.pop(key)
    elif kind == 5:
        other, name = chance.choice(places)
        if name in other if isinstance(other, dict) else name < len(other):
            node[key] = copy.deepcopy(other[name])
    elif kind == 6 and isinstance(node, list):
        node.insert(key, copy.deepcopy(value))
    elif kind == 7 and isinstance(value, str) and value:
        at = chance.randrange(len(value))
        node[key] = value[:at] + str(chance.choice(VALUES)) + value[at + 1 :]
    else:
        for _ in range(chance.choice((1, 30, 70))):
            value = [value]
        node[key] = value


PUSHES = (
    b"K\x00",
    b"K\x05",
    b"]",
    b"}",
    b")",
    b"N",
    b"\x88",
    b"J\xff\xff\xff\x7f",
    b"(",
    b"t",
    b"\x85",
    b"\x86",
    b"e",
)
PUSHES += (
    b"s",
    b"u",
    b"R",
    b"b",
    b"Q",
    b"a",
    b"h\x00",
    b"q\x01",
    b"\x94",
    b"\x8d" + b"\xff" * 8,
    b"\x8a\x01\xff",
    b"0",
)
PUSHES += (
    b"ctorch\nFloatStorage\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"cos\nsystem\n",
    b"X\x01\x00\x00\x00a",
)
PUSHES += (b"G" + struct.pack(">d", 0.5), b".", b"I1\n", b"L1L\n", b"S'x'\n", b"\x93", b"\x81")


def mutate_pickle(data: bytes, chance: random.Random, others: list[bytes]) -> bytes:
    """Operations put in, and what any binary file may suffer."""
    if chance.random() < 0.5:
        return mutate_bytes(data, chance, others)
    at = chance.randrange(len(data) + 1)
    piece = b"".join(chance.choice(PUSHES) for _ in range(chance.choice((1, 1, 2, 4))))
    return data[:at] + piece * chance.choice((1, 1, 1, 50)) + data[at:]
