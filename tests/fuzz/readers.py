"""Every Python reader of files from outside: what it reads, files it accepts, and how they are changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edge.checkpoints.draft import EMBEDDING_COPY, DraftCheckpoint
from edge.checkpoints.frequency_list import read_frequency_list
from edge.checkpoints.gguf import GGUFCheckpoint
from edge.checkpoints.huggingface import HuggingFaceCheckpoint, is_complete
from edge.checkpoints.torch_pickle import TorchFile
from edge.config import ModelConfig
from edge.config.huggingface import config_from_hf
from edge.config.tensors import expected_tensors
from edge.engine.conversation_file import read_conversation
from edge.engine.settings import merge_settings
from edge.executors.cuda.cubins import Cubins
from edge.executors.cuda.manifest import MANIFEST as CUBINS
from edge.formats.artifact.folder import Artifact
from edge.formats.artifact.manifest import ARTIFACT
from edge.formats.bundle.reader import Bundle
from edge.formats.bundle.stamps import Stamps
from edge.formats.draft.files import DraftFiles
from edge.formats.gguf_parts import first_part, open_gguf
from edge.formats.kv_file import read_cache
from edge.formats.safetensors import SafetensorsFile
from edge.measure.alignment import align
from edge.measure.profile.schema import Profile
from edge.train.data.shards import ShardFolder
from tests.drafts import minicpm_target
from tests.fuzz.mutate import mutate_bytes, mutate_framed, mutate_json, mutate_pickle
from tests.fuzz.seeds import (
    TEMPLATE,
    answer_shards,
    artifact,
    block_draft,
    bundle_files,
    config,
    contents,
    conversation,
    cubins,
    draft_bundle,
    eagle3_draft,
    gguf_file,
    gguf_parts,
    kv_file,
    made,
    pickle,
    profile,
    public_draft,
    safetensors_file,
    shards,
    signed,
    stamps,
    token_list,
    token_shards,
    tokenizer_files,
    trace,
    wrapped,
)

Mutate = Callable[[bytes, Any, list[bytes]], bytes]


@dataclass(frozen=True)
class Reader:
    """files: path -> contents of a folder that `read` accepts. changed: those of them that are mutated; a
    mutated file goes through `finish`, which signs or wraps it. modules: whose lines count as its own. slow:
    how many times slower than others it is, by starting processes; it gets so many executions fewer.
    """

    name: str
    read: Callable[[Path], object]
    files: Callable[[], Mapping[str, bytes]]
    changed: tuple[str, ...]
    modules: tuple[str, ...]
    mutate: Mutate = mutate_json
    finish: Callable[[bytes], bytes] = field(default=lambda data: data)
    slow: int = 1


def read_gguf(folder: Path) -> None:
    """All that a conversion reads."""
    checkpoint = GGUFCheckpoint(folder / "m.gguf")
    for info in checkpoint.tensors:
        checkpoint.read(info.name)
    _ = checkpoint.tokenizer_files, checkpoint.chat_template, checkpoint.generation_config


def read_gguf_parts(folder: Path) -> None:
    """Where the tensors of all parts lie."""
    open_gguf(first_part(folder / "m-00002-of-00002.gguf"))


def read_safetensors(folder: Path) -> None:
    """Every tensor."""
    file = SafetensorsFile(folder / "m.safetensors")
    for name in file.tensors:
        file.array(name)


def read_bundle(folder: Path) -> None:
    """What a start reads."""
    bundle = Bundle.open(folder)
    for name in bundle.tensors:
        bundle.data(name)
    _ = bundle.tokenizer_files, bundle.chat_template, bundle.generation_config, bundle.content_hash


def read_artifact(folder: Path) -> None:
    """What opening one reads."""
    found = Artifact.open(folder)
    found.manifest.runtime.check("1.20.1")
    _ = found.tokenizer_files, found.chat_template, found.generation_config, found.content_hash, found.tensors


def read_pickle(folder: Path) -> None:
    """Every tensor as floats."""
    file = TorchFile(folder / "m.bin")
    for name, entry in file.tensors.items():
        if entry.dtype in ("F64", "F32", "F16", "BF16"):
            file.read_float32(name)
        else:
            file.array(name)


def read_folder(folder: Path) -> None:
    """What a conversion reads."""
    is_complete(folder)
    checkpoint = HuggingFaceCheckpoint(folder)
    for info in checkpoint.tensors:
        checkpoint.read(info.name)
    _ = checkpoint.tokenizer_files, checkpoint.chat_template, checkpoint.generation_config


def read_shards(folder: Path) -> None:
    """What training reads."""
    found = ShardFolder.open(folder)
    for number in range(found.documents):
        found.document(number)
        if found.facts.state_width:
            found.states(number, 0, int(found.lengths[number]))
    found.verify()


def read_config(folder: Path) -> None:
    """The network, its tensors and its own JSON form."""
    from edge.errors import CheckpointError
    from edge.formats.guarded_json import parse_object

    path = folder / "config.json"
    found = config_from_hf(parse_object(path.read_bytes(), path, CheckpointError, "get it again"))
    expected_tensors(found)
    ModelConfig.from_json(found.to_json())


def read_tokenizer(folder: Path) -> None:
    """Encode and decode a text."""
    from edge.text.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(contents(folder), config())
    tokenizer.decode(tokenizer.encode("The thé\n<|user|>"))


def read_tokens(folder: Path) -> None:
    """The small files beside a tokenizer, in this process."""
    from edge.text.tokenizer.settings import read_settings

    settings = read_settings(contents(folder))
    settings.merged(settings.added, config().vocab_size)
    settings.bos({token.text: token.id for token in settings.added}.get, config())


def read_template(folder: Path) -> None:
    """Render a conversation."""
    from edge.errors import CheckpointError
    from edge.formats.guarded_json import decode_text
    from edge.text.chat_template import ChatTemplate

    text = decode_text((folder / "chat_template.jinja").read_bytes(), "it", CheckpointError)
    ChatTemplate(text, {"bos_token": "<s>"}).render([{"role": "user", "content": "Hi"}])


def read_generation_config(folder: Path) -> None:
    """The settings that it asks for."""
    from edge.errors import CheckpointError
    from edge.formats.guarded_json import parse_object

    path = folder / "generation_config.json"
    merge_settings(parse_object(path.read_bytes(), path, CheckpointError, "get it again"))


def mutate_log(data: bytes, chance: Any, others: list[bytes]) -> bytes:
    """Changes the document on the last line."""
    head, _, last = data.rstrip().rpartition(b"\n")
    return head + b"\n" + mutate_json(last, chance, others)


def read_profile(folder: Path) -> None:
    """The document, and all that is derived from it."""
    for row in Profile.load(folder / "p.json").results:
        _ = row.key


def read_stamps(folder: Path) -> None:
    """Whether a file is known, from the file of stamps in place of the cache's own."""

    from edge.formats.bundle import stamps as module

    before, module._stamp_file = module._stamp_file, lambda path: path / "s.json"
    try:
        Stamps(folder).has("weights.safetensors", folder.stat(), "ab")
    finally:
        module._stamp_file = before


def read_draft(folder: Path) -> None:
    """What a start reads of a draft bundle."""
    draft = DraftFiles.open(folder)
    for name in draft.tensors:
        draft.data(name)
    _ = draft.token_ids, draft.content_hash


def read_public_draft(folder: Path) -> None:
    """What a conversion reads of a public draft."""
    checkpoint = DraftCheckpoint(folder, minicpm_target())
    for info in checkpoint.tensors:
        checkpoint.read(info.name)
    checkpoint.copy_of(EMBEDDING_COPY, np.arange(3))
    _ = checkpoint.token_ids, checkpoint.frequency_lists, checkpoint.tokenizer_files


def read_cubins(folder: Path) -> None:
    """What a launch reads of a kernel."""
    found = Cubins.open(folder)
    for kernel in found.manifest.kernels.values():
        for name in kernel.images:
            found.image(kernel, found.manifest.variants[name])


FORMATS, CHECKPOINTS = "edge/formats", "edge/checkpoints"
READERS = {
    reader.name: reader
    for reader in (
        Reader(
            "gguf",
            read_gguf,
            lambda: made(gguf_file),
            ("m.gguf",),
            (f"{FORMATS}/gguf_file.py", f"{CHECKPOINTS}/gguf.py"),
            mutate_bytes,
        ),
        Reader(
            "gguf parts",
            read_gguf_parts,
            lambda: made(gguf_parts),
            ("m-00001-of-00002.gguf", "m-00002-of-00002.gguf"),
            (f"{FORMATS}/gguf_file.py", f"{FORMATS}/gguf_parts.py"),
            mutate_bytes,
        ),
        Reader(
            "safetensors",
            read_safetensors,
            lambda: made(safetensors_file),
            ("m.safetensors",),
            (f"{FORMATS}/safetensors.py",),
            mutate_framed(0),
        ),
        Reader(
            "bundle",
            read_bundle,
            bundle_files,
            ("manifest.json",),
            (f"{FORMATS}/bundle/manifest.py", f"{FORMATS}/bundle/reader.py"),
            finish=signed,
        ),
        Reader(
            "artifact",
            read_artifact,
            lambda: made(artifact),
            (ARTIFACT,),
            (f"{FORMATS}/artifact/manifest.py", f"{FORMATS}/artifact/folder.py"),
            finish=signed,
        ),
        Reader(
            "cubins",
            read_cubins,
            lambda: made(cubins),
            (CUBINS,),
            ("edge/executors/cuda/manifest.py", "edge/executors/cuda/cubins.py"),
        ),
        Reader(
            "cubin archive",
            read_cubins,
            lambda: made(cubins),
            ("sm_87.zip",),
            ("edge/executors/cuda/cubins.py",),
            mutate_bytes,
        ),
        Reader(
            "pickle",
            read_pickle,
            lambda: made(pickle),
            ("m.bin",),
            (f"{CHECKPOINTS}/torch_pickle.py",),
            mutate_pickle,
            wrapped,
        ),
        Reader(
            "draft",
            read_draft,
            lambda: made(draft_bundle),
            ("manifest.json",),
            (f"{FORMATS}/draft/manifest.py", f"{FORMATS}/draft/files.py", "edge/config/draft.py"),
            finish=signed,
        ),
        Reader(
            "public draft",
            read_public_draft,
            lambda: made(public_draft),
            ("config.json",),
            (f"{CHECKPOINTS}/draft.py", "edge/config/draft_huggingface.py"),
        ),
        Reader(
            "EAGLE-3 draft",
            read_public_draft,
            lambda: made(eagle3_draft),
            ("config.json",),
            (f"{CHECKPOINTS}/draft_vocabulary.py", "edge/config/draft_eagle3.py"),
        ),
        Reader(
            "block draft",
            read_public_draft,
            lambda: made(block_draft),
            ("config.json",),
            (f"{CHECKPOINTS}/draft_matrices.py", "edge/config/draft_block.py"),
        ),
        Reader(
            "token list",
            lambda folder: read_frequency_list(folder / "list.pt", 500),
            lambda: made(token_list),
            ("list.pt",),
            (f"{CHECKPOINTS}/frequency_list.py", f"{CHECKPOINTS}/torch_pickle.py"),
            mutate_pickle,
            wrapped,
        ),
        Reader(
            "zip",
            read_pickle,
            lambda: {"m.bin": wrapped(made(pickle)["m.bin"])},
            ("m.bin",),
            (f"{CHECKPOINTS}/torch_pickle.py",),
            mutate_bytes,
        ),
        Reader(
            "config",
            read_config,
            lambda: made(shards),
            ("config.json",),
            (
                "edge/config/huggingface.py",
                "edge/config/fields.py",
                "edge/config/network.py",
                "edge/config/rope_entry.py",
            ),
        ),
        Reader(
            "index",
            read_folder,
            lambda: made(shards),
            ("model.safetensors.index.json", "config.json", "tokenizer_config.json"),
            (f"{CHECKPOINTS}/huggingface.py",),
        ),
        Reader(
            "tokenizer",
            read_tokenizer,
            tokenizer_files,
            ("tokenizer.json", "tokenizer_config.json"),
            ("edge/text/tokenizer/tokenizers_json.py",),
            slow=20,
        ),
        Reader(
            "tokens",
            read_tokens,
            tokenizer_files,
            ("tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"),
            ("edge/text/tokenizer/settings.py",),
        ),
        Reader(
            "template",
            read_template,
            lambda: {"chat_template.jinja": TEMPLATE.encode()},
            ("chat_template.jinja",),
            ("edge/text/chat_template.py",),
            mutate_bytes,
            slow=20,
        ),
        Reader(
            "token shards",
            read_shards,
            lambda: made(token_shards),
            ("index.json",),
            ("edge/train/data/shards.py",),
        ),
        Reader(
            "answer shards",
            read_shards,
            lambda: made(answer_shards),
            ("index.json",),
            ("edge/train/data/shards.py",),
        ),
        Reader(
            "settings",
            read_generation_config,
            tokenizer_files,
            ("generation_config.json",),
            ("edge/engine/settings.py",),
        ),
        Reader(
            "kv",
            lambda folder: read_cache(folder / "c.kv", {"model": "m"}),
            lambda: made(kv_file),
            ("c.kv",),
            (f"{FORMATS}/kv_file.py",),
            mutate_framed(16),
        ),
        Reader(
            "conversation",
            lambda folder: read_conversation(folder / "chat.json"),
            lambda: made(conversation),
            ("chat.json",),
            ("edge/engine/conversation_file.py",),
        ),
        Reader(
            "profile",
            read_profile,
            lambda: made(profile),
            ("p.json",),
            ("edge/measure/profile/schema.py",),
            mutate_log,
        ),
        Reader(
            "trace",
            lambda folder: align(folder / "t.json", folder / "t.json"),
            lambda: made(trace),
            ("t.json",),
            ("edge/measure/alignment.py",),
        ),
        Reader(
            "stamps",
            read_stamps,
            lambda: made(stamps),
            ("s.json",),
            (f"{FORMATS}/bundle/stamps.py", f"{FORMATS}/guarded_json.py"),
        ),
    )
}
