"""Whether a finite value can satisfy a JSON schema, by what it requires."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any


def can_end(root: Any, target: Callable[[str], Any]) -> bool:
    """Whether a finite value can satisfy `root`. target: the schema that a `$ref` names.

    A schema can end once, of each group of others that it needs, one can. So that a schema to which many
    ways lead is looked at once, each that can end tells those that wait for it.
    """
    missing: dict[int, int] = {}  # schema -> groups of which nothing can end yet
    waiting: dict[int, list[list[int]]] = defaultdict(list)  # schema -> groups, each [the schema it is of]
    ended: list[int] = []
    found = [root]
    while found:
        node = found.pop()
        if id(node) in missing:
            continue
        missing[id(node)] = 0
        for options in _needs(node, target) if isinstance(node, dict) else ():
            missing[id(node)] += 1
            group = [id(node)]
            for option in options:
                waiting[id(option)].append(group)
                found.append(option)
        if not missing[id(node)]:
            ended.append(id(node))
    while ended:
        for group in waiting.pop(ended.pop(), ()):
            if not group:
                continue  # another of its options was faster
            owner = group.pop()
            missing[owner] -= 1
            if not missing[owner]:
                ended.append(owner)
    return missing[id(root)] == 0


def _needs(node: dict[str, Any], target: Callable[[str], Any]) -> Iterator[list[Any]]:
    """Groups of schemas: a value of `node` holds a value of one of each group."""
    for part in node.get("allOf", ()):
        yield [part]
    if "$ref" in node:
        yield [target(node["$ref"])]
    if node.get("type") == "object":
        properties = node.get("properties", {})
        for name in node.get("required", ()):
            if name in properties:
                yield [properties[name]]
    if node.get("type") == "array" and node.get("minItems", 0) > 0:
        first = node.get("prefixItems") or [node.get("items", True)]
        yield [first[0] if isinstance(first, list) and first else first]
    for name in ("anyOf", "oneOf"):
        if node.get(name):
            yield node[name]
