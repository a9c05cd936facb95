"""Small files that the readers accept, from which the fuzzer starts."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from edge.config import ModelConfig
from edge.config.huggingface import config_from_hf
from edge.config.tensors import expected_tensors
from edge.engine.conversation_file import write_conversation
from edge.formats.artifact.manifest import ARTIFACT, REFERENCE
from edge.formats.hashing import json_digest
from edge.formats.kv_file import write_cache
from edge.formats.safetensors import SafetensorsWriter
from edge.hub.convert import convert
from tests.edge.executors.cuda.conftest import write_package

HF_CONFIG: dict[str, Any] = {
    "architectures": ["MiniCPMForCausalLM"],
    "model_type": "minicpm",
    "bos_token_id": 1,
    "eos_token_id": [2, 7],
    "hidden_size": 32,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_hidden_layers": 1,
    "rms_norm_eps": 1e-5,
    "vocab_size": 300,
    "scale_emb": 12,
    "scale_depth": 1.4,
    "dim_model_base": 16,
    "tie_word_embeddings": True,
    "rope_scaling": {
        "rope_type": "longrope",
        "original_max_position_embeddings": 64,
        "short_factor": [1.0] * 8,
        "long_factor": [2.0] * 8,
    },
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
    "sparse_config": {"kernel_size": 32, "kernel_stride": 16, "block_size": 64, "topk": 8, "dense_len": 64},
}
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message.role + '|>' + message.content | trim }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@cache
def config() -> ModelConfig:
    """The network of HF_CONFIG."""
    return config_from_hf({name: value for name, value in HF_CONFIG.items() if name != "sparse_config"})


class Arrays:
    """A checkpoint of random weights in memory."""

    source = "arrays"
    chat_template: str | None = TEMPLATE

    def __init__(self) -> None:
        from edge.checkpoints.base import TensorInfo
        from edge.quant.scheme import QuantScheme

        chance = np.random.default_rng(0)
        self.generation_config = {"temperature": 0.5, "top_k": 20}
        self.config, self.tokenizer_files = config(), tokenizer_files()
        self.weights = {
            name: chance.standard_normal(shape, np.float32)
            for name, shape in expected_tensors(config()).items()
        }
        plain = QuantScheme("f16")
        self.tensors = [TensorInfo(name, values.shape, "F32", plain) for name, values in self.weights.items()]

    def read(self, name: str) -> np.ndarray:
        """One tensor."""
        return self.weights[name]


@cache
def tokenizer_files() -> dict[str, bytes]:
    """A byte-level BPE with a token per byte."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", *alphabet, "th"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("t", "h")]))
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in ("<unk>", "<s>", "</s>")])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    settings = {
        "bos_token": "<s>",
        "eos_token": {"content": "</s>", "lstrip": False},
        "add_bos_token": True,
        "additional_special_tokens": ["<s>"],
        "added_tokens_decoder": {"0": {"content": "<unk>", "special": True}, "260": {"content": "<|user|>"}},
        "chat_template": TEMPLATE,
        "model_max_length": 10**30,
    }
    return {
        "tokenizer.json": str(tokenizer.to_str()).encode(),
        "tokenizer_config.json": json.dumps(settings).encode(),
        "added_tokens.json": b'{"<|user|>": 260}',
        "special_tokens_map.json": b'{"eos_token": "</s>"}',
        "generation_config.json": b'{"eos_token_id": [2, 7], "temperature": 0.5, "do_sample": true}',
    }


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def made(make: Callable[[Path], object]) -> dict[str, bytes]:
    """The files that `make(folder)` writes."""
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        make(Path(folder))
        return contents(Path(folder))


def signed(data: bytes) -> bytes:
    """A manifest with the checksum that its (changed) contents ask for."""
    try:
        body = json.loads(data)
        body.pop("sha256")
        return json.dumps({**body, "sha256": json_digest(body)}).encode()
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
        return data


def gguf_file(folder: Path) -> None:
    """A network of one layer with floats and 4-bit blocks."""
    import gguf

    from edge.config.gguf import config_to_gguf
    from edge.config.tensors import network_tensors

    settings = {
        name: value for name, value in HF_CONFIG.items() if name not in ("sparse_config", "rope_scaling")
    }
    network = config_from_hf(
        {**settings, "model_type": "llama", "architectures": ["LlamaForCausalLM"]}
        | dict.fromkeys(("scale_emb", "scale_depth", "dim_model_base"))
    )
    writer = gguf.GGUFWriter(folder / "m.gguf", "llama")
    types = gguf.GGUFValueType
    for key, value in config_to_gguf(network).items():
        kind = {str: types.STRING, bool: types.BOOL, float: types.FLOAT32}.get(type(value), types.UINT32)
        if key != "general.architecture":
            writer.add_key_value(key, value, kind)
    tokens = [f"t{i}" for i in range(network.vocab_size)]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(i) for i in range(len(tokens))])
    writer.add_token_types([3 if i < 3 else 1 for i in range(len(tokens))])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)
    chance = np.random.default_rng(1)
    for tensor in network_tensors(network).values():
        values = chance.standard_normal(tensor.shape, np.float32)
        if len(tensor.shape) == 2:
            kind = gguf.GGMLQuantizationType.Q4_0
            writer.add_tensor(tensor.gguf, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(tensor.gguf, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_parts(folder: Path) -> None:
    """The same in two parts."""
    from tests.split_gguf import split_gguf

    gguf_file(folder)
    split_gguf(folder / "m.gguf", folder / "m.gguf", 8)
    (folder / "m.gguf").unlink()


def safetensors_file(folder: Path) -> None:
    """Tensors of several types."""
    specs = [
        ("a.weight", "F32", (3, 5)),
        ("b", "BF16", (4,)),
        ("c", "U8", (2, 2, 2)),
        ("empty", "F16", (0, 3)),
    ]
    with SafetensorsWriter(folder / "m.safetensors", specs, {"format": "pt"}) as writer:
        for name, dtype, shape in specs:
            size = {"F32": 4, "BF16": 2, "U8": 1, "F16": 2}[dtype] * int(np.prod(shape))
            writer.write(name, np.arange(size, dtype=np.uint8))


def artifact(folder: Path) -> None:
    """The manifest of an exported folder with small stand-ins for its files."""
    import hashlib

    files = {
        "model.onnx": b"model",
        "tokenizer.json": b"{}",
        "sub/part.bin": b"",
        "chat_template.jinja": b"x",
    }
    files |= {"generation_config.json": b"{}", REFERENCE: made(safetensors_file)["m.safetensors"]}
    for name, data in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    body = {
        "format": "minicpm-edge-artifact",
        "version": 1,
        "target": "onnx",
        "flavour": "portable",
        "model": "model.onnx",
        "runtime": {"name": "onnxruntime", "minimum": "1.20", "below": ""},
        "operators": {"MatMul": 1},
        "source": "somewhere",
        "source_sha256": "0" * 64,
        "config": config().to_json(),
        "quantization": {
            "name": "int4",
            "method": "rtn",
            "smooth": False,
            "tensors": dict.fromkeys(expected_tensors(config()), "int4-g32"),
        },
        "context": 128,
        "attention": "dense",
        "tokenizer": "tokenizer.json",
        "chat_template": "chat_template.jinja",
        "generation_config": "generation_config.json",
        "created_by": "minicpm-edge",
        "files": {
            name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in files.items()
        },
    }
    (folder / ARTIFACT).write_bytes(json.dumps({**body, "sha256": json_digest(body)}).encode())


def pickle(folder: Path) -> None:
    """The program of a PyTorch file, alone: `wrapped` makes the zip file."""
    import torch

    base = torch.arange(24, dtype=torch.float32)
    state = {"a": base.reshape(4, 6), "b": base.reshape(4, 6).t(), "half": base.half(), "step": 3}
    stream = io.BytesIO()
    torch.save(state, stream)
    with zipfile.ZipFile(stream) as archive:
        (folder / "m.bin").write_bytes(
            archive.read(next(n for n in archive.namelist() if n.endswith("data.pkl")))
        )


def token_list(folder: Path) -> None:
    """The same of a list of token ids."""
    import torch

    stream = io.BytesIO()
    torch.save([7, 300, 2, 90], stream)
    with zipfile.ZipFile(stream) as archive:
        (folder / "list.pt").write_bytes(
            archive.read(next(n for n in archive.namelist() if n.endswith("data.pkl")))
        )


def token_shards(folder: Path) -> None:
    """Two documents that were tokenized."""
    from edge.train.data.shards import ShardFacts, tokenizer_digest, write_documents

    files = tokenizer_files()
    facts = ShardFacts(260, 1, (2,), tokenizer_digest(files))
    write_documents(folder, [[1, 5, 2], [1, 259, 7, 2]], facts, files)


def answer_shards(folder: Path) -> None:
    """Two answers with two numbers of hidden state for each of their tokens."""
    from edge.train.data.shards import (
        ShardFacts,
        States,
        shard_name,
        tokenizer_digest,
        write_index,
        write_shard,
    )

    files = tokenizer_files()
    facts = ShardFacts(260, 1, (2,), tokenizer_digest(files), 2, (0,))
    documents = [[1, 5, 2], [1, 259, 7, 2]]
    states = States([1, 2], [np.ones((len(each), 2), np.float16) for each in documents])
    write_index(folder, facts, [write_shard(folder, shard_name(0), "", documents, facts, states)], files)


def public_draft(folder: Path) -> None:
    """A draft as CPM.cu loads it."""
    from tests.drafts import cpmcu_state, draft_fields, minicpm_target, write_draft

    write_draft(folder, draft_fields(minicpm_target()), cpmcu_state(minicpm_target()))


def eagle3_draft(folder: Path) -> None:
    """A draft of EAGLE-3, as SafeAILab's code loads it."""
    from tests.drafts import eagle3_fields, eagle3_state, minicpm_target, write_draft

    fields = eagle3_fields(minicpm_target(), eagle_config={"eagle_aux_hidden_state_layer_ids": [0, 1]})
    write_draft(folder, fields, eagle3_state(minicpm_target(), taps=2))


def block_draft(folder: Path) -> None:
    """A draft of DSpark, as DeepSpec writes it."""
    from tests.drafts import block_fields, block_state, minicpm_target, write_draft

    fields = block_fields(minicpm_target(), target_layer_ids=[0, 1], sliding_window=64)
    write_draft(folder, fields, block_state(minicpm_target(), taps=2))


def draft_bundle(folder: Path) -> None:
    """A random draft with a small head, for a target of any weights."""
    import numpy as np

    from edge.checkpoints.synthetic_draft import RandomDraft, draft_shape
    from edge.config.draft import draft_tensors
    from edge.formats.bundle.manifest import BundleTensor
    from edge.formats.draft.files import DraftWriter
    from edge.formats.draft.manifest import TOKEN_IDS, TargetIdentity
    from edge.quant.scheme import QuantScheme
    from tests.drafts import minicpm_target

    random = RandomDraft(draft_shape(minicpm_target()), QuantScheme("int4", 32))
    draft = random.config.with_head(3)
    tensors = [
        BundleTensor(
            name, each.shape, QuantScheme(*(("int4", 32) if each.shape[1:] else ("f32",))), "r", True
        )
        for name, each in draft_tensors(draft).items()
    ]
    identity = TargetIdentity("a model", "0" * 64, None)
    with DraftWriter(folder / "d", draft, random.source, identity, tensors) as writer:
        for tensor in tensors:
            writer.write(tensor.name, np.zeros(tensor.bytes, np.uint8))
        writer.write(TOKEN_IDS, np.array([7, 2, 90], "<i4"))
    for path in (folder / "d").iterdir():
        path.rename(folder / path.name)
    (folder / "d").rmdir()


def wrapped(program: bytes) -> bytes:
    """A PyTorch file with this program and two storages of 24 numbers."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("m/data.pkl", program)
        archive.writestr("m/byteorder", b"little")
        archive.writestr("m/data/0", bytes(96))
        archive.writestr("m/data/1", bytes(48))
    return stream.getvalue()


def conversation(folder: Path) -> None:
    """A saved conversation with every kind of field."""
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    settings = {"temperature": 0.5, "logit_bias": {"3": 1.0}, "stop": ["x"], "eos_token_id": 2}
    write_conversation(
        folder / "chat.json", {"system": "s", "thinking": True, "settings": settings, "messages": messages}
    )


def shards(folder: Path) -> None:
    """A folder of config, tokenizer, index and one shard, as `save_pretrained` writes it."""
    weights = Arrays().weights
    shard = "model-00001-of-00001.safetensors"
    with SafetensorsWriter(folder / shard, [(name, "F32", v.shape) for name, v in weights.items()]) as writer:
        for name, values in weights.items():
            writer.write(name, values)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(weights, shard)})
    )
    (folder / "config.json").write_text(json.dumps(HF_CONFIG))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    for name, data in tokenizer_files().items():
        (folder / name).write_bytes(data)


def kv_file(folder: Path) -> None:
    """A stored cache."""
    write_cache(
        folder / "c.kv", {"model": "m"}, np.arange(9, dtype=np.int32), [np.arange(200, dtype=np.uint8)]
    )


def profile(folder: Path) -> None:
    """The document of a small profile."""
    rate = dict.fromkeys(("median", "min", "max", "p50", "p90", "p99"), 100.0)
    operator = {"operation": "linear", "layer": 0, "kernel": "k", "seconds": 0.1, "bytes": 3, "operations": 4}
    row = dict.fromkeys(
        ("model", "executor", "quantize", "attention", "kv_type", "activations", "tier"), "int4"
    )
    row |= {"group": 32, "threads": 2, "fill": "prefill", "test": "decode", "tokens": 64, "depth": 0}
    row |= {"ttft_seconds": None, "tokens_per_second": rate, "samples": [1.0], "latency_percentiles": [0.01]}
    row |= dict.fromkeys(("weight_bytes_per_token", "kv_bytes_per_token", "operations_per_token"), 1.0)
    row |= dict.fromkeys(("bandwidth_share", "compute_share", "load_seconds"), 0.5)
    row |= {
        "peak_memory_bytes": 5,
        "memory": {"weights": 1, "kv_cache": 2, "workspace": 3},
        "joules_per_token": 0.1,
    }
    row |= {"operators": [{**operator, "limit_share": 0.5}]}
    limits = {"read_bandwidth_gb_s": 1.0, "int8_tops": 1.0, "float_tflops": 1.0}
    machine = {"system": "s", "cpu": "c", "cores": 2, "memory_bytes": None, "huge_pages": None, **limits}
    machine |= {
        "limits": [{"threads": 2, **limits}],
        "load": None,
        "other_cpu_share": 0.1,
        "clock_mhz": [1.0],
    }
    machine |= {"temperature_celsius": [], "noisy": False, "throttled": False, "remarks": ["r"]}
    document = {
        "schema": 2,
        "program": "p",
        "created": "c",
        "repeat": 3,
        "machine": machine,
        "results": [row],
    }
    (folder / "p.json").write_text("a table\n" + json.dumps(document) + "\n")


def trace(folder: Path) -> None:
    """A trace with one stage."""
    checksum = {"shape": [2, 3], "norm": 1.0, "sketch": [0.5, -0.5]}
    event = {
        "name": "linear",
        "tid": 1,
        "ts": 0,
        "dur": 5,
        "args": {"call": 0, "layer": 1, "checksum": checksum},
    }
    (folder / "t.json").write_text(json.dumps({"traceEvents": [event, {**event, "ts": 9}]}))


def cubins(folder: Path) -> None:
    """A kernel that `make cubins` built, as a cubin and as PTX."""
    write_package(folder, variants={"sm_87": 12000, "compute_80": 12000}, aligned=("columns",))


def stamps(folder: Path) -> None:
    """What `Stamps` keeps of a bundle."""
    (folder / "s.json").write_text(json.dumps({"weights.safetensors": [9, 8, "ab"]}))


def bundle_files() -> Mapping[str, bytes]:
    """A converted bundle."""
    return {
        name.removeprefix("b/"): data
        for name, data in made(lambda folder: convert(Arrays(), folder / "b", quantize="int4")).items()  # type: ignore[arg-type]
    }
