"""`edge.load` and `Model`: the Python API, from a model's name to text.

Thread safety: a Model may be shared by threads; its executor takes one step at a time, so several sessions,
chats and streams make progress side by side. One session, chat or stream belongs to one thread at a time,
except for `Stream.cancel`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from edge.chat import Chat, ContextPolicy
from edge.config import KVType, ModelConfig, SparseConfig
from edge.config.attention import AttentionMode, describe_attention
from edge.engine.generation import Chunk, Completion, Stream, generate
from edge.engine.session import Session
from edge.engine.settings import merge_settings
from edge.errors import CheckpointError, ConfigError, EdgeError
from edge.executors.memory import MemoryPlan, check_memory, memory_plan
from edge.executors.protocol import Executor
from edge.executors.registry import ARTIFACT_EXECUTORS, EXECUTORS, NATIVE, open_artifact_executor
from edge.system.memory import available_memory
from edge.text.prompts import PromptEncoder
from edge.text.tokenizer.base import Tokenizer

if TYPE_CHECKING:
    from edge.formats.artifact.folder import Artifact
    from edge.formats.bundle.reader import Bundle
    from edge.text.chat_template import ChatTemplate

ExecutorFactory = Callable[["Bundle", int], Executor]
"""Makes an executor for a bundle and a context in tokens; checks by itself that the memory suffices."""


def load(
    model: str | Path,
    *,
    context: int | None = None,
    threads: int | None = None,
    quantize: str | None = None,
    head: str | None = None,
    activations: str = "int8",
    kv_type: KVType = "float16",
    executor: str | ExecutorFactory = NATIVE,
    attention: AttentionMode = "auto",
    tier: str | None = None,
    mmap: bool | None = None,
    revision: str | None = None,
    offline: bool = False,
    verify: bool = False,
    rope_override: str | Path | Mapping[str, Any] | None = None,
    progress: Callable[..., Any] | None = None,
) -> Model:
    """Open a model to chat with: `smollm2-135m`, a GGUF file, a folder, a hub id or `random:PRESET`.

    context: longest conversation in tokens, by default the trained one; memory for it is committed as it is
    used. threads: by default the performance cores. quantize, head, revision, offline, verify and
    progress: see `edge.hub.resolve.open_model`. activations: `int8`, or `float32` for exact arithmetic.
    kv_type: `float16`, `float32`, or `int8` for half the memory. attention: `dense`, `sparse` or `auto` (see
    `edge.config.attention`). tier: a kernel tier of this CPU, by default the best. mmap: True maps the
    weights' file and reads it when it is used, so it needs no memory of its own; False copies it into huge
    pages; by default it is read at once, and copied only where the system does not keep it in huge pages.
    executor: `native`, a name for folders of `edge export` (`onnx`), which are quantized and have their
    arithmetic already, or a function that makes another one (`edge.model.executor.open_torch`). What is said
    here of weights, arithmetic and attention means nothing to the last two. rope_override: runs beyond the
    trained context knowingly; a JSON object, its text, or a file with it (see
    `ModelConfig.with_rope_override`). Raises EdgeError with one sentence for whatever is wrong; ContextError
    if the memory does not suffice.
    """
    for what, chosen, known in (("executor", executor, EXECUTORS), ("KV type", kv_type, get_args(KVType))):
        if not callable(chosen) and chosen not in known:
            raise EdgeError(f"Unknown {what} '{chosen}'; choose one of {', '.join(known)}.")
    for name, value in (("context", context), ("threads", threads)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise EdgeError(f"{name} must be a whole number of 1 or more, got {value!r}.")
    from edge.executors.native.executor import NativeExecutor, choose_attention
    from edge.executors.trace import traced
    from edge.hub.resolve import open_model

    if executor in ARTIFACT_EXECUTORS:
        given: dict[str, object] = {
            "quantize": quantize,
            "head": head,
            "rope_override": rope_override,
        }
        for name, choice in given.items():
            if choice is not None:
                raise EdgeError(
                    f"'{model}' was exported as it is, so {name} can't be changed; export the model again."
                )
        return _load_exported(model, str(executor), context, threads)
    bundle = open_model(
        model,
        quantize=quantize,
        head=head,
        revision=revision,
        offline=offline,
        verify=verify,
        progress=progress,
    )
    if rope_override is not None:
        bundle = _with_config(bundle, bundle.config.with_rope_override(_override(rope_override)))
    tokens = bundle.config.max_position_embeddings if context is None else context
    bundle.config.check_context(tokens)
    if not isinstance(executor, str):
        return Model(bundle, traced(executor(bundle, tokens)), name=str(model), kv_type=kv_type)
    sparse = choose_attention(bundle.config, attention, tokens)
    plan = memory_plan(bundle, tokens, kv_type, mapped_weights=bool(mmap), sparse=sparse)
    check_memory(plan, available_memory())
    runner = NativeExecutor(
        bundle,
        context=tokens,
        threads=threads,
        activations=activations,
        kv_type=kv_type,
        attention=attention,
        tier=tier,
        mmap=mmap,
    )
    return Model(bundle, traced(runner), name=str(model), kv_type=kv_type, mmap=bool(mmap))


def _load_exported(model: str | Path, executor: str, context: int | None, threads: int | None) -> Model:
    """A folder of `edge export --to <executor>`."""
    from edge.executors.trace import traced
    from edge.formats.artifact.folder import Artifact

    artifact = Artifact.open(model, target=executor)
    runner = open_artifact_executor(executor, artifact, context=context, threads=threads)
    kv_type = cast(KVType, runner.capabilities.kv_types[0])
    return Model(artifact, traced(runner), name=str(model), kv_type=kv_type)


class Model:
    """A model in memory. Use it in a `with` block, or `close` it, to free the memory at once."""

    def __init__(
        self,
        bundle: Bundle | Artifact,
        executor: Executor,
        name: str = "",
        kv_type: KVType = "float16",
        mmap: bool = False,
    ) -> None:
        """bundle: the files that the executor runs. kv_type, mmap: what it was opened with, for the plan."""
        self.bundle = bundle
        self.executor = executor
        self.name = name
        self._kv_type = kv_type
        self._mmap = mmap

    @property
    def config(self) -> ModelConfig:
        """The network."""
        return self.executor.config

    @property
    def context(self) -> int:
        """Longest conversation in tokens."""
        return self.executor.context

    @property
    def attention(self) -> str:
        """The active mode in words, for example `dense`."""
        return describe_attention(self._sparse)

    @property
    def _sparse(self) -> SparseConfig | None:
        return getattr(self.executor, "sparse", None)  # an executor without it is dense

    @property
    def generation_config(self) -> dict[str, Any]:
        """The settings that the model's authors recommend, or an empty dict."""
        return self.bundle.generation_config

    @property
    def memory_plan(self) -> MemoryPlan:
        """What one conversation that fills the context takes."""
        return memory_plan(
            self.bundle,
            self.context,
            self._kv_type,
            self.executor.max_batch,
            mapped_weights=self._mmap,
            sparse=self._sparse,
        )

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Text to token ids and back. Raises TokenizerError if the model came without one."""
        from edge.text.tokenizer.load import load_tokenizer

        return load_tokenizer(self.bundle.tokenizer_files, self.config)

    @cached_property
    def chat_template(self) -> ChatTemplate:
        """The model's chat template. Raises CheckpointError if it came without one."""
        from edge.text.chat_template import ChatTemplate

        if self.bundle.chat_template is None:
            raise CheckpointError(
                f"The model '{self.name}' has no chat template, so it can't chat; complete a text instead, "
                "or use a model that is tuned for conversations."
            )
        return ChatTemplate(self.bundle.chat_template, self.tokenizer.named_tokens)

    def session(self) -> Session:
        """A new, empty KV cache with its tokens."""
        return Session(self.executor)

    def chat(
        self,
        system: str | None = None,
        *,
        context_policy: ContextPolicy = "stop",
        thinking: bool | None = None,
        **settings: Any,
    ) -> Chat:
        """A new conversation.

        system: the system prompt, None leaves it to the template. context_policy, thinking: see `Chat`;
        thinking is refused if the template has no switch for it. settings: names of
        `edge.engine.settings.SETTING_NAMES`, for example temperature=0.2, max_new_tokens=200.
        """
        if thinking is not None and not self.chat_template.supports_thinking:
            raise EdgeError(f"The chat template of '{self.name}' has no switch for thinking: leave it out.")
        return Chat(
            self.session(),
            self.tokenizer,
            PromptEncoder(self.chat_template, self.tokenizer),
            generation_config=self.generation_config,
            model_name=self.name,
            system=system,
            context_policy=context_policy,
            thinking=thinking,
            settings=settings,
        )

    def complete(self, prompt: str | Sequence[int], **options: Any) -> Completion:
        """Continue a text and wait for the whole of it; parameters as for `stream`."""
        return self.stream(prompt, **options).result

    def stream(
        self,
        prompt: str | Sequence[int],
        *,
        session: Session | None = None,
        parse_special: bool = False,
        **settings: Any,
    ) -> Stream:
        """Continue a text, without any chat template; returns the continuation in the making.

        prompt: a text, or token ids. session: one to reuse, so that what its cache shares with the prompt is
        not computed again. parse_special: let control tokens written in the text count as such.
        """
        chosen = merge_settings(self.generation_config, flags=settings)
        used = session or self.session()
        if isinstance(prompt, str):
            tokens = self.tokenizer.encode(prompt, parse_special=parse_special)
        else:
            tokens = list(prompt)
        used.check_prompt(tokens)

        def start(cancelled: Callable[[], bool]) -> Generator[Chunk, None, Completion]:
            return generate(used, tokens, chosen, self.tokenizer, cancelled, continues=True)

        return Stream(start)

    def close(self) -> None:
        """Free the weights; the model, its sessions and chats can't be used afterwards."""
        self.executor.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _with_config(bundle: Bundle, config: ModelConfig) -> Bundle:
    """The same weights read as another network."""
    changed = copy.copy(bundle)
    changed.manifest = replace(bundle.manifest, config=config)
    return changed


def _override(given: str | Path | Mapping[str, Any]) -> str | Mapping[str, Any]:
    if isinstance(given, Mapping):
        return given
    if isinstance(given, str) and given.lstrip().startswith("{"):
        return given
    try:
        return Path(given).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"The RoPE override '{given}' is neither a JSON object nor a file that can be read "
            f"({error.strerror or error})."
        ) from None
