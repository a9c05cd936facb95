"""`edge.load` and `Model`: the Python API, from a model's name to text.

Thread safety: a Model may be shared by threads; what several sessions, chats and streams want goes into one
pass. One session, chat or stream belongs to one thread at a time,
except for `Stream.cancel`; a second one gets an EdgeError. After a fork the child has to load its own model.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from edge.chat import Chat, ContextPolicy
from edge.config import ModelConfig
from edge.config.attention import describe_attention
from edge.config.generation import read_generation_config
from edge.config.rope_entry import override_rope
from edge.engine.answer_settings import check_settings
from edge.engine.completion import Chunk, Completion
from edge.engine.constraints.response_format import ResponseFormat, constraint_of
from edge.engine.costs import PassCosts
from edge.engine.costs_file import costs_path, read_shapes, write_shapes
from edge.engine.generation import Stream, generate
from edge.engine.prefix_cache import PrefixCache, default_prefix_memory
from edge.engine.request import Prepared, Request, answer_prepared, prepare
from edge.engine.scheduler import Scheduler
from edge.engine.session import Session
from edge.engine.settings import merge_settings
from edge.engine.speculative.opening import OFF, open_speculation
from edge.errors import CheckpointError, ConfigError, ContextError, EdgeError, WrongTypeError
from edge.executors.checks import token_ids
from edge.executors.memory import MemoryPlan, memory_plan
from edge.executors.options import RUN_OPTIONS, RunOptions, extra_options
from edge.executors.protocol import Executor, TakesWeights, shares_rows, takes_weights
from edge.formats.guarded_json import parse_object
from edge.formats.model_files import ModelFiles
from edge.formats.names import user_path
from edge.hub.options import SourceOptions
from edge.system.notices import notice
from edge.system.options import Option, check_option, plain, renamed_option
from edge.text.chat_template import ChatTemplate, template_worker
from edge.text.isolation.worker import Worker
from edge.text.prompts import PromptEncoder
from edge.text.tokenizer.base import Tokenizer

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from typing_extensions import Unpack

    from edge.engine.keywords import LoadOptions, Settings
    from edge.text.chat_template import ChatTemplate


def load(
    model: str | Path,
    *,
    rope_override: str | Path | Mapping[str, Any] | None = None,
    progress: Callable[..., Any] | None = None,
    prefix_memory: int | None = None,
    prefix_folder: str | Path | None = None,
    speculate: str | Path = "auto",
    **options: Unpack[LoadOptions],
) -> Model:
    """Open a model to chat with: `smollm2-135m`, a GGUF file, a folder, a hub id, a GGUF file on the hub
    (`owner/repo:file.gguf`) or `random:PRESET`.

    options: the fields of `edge.hub.options.SourceOptions` (quantize, head, revision, offline, verify) and
    of `edge.executors.options.RunOptions` (executor, context, threads, mmap, activations, kv_type,
    attention, tier, ...), and what plugins declare. By default a bundle runs on the native executor, and a
    folder of `edge export` in the runtime that it was made for, with the quantization, arithmetic and
    attention that it was made with. context: by default the trained one; memory for it is committed as it
    is used. progress: see `edge.hub.resolve.open_model`. rope_override: runs beyond the trained context
    knowingly; a JSON object, its text, or a file with it (see `edge.config.rope_entry.override_rope`).
    prefix_memory: bytes up to which all KV caches together keep what earlier sequences have computed, for
    those that begin alike; by default a sixteenth of the free memory and 1 GB at most, 0 keeps nothing.
    prefix_folder: where it is kept beyond that, in files that tell conversations; by default nowhere.
    speculate: what guesses how answers go on, which makes them faster and changes none
    (`edge.engine.speculative.opening`): `auto`, `off`, `lookup`, or the name of a draft.
    Raises EdgeError with one sentence for whatever is wrong; ContextError if the memory does not suffice.
    """
    if not isinstance(model, (str, Path)) or "\0" in str(model):
        raise WrongTypeError(f"A model is named by a text or a path, not by {model!r}.")
    source, run = _options(plain(options))
    override = None if rope_override is None else _override(rope_override)
    from edge.executors.opening import open_executor
    from edge.executors.registry import EXECUTORS
    from edge.executors.trace import traced
    from edge.hub.resolve import open_model, refuse_changes

    spec = None if run.executor is None else EXECUTORS.get(run.executor)
    if spec is not None and spec.target is None:
        spec.load()  # a missing package is said before a conversion
    target = None if spec is None else spec.target
    files = open_model(model, **vars(source), target=target, progress=progress)
    if override is not None:
        if files.target is not None:
            refuse_changes(model, rope_override=rope_override)
        files = files.with_config(override_rope(files.config, override))
    # Read now: `edge cache remove` may take the folder away while the model is in use.
    _ = files.tokenizer_files, files.chat_template, files.generation_config
    worker = template_worker()
    if files.chat_template is not None:
        worker.start()  # beside the weights
    executor = traced(open_executor(files, run, asked=options))
    return Model(
        files,
        executor,
        name=str(model),
        worker=worker,
        prefixes=_prefix_cache(executor, prefix_memory, prefix_folder),
        speculate=speculate,
        costs=costs_path(executor),
        offline=source.offline,
    )


def _prefix_cache(
    executor: Executor, most_bytes: int | None, folder: str | Path | None
) -> PrefixCache | None:
    """None where nothing is to be kept, or the executor can't share rows."""
    check_option("prefix_memory", most_bytes, int | None, Option("", least=0))
    if not shares_rows(executor):
        if most_bytes or folder is not None:
            raise EdgeError(f"The {executor.info.name} executor can't share rows of a KV cache: use native.")
        return None
    most = default_prefix_memory() if most_bytes is None else most_bytes
    limit = getattr(executor, "cache_limit", None)
    most = most if limit is None else min(most, limit)
    return None if most == 0 else PrefixCache(executor, most, None if folder is None else user_path(folder))


def _options(given: Mapping[str, Any]) -> tuple[SourceOptions, RunOptions]:
    """The two sets of options that keywords name; EdgeError for a name that neither they nor plugins have."""
    source = {field.name for field in fields(SourceOptions)}
    run = {field.name for field in fields(RunOptions)} - {"extra"}
    extra = {name: value for name, value in given.items() if name not in source | run}
    for name in extra:
        if RUN_OPTIONS.find(name) is None:
            if renamed := renamed_option(name, SourceOptions, RunOptions):
                raise EdgeError(renamed)
            known = ", ".join(sorted({*source, *run, *extra_options()}))
            raise EdgeError(f"There is no option '{name}'; choose one of {known}.")
    return (
        SourceOptions(**{name: value for name, value in given.items() if name in source}),
        RunOptions(**{name: value for name, value in given.items() if name in run}, extra=extra),
    )


class Model:
    """A model in memory. Use it in a `with` block, or `close` it, to free the memory at once."""

    def __init__(
        self,
        files: ModelFiles,
        executor: Executor,
        name: str = "",
        *,
        worker: Worker | None = None,
        prefixes: PrefixCache | None = None,
        speculate: str | Path = OFF,
        costs: Path | None = None,
        offline: bool = False,
    ) -> None:
        """files: what the executor runs. worker: what will render the chat template. prefixes: where sessions
        find what others have computed, None if each keeps to itself. speculate: see `load`; with offline
        nothing is downloaded for it. costs: a file for what rows cost, see `edge.engine.costs_file`.
        """
        self.files = files
        self.executor = executor
        earlier = () if prefixes is None else prefixes.token_lists()
        speculation = open_speculation(
            speculate, files, executor, lambda: self.tokenizer, earlier, offline=offline
        )
        self.scheduler = Scheduler(executor, prefixes, speculation)
        self._costs = costs
        if costs is not None:
            self.scheduler.costs = PassCosts(read_shapes(costs))
        self.name = name
        self._worker = worker or template_worker()
        for sentence in read_generation_config(files.generation_config).notes:
            notice(sentence)

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
        return describe_attention(self.executor.info.sparse)

    @property
    def generation_config(self) -> dict[str, Any]:
        """The settings that the model's authors recommend, or an empty dict."""
        return self.files.generation_config

    @property
    def memory_plan(self) -> MemoryPlan:
        """What one conversation that fills the context takes."""
        info, speculation = self.executor.info, self.scheduler.speculation
        plan = getattr(self.executor, "memory_plan", None) or memory_plan(
            self.files,
            self.context,
            info.kv_type,
            self.executor.max_batch,
            mapped_weights=info.mapped_weights,
            sparse=info.sparse,
        )
        return plan if speculation is None else replace(plan, draft=speculation.memory_bytes)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Text to token ids and back. Raises TokenizerError if the model came without one."""
        from edge.text.tokenizer.load import open_tokenizer

        return open_tokenizer(self.files)

    @cached_property
    def chat_template(self) -> ChatTemplate:
        """The model's chat template. Raises CheckpointError if it came without one."""
        if self.files.chat_template is None:
            raise CheckpointError(
                f"The model '{self.name}' has no chat template, so it can't chat; complete a text instead, "
                "or use a model that is tuned for conversations."
            )
        return ChatTemplate(self.files.chat_template, self.tokenizer.named_tokens, worker=self._worker)

    def session(self, *, speculate: bool = True) -> Session:
        """A new, empty KV cache with its tokens. speculate: see `Session`."""
        return Session(self.executor, self.scheduler, speculate=speculate)

    def chat(
        self,
        system: str | None = None,
        *,
        context_policy: ContextPolicy = "stop",
        thinking: bool | None = None,
        thinking_budget: int | None = None,
        tools: Sequence[Any] | None = None,
        **settings: Unpack[Settings],
    ) -> Chat:
        """A new conversation.

        system: the system prompt, None leaves it to the template. context_policy, thinking, thinking_budget,
        tools: see `Chat`; thinking is refused if the template has no switch for it. settings: names of
        `edge.engine.settings.SETTING_NAMES`, for example temperature=0.2, max_new_tokens=200.
        """
        if thinking is not None and not isinstance(thinking, bool):
            raise WrongTypeError(f"thinking must be True, False or None, got {thinking!r}.")
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
            thinking_budget=thinking_budget,
            tools=tools,
            settings=settings,
        )

    def prepare(self, request: Request) -> Prepared:
        """What an answer to a request is made of.

        Raises EdgeError for messages that the chat template refuses, for a schema that can't be kept to, and
        for wrong settings.
        """
        settings = merge_settings(self.generation_config, request=request.settings)
        return prepare(request, self._encoder, settings)

    def remember_answer(self, prompt: Sequence[int], done: Completion) -> None:
        """Let an answer to a prepared prompt keep its ids when it comes back as text, see `AnswerMemory`."""
        self._encoder.answers.remember(prompt, done.text, done.tokens)

    def reply(self, request: Request, *, session: Session | None = None) -> Stream:
        """Answer a request; returns the answer in the making, whose chunks have `parts` and whose result has
        `reasoning`, `content` and `calls`.

        session: as for `stream`. Raises ContextError if the prompt does not fit.
        """
        used, prepared = session or self.session(), self.prepare(request)
        used.check_prompt(prepared.prompt)
        stream = Stream(partial(answer_prepared, prepared, used, self.tokenizer))
        used.begin(stream)
        return stream

    @cached_property
    def _encoder(self) -> PromptEncoder:
        """For requests that have nothing to do with each other; only what it knows of the template counts."""
        return PromptEncoder(self.chat_template, self.tokenizer, self.check_text)

    @cached_property
    def most_characters(self) -> int:
        """No longer text fits the context: each token would have to be the longest one.

        It takes a moment at first, since all tokens are fetched.
        """
        return self.context * self.tokenizer.longest_token

    def check_text(self, text: str) -> None:
        """Raise ContextError for a text that can't fit, before the time for encoding it is spent: others wait
        for the tokenizer meanwhile.
        """
        if len(text) > self.context and len(text) > self.most_characters:
            raise ContextError(
                f"The prompt has {len(text)} characters and the context of {self.context} tokens holds "
                f"{self.most_characters} at most: shorten it or open the model with a longer context."
            )

    def complete(
        self,
        prompt: str | Sequence[int],
        *,
        session: Session | None = None,
        parse_special: bool = False,
        response_format: ResponseFormat | None = None,
        **settings: Unpack[Settings],
    ) -> Completion:
        """Continue a text and wait for the whole of it; parameters as for `stream`."""
        return self.stream(
            prompt, session=session, parse_special=parse_special, response_format=response_format, **settings
        ).result

    def stream(
        self,
        prompt: str | Sequence[int],
        *,
        session: Session | None = None,
        parse_special: bool = False,
        response_format: ResponseFormat | None = None,
        **settings: Unpack[Settings],
    ) -> Stream:
        """Continue a text, without any chat template; returns the continuation in the making.

        prompt: a text, or token ids (NumPy's too). session: one to reuse, so that what its cache shares with
        the prompt is not computed again; an unfinished answer on it is cancelled. parse_special: let control
        tokens written in the text count as such. response_format: what the continuation must look like, see
        `edge.engine.constraints.response_format`; what nothing can be held to is an EdgeError.
        """
        chosen = merge_settings(self.generation_config, flags=settings)
        if session is not None and not isinstance(session, Session):
            raise WrongTypeError(f"session must be one of this model's sessions, got {session!r}.")
        if session is not None and session.executor is not self.executor:
            raise EdgeError(f"The session belongs to another model than '{self.name}': use one of its own.")
        used = session or self.session()
        tokens = self._tokens(prompt, parse_special)
        used.check_prompt(tokens)
        check_settings(chosen, self.tokenizer)
        constraint = constraint_of(response_format, self.tokenizer)

        def start(
            cancelled: Callable[[], bool], ended: Callable[[Completion], None]
        ) -> Generator[Chunk, None, Completion]:
            return generate(
                used, tokens, chosen, self.tokenizer, cancelled, ended, continues=True, constraint=constraint
            )

        stream = Stream(start)
        used.begin(stream)
        return stream

    def _tokens(self, prompt: Any, parse_special: bool) -> list[int]:
        if isinstance(prompt, str):
            self.check_text(prompt)
            return self.tokenizer.encode(prompt, parse_special=parse_special)
        try:
            found: list[int] = token_ids(prompt).tolist()
        except WrongTypeError as error:
            raise WrongTypeError(
                f"A prompt is a text or a list of token ids, and messages belong to `Model.chat`: {error}"
            ) from None
        return found

    def update(self, tensors: Mapping[str, npt.NDArray[np.floating[Any]]]) -> None:
        """Put other values in place of some tensors, see `edge.executors.protocol.TakesWeights`.

        Call it while no answer is in the making. What was kept of earlier sequences is forgotten. Sessions
        and chats hold rows of the old weights: start new ones, or `reset` them. EdgeError for an executor
        that can't do it.
        """
        if not takes_weights(self.executor):
            raise EdgeError(f"The {self.executor.info.name} executor can't take other weights: use native.")
        cast(TakesWeights, self.executor).update(tensors)
        if self.scheduler.prefixes is not None:
            self.scheduler.prefixes.forget()

    def close(self) -> None:
        """Free the weights; the model, its sessions and chats can't be used afterwards."""
        if self._costs is not None and self.scheduler.costs.has_passes:
            write_shapes(self._costs, self.scheduler.costs.shapes)
        if self.scheduler.prefixes is not None:
            with suppress(EdgeError):  # a second time, or in a forked process
                self.scheduler.prefixes.close()
        self.executor.close()  # first: an answer that goes on ends by it, not what guesses for it
        if self.scheduler.speculation is not None:
            self.scheduler.speculation.close()
        self._worker.close()
        if "tokenizer" in self.__dict__:
            self.tokenizer.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _override(given: str | Path | Mapping[str, Any]) -> Mapping[str, Any]:
    advice = 'give an object such as {"rope_type": "yarn", "factor": 4}'
    if isinstance(given, Mapping):
        return given
    if isinstance(given, str) and given.lstrip().startswith("{"):
        return parse_object(given, "The RoPE override", ConfigError, advice)
    if not isinstance(given, (str, Path)):
        raise WrongTypeError(f"A RoPE override is a JSON object or the path of one, not {given!r}.")
    try:
        return parse_object(Path(given).read_bytes(), Path(given), ConfigError, advice)
    except OSError as error:
        raise ConfigError(
            f"The RoPE override '{given}' is neither a JSON object nor a file that can be read "
            f"({error.strerror or error})."
        ) from None
