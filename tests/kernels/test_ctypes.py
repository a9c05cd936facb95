"""What Python says about the C headers, held against the headers as a C compiler reads them.

Every structure field by field, every constant, and the result and arguments of every function.
"""

from __future__ import annotations

import ctypes
import json
import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edge.config.draft import EMBEDDING_NORM, FC, FC_BIAS, HIDDEN_NORM
from edge.config.roles import DECODER, QK_NORMS, QKV_BIASES
from edge.executors.drafts import MAX_BRANCHES
from edge.executors.executorch import library as executorch
from edge.executors.native import draft, next_token, operators, soft
from edge.executors.native import library as native
from edge.quant.kinds import KINDS

KERNELS = Path(__file__).resolve().parent.parent.parent / "kernels"
HEADERS = ("include/edge.h", "include/edge_operators.h", "adapters/executorch/runner/runner.h")
TEXT = "\n".join((KERNELS / header).read_text() for header in HEADERS)
CODE = re.sub(r"/\*.*?\*/", " ", TEXT, flags=re.DOTALL)
FOR_HOSTS = {"edge_tasks", "edge_tasks_parallel"}
"""What the runtimes that call the operators need, and Python does not."""

MODULES = (native, operators, draft, next_token, soft, executorch)
STRUCTURES = [
    value
    for module in MODULES
    for value in vars(module).values()
    if isinstance(value, type)
    and issubclass(value, ctypes.Structure)
    and hasattr(value, "_fields_")
    and value.__module__ == module.__name__
]
BUILT_IN = [KINDS.get(name) for name in ("f32", "f16", "int8", "int4", "ternary")]
ROLES = {role.name.removesuffix(".weight"): role.native for role in (*DECODER, *QKV_BIASES, *QK_NORMS)}
FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    **native._FUNCTIONS,
    **draft._FUNCTIONS,
    **soft._FUNCTIONS,
    **{name: (ctypes.c_int32, arguments) for name, arguments in operators._FUNCTIONS.items()},
    **executorch._SIGNATURES,
}

NUMBERS = {
    "int32": ctypes.c_int32,
    "uint32": ctypes.c_uint32,
    "int64": ctypes.c_int64,
    "uint64": ctypes.c_uint64,
    "float": ctypes.c_float,
    "double": ctypes.c_double,
}


@dataclass(frozen=True)
class Field:
    """kind: a key of NUMBERS, or "other" for pointers, arrays and structures. offset, size: bytes."""

    name: str
    kind: str
    offset: int
    size: int


@dataclass(frozen=True)
class Layout:
    """A structure of C."""

    size: int
    fields: tuple[Field, ...]


@dataclass(frozen=True)
class Headers:
    """structures: by name. constants: enumerators and macros that are numbers, by name."""

    structures: dict[str, Layout]
    constants: dict[str, int]


def c_structures() -> dict[str, list[str]]:
    """name -> the names of its fields, in order."""
    found = {}
    for body, name in re.findall(r"typedef struct \{([^}]*)\} (\w+);", CODE):
        fields: list[str] = []
        for statement in filter(None, map(str.strip, body.split(";"))):
            callback = re.search(r"\(\*(\w+)\)", statement)
            names = [callback[1]] if callback else re.findall(r"(\w+)\s*(?:\[\w+\])?\s*(?:,|$)", statement)
            fields += names
        found[name] = fields
    return found


def c_enumerations() -> dict[str, list[str]]:
    """name -> its enumerators."""
    found = re.findall(r"typedef enum \{([^}]*)\} (\w+);", CODE)
    return {name: re.findall(r"(\w+) = \d+", body) for body, name in found}


def c_constants() -> list[str]:
    macros: list[str] = re.findall(r"#define (EDGE_\w+) \d+", CODE)
    return macros + [name for names in c_enumerations().values() for name in names]


def c_functions() -> dict[str, tuple[str, list[str]]]:
    """name -> its result's kind, its arguments' kinds."""
    found = {}
    for result, name, arguments in re.findall(
        r"^EDGE_(?:ET_)?API ([^;()]*?)(\w+)\(([^;]*)\);", CODE, re.MULTILINE
    ):
        listed = [] if arguments.strip() == "void" else [kind_in_c(each) for each in arguments.split(",")]
        found[name] = (kind_in_c(result), listed)
    return found


def kind_in_c(declaration: str) -> str:
    words = declaration.replace("const", " ").split()
    if "*" in declaration or words[0] == "edge_observer":
        return "pointer"
    if words[0] in ("edge_status", "int"):
        return "int32"
    return words[0].removesuffix("_t")


def kind_in_python(kind: Any) -> str:
    if kind is None:
        return "void"
    for name, number in NUMBERS.items():
        if kind is number:
            return name
    return c_name(kind) if issubclass(kind, ctypes.Structure) else "pointer"


def c_name(structure: type[ctypes.Structure]) -> str:
    """The name in C, with which every structure's docstring begins."""
    found = re.match(r"`?(edge_\w+)", structure.__doc__ or "")
    assert found, f"The docstring of {structure.__name__} does not begin with its name in C."
    return found[1]


def probe() -> str:
    """A C program that prints the layout of all structures and the values of all constants as JSON."""
    kinds = ", ".join(f'{name}{"_t" if "int" in name else ""}: "{name}"' for name in NUMBERS)
    lines = [f'#include "{KERNELS / header}"' for header in HEADERS]
    lines += [
        "#include <stddef.h>",
        "#include <stdio.h>",
        f'#define KIND(x) _Generic((x), {kinds}, default: "other")',
    ]
    lines += ["int main(void) {", r'printf("{\"constants\": {\"\": 0");']
    lines += [rf'printf(", \"{name}\": %d", (int){name});' for name in c_constants()]
    lines.append(r'printf("}, \"structures\": {\"\": [0]");')
    for name, fields in c_structures().items():
        lines.append(rf'static {name} a_{name}; printf(", \"{name}\": [%zu", sizeof({name}));')
        for field in fields:
            member = f"a_{name}.{field}"
            facts = f"KIND({member}), offsetof({name}, {field}), sizeof({member})"
            lines.append(rf'printf(", [\"{field}\", \"%s\", %zu, %zu]", {facts});')
        lines.append('printf("]");')
    return "\n".join([*lines, r'printf("}}\n"); return 0; }', ""])


@pytest.fixture(scope="module")
def headers(tmp_path_factory, require) -> Headers:
    require("cc")
    folder = tmp_path_factory.mktemp("probe")
    (folder / "probe.c").write_text(probe())
    command = [
        "cc",
        "-std=c11",
        f"-I{KERNELS / 'include'}",
        "-o",
        str(folder / "probe"),
        str(folder / "probe.c"),
    ]
    compiled = subprocess.run(command, capture_output=True, text=True)
    assert compiled.returncode == 0, compiled.stderr
    found = json.loads(subprocess.run([folder / "probe"], capture_output=True, text=True, check=True).stdout)
    layouts = {
        name: Layout(size, tuple(Field(*field) for field in fields))
        for name, (size, *fields) in found["structures"].items()
        if name
    }
    return Headers(layouts, found["constants"])


def fields_of(structure: type[ctypes.Structure]) -> Iterable[Field]:
    for name, kind, *_ in structure._fields_:
        place = getattr(structure, name)
        number = next((each for each, number in NUMBERS.items() if kind is number), "other")
        yield Field(name, number, place.offset, place.size)


def differences(structure: type[ctypes.Structure], layout: Layout) -> list[str]:
    """What ctypes says otherwise than C, a line for each."""
    found = []
    ours, theirs = tuple(fields_of(structure)), layout.fields
    if len(ours) != len(theirs):
        found.append(f"{len(ours)} fields, C has {len(theirs)}")
    found += [f"{our}, C has {their}" for our, their in zip(ours, theirs, strict=False) if our != their]
    if ctypes.sizeof(structure) != layout.size:
        found.append(f"{ctypes.sizeof(structure)} bytes, C has {layout.size}")
    return found


@pytest.mark.parametrize("structure", STRUCTURES, ids=lambda structure: structure.__name__)
def test_a_structure_is_that_of_the_header(headers, structure):
    assert differences(structure, headers.structures[c_name(structure)]) == []


def test_every_structure_of_the_headers_is_there(headers):
    assert sorted(map(c_name, STRUCTURES)) == sorted(headers.structures.keys() - FOR_HOSTS)


def changed(structure: type[ctypes.Structure], change: Any) -> type[ctypes.Structure]:
    fields = [tuple(field) for field in structure._fields_]
    change(fields)
    return type("Changed", (ctypes.Structure,), {"_fields_": fields})


def swap(fields: list[Any], first: int, second: int) -> None:
    fields[first], fields[second] = fields[second], fields[first]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda fields: swap(fields, 3, 4), "name='min_p'"),  # of one type
        (lambda fields: swap(fields, 1, 2), "name='top_k'"),  # of two types
        (lambda fields: fields.__setitem__(1, ("temperature", ctypes.c_int32)), "kind='int32'"),
        (lambda fields: fields.__setitem__(2, ("top_k", ctypes.c_uint32)), "kind='uint32'"),
        (lambda fields: fields.__setitem__(1, ("temperature", ctypes.c_double)), "size=8"),
        (lambda fields: fields.pop(), "9 fields, C has 10"),
        (lambda fields: fields.append(("more", ctypes.c_float)), "44 bytes, C has 40"),
        (lambda fields: fields.__setitem__(5, ("typical", ctypes.c_float)), "name='typical'"),
    ],
)
def test_a_wrong_structure_is_found(headers, change, sentence):
    found = differences(changed(native.Sampling, change), headers.structures["edge_sampling"])
    assert any(sentence in line for line in found), found


def test_constants(headers):
    c = headers.constants
    mirrored = {
        "EDGE_ABI_VERSION": native.ABI_VERSION,
        "EDGE_CACHE_LAYOUT": native.CACHE_LAYOUT,
        "EDGE_CACHE_PAGE": native.CACHE_PAGE,
        "EDGE_MAX_TREE": native.MAX_TREE,
        "EDGE_MAX_LOGPROBS": native.MAX_LOGPROBS,
        "EDGE_MAX_DRAFT_BRANCHES": MAX_BRANCHES,
        "EDGE_DRAFT_FC": draft.ROLES[FC],
        "EDGE_DRAFT_FC_BIAS": draft.ROLES[FC_BIAS],
        "EDGE_DRAFT_EMBEDDING_NORM": draft.ROLES[EMBEDDING_NORM],
        "EDGE_DRAFT_HIDDEN_NORM": draft.ROLES[HIDDEN_NORM],
        "EDGE_ET_DIMENSIONS": executorch._DIMENSIONS,
        "EDGE_OK": 0,  # what `check` lets pass
        "EDGE_CONTEXT": native._CONTEXT,
        "EDGE_VOCABULARY": native._VOCABULARY,
        "EDGE_UNSUPPORTED": native.UNSUPPORTED,
        **{f"EDGE_{kind.name.upper()}": kind.layout.kernel for kind in BUILT_IN},
        **{f"EDGE_ACTIVATIONS_{short(name)}": value for name, value in native.ACTIVATIONS.items()},
        **{f"EDGE_KV_{short(name)}": value for name, value in native.KV_TYPE.items()},
    }
    assert {name: c[name] for name in mirrored} == mirrored
    complete = {
        "edge_kind": BUILT_IN,
        "edge_activations": native.ACTIVATIONS,
        "edge_kv_type": native.KV_TYPE,
        "edge_role": ROLES,
        "edge_draft_role": draft.ROLES,
    }
    enumerations = c_enumerations()
    assert {name: len(mirror) for name, mirror in complete.items()} == {
        name: len(enumerations[name]) for name in complete
    }


def short(name: str) -> str:
    """float32 -> F32, int8 -> INT8."""
    return name.replace("float", "f").upper()


def test_roles(headers):
    names = {
        "model.embed_tokens": "EMBEDDING",
        "lm_head": "HEAD",
        "model.norm": "FINAL_NORM",
        "input_layernorm": "ATTENTION_NORM",
        "self_attn.q_proj": "Q",
        "self_attn.k_proj": "K",
        "self_attn.v_proj": "V",
        "self_attn.o_proj": "O",
        "post_attention_layernorm": "MLP_NORM",
        "mlp.gate_proj": "GATE",
        "mlp.up_proj": "UP",
        "mlp.down_proj": "DOWN",
        "self_attn.q_proj.bias": "Q_BIAS",
        "self_attn.k_proj.bias": "K_BIAS",
        "self_attn.v_proj.bias": "V_BIAS",
        "self_attn.q_norm": "Q_NORM",
        "self_attn.k_norm": "K_NORM",
    }
    assert names.keys() == ROLES.keys()
    for name, role in names.items():
        assert ROLES[name] == headers.constants[f"EDGE_{role}"], name


def test_every_function_is_declared_as_in_the_headers():
    wanted = {name: found for name, found in c_functions().items() if name not in FOR_HOSTS}
    assert len(c_functions()) == len(re.findall(r"^EDGE_(?:ET_)?API ", CODE, re.MULTILINE))
    declared = {
        name: (kind_in_python(result), [kind_in_python(each) for each in arguments])
        for name, (result, arguments) in FUNCTIONS.items()
    }
    assert declared == wanted
