"""GGUF files on the Hugging Face hub: what `owner/repo:file.gguf` and `owner/repo:Q4_K_M` mean, and their
download into the hub's cache.

A file in several parts goes by the name of its first one, and all of them are downloaded.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from edge.errors import CheckpointError
from edge.formats.gguf_parts import part_name
from edge.hub.connection import HubModel, cached_snapshot, connected, is_offline, needs_network

_SUFFIX = ".gguf"
_MOST_SHOWN = 12


def split_name(text: str) -> tuple[str, str | None] | None:
    """(repository, what stands after the colon) of `owner/repo` or `owner/repo:file`; None for others."""
    found = re.fullmatch(r"(\w[\w.-]*/\w[\w.-]*)(?::([^:]+))?", text, re.ASCII)
    return None if found is None else (found[1], found[2])


def gguf_files(files: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The GGUF files among a repository's, in their order by name: the name of each, and its parts, which may
    be missing; a file that is no part of another is its own.
    """
    found: dict[str, tuple[str, ...]] = {}
    for file in sorted(file for file in files if file.lower().endswith(_SUFFIX)):
        if (name := _whole(file)) not in found:
            part = part_name(file)
            found[name] = (file,) if part is None else part.all
    return found


def local_gguf_files(snapshot: Path | None) -> list[str]:
    """Those of a folder in the hub's cache that are there with all parts; a file has its name only when all
    of it has come.
    """
    if snapshot is None:
        return []
    files = {file.relative_to(snapshot).as_posix() for file in snapshot.rglob("*") if file.is_file()}
    return [name for name, parts in gguf_files(files).items() if files.issuperset(parts)]


def choices(model: HubModel, files: Iterable[str]) -> str:
    """What to type for these files; a long list is cut."""
    files = list(files)
    names = [f"{model.repo}:{file}" for file in files[:_MOST_SHOWN]]
    more = len(files) - len(names)
    return ", ".join(names) + (f" and {more} more" if more > 0 else "")


def download_gguf(
    model: HubModel, wanted: str, *, offline: bool = False, progress: bool = False
) -> tuple[Path, str]:
    """(the file in the hub's cache, its name in the repository), downloaded if it is not there yet; of a file
    in parts that is the first one, and the others lie beside it.

    wanted: a file of the repository, or a quantization such as `Q4_K_M` that is in the name of one file
    alone. offline, progress, and what serves when the hub cannot be reached: as in
    `edge.hub.download.download`. Raises CheckpointError with one sentence, which lists the files that there
    are if the wanted one is not among them.
    """
    snapshot, _ = cached_snapshot(model, [])
    local = _matching(wanted, local_gguf_files(snapshot))
    known = None if snapshot is None or len(local) != 1 else (snapshot / local[0], local[0])
    if is_offline(offline):
        if not local:
            raise needs_network(model, wanted, "has not been downloaded yet")
        if known is None:
            raise _several(model, wanted, local)
        return known
    if known is not None and model.is_commit and _whole(wanted) == known[1]:
        return known
    with connected(model, progress) as attempt:
        return _fetch(model, wanted, known)
    if known is None:
        raise attempt.failure(model.named(wanted)) from attempt.error
    return known


def _fetch(model: HubModel, wanted: str, known: tuple[Path, str] | None) -> tuple[Path, str]:
    """Download the file; known: an earlier download of this revision that may be it."""
    from huggingface_hub import hf_hub_download

    info = model.ask()
    there = {sibling.rfilename for sibling in info.siblings or ()}
    files = gguf_files(there)
    file = _choose(model, wanted, files)
    missing = sorted({*files[file]} - there)
    if missing:
        raise CheckpointError(
            f"'{model.named(file)}' is a GGUF file of {len(files[file])} parts, and '{missing[0]}' is not on "
            "the hub; choose another file or model."
        )
    if known is not None and known[1] == file and info.sha in known[0].parts:
        return known  # snapshots are named by their commit
    first, *others = files[file]
    path = Path(hf_hub_download(model.repo, first, revision=model.revision))
    for part in others:
        hf_hub_download(model.repo, part, revision=info.sha)  # of the same commit, if a branch moves
    return path, file


def _choose(model: HubModel, wanted: str, files: Iterable[str]) -> str:
    """The one of the repository's files that is meant; CheckpointError if there is none, or several."""
    files = list(files)
    if not files:
        raise CheckpointError(f"'{model.repo}' on the hub has no GGUF files; leave ':{wanted}' out.")
    found = _matching(wanted, files)
    if len(found) > 1:
        raise _several(model, wanted, found)
    if not found:
        close = difflib.get_close_matches(wanted, files, len(files), cutoff=0)
        raise CheckpointError(
            f"'{model.repo}' on the hub has no GGUF file '{wanted}'; name one of those that it has: "
            f"{choices(model, close)}."
        )
    return found[0]


def _whole(file: str) -> str:
    """The name that a file goes by: of a part that of the first."""
    part = part_name(file)
    return file if part is None else part.of(1)


def _several(model: HubModel, wanted: str, files: list[str]) -> CheckpointError:
    return CheckpointError(
        f"'{model.repo}:{wanted}' fits several files; name one of them: {choices(model, files)}."
    )


def _matching(wanted: str, files: Sequence[str]) -> list[str]:
    """The file of that name, or those with that quantization as a word of their names, as `Q4_K_M` is one of
    `model-Q4_K_M.gguf` and not of `model-IQ4_K_M.gguf`.
    """
    if wanted.lower().endswith(_SUFFIX):
        return [file for file in files if file == _whole(wanted)]
    word = re.compile(rf"(?:^|[-._]){re.escape(wanted)}(?:$|[-.])", re.IGNORECASE)
    return [file for file in files if word.search(PurePosixPath(file).name[: -len(_SUFFIX)])]
