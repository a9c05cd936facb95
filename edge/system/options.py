"""Options, each declared once: a field of a frozen dataclass with its default, its help and its check.

The Python API makes such a dataclass from keyword arguments, the command line shows its fields as flags
(`edge.apps.cli.options`). Both say the same sentence for a value that is out of range.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from edge.errors import EdgeError

_KEY = "option"
REQUIRED: Any = MISSING
"""The default of an option that has to be given."""


@dataclass(frozen=True)
class Option:
    """What is said about an option beside its type and default.

    help: one line. choices: the values that it may have, or a function that lists them. least, most: of a
    number. metavar: what stands for the value in the help. flag: its name on the command line, by default the
    field's with dashes; a switch may name its opposite too (`--mmap/--no-mmap`). former: names that it had
    once; who uses one is told the new one. check: called with a value, raises EdgeError for a wrong one.
    commas: of a tuple, its values are written in one word, separated by commas.
    """

    help: str
    choices: Sequence[str] | Callable[[], Sequence[str]] | None = None
    least: float | None = None
    most: float | None = None
    metavar: str | None = None
    flag: str | None = None
    former: tuple[str, ...] = ()
    check: Callable[[Any], object] | None = None
    commas: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The choices; empty if any value goes."""
        chosen = self.choices() if callable(self.choices) else self.choices
        return tuple(chosen or ())


def option(default: Any, help: str, **facts: Any) -> Any:
    """A dataclass field that is an option; default: a value, a function that makes it, or REQUIRED.

    facts: the other fields of `Option`.
    """
    return _field(default, Option(help, **facts))


def same(kind: type[Any], name: str) -> Any:
    """A field that is the option `name` of another dataclass, with its default."""
    return _field(default_of(kind, name), options_of(kind)[name])


def several(kind: type[Any], name: str) -> Any:
    """A field for a tuple of values of an option of another dataclass, by default of its default."""
    return _field((default_of(kind, name),), replace(options_of(kind)[name], commas=True))


def _field(default: Any, declared: Option) -> Any:
    metadata = {_KEY: declared}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def default_of(kind: type[Any], name: str) -> Any:
    """The default of a dataclass's field, or the function that makes it; REQUIRED if there is none."""
    (found,) = (each for each in fields(kind) if each.name == name)
    return found.default if found.default_factory is MISSING else found.default_factory


def options_of(kind: type[Any]) -> dict[str, Option]:
    """The options among the fields of a dataclass, by the field's name."""
    return {each.name: each.metadata[_KEY] for each in fields(kind) if _KEY in each.metadata}


def renamed_option(name: str, *kinds: type[Any]) -> str | None:
    """The sentence for a keyword whose flag an option of these dataclasses had once; None for any other."""
    flag = "--" + name.replace("_", "-")
    for kind in kinds:
        for field_name, declared in options_of(kind).items():
            if flag in declared.former:
                return f"The option '{name}' is now '{field_name}': {declared.help}"
    return None


def check_options(instance: Any) -> None:
    """Raise EdgeError for the first option whose value has the wrong type, is no choice, or out of range."""
    hints = get_type_hints(type(instance))
    for name, declared in options_of(type(instance)).items():
        check_option(name, getattr(instance, name), hints[name], declared)


def check_option(name: str, value: Any, kind: Any, declared: Option) -> None:
    """The same for one value; kind: the field's type. Of a tuple every value is checked."""
    if get_origin(kind) is tuple:
        if not isinstance(value, tuple):
            raise EdgeError(f"{name} must be a tuple, got {value!r}.")
        for each in value:
            check_option(name, each, get_args(kind)[0], declared)
        return
    kinds = kinds_of(kind)
    if value is None and type(None) in kinds:
        return
    if declared.choices is not None and value not in declared.names:
        raise EdgeError(f"Unknown {name} '{value}'; choose one of {', '.join(declared.names)}.")
    wanted = _wanted(kinds, declared)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if isinstance(value, bool):
        fits = bool in kinds
    elif float in kinds:
        fits = number
    elif int in kinds:
        fits = isinstance(value, int)
    else:
        fits = bool not in kinds and (str not in kinds or isinstance(value, str))
    if fits and number:
        fits = (declared.least is None or value >= declared.least) and (
            declared.most is None or value <= declared.most
        )
    if not fits:
        raise EdgeError(f"{name} must be {wanted}, got {value!r}.")
    if declared.check is not None:
        declared.check(value)


def plain(value: Any) -> Any:
    """The same value with NumPy's scalars, which a computation gives, as Python's; also inside lists and
    mappings.
    """
    numpy = sys.modules.get("numpy")  # not imported for this: without it there are no such values
    if numpy is not None and isinstance(value, numpy.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {plain(key): plain(each) for key, each in value.items()}
    return type(value)(map(plain, value)) if type(value) in (list, tuple) else value


def kinds_of(kind: Any) -> tuple[Any, ...]:
    """The types that a value may have: the members of a union; the texts of a Literal count as `str`."""
    origin = get_origin(kind)
    if origin is Literal:
        return (str,)
    if origin in (Union, UnionType):
        return tuple(each for member in get_args(kind) for each in kinds_of(member))
    return (kind,)


def _wanted(kinds: tuple[Any, ...], declared: Option) -> str:
    """The kind of value in words."""
    if bool in kinds:
        return "true or false"
    if int not in kinds and float not in kinds:
        return "a text"
    words = "a number" if float in kinds else "a whole number"
    if declared.least is not None and declared.most is not None:
        return f"{words} from {declared.least:g} to {declared.most:g}"
    if declared.least is not None:
        return f"{words} of {declared.least:g} or more"
    return words if declared.most is None else f"{words} of at most {declared.most:g}"
