"""Named declarations (families, schemes, executors, options), built in or brought by other packages.

A package adds some of its own by naming a module in the entry point group `minicpm_edge.plugins`; importing
that module registers them. Plugins are looked for only when a name is not built in, or all are asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from edge.errors import EdgeError

GROUP = "minicpm_edge.plugins"
T = TypeVar("T")


@cache
def load_plugins() -> None:
    """Import every installed plugin, once; EdgeError names one that can't be imported."""
    for entry in entry_points(group=GROUP):
        try:
            entry.load()
        except Exception as error:  # a plugin is foreign code and can fail in any way
            raise EdgeError(
                f"The plugin '{entry.name}' ({entry.value}) can't be loaded ({error}); update it, or "
                "uninstall it."
            ) from error


class Registry(Generic[T]):
    """Declarations of one kind by name. what: the kind in words, for messages."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._found: dict[str, T] = {}

    def register(self, name: str, item: T) -> T:
        """Add a declaration and return it; EdgeError if the name is taken."""
        if self._found.get(name, item) != item:
            raise EdgeError(f"There is a {self._what} '{name}' already; choose another name.")
        self._found[name] = item
        return item

    def find(self, name: str) -> T | None:
        """The declaration of that name, those of plugins included."""
        if name not in self._found:
            load_plugins()
        return self._found.get(name)

    def get(self, name: str) -> T:
        """The same; EdgeError with the known names if there is none."""
        found = self.find(name)
        if found is None:
            raise EdgeError(f"Unknown {self._what} '{name}'; choose one of {', '.join(self)}.")
        return found

    def names(self) -> tuple[str, ...]:
        """All names, those of plugins last."""
        load_plugins()
        return tuple(self._found)

    def values(self) -> tuple[T, ...]:
        """All declarations, those of plugins last."""
        load_plugins()
        return tuple(self._found.values())

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())
