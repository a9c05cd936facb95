"""What `speculate` names, as what guesses for a model: nothing, lookup, a draft network, or a smaller
model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt

from edge.config.tensors import EMBEDDING, HEAD
from edge.engine.speculative.drafter import Drafter
from edge.engine.speculative.lookup import GENERATION, LookupDrafter, LookupMemory, newest
from edge.engine.speculative.speculation import Speculation
from edge.engine.speculative.together import Together
from edge.errors import CheckpointError, EdgeError, WrongTypeError
from edge.executors.drafts import drafts_of
from edge.executors.protocol import Executor, TakesSoftRows
from edge.formats.draft.files import DraftFiles, draft_folder
from edge.formats.model_files import ModelFiles
from edge.system.notices import notice

if TYPE_CHECKING:
    from edge.text.tokenizer.base import Tokenizer

AUTO, OFF, LOOKUP = "auto", "off", "lookup"
_BOTH = f"{LOOKUP}+"


def open_speculation(
    speculate: str | Path,
    files: ModelFiles,
    executor: Executor,
    tokenizer: Callable[[], Tokenizer],
    earlier: Iterable[npt.NDArray[np.int32]] = (),
    *,
    offline: bool = False,
) -> Speculation | None:
    """What guesses for a model; None for nothing.

    speculate: `off`; `lookup`, see `LookupDrafter`; the name of a draft network (`edge.hub.drafts`) or of a
    smaller model with the same tokenizer; `lookup+` and such a name for both together; `auto`, which is
    lookup together with the draft that the model has in its own folder, or as the built-in one, and nothing
    where an answer could change by it. files, executor, tokenizer: of the model. earlier: tokens of earlier
    sequences, to look up in. offline: download no draft. Raises EdgeError for a draft that does not fit.
    """
    if not isinstance(speculate, (str, Path)) or speculate == "":
        raise WrongTypeError(
            f"speculate is 'auto', 'off', 'lookup' or the name of a draft, not {speculate!r}."
        )
    if speculate == OFF or (speculate == AUTO and not executor.capabilities.batch_invariant):
        return None
    if speculate == AUTO and (draft := _own_draft(files, executor)) is not None:
        return _with_lookup(draft, earlier)
    if speculate in (AUTO, LOOKUP):
        return Speculation(LOOKUP, _lookup(earlier))
    if isinstance(speculate, str) and speculate.startswith(_BOTH):
        name = speculate.removeprefix(_BOTH)
        return _with_lookup(_named(name, files, executor, tokenizer, offline), earlier)
    return _named(speculate, files, executor, tokenizer, offline)


def _named(
    speculate: str | Path,
    files: ModelFiles,
    executor: Executor,
    tokenizer: Callable[[], Tokenizer],
    offline: bool,
) -> Speculation:
    """A soft prompt, a draft network or a smaller model."""
    from edge.hub.bita import names_bita
    from edge.hub.drafts import names_draft, open_draft

    if names_bita(speculate):
        return _soft_prompt(speculate, executor)
    if names_draft(speculate):
        return _network(str(speculate), open_draft(speculate, files, offline=offline), files, executor)
    return _small_model(speculate, files, executor, tokenizer(), offline)


def _lookup(earlier: Iterable[npt.NDArray[np.int32]]) -> Callable[[], Callable[[], LookupDrafter]]:
    saved = newest(earlier, 2 * GENERATION)

    def start() -> Callable[[], LookupDrafter]:
        memory = LookupMemory()
        for tokens in saved:
            memory.remember(tokens)
        return partial(LookupDrafter, memory)

    return start


def _with_lookup(other: Speculation, earlier: Iterable[npt.NDArray[np.int32]]) -> Speculation:
    """Lookup, and the other where that knows too little."""
    start_lookup = _lookup(earlier)

    def start() -> Callable[[], Drafter]:
        look_up, guess = start_lookup(), other.start()
        return lambda: Together(look_up(), guess())

    return Speculation(_BOTH + other.name, start, other.close, other.memory_bytes)


def _own_draft(files: ModelFiles, executor: Executor) -> Speculation | None:
    if drafts_of(executor) is None:
        return None
    from edge.hub.built_in_draft import built_in_draft
    from edge.hub.drafts import bundled_draft

    if draft_folder(files.path):
        draft = bundled_draft(files)
    else:
        try:
            draft = built_in_draft(files)
        except EdgeError as error:  # nobody asked for it, and a model's folder needs no cache otherwise
            notice(f"The built-in model's draft is left out: {error}")
            return None
    return None if draft is None else _network("draft", draft, files, executor)


def _network(name: str, files: DraftFiles, target: ModelFiles, executor: Executor) -> Speculation:
    from edge.engine.speculative.eagle import Eagle, EagleDrafter

    able = drafts_of(executor)
    if able is None:
        raise EdgeError(
            f"The {executor.info.name} executor runs no draft networks: use native, or guess by lookup."
        )
    network = able.open_draft(files)
    read = files.weights_bytes + (0 if files.config.head_rows else _head(target))
    share = read / _weights(target)

    def start() -> Callable[[], EagleDrafter]:
        return partial(EagleDrafter, Eagle(network, share))

    workspace = getattr(network, "workspace_bytes", 0)  # of the native one
    return Speculation(name, start, network.close, files.weights_bytes + workspace)


def _soft_prompt(name: str | Path, executor: Executor) -> Speculation:
    from edge.engine.speculative.bita import Bita, BitaDrafter
    from edge.hub.bita import open_bita

    if not executor.capabilities.soft_rows:
        raise EdgeError(
            f"'{name}' guesses by rows in the passes of the model itself, which the {executor.info.name} "
            "executor does not take as it was opened: use native or torch, with --attention dense."
        )
    weights = open_bita(name, executor.config)
    prompt = cast(TakesSoftRows, executor).open_soft(weights)

    def start() -> Callable[[], BitaDrafter]:
        return partial(BitaDrafter, Bita(prompt))

    return Speculation(str(name), start, prompt.close, weights.bytes)


def _small_model(
    name: str | Path, files: ModelFiles, executor: Executor, tokenizer: Tokenizer, offline: bool
) -> Speculation:
    from edge.engine.speculative.small_model import SmallModel, SmallModelDrafter
    from edge.executors.memory import memory_plan
    from edge.executors.opening import open_executor
    from edge.executors.options import RunOptions
    from edge.hub.resolve import open_model

    try:
        draft = open_model(name, offline=offline)
    except CheckpointError as error:
        raise CheckpointError(
            f"What guesses, if not auto, off or lookup, can't be opened: {error}"
        ) from error
    _check_tokenizer(name, draft, tokenizer)
    context = min(executor.context, draft.context or draft.config.max_position_embeddings)
    options = RunOptions(context=context, threads=executor.info.threads)
    opened = open_executor(draft, options)
    size, share = executor.config.vocab_size, _weights(draft) / _weights(files)

    def start() -> Callable[[], SmallModelDrafter]:
        return partial(SmallModelDrafter, SmallModel(opened, vocab_size=size, share=share))

    memory = memory_plan(draft, context, opened.info.kv_type, opened.max_batch).total
    return Speculation(str(name), start, opened.close, memory)


def _weights(files: ModelFiles) -> int:
    return sum(info.bytes for info in files.tensors.values())


def _head(files: ModelFiles) -> int:
    """Bytes of the matrix that gives the logits."""
    return files.tensors[HEAD if HEAD in files.tensors else EMBEDDING].bytes


def _check_tokenizer(name: str | Path, draft: ModelFiles, tokenizer: Tokenizer) -> None:
    """Raise EdgeError unless every token of one is the same in the other."""
    from edge.text.tokenizer.load import open_tokenizer

    other = open_tokenizer(draft)
    shared = range(min(tokenizer.vocab_size, other.vocab_size))
    differs = next((i for i in shared if tokenizer.token_bytes(i) != other.token_bytes(i)), None)
    other.close()
    if differs is not None:
        raise EdgeError(
            f"'{name}' can't guess for this model: its tokenizer has another token {differs}; name a "
            "draft that was made for the model."
        )
