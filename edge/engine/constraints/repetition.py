"""How often a pattern repeats: `(a{1000}){1000}` takes llguidance seconds.

What is counted is the longest row of characters that a regex or a terminal of Lark asks for, what is optional
once; no more of the syntax is looked at than that needs, and what is not understood counts nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from edge.errors import EdgeError

MOST_REPEATED = 1 << 15
"""Characters in a row: 0.2 s to compile."""

# Of Rust's syntax: escapes, classes, the heads of groups, quantifiers. What nothing closes goes to the end:
# so it is looked at once.
_REGEX = re.compile(
    r"\\(?:[pPxuU]\{[^}]{0,40}\}|.)|\[\^?\]?(?:\\.|\[:\^?\w+:\]|[^\]\\])*(?:\]|\\?\Z)"
    r"|\{(?P<least>\d+)(?:,\d*)?\}|[*+?]\??"
    r"|(?P<open>\((?:\?(?:P?<[^>]{0,80}>|[\w-]{0,20}:?))?)|(?P<close>\))|(?P<or>\|)|.",
    re.DOTALL,
)
_LARK = re.compile(
    r'(?P<text>"(?:[^"\\\n]|\\.)*(?:"|\\?(?=\n|\Z)))i?|//[^\n]*'
    r"|/(?P<regex>(?:[^/\\\n]|\\.)+)(?:/[imslux]*|\\?(?=\n|\Z))"
    r"|(?P<name>[A-Z][A-Z_0-9]*)|\{(?P<least>\d+)(?:,\d*)?\}|~\s*(?P<times>\d+)(?:\s*\.\.\s*\d+)?"
    r"|(?P<open>[(\[])|(?P<close>[)\]])|(?P<or>\|)"
)
_TERMINAL = re.compile(
    r"^(?P<name>[A-Z][A-Z_0-9]*)(?:\.-?\d+)?[ \t]*:(?P<body>.*(?:\n[ \t]*\|.*)*)", re.MULTILINE
)

Found = re.Match[str]


def check_regex(text: str, what: str) -> None:
    """EdgeError for one that repeats too much. what: its name in the sentence."""
    _check(_weight(_REGEX.finditer(text), _regex_part), what)


def check_lark(text: str) -> None:
    """EdgeError for a grammar one of whose terminals or regexes repeats too much."""
    bodies = {found["name"]: found["body"] for found in _TERMINAL.finditer(text)}
    weights: dict[str, int] = {}

    def part(found: Found) -> int:
        if found["regex"] is not None:
            return _weight(_REGEX.finditer(found["regex"]), _regex_part)
        if found["text"] is not None:
            return len(found["text"]) - 2
        return weight(found["name"]) if found["name"] in bodies else 0

    def weight(name: str) -> int:
        if name not in weights:
            weights[name] = 0  # where it is part of itself, llguidance says so
            weights[name] = _weight(_LARK.finditer(bodies[name]), part)
        return weights[name]

    for found in _LARK.finditer(text):
        if found["regex"] is not None:
            _check(part(found), "Lark grammar")
    try:
        for name in bodies:
            _check(weight(name), "Lark grammar")
    except RecursionError:
        raise EdgeError("The Lark grammar is not usable: its terminals are nested too deep.") from None


def _check(weight: int, what: str) -> None:
    if weight > MOST_REPEATED:
        raise EdgeError(
            f"The {what} is not usable: it repeats up to {min(weight, 10**12)} characters in a row, and "
            f"{MOST_REPEATED} are supported."
        )


def _regex_part(found: Found) -> int:
    return 1


def _weight(parts: Iterator[Found], part: Callable[[Found], int]) -> int:
    """Of an expression: sums in a row, the largest of alternatives, products of what is repeated."""
    levels: list[list[int]] = []  # of open groups: the largest alternative, the sum of the present one
    largest = total = last = 0  # last: of what a quantifier would repeat
    for found in parts:
        kind = found.lastgroup
        if kind == "open":
            levels.append([largest, total])
            largest = total = last = 0
        elif kind == "close":
            last = max(largest, total)
            largest, total = levels.pop() if levels else (0, 0)
            total += last
        elif kind == "or":
            largest, total, last = max(largest, total), 0, 0
        elif kind in ("least", "times"):
            more = last * (max(1, int(found[kind][:12])) - 1)
            total, last = total + more, last + more
        elif found[0][0] not in "*+?":
            last = part(found)
            total += last
    while levels:
        total = max(largest, total) + levels[-1][1]
        largest = levels.pop()[0]
    return max(largest, total)
