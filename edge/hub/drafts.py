"""Finds the draft that a person names for a model and opens it: a draft bundle, converted through the cache
if needed.

A draft belongs to one target. Its shape and tokenizer are compared with the target's, and so are the copies
of the target's embedding and head that public drafts carry; what was converted knows the target's weights.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol, get_args

import numpy as np
import numpy.typing as npt

from edge.checkpoints.base import TensorSource
from edge.checkpoints.bita import is_bita
from edge.checkpoints.draft import DraftCheckpoint, is_draft_checkpoint
from edge.checkpoints.frequency_list import TokenIds, read_frequency_list, with_end_tokens
from edge.checkpoints.packed_draft import PackedDraft
from edge.checkpoints.synthetic_draft import VERSION as RANDOM_VERSION
from edge.checkpoints.synthetic_draft import RandomDraft, draft_shape
from edge.config.draft import MARKOV_AFTER, DraftConfig, DraftKind, draft_tensors
from edge.config.fields import listed
from edge.config.tensors import EMBEDDING, HEAD
from edge.errors import CheckpointError, EdgeError
from edge.formats.bundle.manifest import BundleTensor
from edge.formats.bundle.reader import Bundle
from edge.formats.draft.files import DraftFiles, DraftWriter, PlannedDraft, draft_folder, is_draft
from edge.formats.draft.manifest import TOKEN_IDS, VERSION, TargetIdentity
from edge.formats.hashing import json_digest
from edge.formats.model_files import ModelFiles
from edge.hub.convert import Progress, chosen_scheme, convert_tensor, plan_tensor
from edge.hub.draft_target import check_copies, check_tokenizer
from edge.hub.gguf_files import split_name
from edge.hub.resolve import RANDOM, is_there, local_path
from edge.hub.store import CacheKey, cached, source_key
from edge.quant.gather import gather_rows, rows_of
from edge.quant.packing import dequantize, pack
from edge.quant.rounding import quantize as quantize_matrix
from edge.quant.rounding import to_float16
from edge.quant.scheme import SOURCE, PackedMatrix, QuantizedMatrix, QuantScheme
from edge.text.tokenizer.load import open_tokenizer

WHOLE = "all"
"""The vocabulary of a draft that guesses with its target's whole head."""
_FLOATS = "int4"
_RANDOM: Mapping[str, DraftKind] = {f"{RANDOM}{kind}": kind for kind in get_args(DraftKind)}
_SAYS_SO = re.compile(r"eagle|dspark|dflash|medusa|speculator", re.IGNORECASE)
_USUAL_SHARE = 4  # a quarter of the vocabulary has some 95 % of what is said (FR-Spec)


class _Source(TensorSource, Protocol):
    """A draft before it is converted. config: with its target's head, unless its own was trained with it."""

    config: DraftConfig

    @property
    def token_ids(self) -> TokenIds | None:
        """The tokens of its own head's rows, if it has one."""


def open_draft(
    spec: str | Path,
    target: ModelFiles,
    *,
    vocabulary: str | Path | int | None = None,
    quantize: str | None = None,
    head: str | None = None,
    revision: str | None = None,
    offline: bool = False,
    verify: bool = False,
    progress: Progress | None = None,
) -> DraftFiles:
    """Open the draft of a model by name, path or hub id.

    spec: a folder of a public draft (`edge.checkpoints.draft`) or of a training run that left a multi-token
    layer, a draft bundle or a model's bundle with one in it, a hub id such as
    `openbmb/MiniCPM4-8B-Eagle-FRSpec`, or `random:` and a kind of draft (`DraftKind`) for random weights.
    target: the model's bundle.

    vocabulary: the tokens that the draft can guess (FR-Spec): a file of token ids
    (`edge.checkpoints.frequency_list`), their number, for which the draft has to bring a list, or `all`; by
    default the list of the draft's own whose length is nearest to a quarter of the vocabulary, if it has any.
    A draft bundle without a head of its own may get one.
    quantize: as in `edge.hub.convert.convert`; by default floats become int4 in groups of 32, and packed or
    ternary matrices keep their types. head: the same names for the head's rows; by default they are the
    target's own, bit by bit, and floats become int4. revision, offline, verify, progress: as in
    `edge.hub.resolve.open_model`.

    Raises EdgeError with one sentence: for another kind of draft, for one of another target (shape,
    tokenizer, weights), and for a list that is damaged or made for another vocabulary.
    """
    found = _find(spec, revision, offline, progress is not None)
    bundle = _bundle(target)
    if found.converted is not None:
        draft = DraftFiles.open(found.converted, verify)
        given = {"vocabulary": vocabulary, "quantization": quantize, "head": head}
        given = {name: change for name, change in given.items() if change is not None}
        for name in given:
            if name == "quantization" or draft.config.head_rows is not None or _is_count(vocabulary):
                raise EdgeError(
                    f"'{spec}' is converted already, so its {name} can't be changed; name the checkpoint "
                    "that it was made from, or give a file of token ids to one without a head of its own."
                )
        draft.check_target(bundle)
        if not given:
            return draft
    recipe = _recipe(found, bundle, vocabulary, quantize, head)
    return cached(recipe.key, lambda out: recipe.write(out, progress), DraftFiles.open, verify=verify)


def _is_count(vocabulary: str | Path | int | None) -> bool:
    return isinstance(vocabulary, int) or (isinstance(vocabulary, str) and vocabulary.isdecimal())


def bundled_draft(target: ModelFiles, *, verify: bool = False) -> DraftFiles | None:
    """The draft that lies in a model's own bundle, None if it has none; BundleError for a damaged one, and
    for one of another model.
    """
    folder = draft_folder(target.path)
    if folder is None:
        return None
    draft = DraftFiles.open(folder, verify)
    draft.check_target(_bundle(target))
    return draft


def names_draft(spec: str | Path) -> bool:
    """Whether it names a draft network rather than a model. A repository on the hub does if its own name says
    so; a GGUF file is a model.
    """
    text, path = str(spec), local_path(spec)
    if is_there(path) and path.is_dir():
        return is_draft(path) or draft_folder(path) is not None or is_draft_checkpoint(path)
    if is_there(path) or not isinstance(spec, str):
        return False
    if text.startswith(RANDOM):
        return text in _RANDOM
    repo, file = split_name(text) or ("", None)
    return file is None and _SAYS_SO.search(repo.rpartition("/")[2]) is not None


def plan_draft(
    spec: str | Path,
    target: Bundle,
    *,
    vocabulary: str | Path | int | None = None,
    offline: bool = False,
    progress: Progress | None = None,
) -> PlannedDraft:
    """What `open_draft` would open, without converting; target: may be planned, without weights."""
    found = _find(spec, None, offline, progress is not None)
    if found.converted is not None and vocabulary is None:
        draft = DraftFiles.open(found.converted)
        return PlannedDraft(draft.config, draft.tensors)
    recipe = _recipe(found, target, vocabulary, None, None)
    return PlannedDraft(recipe.config, {tensor.name: tensor for tensor in recipe.tensors})


@dataclass(frozen=True)
class _Found:
    """What a person named. converted: the folder of a draft bundle. folder: of a checkpoint; without both it
    is random, of that kind. label: what was downloaded, as it is typed.
    """

    converted: Path | None = None
    folder: Path | None = None
    label: str | None = None
    random: DraftKind = "eagle2"


def _find(spec: str | Path, revision: str | None, offline: bool, bars: bool) -> _Found:
    text, path = str(spec), local_path(spec)
    is_name = not is_there(path) and isinstance(spec, str)
    if is_name and text.startswith(RANDOM):
        if text not in _RANDOM:
            raise CheckpointError(f"There is no random draft '{text}'; there are {listed(list(_RANDOM))}.")
        return _Found(random=_RANDOM[text])
    if is_name and (hub := split_name(text)) is not None:
        repo, file = hub
        if file is not None:
            raise CheckpointError(
                f"'{text}' names a GGUF file, but drafts are read from safetensors and PyTorch files only; "
                "name a repository that has them."
            )
        from edge.hub.connection import HubModel
        from edge.hub.download import DRAFT, download

        model = HubModel(repo, revision)
        return _Found(folder=download(model, DRAFT, offline=offline, progress=bars), label=model.label)
    if not text or not path.is_dir():
        raise CheckpointError(
            f"There is no draft '{text}': give the folder of a draft, a name on the hub (owner/repo), or one "
            f"of {', '.join(_RANDOM)}."
        )
    if revision is not None:
        raise EdgeError(
            f"A revision belongs to a hub id, but '{text}' is a local path; leave the revision out."
        )
    if is_draft(path):
        return _Found(converted=path)
    if is_bita(path):
        raise CheckpointError(
            f"'{text}' is a draft that is read as it is and goes into no bundle; name it with --speculate."
        )
    inner = draft_folder(path)
    return _Found(folder=path) if inner is None else _Found(converted=inner)


def _bundle(target: ModelFiles) -> Bundle:
    if not isinstance(target, Bundle):
        raise EdgeError(
            f"'{target.path}' was exported to {target.target}, which no draft can guess for; use the model "
            "that it was made from, or export it with `--to bundle`."
        )
    return target


@dataclass(frozen=True)
class _Recipe:
    """How a draft bundle is made. key: of its place in the cache. ids: the tokens of its own head's rows,
    None without one. tensors: as they will be stored. check: raises for a draft of another target.
    """

    key: CacheKey
    source: _Source
    target: Bundle
    config: DraftConfig
    ids: TokenIds | None
    tensors: list[BundleTensor]
    check: Callable[[], None]

    def write(self, out: Path, progress: Progress | None) -> None:
        """Convert it into the folder `out`, which must not exist."""
        self.check()
        source, identity = self._source(), TargetIdentity.of(self.target)
        total, done = sum(tensor.bytes for tensor in self.tensors), 0
        with DraftWriter(out, self.config, self.source.source, identity, self.tensors) as writer:
            for tensor in self.tensors:
                if progress is not None:
                    progress(done, total, tensor.name)
                if tensor.name == HEAD and self.ids is not None and not self.config.trained_head:
                    writer.write(HEAD, _head_rows(self.target, self.ids, tensor.scheme))
                else:
                    convert_tensor(source, tensor, writer)
                done += tensor.bytes
            if self.ids is not None:
                writer.write(TOKEN_IDS, self.ids.astype("<i4"))
            if progress is not None:
                progress(done, total, "")

    def _source(self) -> TensorSource:
        """With rows of what stands beside the head as the head has."""
        if self.ids is None or self.config.trained_head or not self.config.markov_rank:
            return self.source
        return _WithRows(self.source, self.ids)


class _WithRows:
    """A draft whose Markov head adds to the logits of some tokens alone."""

    def __init__(self, source: _Source, ids: TokenIds) -> None:
        self.source, self.tensors = source.source, source.tensors
        self._read, self._ids = source.read, ids

    def read(self, name: str) -> npt.NDArray[np.float32] | QuantizedMatrix | PackedMatrix:
        """See `TensorSource`."""
        values = self._read(name)
        return rows_of(values, self._ids) if name == MARKOV_AFTER else values


def _recipe(
    found: _Found,
    target: Bundle,
    vocabulary: str | Path | int | None,
    quantize: str | None,
    head: str | None,
) -> _Recipe:
    for name in (quantize, head):
        QuantScheme.chosen(name)  # an unknown one is refused before anything is read
    source: _Source
    lists: DraftCheckpoint | None = None
    if found.converted is not None:
        files = DraftFiles.open(found.converted)
        source = PackedDraft(files)
        facts: dict[str, Any] = {"bundle": files.content_hash}
        label = f"head-{source.config.kind}"
    elif found.folder is None:
        scheme = QuantScheme.from_name(_FLOATS if quantize in (None, SOURCE) else str(quantize))
        source = RandomDraft(draft_shape(target.config, found.random), scheme)
        facts = {"random": source.config.to_json(), "generator": RANDOM_VERSION}
        label = f"random-{source.config.kind}"
    else:
        source = lists = DraftCheckpoint(found.folder, target.config, found.label)
        own = source_key(found.folder, {})
        facts, label = dict(own.facts), found.label or own.label
    ids = _token_ids(vocabulary, source, lists, target)
    config = source.config.with_head(None if ids is None else ids.size)
    config.check_target(target.config, source.source)
    tensors = _plan_tensors(source, config, target, quantize, head)
    facts |= {
        "draft_version": VERSION,
        "target": asdict(TargetIdentity.of(target)),
        "config": config.to_json(),
        "schemes": [str(tensor.scheme) for tensor in tensors],
        "ids": None if ids is None else json_digest(ids.tolist()),
    }

    def check() -> None:
        if lists is not None:
            check_tokenizer(lists, target)
            check_copies(lists, target)

    return _Recipe(CacheKey(label, facts), source, target, config, ids, tensors, check)


def _plan_tensors(
    source: _Source, config: DraftConfig, target: Bundle, quantize: str | None, head: str | None
) -> list[BundleTensor]:
    infos = {info.name: info for info in source.tensors}
    matrices = [info for info in source.tensors if len(info.shape) == 2]
    scheme = (
        chosen_scheme(source, quantize, matrices, "matrices") if isinstance(source, DraftCheckpoint) else None
    )
    floats = QuantScheme("f16") if quantize == SOURCE else QuantScheme.from_name(_FLOATS)
    tensors = []
    for name, tensor in draft_tensors(config).items():
        if name != HEAD or config.trained_head:
            kept = not isinstance(source, DraftCheckpoint)  # weights that have their schemes from the start
            other = QuantScheme.chosen(head) if name == HEAD and not kept else None
            own_floats = infos[name].scheme if kept else floats
            stored = replace(infos[name], shape=tensor.shape)  # of the Markov head maybe some rows
            tensors.append(plan_tensor(stored, other or scheme, own_floats))
            continue
        own = target.tensors[_head_of(target)]
        chosen = QuantScheme.chosen(head)
        if chosen is None:
            chosen = QuantScheme.from_name(_FLOATS) if own.scheme.is_float and head is None else own.scheme
        exact = own.exact and chosen == own.scheme
        tensors.append(BundleTensor(HEAD, tensor.shape, chosen, own.source_type, exact))
    return tensors


def _head_of(target: Bundle) -> str:
    """The name of the matrix that gives the target's logits."""
    return EMBEDDING if target.config.tie_word_embeddings else HEAD


def _head_rows(target: Bundle, ids: TokenIds, scheme: QuantScheme) -> np.ndarray[Any, Any]:
    """The packed rows of the target's head for these tokens: its own bytes where the scheme is its own."""
    own = target.tensors[_head_of(target)]
    rows = gather_rows(target.data(own.name), own.scheme, (own.rows, own.columns), ids)
    if scheme == own.scheme:
        return rows.data
    floats = dequantize(rows.data, rows.scheme, *rows.shape)
    if scheme.is_float:
        return pack(to_float16(floats, HEAD), scheme)
    return pack(quantize_matrix(floats, scheme, HEAD), scheme)


def _token_ids(
    vocabulary: str | Path | int | None, source: _Source, draft: DraftCheckpoint | None, target: Bundle
) -> TokenIds | None:
    """The tokens that the draft can guess, None for all."""
    config = source.config
    if config.trained_head:
        if vocabulary is not None:
            raise EdgeError(
                f"{source.source} has a head that was trained with it, over {config.head_rows} tokens, so "
                "another vocabulary can't be chosen for it; leave it out."
            )
        return source.token_ids
    ids = _listed_ids(vocabulary, config, draft)
    if ids is None or ids.size >= config.vocab_size:
        return None
    if not target.tokenizer_files:
        return with_end_tokens(ids, target.config.eos_token_ids)
    tokenizer = open_tokenizer(target)
    ends = tokenizer.end_tokens
    tokenizer.close()
    return with_end_tokens(ids, ends)


def _listed_ids(
    vocabulary: str | Path | int | None, config: DraftConfig, draft: DraftCheckpoint | None
) -> TokenIds | None:
    size = config.vocab_size
    if vocabulary == WHOLE or (vocabulary is None and draft is None):
        return None
    if isinstance(vocabulary, Path) or (isinstance(vocabulary, str) and not vocabulary.isdecimal()):
        return read_frequency_list(Path(vocabulary).expanduser(), size)
    count = None if vocabulary is None else int(vocabulary)
    if count is not None and (isinstance(vocabulary, bool) or not 0 < count <= size):
        raise EdgeError(
            f"A draft's vocabulary must have from 1 to the model's {size} tokens, not {vocabulary}; give a "
            f"file of token ids, a number, or '{WHOLE}'."
        )
    if draft is None:
        assert count is not None
        return np.arange(count, dtype=np.int32)  # of random weights, any will do
    lists = draft.frequency_lists
    if count is None:
        nearest = min(lists, key=lambda length: abs(length - size // _USUAL_SHARE), default=None)
        return draft.token_ids if nearest is None else read_frequency_list(lists[nearest], size)
    if count in lists:
        return read_frequency_list(lists[count], size)
    longer = min((length for length in lists if length > count), default=None)
    if longer is not None:
        return read_frequency_list(lists[longer], size)[:count]
    own = draft.token_ids
    if own is not None and own.size >= count:
        return own[:count]
    raise CheckpointError(
        f"{draft.source} has no list of its {count} most frequent tokens (freq_{count}.pt); give the path of "
        "one, which `edge eval frequencies` can make."
    )
