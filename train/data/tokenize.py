"""Turns documents into folders of token shards, in several processes, and goes on where a run was ended.

Documents are dealt out in order: so much text makes a shard. A shard notes a digest of its documents and the
tokenizer; a later run reads the texts again, keeps the finished shards whose digest is the same, and makes
the others.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path

import numpy as np

from edge.config import ModelConfig, RopeConfig
from edge.formats.atomic import write_failure
from edge.text.tokenizer.base import Tokenizer
from edge.text.tokenizer.load import load_tokenizer
from edge.text.tokenizer.settings import read_settings
from edge.train.data.errors import DataError
from edge.train.data.shards import (
    Shard,
    ShardFacts,
    ShardFolder,
    read_shard,
    shard_name,
    tokenizer_digest,
    write_index,
    write_shard,
)
from edge.train.data.tokenizer_training import share_of

_DOCUMENT_END = "</s>"


@dataclass(frozen=True)
class DocumentTokenizer:
    """Encodes documents: BOS in front if the tokenizer's files say so, the end token behind.

    end: `</s>` where that is a control token, which ends documents in Llama's vocabularies even if chats end
    with another; else the tokenizer's first end token; None without any.
    """

    tokenizer: Tokenizer
    facts: ShardFacts
    end: int | None

    @classmethod
    def open(cls, files: Mapping[str, bytes]) -> DocumentTokenizer:
        """Raises TokenizerError if the files are no tokenizer."""
        size = vocabulary_size(files)
        template = read_settings(files).chat_template or None
        tokenizer = load_tokenizer(files, _any_network(size), chat_template=template)
        end = tokenizer.special_tokens.get(_DOCUMENT_END)
        if end is None and tokenizer.end_tokens:
            end = tokenizer.end_tokens[0]
        ends = dict.fromkeys([*([] if end is None else [end]), *tokenizer.end_tokens])
        facts = ShardFacts(size, tokenizer.bos_id, tuple(ends), tokenizer_digest(files))
        return cls(tokenizer, facts, end)

    def encode(self, text: str) -> list[int]:
        """Token ids of a document; what looks like a control token in it is spelled out."""
        return self.tokenizer.encode(text) + ([] if self.end is None else [self.end])


def vocabulary_size(files: Mapping[str, bytes]) -> int:
    """One more than the largest id that a tokenizer's files give a token."""
    added = [token.id for token in read_settings(files).added]
    if "tokenizer.json" in files:
        from tokenizers import Tokenizer as Library

        try:
            added += Library.from_buffer(files["tokenizer.json"]).get_vocab(True).values()
        except Exception as error:  # the library raises nothing narrower
            raise DataError(
                f"tokenizer.json is not readable ({error}); get the tokenizer's files again."
            ) from None
        return max(added) + 1
    from sentencepiece import SentencePieceProcessor

    try:
        pieces = SentencePieceProcessor(model_proto=files["tokenizer.model"]).vocab_size()
    except RuntimeError:
        raise DataError(
            "tokenizer.model is not a SentencePiece model; get the tokenizer's files again."
        ) from None
    return max([pieces - 1, *added]) + 1


def _any_network(vocabulary: int) -> ModelConfig:
    """A configuration for who only wants the tokenizer opened."""
    return ModelConfig(
        model_type="llama",
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=64,
        rms_norm_eps=1e-5,
        max_position_embeddings=1024,
        rope=RopeConfig(),
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_ids=(),
    )


@dataclass(frozen=True)
class Tokenizing:
    """What is made.

    out: the folder. files: of the tokenizer. heldout: share of the different documents that goes into a
    second folder beside it (`heldout_folder`), whatever else is tokenized with them. shard_characters: of
    text in a shard, or one document more. workers: processes.
    """

    out: Path
    files: Mapping[str, bytes]
    heldout: float = 0.0
    shard_characters: int = 16 << 20
    workers: int = 1

    @property
    def folders(self) -> tuple[Path, ...]:
        """Where documents go, the held-out ones last."""
        return (self.out, heldout_folder(self.out)) if self.heldout else (self.out,)


def heldout_folder(out: Path) -> Path:
    """The folder of the documents that are held out of `out`."""
    return out.with_name(f"{out.name}-heldout")


@dataclass(frozen=True)
class _Task:
    """A shard to be made."""

    folder: Path
    name: str
    digest: str
    documents: list[str]


def tokenize(
    documents: Iterable[str],
    plan: Tokenizing,
    progress: Callable[[int, int], None] = lambda documents, tokens: None,
) -> list[ShardFolder]:
    """Make the folders, or finish them; returns them opened.

    progress: called with the documents and tokens that are done. DataError if a folder has shards of other
    texts, another tokenizer or another size of shards, or can't be written.
    """
    opened = DocumentTokenizer.open(plan.files)
    opened.tokenizer.close()
    facts = opened.facts
    made: dict[Path, list[Shard]] = {folder: [] for folder in plan.folders}
    done_documents = done_tokens = 0
    for folder in made:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(write_failure(folder, error)) from None
    for folder, shard in _finished(_tasks(documents, plan, facts), plan):
        made[folder].append(shard)
        done_documents += shard.documents
        done_tokens += shard.tokens
        progress(done_documents, done_tokens)
    for folder, shards in made.items():
        if (folder / shard_name(len(shards))).exists():
            raise _others(folder)
        write_index(folder, facts, shards, plan.files)
    return [ShardFolder.open(folder) for folder in made]


def _tasks(documents: Iterable[str], plan: Tokenizing, facts: ShardFacts) -> Iterator[_Task]:
    """Deal documents out, those of a folder in their order."""
    waiting: dict[Path, list[str]] = {folder: [] for folder in plan.folders}
    sizes, numbers = dict.fromkeys(waiting, 0), dict.fromkeys(waiting, 0)

    def task(folder: Path) -> _Task:
        texts, waiting[folder], sizes[folder] = waiting[folder], [], 0
        numbers[folder] += 1
        digest = hashlib.sha256(facts.tokenizer.encode())
        for text in texts:
            data = text.encode("utf-8", "surrogatepass")
            digest.update(len(data).to_bytes(8, "little") + data)
        return _Task(folder, shard_name(numbers[folder] - 1), digest.hexdigest(), texts)

    for text in documents:
        folder = plan.folders[-1 if share_of(text) < plan.heldout else 0]
        waiting[folder].append(text)
        sizes[folder] += len(text)
        if sizes[folder] >= plan.shard_characters:
            yield task(folder)
    for folder in plan.folders:
        if waiting[folder]:
            yield task(folder)


def _finished(tasks: Iterable[_Task], plan: Tokenizing) -> Iterator[tuple[Path, Shard]]:
    """Folder and shard of every task, in order; those that a former run finished are not made again."""
    if plan.workers == 1:
        opened = DocumentTokenizer.open(plan.files)
        try:
            for task in tasks:
                yield task.folder, _kept(task) or _make(task, opened)
        finally:
            opened.tokenizer.close()
        return
    pool = ProcessPoolExecutor(plan.workers, get_context("spawn"), _begin_worker, (dict(plan.files),))
    running: deque[tuple[Path, Shard | Future[Shard]]] = deque()
    with pool:
        try:
            for task in tasks:
                running.append((task.folder, _kept(task) or pool.submit(_make_in_worker, task)))
                while len(running) > 2 * plan.workers:  # texts in memory
                    yield _awaited(running.popleft())
            while running:
                yield _awaited(running.popleft())
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _awaited(entry: tuple[Path, Shard | Future[Shard]]) -> tuple[Path, Shard]:
    folder, found = entry
    try:
        return folder, found if isinstance(found, Shard) else found.result()
    except BrokenProcessPool:
        raise DataError(
            "A process that tokenizes was ended, maybe for want of memory; run the command again, which goes "
            "on, with fewer --workers or a smaller --shard-size."
        ) from None


def _kept(task: _Task) -> Shard | None:
    shard = read_shard(task.folder, task.name)
    if shard is not None and shard.text != task.digest:
        raise _others(task.folder)
    return shard


def _make(task: _Task, opened: DocumentTokenizer) -> Shard:
    ids = [np.array(opened.encode(text), np.int64) for text in task.documents]
    return write_shard(task.folder, task.name, task.digest, ids, opened.facts)


_opened: DocumentTokenizer  # of a worker process


def _begin_worker(files: Mapping[str, bytes]) -> None:
    global _opened
    _opened = DocumentTokenizer.open(files)
    parent = parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        wait([parent.sentinel])
        os._exit(1)  # a killed parent can't end its pool

    threading.Thread(target=end_with_parent, daemon=True).start()


def _make_in_worker(task: _Task) -> Shard:
    return _make(task, _opened)


def _others(folder: Path) -> DataError:
    return DataError(
        f"'{folder}' has shards of other texts, another tokenizer or other options; give those again, or "
        "another --out."
    )
