"""The C++ files keep the style of CONTRIBUTING.md, where a pattern can tell; clang-format does the rest."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

KERNELS = Path(__file__).resolve().parent.parent.parent / "kernels"
C_HEADERS = {"edge.h", "edge_operators.h", "runner/runner.h", "tools/edge_bundle.h"}
FILES = sorted(
    path
    for pattern in ("**/*.h", "**/*.cpp")
    for path in KERNELS.glob(pattern)
    if not path.as_posix().endswith(tuple(f"/{name}" for name in C_HEADERS))
)
NUMBER = r"(?:std::)?(?:u?int\d*(?:_t)?|size_t|unsigned|long|float|double|streamsize)"
TYPE = r"(?:const )?[\w:]+(?:<[^<>]*>)?"
CONTROL = r"(?:else )?(?:if|for|while)\b(?: constexpr)? \(.*\)"
RULES = {
    "a constant is snake_case": r"\bconstexpr [^;=({]*\bk[A-Z]\w* *[={(]",
    "numbers are converted as int64_t(x)": rf"static_cast<{NUMBER}>|\((?:{NUMBER})\)\w",
    "a pointer takes a named cast": r"\([a-z_]\w* \*+\)[\w(&]",
    "nullptr": r"\bNULL\b",
    "using, not typedef": r"\btypedef\b",
    "an unnamed namespace, not static": r"^static ",
    "no namespace is opened up": r"\busing namespace\b",
    "a parameter does not end in _": rf"[(,] *(?!sizeof ){TYPE} [&*]?[a-z]\w*_(?=[,)])",
    "a body on a line of its own has braces": rf"^ *(?:\}} )?(?:else|{CONTROL})$",
}


def code_of(path: Path) -> str:
    """The lines without comments and without the contents of strings."""
    text = re.sub(r'"(?:[^"\\\n]|\\.)*"', '""', path.read_text())
    return "\n".join(line.split("//")[0].rstrip() for line in text.splitlines())


@pytest.mark.parametrize("rule", RULES)
def test_every_file_keeps_the_rule(rule):
    pattern = re.compile(RULES[rule], re.MULTILINE)
    found = {path.relative_to(KERNELS).as_posix(): pattern.findall(code_of(path)) for path in FILES}
    assert {path: lines for path, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    ("rule", "code"),
    [
        ("a constant is snake_case", "constexpr int64_t kBlock = 128;"),
        ("numbers are converted as int64_t(x)", "x = static_cast<std::size_t>(n);"),
        ("numbers are converted as int64_t(x)", "x = (unsigned)n;"),
        ("a pointer takes a named cast", "p = (const_type *)data;"),
        ("nullptr", "p = NULL;"),
        ("using, not typedef", "typedef int Number;"),
        ("an unnamed namespace, not static", "static int f() { return 0; }"),
        ("no namespace is opened up", "using namespace std;"),
        ("a parameter does not end in _", "void f(int a, const Shape &shape_);"),
        ("a body on a line of its own has braces", "    for (;;) run();\n    if (found)\n        return;"),
        ("a body on a line of its own has braces", "    } else\n        return;"),
    ],
)
def test_a_rule_can_be_broken(rule, code):
    assert re.search(RULES[rule], code, re.MULTILINE)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(KERNELS).as_posix())
def test_a_file_begins_with_what_it_owns(path):
    assert path.read_text().startswith("// ")
