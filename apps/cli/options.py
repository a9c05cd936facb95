"""How a command takes options: the fields of dataclasses (`edge.system.options`), shown to typer as flags.

A command has a dataclass as one parameter (`source: Source`); `expand` puts the flags of its options there,
checks what was given, and makes the dataclass. Names that options had once are answered with the new ones.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, is_dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

from edge.apps.cli.errors import FormerNameError, set_debug
from edge.errors import EdgeError
from edge.executors.options import RunOptions
from edge.executors.options import extra_options as plugin_options
from edge.hub.built_in import BUILT_IN
from edge.hub.options import HubOptions, SourceOptions
from edge.system.options import REQUIRED, Option, check_option, default_of, kinds_of, options_of

MODEL_HELP = (
    f"{BUILT_IN.name}, a GGUF file, a Hugging Face folder, a bundle, a hub id (openbmb/MiniCPM4-0.5B), "
    "a GGUF file on the hub (owner/repo:file.gguf), or random weights of a known shape "
    "(random:minicpm4-0.5b)."
)


@dataclass(frozen=True)
class Group:
    """How a command takes options, as an annotation of its parameter.

    panel: the heading in the help. suffix: at the end of every flag, for commands with two of a kind.
    given: the parameter is a dict of those options of these dataclasses that the user gave, without defaults.
    """

    panel: str | None = None
    suffix: str = ""
    given: tuple[type[Any], ...] = ()


Model = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on the last line.")]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        metavar="PATH",
        help="Write the result here: a folder (of an export or a tokenizer it must not exist, a run or "
        "shards are gone on with), a JSON document, a picture, or a list of tokens.",
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print sizes and the plan; make nothing.")]
Hub = Annotated[HubOptions, Group("Model")]
Source = Annotated[SourceOptions, Group("Model")]
Run = Annotated[RunOptions, Group("Model")]
_Debug = Annotated[bool, typer.Option("--debug", callback=set_debug, help="Show the traceback of an error.")]


def extra_options(kind: type[Any]) -> Mapping[str, tuple[Any, Any, Option]]:
    """Options that plugins add to a dataclass, by name: type, default, declaration. They are collected in its
    field `extra`.
    """
    if kind is not RunOptions:
        return {}
    return {name: (each.kind, each.default, each.declared) for name, each in plugin_options().items()}


_given: ContextVar[Mapping[str, str]] = ContextVar("given", default={})  # noqa: B039 (never changed)


def given_flags() -> Mapping[str, str]:
    """What was typed for the command that runs: the flag by the parameter's name, defaults left out."""
    return _given.get()


def refuse_beside(mode: str, *allowed: str) -> None:
    """Raise typer.BadParameter for what was typed and means nothing together with the flag `mode`.

    allowed: names of the other parameters.
    """
    for name, flag in given_flags().items():
        if name not in allowed and flag != mode:
            raise typer.BadParameter(f"means nothing with {mode}: leave it out", param_hint=f"'{flag}'")


def given_out(out: Path | None) -> Path:
    """`--out` of a command that can't do without; raises typer.BadParameter."""
    if out is None:
        raise typer.BadParameter("give what to write", param_hint="'--out'")
    return out


def _typed(context: typer.Context) -> dict[str, str]:
    def source(name: str) -> str:
        found = context.get_parameter_source(name)
        return "" if found is None else found.name

    own = [each for each in context.command.params if each.name and source(each.name) == "COMMANDLINE"]
    return {str(each.name): each.opts[0] for each in own if each.name != "debug"}


def expand(command: Callable[..., Any]) -> Callable[..., Any]:
    """Let typer see the options of dataclass parameters one by one, and add `--debug`.

    A parameter that may be None is None if an option that it requires was not given.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, _Options] = {}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if (options := _options(hints[name])) is not None:
            groups[name] = options
            parameters += options.parameters()
        else:
            parameters.append(_parameter(parameter.name, parameter.default, hints[name]))
    parameters.append(_parameter("debug", False, _Debug))

    parameters.append(_parameter("context_of_typer", inspect.Parameter.empty, typer.Context))

    @wraps(command)
    def run(debug: bool, context_of_typer: typer.Context, **values: Any) -> Any:
        token = _given.set(_typed(context_of_typer))
        try:
            made = {name: options.take(values) for name, options in groups.items()}
            return command(**values, **made)
        finally:
            _given.reset(token)

    del run.__wrapped__  # typer would follow it to the signature that it should not see
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _options(hint: Any) -> _Options | None:
    """The options that a parameter of this type stands for; None for a parameter of typer's own."""
    kind, group = hint, Group()
    if get_origin(hint) is Annotated:
        kind, *notes = get_args(hint)
        group = next((note for note in notes if isinstance(note, Group)), group)
    if group.given:
        return _Options(group.given, group, True)
    kinds = kinds_of(kind)
    if not is_dataclass(kinds[0]):
        return None
    assert isinstance(kinds[0], type)
    return _Options((kinds[0],), group, type(None) in kinds)


class _Options:
    """The options of one parameter of a command."""

    def __init__(self, kinds: tuple[type[Any], ...], group: Group, optional: bool) -> None:
        self._kinds = kinds
        self._given = bool(group.given)
        self._flags = [flag for kind in kinds for flag in _flags_of(kind, group, optional)]

    def parameters(self) -> Iterator[inspect.Parameter]:
        """Typer's parameters of these options, and hidden ones for the names that they had once."""
        for flag in self._flags:
            yield flag.parameter()
        for flag in self._flags:
            yield from flag.former_parameters()

    def take(self, values: dict[str, Any]) -> Any:
        """Take the values of these options out of typer's, check them, and make what the command wants."""
        found: dict[str, Any] = {}
        for flag in self._flags:
            for former in flag.former_parameters():
                values.pop(former.name)
            value = flag.read(values.pop(flag.parameter_name))
            if value is None:
                continue
            if flag.is_extra:
                found.setdefault("extra", {})[flag.name] = value
            else:
                found[flag.name] = value
        if self._given:
            return found
        (kind,) = self._kinds
        if any(flag.default is REQUIRED and flag.name not in found for flag in self._flags):
            return None
        return kind(**found)


def _flags_of(kind: type[Any], group: Group, optional: bool) -> Iterator[_Flag]:
    hints = get_type_hints(kind)
    for name, declared in options_of(kind).items():
        default = default_of(kind, name)
        yield _Flag(kind, name, hints[name], default, declared, group, optional)
    for name, (hint, default, declared) in extra_options(kind).items():
        yield _Flag(kind, name, hint, default, declared, group, optional, is_extra=True)


@dataclass(frozen=True)
class _Flag:
    """One option of a dataclass on the command line."""

    kind: type[Any]
    name: str
    hint: Any
    default: Any
    declared: Option
    group: Group
    optional: bool
    is_extra: bool = False

    @property
    def flag(self) -> str:
        """As it is typed; a switch with its opposite has the positive one."""
        return self._flags.partition("/")[0]

    @property
    def _flags(self) -> str:
        return (self.declared.flag or "--" + self.name.replace("_", "-")) + self.group.suffix

    @property
    def parameter_name(self) -> str:
        """A name that no other option of the command has."""
        return self.name + self.group.suffix.replace("-", "_")

    @property
    def _kinds(self) -> tuple[Any, ...]:
        """The types of a value, None left out; of a tuple those of one of its values."""
        hint = get_args(self.hint)[0] if get_origin(self.hint) is tuple else self.hint
        return tuple(kind for kind in kinds_of(hint) if kind is not type(None))

    @property
    def _is_list(self) -> bool:
        """Whether the flag may be given several times."""
        return get_origin(self.hint) is tuple or self._is_mapping

    @property
    def _is_mapping(self) -> bool:
        return any(
            isinstance(get_origin(kind), type) and issubclass(get_origin(kind), Mapping)
            for kind in self._kinds
        )

    def parameter(self) -> inspect.Parameter:
        """What typer shows and reads."""
        declared, names = self.declared, self.declared.names
        kind = self._typer_kind()
        facts: dict[str, Any] = {"help": declared.help, "rich_help_panel": self.group.panel}
        facts["metavar"] = declared.metavar or ("LIST" if declared.commas else None)
        if kind in (int, float):
            facts |= {"min": declared.least, "max": declared.most}
        if names and not declared.commas:
            facts["metavar"] = declared.metavar or f"<{'|'.join(names)}>"
            facts["autocompletion"] = lambda incomplete: [
                name for name in names if name.startswith(incomplete)
            ]
        required = self.default is REQUIRED and not self.optional
        default = ... if required else None if self.group.given else self._shown_default()
        if default is None or kind is bool:
            facts["show_default"] = False
        annotation = list[str] if self._is_list else kind
        if default is None:
            annotation = annotation | None
        return _parameter(
            self.parameter_name,
            inspect.Parameter.empty if required else default,
            Annotated[annotation, typer.Option(self._flags, **facts)],
        )

    def former_parameters(self) -> Iterator[inspect.Parameter]:
        """Hidden options under former names, which tell the new one."""
        for number, name in enumerate(self.declared.former if not self.group.suffix else ()):
            told = typer.Option(name, hidden=True, callback=self._tell(name))
            yield _parameter(f"former_{number}_{self.parameter_name}", None, Annotated[str | None, told])

    def _tell(self, former: str) -> Callable[[str | None], None]:
        def tell(value: str | None) -> None:
            if value is not None:
                raise FormerNameError(f"The option {former} is now {self.flag}: {self.declared.help}")

        return tell

    def _typer_kind(self) -> Any:
        kinds = self._kinds
        for kind in (bool, float, int, Path):
            if kind in kinds:
                return kind
        return str

    def _shown_default(self) -> Any:
        """The default as typer takes it; None where there is none to show."""
        if self.default is REQUIRED or callable(self.default):
            return None
        if isinstance(self.default, tuple):
            shown = [str(value) for value in self.default if value is not None]
            return [",".join(shown)] if shown and self.declared.commas else shown or None
        return self.default

    def read(self, given: Any) -> Any:
        """The field's value of what typer read, None if nothing was given; typer.BadParameter for a wrong
        one.
        """
        if given is None or given == [] or given == ():
            return None
        try:
            value = (
                self._mapping(given) if self._is_mapping else self._values(given) if self._is_list else given
            )
            check_option(self.name, value, self.hint, self.declared)
            if self.group.given:
                self.kind(**{self.name: value})
        except EdgeError as error:
            raise typer.BadParameter(str(error), param_hint=f"'{self.flag}'") from None
        return value

    def _values(self, given: list[str]) -> tuple[Any, ...]:
        if not self.declared.commas:
            return tuple(given)
        words = [word.strip() for text in given for word in text.split(",") if word.strip()]
        kind = self._typer_kind()
        try:
            return tuple(dict.fromkeys(kind(word) for word in words))
        except ValueError:
            raise EdgeError(f"'{','.join(given)}' is not a list of whole numbers such as 512,4096.") from None

    def _mapping(self, given: list[str]) -> dict[Any, Any]:
        (key, value) = get_args(self._kinds[0])
        found = {}
        for item in given:
            name, _, text = item.partition("=")
            try:
                found[key(name)] = value(text)
            except ValueError:
                raise EdgeError(f"'{item}' is not {self.declared.metavar}, for example 42=-5.") from None
        return found


def _parameter(name: str, default: Any, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
