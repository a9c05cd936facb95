"""A training run, as one TOML file says it: typed sections, each option declared once, unknown keys
refused.

What a run needs beyond this file (texts as token shards, a checkpoint to start from) is named by paths. How
the options are carried out is the business of the modules that take a section: `schedule`, `optimizers`,
`objective`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from difflib import get_close_matches
from math import inf, isfinite
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from edge.checkpoints.bita import MASKS, PREFIX
from edge.config.presets import PRESETS
from edge.errors import ConfigError, EdgeError
from edge.quant.scheme import QuantScheme
from edge.system.options import REQUIRED, check_options, default_of, option, options_of
from edge.train.drafts.options import DRAFT_KINDS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CONFIGS = Path(__file__).parent / "configs"
"""The presets of runs."""


class _Section:
    """A section of the file: its options are checked when it is made."""

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True)
class ModelSection(_Section):
    """The network: a known shape, and what differs from it. Any field of `ModelConfig` may stand here."""

    preset: str = option(
        "minicpm4-0.5b", "Shape that the fields below change.", choices=lambda: PRESETS.names()
    )
    changes: Mapping[str, Any] = option(dict, "Fields of `ModelConfig` and their values.")


@dataclass(frozen=True)
class DataPhase(_Section):
    """From when on the texts are mixed by other weights."""

    begins: float = option(REQUIRED, "Share of the run's steps at which the phase begins.", least=0, most=1)
    weights: Mapping[str, float] = option(dict, "Shares of the tokens by source, from then on.")


@dataclass(frozen=True)
class DataSection(_Section):
    """What is read, and how much of it in a step."""

    sources: Mapping[str, str] = option(dict, "Folders of token shards, by names for the log.")
    weights: Mapping[str, float] = option(dict, "Shares of the tokens by source; by default by their sizes.")
    phases: tuple[DataPhase, ...] = option((), "Other weights from later steps on.")
    length: int = option(512, "Tokens of a row.", least=2)
    rows: int = option(32, "Rows of a step, all processes together.", least=1)
    buckets: tuple[int, ...] = option((), "Lengths in tokens whose documents get equal shares of the tokens.")
    divisor: int = option(
        1, "With buckets: what a step's rows are a multiple of, the most processes it may have.", least=1
    )

    @property
    def tokens_per_step(self) -> int:
        """Tokens of a step, all processes together."""
        return self.length * self.rows


@dataclass(frozen=True)
class ScheduleSection(_Section):
    """The learning rate over the steps."""

    steps: int = option(
        REQUIRED, "Steps of the run, with those of the checkpoint that it starts from.", least=1
    )
    kind: str = option("wsd", "How the learning rate runs.", choices=("wsd", "cosine", "constant"))
    warm_up: int = option(100, "Steps in which the learning rate rises linearly.", least=0)
    decay: float = option(0.1, "Share of the steps that decay (wsd).", least=0, most=1)
    shape: str = option("exponential", "How it decays (wsd).", choices=("exponential", "linear", "1-sqrt"))
    floor: float = option(0.1, "What the decay ends at, as a share of the learning rate.", least=0, most=1)


@dataclass(frozen=True)
class OptimizerSection(_Section):
    """How weights are changed."""

    kind: str = option(
        "adamw", "AdamW for everything, or Muon for the layers' matrices.", choices=("adamw", "muon")
    )
    learning_rate: float = option(1e-2, "The highest learning rate, at the base width.", least=0)
    muon_learning_rate: float = option(2e-2, "That of the matrices under Muon.", least=0)
    betas: tuple[float, ...] = option((0.9, 0.95), "AdamW's two decay rates of moments.", least=0, most=1)
    epsilon: float = option(1e-8, "AdamW's epsilon.", least=0)
    weight_decay: float = option(
        0.1, "Decay of matrices and of the embedding, times the learning rate of each.", least=0
    )
    clip: float = option(1.0, "Largest norm of the gradient; 0 for no limit.", least=0)
    mup: bool = option(True, "Learning rates and initial weights by width (muP).")
    base_width: int = option(256, "Hidden size at which muP changes nothing.", least=1)
    init_std: float = option(0.1, "Standard deviation of initial weights at the base width.", least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.betas) != 2:
            raise EdgeError(f"betas must be two numbers, got {list(self.betas)}.")


@dataclass(frozen=True)
class LossSection(_Section):
    """What is minimised beside the next token's cross-entropy."""

    z: float = option(0.0, "Weight of the squared log of the softmax's normaliser.", least=0)
    multi_token: float = option(
        0.0, "Weight of the loss of the token after next (lambda); 0 for no such layer.", least=0
    )


@dataclass(frozen=True)
class QuantizationSection(_Section):
    """Quantization-aware training of the layers' matrices."""

    scheme: str | None = option(
        None, "What the matrices are rounded to: ternary-g128, ternary-row, int4-g32."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.chosen is not None and self.chosen.is_float:
            raise EdgeError(f"'{self.scheme}' rounds to no codes; choose ternary-g128, int4-g32 or the like.")

    @property
    def chosen(self) -> QuantScheme | None:
        """The scheme, None without quantization."""
        return QuantScheme.chosen(self.scheme)


@dataclass(frozen=True)
class DraftSection(_Section):
    """A draft is trained, which guesses what a model will say, on that model's answers (`edge train answers`)
    as the only data.
    """

    target: str | None = option(None, "The model whose draft is trained; without one it is a model itself.")
    kind: str = option("eagle2", "What the draft is like.", choices=DRAFT_KINDS)
    layers: int = option(1, "Decoder layers of the draft.", least=1)
    rows: int = option(
        0,
        "Rows of the head that it learns to guess with, of the most frequent tokens of the answers; 0: all.",
        least=0,
    )
    times: int = option(3, "Guesses in a row that it learns to make.", least=1)
    feature_loss: float = option(
        1.0, "Weight of the distance to the model's next hidden state (eagle2).", least=0
    )
    token_loss: float = option(0.1, "Weight of the cross-entropy to what the model says next.", least=0)
    block: int = option(7, "Tokens of a block (dspark).", least=1)
    anchors: int = option(64, "Blocks that are told of a row of the batch (dspark).", least=1)
    markov_rank: int = option(256, "Columns of the Markov head, 0 for none (dspark).", least=0)
    mask_token: int = option(
        -1, "The token that stands for those to be told (dspark); -1: the last one.", least=-1
    )
    block_decay: float = option(4.0, "Places over which losses in a block fall by e (dspark).", least=0.1)
    variation_loss: float = option(
        0.9, "Weight of the differences to the model's distribution (dspark).", least=0
    )
    confidence_loss: float = option(
        1.0, "Weight of the confidence head's loss; 0: there is none (dspark).", least=0
    )
    masks: int = option(MASKS, "Mask tokens, which guess as many tokens in a row (bita).", least=1)
    prefix: int = option(PREFIX, "Rows of keys and values that the mask tokens see (bita).", least=1)
    groups: int = option(64, "Places of a row behind which the mask tokens learn (bita).", least=1)


@dataclass(frozen=True)
class AttentionSection(_Section):
    """How the layers read their rows."""

    fused: str = option(
        "auto",
        "Dense attention by fused calls (sdpa) or by tiles of documents (flex); auto is flex on GPUs.",
        choices=("auto", "sdpa", "flex"),
    )

    kind: str = option(
        "dense", "Attention; sparse has the constants of model.sparse.", choices=("dense", "sparse")
    )


@dataclass(frozen=True)
class StartSection(_Section):
    """What a run begins with; by default random weights."""

    path: str | None = option(None, "The folder of another run, one of its checkpoints, or a model's folder.")
    what: str = option(
        "weights",
        "Only the weights, or everything: then the other run is continued under this schedule.",
        choices=("weights", "everything"),
    )


@dataclass(frozen=True)
class CheckpointSection(_Section):
    """When the state is saved."""

    every: int = option(500, "Steps from one checkpoint to the next.", least=1)
    keep: int = option(2, "The last checkpoints that are kept.", least=1)
    keep_every: int = option(0, "Multiples of this step whose checkpoints stay too; 0 for none.", least=0)
    keep_at: tuple[int, ...] = option((), "Steps whose checkpoints are made and always kept.", least=1)


@dataclass(frozen=True)
class EvaluationSection(_Section):
    """The loss on texts that the run doesn't learn from."""

    sources: Mapping[str, str] = option(dict, "Folders of token shards, by names for the log.")
    every: int = option(500, "Steps from one evaluation to the next; the last step always has one.", least=1)
    rows: int = option(64, "Rows that are read of each source.", least=1)


@dataclass(frozen=True)
class RuntimeSection(_Section):
    """How it is computed; none of this changes what is learned, up to rounding."""

    device: str = option("auto", "Where it runs.", choices=("auto", "cpu", "cuda"))
    threads: int | None = option(None, "CPU threads of a process; by default PyTorch's choice.", least=1)
    accumulation: int = option(1, "Parts of a step's rows that are computed one after another.", least=1)
    precision: str = option("float32", "Arithmetic of the layers.", choices=("float32", "bfloat16"))
    compile: bool = option(False, "Compile the network (torch.compile).")
    gradient_checkpointing: bool = option(
        False, "Compute layers again in the backward pass instead of keeping them."
    )
    on_nan: str = option(
        "stop", "What a loss that is no number does; its rows are saved.", choices=("stop", "skip")
    )


@dataclass(frozen=True)
class LogSection(_Section):
    """What is written while it runs."""

    every: int = option(10, "Steps from one line of the log to the next.", least=1)
    tensorboard: bool = option(True, "Write TensorBoard's files too.")


@dataclass(frozen=True)
class RunConfig:
    """Everything that a run is told; see `read`."""

    data: DataSection
    schedule: ScheduleSection
    model: ModelSection = field(default_factory=ModelSection)
    optimizer: OptimizerSection = field(default_factory=OptimizerSection)
    loss: LossSection = field(default_factory=LossSection)
    draft: DraftSection = field(default_factory=DraftSection)
    quantization: QuantizationSection = field(default_factory=QuantizationSection)
    attention: AttentionSection = field(default_factory=AttentionSection)
    start: StartSection = field(default_factory=StartSection)
    checkpoints: CheckpointSection = field(default_factory=CheckpointSection)
    evaluation: EvaluationSection = field(default_factory=EvaluationSection)
    runtime: RuntimeSection = field(default_factory=RuntimeSection)
    log: LogSection = field(default_factory=LogSection)
    seed: int = option(0, "Of the first weights and of the texts' order.", least=0)

    def __post_init__(self) -> None:
        check_options(self)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, for the log and for comparing a run with what it continues."""
        found: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return found


@dataclass(frozen=True)
class DeclaredOption:
    """An option as it is shown: `section.key`, the default as TOML writes it, the values that it may have."""

    name: str
    default: str
    choices: tuple[str, ...]
    help: str


def declared_options(kind: type[Any] = RunConfig, prefix: str = "") -> Iterator[DeclaredOption]:
    """Every option of a run's file, section by section."""
    declared, hints = options_of(kind), get_type_hints(kind)
    for each in fields(kind):
        if each.name not in declared:
            yield from declared_options(hints[each.name], f"{prefix}{each.name}.")
            continue
        name = "FIELD" if each.name == "changes" else each.name  # stands in the section itself
        about = declared[each.name]
        yield DeclaredOption(prefix + name, _as_toml(default_of(kind, each.name)), about.names, about.help)


def _as_toml(value: Any) -> str:
    if value is REQUIRED:
        return "must be given"
    if value is None or value is dict:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return str(list(value)) if isinstance(value, tuple) else str(value)


def presets() -> tuple[str, ...]:
    """Names of the runs of `CONFIGS`."""
    return tuple(sorted(each.stem for each in CONFIGS.glob("*.toml")))


def read(path: str | Path, changes: Sequence[str] = ()) -> RunConfig:
    """The run that a TOML file describes, or a preset of `CONFIGS` by its name.

    changes: `section.key=value`, values as in TOML; they take the place of what the file says. ConfigError
    with the file and the key for what is unknown, missing or out of range.
    """
    return run_from(_with_changes(_load(Path(path)), changes), str(path))


def run_from(data: Mapping[str, Any], where: str = "the run") -> RunConfig:
    """The run of a TOML document's mapping. where: what holds it, for messages."""
    try:
        return _make(RunConfig, data, "")
    except EdgeError as error:
        raise ConfigError(f"{where}: {error}") from error


def _load(path: Path) -> dict[str, Any]:
    found = path if path.suffix == ".toml" or path.exists() else CONFIGS / f"{path}.toml"
    try:
        with found.open("rb") as file:
            return tomllib.load(file)
    except FileNotFoundError as error:
        names = ", ".join(presets())
        raise ConfigError(f"There is no run '{path}'; give a TOML file, or one of {names}.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"'{found}' can't be read ({error}); give a TOML file.") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"'{found}' is not TOML: {error}.") from error


def _with_changes(data: dict[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    for change in changes:
        name, equals, text = change.partition("=")
        *sections, key = name.strip().split(".")
        if not equals or not key:
            raise ConfigError(
                f"'{change}' changes nothing; write section.key=value, such as schedule.steps=100."
            )
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text.strip()  # a text needs no quotation marks on a command line
        into = data
        for section in sections:
            into = into.setdefault(section, {})
            if not isinstance(into, dict):
                raise ConfigError(f"'{change}': '{section}' is no section.")
        into[key] = value
    return data


def _make(kind: type[Any], data: Any, where: str) -> Any:
    """A section of the file's mapping, its own sections included; ConfigError names a key that is not
    there.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f"'{where}' must be a section, not {data!r}.")
    hints = get_type_hints(kind)
    prefix = f"{where}." if where else ""
    keys = {each.name: each for each in fields(kind)}
    if kind is ModelSection:
        changes = {name: value for name, value in data.items() if name != "preset"}
        try:
            json.dumps(changes, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"A value of 'model' is none that a model has: {error}.") from error
        data = {**{name: value for name, value in data.items() if name == "preset"}, "changes": changes}
    found = {}
    for key, value in data.items():
        if key not in keys:
            near = get_close_matches(key, keys, 1)
            hint = f"; is it '{prefix}{near[0]}'?" if near else f"; there are {', '.join(keys)}."
            raise ConfigError(f"There is no option '{prefix}{key}'{hint}")
        found[keys[key].name] = _value(hints[keys[key].name], value, prefix + key)
    for key, each in keys.items():
        if each.name not in found and each.default is REQUIRED and each.default_factory is REQUIRED:
            raise ConfigError(f"The option '{prefix}{key}' is missing.")
    try:
        return kind(**found)
    except ConfigError:
        raise
    except EdgeError as error:
        raise ConfigError(f"{where}: {error}" if where else str(error)) from error


def _value(hint: Any, value: Any, where: str) -> Any:
    if isinstance(hint, type) and issubclass(hint, _Section):
        return _make(hint, value, where)
    if get_origin(hint) is tuple:
        if not isinstance(value, list):
            raise ConfigError(f"'{where}' must be a list, not {value!r}.")
        return tuple(_value(hint.__args__[0], each, where) for each in value)
    if get_origin(hint) is not None and issubclass(get_origin(hint), Mapping):
        wanted = hint.__args__[1]
        if not isinstance(value, Mapping):
            raise ConfigError(f"'{where}' must be a section, not {value!r}.")
        for name, each in value.items():
            number = isinstance(each, (int, float)) and not isinstance(each, bool) and 0 <= each < inf
            if wanted is float and not number:
                raise ConfigError(f"'{where}.{name}' must be a number of 0 or more, not {each!r}.")
            if wanted is str and not isinstance(each, str):
                raise ConfigError(f"'{where}.{name}' must be a path, not {each!r}.")
    if isinstance(value, float) and not isfinite(value):
        raise ConfigError(f"'{where}' must be a finite number, not {value}.")
    return value
