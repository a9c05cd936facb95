"""Downloads checkpoints from the Hugging Face hub, through `huggingface_hub` and its cache.

Only what a checkpoint reader opens is fetched: safetensors (PyTorch files only where there are none),
configuration, tokenizer and chat template. `HF_HOME`, `HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE` mean
what they mean everywhere. GGUF files are in `edge.hub.gguf_files`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from edge.checkpoints.huggingface import TOKENIZER_FILES, HuggingFaceTexts, has_weights, is_complete
from edge.checkpoints.opened import CONFIG, GPTQ_CONFIG, read_json
from edge.config.draft_huggingface import plain_fields, refuse_other_kinds
from edge.errors import CheckpointError
from edge.hub.connection import HubModel, cached_snapshot, connected, is_offline, needs_network
from edge.hub.gguf_files import choices, gguf_files, local_gguf_files
from edge.hub.preflight import check_small_files


@dataclass(frozen=True)
class Wanted:
    """What is downloaded. small_files: patterns of the files beside the weights. complete: whether a folder
    has everything. check: raises EdgeError for small files that can't be used, before the weights come.
    """

    small_files: tuple[str, ...]
    complete: Callable[[Path], bool]
    check: Callable[[Path], None]


def _check_model(folder: Path) -> None:
    check_small_files(HuggingFaceTexts(folder))


def _check_draft(folder: Path) -> None:
    data = read_json(folder / CONFIG) or {}
    refuse_other_kinds(plain_fields(data), f"'{folder / CONFIG}'")


MODEL = Wanted(
    (
        *(CONFIG, GPTQ_CONFIG, "generation_config.json", "chat_template.jinja", "chat_template.json"),
        *TOKENIZER_FILES,
    ),
    is_complete,
    _check_model,
)
DRAFT = Wanted((CONFIG, GPTQ_CONFIG, *TOKENIZER_FILES, "freq_*.pt"), has_weights, _check_draft)
"""A draft may come without a tokenizer, and with lists of frequent tokens."""
_WEIGHTS = (
    ("model.safetensors.index.json", "model*.safetensors"),
    ("pytorch_model.bin.index.json", "pytorch_model*.bin"),
)
"""Patterns of weight files, the preferred format first."""


def download(
    model: HubModel, wanted: Wanted = MODEL, *, offline: bool = False, progress: bool = False
) -> Path:
    """The folder with the files of a hub model, downloaded if they are not in the hub's cache yet.

    offline: use the cache alone (as does HF_HUB_OFFLINE=1). progress: let huggingface_hub draw its bars on
    stderr if that is a terminal. When the hub cannot be reached, a complete earlier download serves, and for
    a full commit hash it is not even asked. Raises CheckpointError with one sentence for a model or revision
    that does not exist, a gated model, GGUF files without a checkpoint, and no network.
    """
    folder, complete = _cached(model, wanted)
    if is_offline(offline):
        if folder is None or not complete:
            state = "has not been downloaded yet" if folder is None else "was downloaded only in part"
            if folder is not None and not (folder / CONFIG).is_file() and (files := local_gguf_files(folder)):
                state = f"has not been downloaded yet except as {choices(model, files)}"
            raise needs_network(model, None, state)
        return folder
    if folder is not None and complete and model.is_commit:
        return folder
    with connected(model, progress) as attempt:
        return _fetch(model, wanted, folder if complete else None)
    if folder is None or not complete:
        raise attempt.failure(model.label) from attempt.error
    return folder


def _fetch(model: HubModel, wanted: Wanted, known: Path | None) -> Path:
    """Download what is missing; known: the folder of an earlier, complete download of this revision."""
    from huggingface_hub import snapshot_download

    found = model.ask()
    if known is not None and known.name == found.sha:  # snapshots are named by their commit
        return known
    files = [sibling.rfilename for sibling in found.siblings or ()]
    weights = [p for p in _WEIGHTS if any(fnmatch(file, pattern) for file in files for pattern in p)]
    if CONFIG not in files or not weights:
        _refuse_gguf_alone(model, gguf_files(files))
    if CONFIG not in files:
        raise CheckpointError(
            f"'{model.repo}' on the hub has no {CONFIG}; it is not a Hugging Face checkpoint."
        )
    if not weights:
        raise CheckpointError(
            f"'{model.repo}' on the hub has neither safetensors nor PyTorch weights nor GGUF files; choose "
            "another model."
        )
    small = snapshot_download(model.repo, revision=model.revision, allow_patterns=[*wanted.small_files])
    wanted.check(Path(small))  # before gigabytes come
    patterns = [*wanted.small_files, *weights[0]]
    return Path(snapshot_download(model.repo, revision=model.revision, allow_patterns=patterns))


def _refuse_gguf_alone(model: HubModel, files: Collection[str]) -> None:
    """Raise CheckpointError with what to type, if there are GGUF files."""
    if files:
        raise CheckpointError(
            f"'{model.repo}' on the hub has its weights in GGUF files only; name one of them: "
            f"{choices(model, files)}."
        )


def _cached(model: HubModel, wanted: Wanted) -> tuple[Path | None, bool]:
    """The folder of an earlier download, None if there is none, and whether all of it is there."""
    folder: Path | None = None
    for patterns in _WEIGHTS:
        found, listed = cached_snapshot(model, [*wanted.small_files, *patterns])
        folder = found or folder
        if found is not None and listed and wanted.complete(found):
            return found, True
    return folder, False
