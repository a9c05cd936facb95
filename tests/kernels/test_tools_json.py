"""The JSON of the C++ tools beside Python's: what a document says, and what is none."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "kernels" / "tools"
# Prints every document of the input, which ends in a zero byte, as a line made of what the parser says.
PROGRAM = r"""
#include <cstdio>
#include <cstring>
#include <iostream>
#include <iterator>

#include "json.h"

using tools::Json;

template <class Body>
bool refused(const Body &body) {
    try { body(); } catch (const tools::Error &) { return true; }
    return false;
}

std::string print(const Json &json) {
    std::string out;
    if (json.is_null()) return "null";
    if (!refused([&] { out = json.boolean("x") ? "true" : "false"; })) return out;
    if (!refused([&] { out = tools::quoted(json.text("x")); })) return out;
    int64_t whole = 0;
    if (!refused([&] { whole = json.integer("x", INT64_MIN, INT64_MAX); })) {
        const bool inside = !refused([&] { json.integer("x", whole, whole); });
        const bool above = whole < INT64_MAX && !refused([&] { json.integer("x", whole + 1, INT64_MAX); });
        const bool below = whole > INT64_MIN && !refused([&] { json.integer("x", INT64_MIN, whole - 1); });
        return inside && !above && !below ? std::to_string(whole) : "a limit is off by one";
    }
    double number = 0;
    if (!refused([&] { number = json.number("x"); })) {
        char text[40];
        std::snprintf(text, sizeof text, "%.17g", number);
        return std::string(text) + (std::strpbrk(text, ".e") ? "" : ".0");
    }
    const auto add = [&out](const std::string &part) { out += (out.empty() ? "" : ",") + part; };
    if (!refused([&] { for (const Json &item : json.items("x")) add(print(item)); })) return "[" + out + "]";
    out.clear();
    for (const auto &member : json.members("x")) {
        if (!refused([&] { json.at(member.first + "\x01"); })) return "an absent member is found";
        add(tools::quoted(member.first) + ":" + print(json.at(member.first)));
    }
    return "{" + out + "}";
}

int main() {
    std::cin >> std::noskipws;
    for (std::string text; std::getline(std::cin, text, '\0');) {
        try {
            std::cout << print(Json::parse(text, "It")) << '\n';
        } catch (const tools::Error &error) { std::cout << "Error: " << error.what() << '\n'; }
    }
}
"""


@pytest.fixture(scope="module")
def read(require, tmp_path_factory) -> Callable[[list[bytes]], list[bytes]]:
    """`read(documents)`: the line that the parser makes of each."""
    require("c++")
    folder = tmp_path_factory.mktemp("json")
    source, program = folder / "print.cpp", folder / "print"
    source.write_text(PROGRAM)
    command = ["c++", "-std=c++17", f"-I{TOOLS}", source, TOOLS / "json.cpp", "-o", program]
    subprocess.run(command, check=True, capture_output=True)

    def lines(documents: list[bytes]) -> list[bytes]:
        given = b"".join(document + b"\0" for document in documents)
        return subprocess.run([program], input=given, capture_output=True, check=True).stdout.splitlines()

    return lines


BORDERS = (0x7F, 0x80, 0x7FF, 0x800, 0xD7FF, 0xE000, 0xFFFF, 0x10000, 0x1F600, 0x10FC00, 0x10FFFF)
DOCUMENTS = [
    r'"\" \\ \/ \b \f \n \r \t \u0000 \u001f"',
    *(json.dumps(chr(code)) for code in BORDERS),  # escaped, as a pair of surrogates from 0x10000 on
    *(json.dumps(chr(code), ensure_ascii=False) for code in BORDERS),
    r'"\u00e9\u00E9\uabcd\uABCD\uDBFF\uDFFF"',
    *("0", "-0", "-1", "10", "-203", "4294967296", "9223372036854775807", "-9223372036854775808"),
    *("9223372036854775808", "-9223372036854775809", "0.0", "-0.5", "3e2", "3E2", "3e+2", "12.5e-3", "1e-30"),
    *("3.4e38", "-3.4e38", "0.1", "1e0"),
    *("true", "false", "null", "[]", "{}", "[[],{}]", ' \t\r\n[ 1 , "a" , null ] \n'),
    '{"b": 1, "a": {"c": [true]}, "": 0, "ab": -7}',
    "[" * 64 + "]" * 64,
]


def test_what_a_document_says(read):
    lines = read([document.encode() for document in DOCUMENTS])
    for document, line in zip(DOCUMENTS, lines, strict=True):
        wanted, found = json.loads(document), json.loads(line)
        if isinstance(wanted, int) and not -(2**63) <= wanted < 2**63:
            wanted = float(wanted)
        assert type(found) is type(wanted) and found == wanted, document


REFUSED = [
    *("", " ", "01", "-01", "00", "-", "+1", "1.", ".5", "1e", "1e+", "0x10", "NaN", "Infinity", "1 2"),
    *("tru", "truE", "falsy", "nul", "nulL", "True", "'a'", '"a', '"a\\', '"\\x"', '"\\u12g4"', '"\\u12"'),
    *('"\\ud800"', '"\\udbff"', '"\\udc00"', '"\\udfff"'),
    *('"\\ud800\\u0041"', '"\\ud800\\ue000"', '"\\ud800a"'),
    *('"\t"', '"\x1f"', "[1,]", "[,1]", "[1 2]", "[1", "[1}"),
    *('{"a":1,}', '{"a" 1}', '{"a":}', "{1:2}", "{a:1}"),
    *('{"a":1', '{"a":1]', '{"a":1,"b":2,"a":3}', "[]]", "null x", "[" * 66 + "]" * 66),
    "-1e39",
    "3.5e38",
]
NOT_UTF8 = [
    *(b"\x80", b"\xbf", b"\xc0\x80", b"\xc1\xbf", b"\xc3", b"\xc3A", b"\xc3\xc3", b"\xe2\x82", b"\xe2\x82A"),
    *(b"\xe0\x80\x80", b"\xe0\x9f\xbf", b"\xed\xa0\x80", b"\xed\xbf\xbf", b"\xf0\x8f\xbf\xbf"),
    *(b"\xf4\x90\x80\x80", b"\xf5\x80\x80\x80", b"\xff", b"\xf8\x88\x80\x80\x80"),
]


def test_what_is_no_document(read):
    lines = read([document.encode() for document in REFUSED])
    for document, line in zip(REFUSED, lines, strict=True):
        assert line.startswith(b"Error: "), (document, line)
    for bad, line in zip(NOT_UTF8, read([b'"' + bad + b'"' for bad in NOT_UTF8]), strict=True):
        assert line.startswith(b"Error: It is not valid JSON: it is not UTF-8"), (bad, line)
