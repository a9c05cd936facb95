"""Finds the model that a person names and opens it: a bundle, converted through the cache if needed, or an
exported folder.

What a path is gets decided by its contents (`manifest.json`, `artifact.json`, `config.json`, GGUF's magic),
never by its name.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edge.checkpoints.base import Checkpoint
from edge.checkpoints.compact import CompactCheckpoint
from edge.config.presets import PRESETS, preset
from edge.errors import ArtifactError, CheckpointError, EdgeError
from edge.formats.artifact.folder import Artifact
from edge.formats.artifact.manifest import ARTIFACT
from edge.formats.bundle.manifest import MANIFEST
from edge.formats.bundle.reader import Bundle
from edge.formats.gguf_parts import first_part, parts_beside
from edge.formats.model_files import ModelFiles, ModelTexts
from edge.hub.built_in import BUILT_IN, BuiltInModel
from edge.hub.convert import Progress, convert, plan_bundle
from edge.hub.gguf_files import split_name
from edge.hub.store import CacheKey, cached_bundle, source_key
from edge.quant.scheme import SOURCE, QuantScheme

RANDOM = "random:"
_EXPORTED = "'{}' was exported to another runtime; name the model that it was made from."
_DEFAULT_QUANTIZATION = "int4"
_PACKED = (
    "'{}' is a bundle and already packed, so it cannot be quantized again; name the checkpoint that it "
    "was made from."
)


def open_model(
    spec: str | Path,
    *,
    quantize: str | None = None,
    head: str | None = None,
    revision: str | None = None,
    offline: bool = False,
    verify: bool = False,
    target: str | None = None,
    progress: Progress | None = None,
) -> ModelFiles:
    """Open a model by name, path or hub id.

    spec: `smollm2-135m` (the built-in one), a GGUF file, a Hugging Face folder, a bundle, a folder of
    `edge export`, a hub id such as `openbmb/MiniCPM4-0.5B`, a GGUF file on the hub (`owner/repo:file.gguf`,
    or its quantization if only one file has it: `owner/repo:Q4_K_M`), or `random:PRESET` for random weights.
    A file or folder of that name comes first. A `Path` is always a file or folder.

    quantize, head: as in `edge.hub.convert.convert`. By default a GGUF file and packed or ternary
    matrices keep their own types, other float checkpoints and random weights become int4 in groups of 32;
    `source` keeps floats as float16. revision, offline: of hub ids, see `edge.hub.download`. verify:
    recompute the checksums of the bundle (those of an exported folder always are). target: the runtime that
    the model must have been exported for; others are refused before anything is converted. progress: called
    during a conversion with bytes done, bytes in total and the tensor's name; it also lets a download draw
    its bars.

    Raises EdgeError (CheckpointError, ConfigError, BundleError, ArtifactError), always with one sentence.
    """
    if target is not None and not _is_exported(Path(spec).expanduser()):
        raise ArtifactError(
            f"'{spec}' is not an exported model: it has no {ARTIFACT}; make one with "
            f"`edge export --to {target}`."
        )
    found = _find(spec, revision, offline, progress is not None)
    if found.kind == "exported":
        assert found.path is not None
        refuse_changes(spec, quantize=quantize, head=head)
        return Artifact.open(found.path, target=target)
    recipe = _recipe(found, quantize, head, verify)
    if isinstance(recipe, Bundle):
        return recipe

    def build(out: Path) -> None:
        convert(recipe.open_checkpoint(), out, progress=progress, **recipe.options)

    return _as_named(found, cached_bundle(recipe.key, build, verify=verify))


def open_bundle(spec: str | Path, **options: Any) -> Bundle:
    """The same for what needs a bundle; EdgeError for an exported folder, which has none."""
    files = open_model(spec, **options)
    if not isinstance(files, Bundle):
        raise EdgeError(_EXPORTED.format(spec))
    return files


def refuse_changes(spec: str | Path, **changes: Any) -> None:
    """Raise EdgeError for the first change (not None) that was asked of an exported folder."""
    for name, change in changes.items():
        if change is not None:
            raise EdgeError(
                f"'{spec}' was exported as it is, so {name} can't be changed; export the model again."
            )


def plan_model(
    spec: str | Path,
    *,
    quantize: str | None = None,
    head: str | None = None,
    revision: str | None = None,
    offline: bool = False,
    progress: Progress | None = None,
) -> Bundle:
    """What `open_model` would open, without converting: a bundle, or a `PlannedBundle` without weights.

    progress: lets a download draw its bars. Raises what `open_bundle` raises, but for damage in the weights.
    """
    found = _find(spec, revision, offline, progress is not None)
    if found.kind == "exported":
        raise EdgeError(_EXPORTED.format(spec))
    recipe = _recipe(found, quantize, head, verify=False)
    if isinstance(recipe, Bundle):
        return recipe
    return _as_named(found, plan_bundle(recipe.open_checkpoint(), **recipe.options))


def open_texts(
    spec: str | Path, *, revision: str | None = None, offline: bool = False, progress: bool = False
) -> ModelTexts:
    """What a model says beside its weights, which are not read and in a folder need not be there.

    Names are those of `open_model`. progress: let a download draw its bars.
    """
    found = _find(spec, revision, offline, progress)
    if found.kind == "folder":
        from edge.checkpoints.huggingface import HuggingFaceTexts

        assert found.path is not None
        return HuggingFaceTexts(found.path)
    if found.kind == "exported":
        assert found.path is not None
        return Artifact.open(found.path, verify=False)
    recipe = _recipe(found, None, None, verify=False)
    return recipe if isinstance(recipe, Bundle) else recipe.open_checkpoint()


def open_checkpoint(
    spec: str | Path, *, revision: str | None = None, offline: bool = False, progress: Progress | None = None
) -> tuple[Checkpoint, CacheKey]:
    """A model's checkpoint, unconverted, and a key for what somebody else makes of it.

    Names are those of `open_model`; random weights come as float16. Raises EdgeError for a bundle and for an
    exported folder, whose weights are packed already.
    """
    from edge.checkpoints import synthetic

    found = _find(spec, revision, offline, progress is not None)
    if found.kind == "random":
        random = synthetic.RandomCheckpoint(found.name, QuantScheme("f16"))
        return random, CacheKey(
            f"random-{found.name}", {"random": found.name, "generator": synthetic.VERSION}
        )
    assert found.path is not None
    if found.kind == "bundle":
        raise EdgeError(_PACKED.format(spec))
    if found.kind == "exported":
        raise EdgeError(_EXPORTED.format(spec))
    return (_open_gguf if found.kind == "gguf" else _open_folder)(found), _key(found, {})


@dataclass(frozen=True)
class _Found:
    """What a person named. name: of a random shape. hub_label: what was downloaded, as it is typed. built_in:
    what belongs to a name beside its file.
    """

    kind: Literal["random", "gguf", "folder", "bundle", "exported"]
    name: str = ""
    path: Path | None = None
    hub_label: str | None = None
    built_in: BuiltInModel | None = None

    @property
    def settings(self) -> Mapping[str, Any] | None:
        """The generation config of a file without one."""
        return None if self.built_in is None else self.built_in.settings


def _find(spec: str | Path, revision: str | None, offline: bool, bars: bool) -> _Found:
    """Decide what `spec` is, and download it if it is a hub id; bars: let the download draw them."""
    text = str(spec)
    path = local_path(spec)
    is_name = isinstance(spec, str) and not is_there(path)
    if is_name and text.startswith(RANDOM):
        return _Found("random", name=text.removeprefix(RANDOM))
    if is_name and text == BUILT_IN.name:
        return _Found("gguf", path=BUILT_IN.file(), built_in=BUILT_IN)
    if is_name and (hub := split_name(text)) is not None:
        try:
            return _downloaded(*hub, revision, offline, bars)
        except CheckpointError as error:
            if path.parent.is_dir():  # more likely a mistyped path than a hub id
                raise CheckpointError(
                    f"There is no file or folder '{text}', and as a hub id: {error}"
                ) from error
            raise
    if not text or not is_there(path):  # an empty path would be the current folder
        raise CheckpointError(_unknown(text, isinstance(spec, str)))
    if revision is not None:
        raise EdgeError(
            f"A revision belongs to a hub id, but '{text}' is a local path; leave the revision out."
        )
    if not path.is_dir():
        return _Found("gguf", path=first_part(path))
    if (path / MANIFEST).is_file():
        return _Found("bundle", path=path)
    return _Found("exported" if _is_exported(path) else "folder", path=path)


def _downloaded(repo: str, file: str | None, revision: str | None, offline: bool, bars: bool) -> _Found:
    from edge.hub.connection import HubModel
    from edge.hub.download import download
    from edge.hub.gguf_files import download_gguf

    model = HubModel(repo, revision)
    if file is None:
        folder = download(model, offline=offline, progress=bars)
        return _Found("folder", path=folder, hub_label=model.label)
    path, name = download_gguf(model, file, offline=offline, progress=bars)
    return _Found("gguf", path=path, hub_label=model.named(name))


def _is_exported(path: Path) -> bool:
    return (path / ARTIFACT).is_file()


@dataclass(frozen=True)
class _Recipe:
    """How a bundle is made. key: of its place in the cache. options: of `edge.hub.convert.convert`."""

    key: CacheKey
    open_checkpoint: Callable[[], Checkpoint]
    options: dict[str, Any]


def _recipe(found: _Found, quantize: str | None, head: str | None, verify: bool) -> _Recipe | Bundle:
    """For what is named; a bundle that runs as it is needs none and is opened."""
    options = {"quantize": None if quantize == SOURCE else quantize, "head": head}
    for name in (quantize, head):
        QuantScheme.chosen(name)  # an unknown one is refused before anything is read
    if found.kind == "random":
        return _random_recipe(found.name, options)
    assert found.path is not None
    if found.kind == "gguf":
        return _Recipe(_key(found, options), lambda: _open_gguf(found), options)
    if found.kind == "folder":
        from edge.checkpoints.opened import say_which_weights

        if quantize is None:
            options["floats"] = "auto"
        say_which_weights(found.path)  # also where the conversion is cached
        return _Recipe(_key(found, options), lambda: _open_folder(found), options)
    if quantize is not None or head is not None:
        raise EdgeError(_PACKED.format(found.path))
    bundle = Bundle.open(found.path, verify, compact=True)
    if not bundle.manifest.is_compact:
        return bundle
    checkpoint = CompactCheckpoint(bundle)
    return _Recipe(source_key(found.path, options), lambda: checkpoint, options)


def _key(found: _Found, options: dict[str, Any]) -> CacheKey:
    """The key of a file or folder; a downloaded one lies under the name of a commit, so its label counts."""
    assert found.path is not None
    parts = parts_beside(found.path)[1:] if found.kind == "gguf" else ()
    key = source_key(found.path, options, parts)
    facts = key.facts if found.settings is None else {**key.facts, "generation_config": found.settings}
    return CacheKey(found.hub_label or key.label, facts)


def _as_named(found: _Found, bundle: Bundle) -> Bundle:
    """With what belongs to the name and not to the weights."""
    return bundle if found.built_in is None else bundle.with_activations(found.built_in.activations)


def _open_gguf(found: _Found) -> Checkpoint:
    """The file as a checkpoint whose texts are known to be usable."""
    from edge.checkpoints.gguf import GGUFCheckpoint
    from edge.hub.preflight import check_small_files

    assert found.path is not None
    checkpoint = GGUFCheckpoint(found.path, source=found.hub_label, settings=found.settings)
    check_small_files(checkpoint)
    return checkpoint


def _open_folder(found: _Found) -> Checkpoint:
    """The folder as a checkpoint whose texts are known to be usable, before its weights are looked at."""
    from edge.checkpoints.huggingface import HuggingFaceCheckpoint, HuggingFaceTexts
    from edge.hub.preflight import check_small_files

    assert found.path is not None
    check_small_files(HuggingFaceTexts(found.path))
    return HuggingFaceCheckpoint(found.path, source=found.hub_label)


def _random_recipe(name: str, options: dict[str, Any]) -> _Recipe:
    from edge.checkpoints import synthetic

    config = preset(name)
    scheme = QuantScheme.from_name(options["quantize"] or _DEFAULT_QUANTIZATION)
    head = QuantScheme.chosen(options["head"])
    checkpoint = synthetic.RandomCheckpoint(name, scheme, head)
    facts = {"random": config.to_json(), "schemes": [str(info.scheme) for info in checkpoint.tensors]}
    key = CacheKey(f"random-{name}-{scheme}", {**facts, "generator": synthetic.VERSION})
    # The weights have their schemes from the start.
    return _Recipe(key, lambda: checkpoint, {})


def local_path(spec: str | Path) -> Path:
    """Where a name would lie on this machine."""
    try:
        return Path(spec).expanduser()
    except RuntimeError:  # ~ and somebody whom the system does not know
        return Path(spec)


def is_there(path: Path) -> bool:
    """Whether there is a file or folder; CheckpointError where the system can't tell."""
    try:
        return path.exists()
    except OSError as error:
        raise CheckpointError(f"Cannot read '{path}': {error.strerror or error}.") from None


def _unknown(text: str, may_be_name: bool) -> str:
    if not may_be_name:
        return f"There is no file or folder '{text}'; check the path."
    if " " in text.strip():
        return f"Unknown model '{text}': it is no file or folder here; a question goes behind --prompt."
    if Path(text).suffix == ".gguf" or Path(text).name != text:
        return f"Unknown model '{text}': there is no such file or folder; check the path."
    names = [BUILT_IN.name, *(RANDOM + name for name in PRESETS if not preset(name).num_experts)]
    close = difflib.get_close_matches(text, names, 1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    return (
        f"Unknown model '{text}'{hint}: it is no file or folder here; give {BUILT_IN.name}, a GGUF file or "
        f"model folder, a name on the hub (owner/repo, owner/repo:file.gguf), or random:PRESET."
    )
