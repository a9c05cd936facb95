"""The rules of the house, checked over the tree: imports go down, the runtime is light, one namespace."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("edge", "model", "export", "train", "apps")  # each may import those before it
FLOORS = (  # of edge; each may import those before it
    *("errors", "system", "config", "quant", "formats", "text", "checkpoints", "hub", "executors", "engine"),
    *("chat", "runtime", "measure"),
)
HEAVY = (
    "torch",
    "transformers",
    "torchao",
    "executorch",
    "coremltools",
    "triton",
)  # never in edge, not even lazily
LONG = 450  # lines
PAGES = (
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "examples" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
)
SOURCES = (".py", ".c", ".cc", ".cpp", ".h", ".hpp")


def imported_modules(source: str) -> Iterator[tuple[int, str]]:
    """(line, full name) of every module that is imported, imports inside functions included.

    `from edge import model` gives `edge.model`: what is taken from a package may be a module of it.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            if node.module == "edge":
                yield from ((node.lineno, f"edge.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, node.module


def room_of(module: str) -> str | None:
    """The room that an imported module lies in, None for those of others."""
    top, _, rest = module.partition(".")
    if top != "edge":
        return None
    first = rest.partition(".")[0]
    return first if first in ROOMS[1:] else "edge"


def offences(room: str, source: str) -> list[tuple[int, str]]:
    """The imports in `source` that a file of `room` must not have."""
    above = ROOMS[ROOMS.index(room) + 1 :]
    found = []
    for line, module in imported_modules(source):
        top = module.partition(".")[0]
        heavy = room == "edge" and top in HEAVY
        # Imported without `edge.`, a room would be a second copy of its modules, or a user's own file.
        bare = top in (*ROOMS[1:], "tests")
        # What is compiled ahead of time: no wheel has it.
        sources = f"{module}.".startswith("edge.kernels.")
        if heavy or bare or sources or room_of(module) in above:
            found.append((line, module))
    return found


def climbs(floor: str, source: str) -> list[tuple[int, str]]:
    """The imports of modules on a floor of edge above `floor`."""
    above = FLOORS[FLOORS.index(floor) + 1 :]
    return [
        (line, module)
        for line, module in imported_modules(source)
        if room_of(module) == "edge" and module.split(".")[1:2] and module.split(".")[1] in above
    ]


def files_of(folder: str, *suffixes: str) -> list[Path]:
    """Those under a folder of the repository; the links in `edge` to other rooms are left out."""
    found = (path for path in (ROOT / folder).rglob("*") if path.suffix in suffixes and path.is_file())
    links = [path for path in (ROOT / "edge").iterdir() if path.is_symlink()]
    return sorted(path for path in found if not any(link in path.parents for link in links))


@pytest.mark.parametrize("room", ROOMS)
def test_imports_go_down_only(room: str):
    found = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in files_of(room, ".py")
        if path != ROOT / "edge" / "__main__.py"  # the door to the program, for `python -m edge`
        for line, module in offences(room, path.read_text(encoding="utf-8"))
    ]
    assert not found, "\n".join(found)


def test_imports_go_down_inside_the_runtime():
    found = []
    for path in files_of("edge", ".py"):
        first = path.relative_to(ROOT / "edge").parts[0].removesuffix(".py")
        if first in ("__init__", "__main__"):
            continue
        assert first in FLOORS, f"{path.relative_to(ROOT)} is on no floor: name it in FLOORS"
        found += [
            f"{path.relative_to(ROOT)}:{line} imports {module}"
            for line, module in climbs(first, path.read_text(encoding="utf-8"))
        ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("folder", ["tests", "scripts", "examples"])
def test_rooms_are_imported_from_edge(folder: str):
    found = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in files_of(folder, ".py")
        for line, module in imported_modules(path.read_text(encoding="utf-8"))
        if module.partition(".")[0] in ROOMS[1:]
    ]
    assert not found, "\n".join(found)


def test_the_rules_see_offences():
    assert offences("edge", "def f():\n    from edge.model.rope import rotate\n") == [(2, "edge.model.rope")]
    assert offences("edge", "from edge import apps") == [(1, "edge.apps")]
    assert offences("edge", "import numpy, torch.nn as nn") == [(1, "torch.nn")]
    assert offences("model", "import torch\nimport edge.config\n") == []
    assert offences("model", "from model.rope import rotate") == [(1, "model.rope")]
    assert offences("export", "import edge.apps.cli") == [(1, "edge.apps.cli")]
    assert offences("apps", "from edge import kernels") == [(1, "edge.kernels")]
    assert climbs("quant", "from edge.engine.session import Session") == [(1, "edge.engine.session")]
    assert climbs("engine", "from edge.quant.scheme import QuantScheme\nimport edge") == []


def test_the_rules_see_files():
    assert {path.name for path in files_of("edge", ".py")} >= {"network.py", "packing.py", "executor.py"}
    assert not any("decoder.py" in path.parts for path in files_of("edge", ".py"))
    assert files_of("kernels", ".cpp", ".h")


@pytest.mark.parametrize("room", ROOMS[1:])
def test_every_room_is_a_part_of_edge(room: str):
    link = ROOT / "edge" / room
    assert link.is_symlink() and link.resolve() == ROOT / room


def test_cuda_kernels_are_a_part_of_edge():
    link = ROOT / "edge" / "kernels"
    assert link.is_symlink() and link.resolve() == ROOT / "kernels" / "cuda"


@pytest.mark.parametrize("folder", [*ROOMS, "kernels", "scripts", "examples", "tests"])
def test_long_files_are_named(folder: str):
    """Not a failure: a long file is a reason to look for the second thing in it."""
    for path in files_of(folder, *SOURCES):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > LONG:
            warnings.warn(f"{path.relative_to(ROOT)} has {lines} lines", stacklevel=1)


@pytest.mark.parametrize("room", [*ROOMS, "kernels"])
def test_files_say_what_they_own(room: str):
    """Every Python file begins with a docstring."""
    silent = [
        str(path.relative_to(ROOT))
        for path in files_of(room, ".py")
        if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not silent, f"no docstring: {', '.join(silent)}"


def test_files_that_the_docs_name_are_there():
    """`edge/quant/packing.py` and the like in README, CONTRIBUTING and docs."""
    others = {"tests/chat.py", "scripts/build_android_library.sh"}  # of other projects
    others |= {"examples/llama.android", "examples/llama.swiftui"}
    folders = "|".join((*ROOMS, "kernels", "tests", "scripts", "examples", "runs"))
    named = re.compile(rf"`((?:{folders})/[\w./-]*)`")
    missing = [
        f"{page.relative_to(ROOT)} names {path}"
        for page in PAGES
        for path in named.findall(page.read_text(encoding="utf-8"))
        if path not in others and not (ROOT / path).exists()
    ]
    assert not missing, "\n".join(missing)


def defines(name: str) -> bool:
    """Whether `edge.measure.profile.Profile` and the like is a module, or a name in the module before it."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        where = ROOT.joinpath(*parts[:end])
        file = where / "__init__.py" if where.is_dir() else where.with_suffix(".py")
        if file.is_file():
            text = file.read_text(encoding="utf-8")
            return end == len(parts) or re.search(rf"\b{parts[end]}\b", text) is not None
    return False


def test_modules_that_the_docs_name_can_be_found():
    missing = [
        f"{page.relative_to(ROOT)} names {name}"
        for page in PAGES
        for name in re.findall(r"`(edge(?:\.\w+)+)", page.read_text(encoding="utf-8"))
        if not name.endswith((".h", ".cmake")) and not defines(name)
    ]
    assert not missing, "\n".join(missing)
    assert defines("edge.load") and not defines("edge.measure.profile.Profil")


def json_reads(source: str) -> list[int]:
    """Lines that parse JSON; a round trip through `json.dumps` reads nothing from outside."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == "json":
            found.append(node.lineno)
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        own = (
            node.args
            and isinstance(node.args[0], ast.Call)
            and ast.unparse(node.args[0].func) == "json.dumps"
        )
        if ast.unparse(node.func) in ("json.load", "json.loads", "json.JSONDecoder") and not own:
            found.append(node.lineno)
    return found


@pytest.mark.parametrize("room", [*ROOMS, "kernels"])
def test_json_from_outside_is_read_with_guards(room: str):
    """Only `edge.formats.guarded_json` parses; `alone` has what can't reach it, with the reason."""
    alone = {
        "edge/formats/guarded_json.py": "the guard itself",
        "edge/measure/profile/worker.py": "requests of its own parent",
        "edge/text/isolation/server.py": "requests of its own parent",
        "edge/text/isolation/worker.py": "answers of its own child, of a limited length",
        "edge/text/isolation/tokenizers.py": "what the tokenizers package writes, in that child",
        "export/targets/gguf/llama_cpp.py": "a job of its own parent, in a process of its own",
    }
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in files_of(room, ".py")
        if str(path.relative_to(ROOT)) not in alone
        for line in json_reads(path.read_text(encoding="utf-8"))
    ]
    assert not found, "read it with edge.formats.guarded_json: " + ", ".join(found)


def test_the_rules_see_json():
    assert json_reads("import json\ndata = json.loads(text)\n") == [2]
    assert json_reads("from json import loads\n") == [1]
    assert json_reads("import json\ndef f(file):\n    return json.load(file)\n") == [3]
    assert json_reads("import json\ndata = json.loads(json.dumps(x))\n") == []


def calls_of(function: ast.AST) -> set[str]:
    """The names of what is called inside, of methods the last part; `check=True` is a call of `check`."""
    found = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Call):
            found.add(getattr(node.func, "attr", getattr(node.func, "id", "")))
            found |= {word.arg or "" for word in node.keywords if word.arg == "check"}
    return found


def is_empty(test: ast.expr, escape: bool = False) -> bool:
    """Whether an assertion says next to nothing: `x is not None`, `x >= 0`, `x is None or ...`, a constant.

    escape: it is one side of an `or`, which `x is None` makes true without a word.
    """
    if isinstance(test, ast.BoolOp):
        either = isinstance(test.op, ast.Or)
        return (any if either else all)(is_empty(part, either) for part in test.values)
    if isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.comparators[0], ast.Constant):
        operator, value = test.ops[0], test.comparators[0].value
        nothing = (ast.Is, ast.IsNot) if escape else ast.IsNot
        return (value is None and isinstance(operator, nothing)) or (
            value == 0 and isinstance(operator, ast.GtE)
        )
    return isinstance(test, ast.Constant)


def idle_tests(sources: Sequence[str]) -> list[str]:
    """The tests in these files that can hardly fail: neither they nor a helper of theirs check anything."""
    functions = [
        node
        for source in sources
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef)
    ]
    checking = {"raises", "warns", "warn", "fail", "check", "opcheck"}
    checking |= {name for function in functions for name in calls_of(function) if name.startswith("assert_")}

    def checks(function: ast.FunctionDef) -> bool:
        asserts = (node.test for node in ast.walk(function) if isinstance(node, ast.Assert))
        return any(not is_empty(test) for test in asserts) or not checking.isdisjoint(calls_of(function))

    while found := {each.name for each in functions if each.name not in checking and checks(each)}:
        checking |= found
    return [each.name for each in functions if each.name.startswith("test_") and each.name not in checking]


def test_every_test_can_fail():
    found = idle_tests([path.read_text(encoding="utf-8") for path in files_of("tests", ".py")])
    assert not found, f"nothing is asserted in {', '.join(found)}"


def test_the_rule_sees_idle_tests():
    helper = "def refuse(x):\n    with pytest.raises(E):\n        x()\n"
    for body, idle in (
        ("f()", True),
        ("assert f() is not None", True),
        ("assert f() is None or f() > 1", True),
        ("assert len(f()) >= 0 and f() is not None", True),
        ("assert f() == 1", False),
        ("assert f() is None", False),
        ("assert f() is not None and f() > 1", False),
        ("refuse(f)", False),
        ("np.testing.assert_allclose(f(), 1)", False),
        ("subprocess.run([], check=True)", False),
    ):
        assert idle_tests([helper, f"def test_it():\n    {body}\n"]) == (["test_it"] if idle else []), body
