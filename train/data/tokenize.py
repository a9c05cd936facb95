"""Turns documents into a folder of token shards, in several processes, and goes on where a run was ended.

Documents are dealt out in order: so much text makes a shard. A shard notes a digest of its documents, the
tokenizer and the options; a later run reads the texts again, keeps the finished shards whose digest is the same,
and makes the others.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path

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

    end: `</s>` where that is a control token, which ends documents in Llama's vocabularies even if chats end with
    another; else the tokenizer's first end token; None without any.
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
    """What is made: the folder, the files of the tokenizer, characters of text in a shard, processes."""

    out: Path
    files: Mapping[str, bytes]
    shard_characters: int = 64 << 20
    workers: int = 1


@dataclass(frozen=True)
class _Task:
    name: str
    digest: str
    documents: list[str]


def tokenize(
    documents: Iterable[str],
    plan: Tokenizing,
    progress: Callable[[int, int], None] = lambda documents, tokens: None,
) -> ShardFolder:
    """Make the folder, or finish it; returns it opened.

    progress: called with the documents and tokens that are done. DataError if the folder has shards of other
    texts, another tokenizer or another size of shards, or can't be written.
    """
    digest = DocumentTokenizer.open(plan.files).facts
    facts, shards = digest, []
    done_documents = done_tokens = 0
    try:
        plan.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(write_failure(plan.out, error)) from None
    with _Workers(plan) as workers:
        for shard in workers.results(_tasks(documents, plan, facts)):
            shards.append(shard)
            done_documents += shard.documents
            done_tokens += shard.tokens
            progress(done_documents, done_tokens)
    if read_shard(plan.out, shard_name(len(shards))) is not None:
        raise _others(plan.out)
    write_index(plan.out, facts, shards, plan.files)
    return ShardFolder.open(plan.out)
