"""The page's markdown, in the browser that shows it: what it knows, and that it may come in any pieces."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the package starlette is not installed")
pytest.importorskip("uvicorn", reason="the package uvicorn is not installed")

from tests.apps.serve.page.conftest import READY
from tests.apps.serve.page.scripted import ATTACK, RICH, Script
from tests.browser import Page

MARKDOWN = """(async () => {
  const { Markdown } = await import("/page/markdown.js");
  const shown = (text, open) => {
    const div = document.createElement("div");
    new Markdown(div).update(text, open);
    return div;
  };
  const made = (text, open) => shown(text, open).innerHTML;
  return (BODY);
})()"""


@pytest.fixture(scope="module")
def markdown(chromium: Page, served: tuple[Script, str]) -> Callable[[str], Any]:
    """The value of an expression; `shown(text, open)` is an element, `made(text, open)` its HTML."""
    chromium.open(served[1])
    chromium.wait(READY, 20)
    return lambda body: chromium.evaluate(MARKDOWN.replace("BODY", body))


@pytest.fixture
def html(markdown: Callable[[str], Any]) -> Callable[..., str]:
    """`html(text, open)`: the elements of a text, as HTML without the attributes that are the page's own."""

    def made(text: str, begun: bool = False) -> str:
        found = markdown(f"made({json.dumps(text)}, {json.dumps(begun)})")
        return re.sub(r' (rel|target|class|tabindex|role|aria-label)="[^"]*"', "", found)

    return made


CASES = {
    "# Title #\ntext": "<h2>Title</h2><p>text</p>",
    "#hash": "<p>#hash</p>",
    "a\nb\n\nc": "<p>a<br>b</p><p>c</p>",
    "**a *b* c** ***d***": "<p><strong>a <em>b</em> c</strong> <em><strong>d</strong></em></p>",
    "2 * 3 * 4, a_b_c, __x__": "<p>2 * 3 * 4, a_b_c, <strong>x</strong></p>",
    "**粗体。**文字": "<p><strong>粗体。</strong>文字</p>",
    "**open *and": "<p>**open *and</p>",
    "`a*b*` ``c ` d`` `e": "<p><code>a*b*</code> <code>c ` d</code> `e</p>",
    r"\*a\* \[b](http://c.d)": '<p>*a* [b](<a href="http://c.d/">http://c.d</a>)</p>',
    "[a **b**](https://c.d/e_(f)) x": '<p><a href="https://c.d/e_(f)">a <strong>b</strong></a> x</p>',
    "[a](mailto:b@c.d), [e](/f), [g](data:h)": '<p><a href="mailto:b@c.d">a</a>, [e](/f), [g](data:h)</p>',
    "(https://a.b/c).": '<p>(<a href="https://a.b/c">https://a.b/c</a>).</p>',
    "- a\n- b\n  - c\n\n  d\n- e": "<ul><li><p>a</p></li><li><p>b</p><ul><li><p>c</p></li></ul>"
    "<p>d</p></li><li><p>e</p></li></ul>",
    "3. a\n4. b\n\ntext": '<ol start="3"><li><p>a</p></li><li><p>b</p></li></ol><p>text</p>',
    "text\n- a\n* b": "<p>text</p><ul><li><p>a</p></li></ul><ul><li><p>b</p></li></ul>",
    "> a\nb\n> - c\n\nd": "<blockquote><p>a<br>b</p><ul><li><p>c</p></li></ul></blockquote><p>d</p>",
    "a | b\n--|:-:\n`x|y` | \\| z\n\nc": "<div><table><thead><tr><th>a</th><th>b</th></tr></thead><tbody>"
    "<tr><td><code>x|y</code></td><td>| z</td></tr></tbody></table></div><p>c</p>",
    "a\n---\n***": "<p>a</p><hr><hr>",
    "": "",
    "\n \n": "",
}


@pytest.mark.parametrize("text", CASES)
def test_markdown(html: Callable[[str], str], text: str):
    assert html(text) == CASES[text]


# Lines that look like the begin of another block until their end has come.
TRICKY = "".join(
    f"text\n{line}\n\n"
    for line in ("a | b\n--|-- x", "---- dashes", "```not` code", "-5", "#hash", "1.5", "****a****")
)


def test_markdown_is_the_same_however_it_came(markdown: Callable[[str], Any]):
    """Every prefix can be shown; and at the end nothing tells that it came in pieces."""
    text = TRICKY + RICH.rstrip() + "\n\n" + ATTACK
    body = f"""(() => {{
      const text = {json.dumps(text)}, seen = [];
      for (const step of [1, 2, 3, 7]) {{
        const div = document.createElement("div"), view = new Markdown(div);
        for (let end = 0; end < text.length; end += step) view.update(text.slice(0, end), true);
        view.update(text, true);
        view.update(text);
        seen.push(div.innerHTML === made(text));
      }}
      return [seen, made(text).length];
    }})()"""
    seen, length = markdown(body)
    assert seen == [True] * 4 and length > len(text)


def test_markdown_that_is_begun_looks_finished(html: Callable[..., str]):
    def shown(text: str) -> str:
        return html(text, True)

    assert shown("see **bold") == shown("see **bold*") == "<p>see <strong>bold</strong></p>"
    assert shown("see `code") == "<p>see <code>code</code></p>"
    assert shown("see [a link](https://exam") == "<p>see a link</p>"
    assert shown("text\n\n-") == shown("text\n\n``") == shown("text\n\n##") == "<p>text</p>"
    assert "<th>b</th>" in shown("| a | b |\n|--") and "--" not in shown("| a | b |\n|--")
    code = shown("```py\nx = y\n``")
    assert "<code>x = y</code>" in code and "``" not in code


def test_long_answers_stay_fast(markdown: Callable[[str], Any]):
    """Only the last block is made anew: the first paragraph of many is never touched again."""
    body = """(() => {
      const div = document.createElement("div"), view = new Markdown(div);
      let text = "";
      for (let n = 0; n < 400; n++) view.update(text += `Paragraph **${n}**\\n\\n`, true);
      const first = div.firstChild, tenth = div.children[10];
      for (let n = 0; n < 400; n++) view.update(text += "word ", true);
      return [first === div.firstChild, tenth === div.children[10], div.children.length, view.tail.length];
    })()"""
    assert markdown(body) == [True, True, 401, 2]  # the tail: what the next characters may change


@pytest.mark.parametrize(
    "text",
    [
        "*" * 20000,
        "[" * 20000,
        "> " * 5000,
        "- " * 5000,
        "`" * 9999 + "a",
        "|" * 20000 + "\n|-",
        "**a " * 5000,
    ],
)
def test_markdown_of_an_unkind_model(markdown: Callable[[str], Any], text: str):
    took = f"((start) => (made({json.dumps(text)}), performance.now() - start))(performance.now())"
    assert markdown(took) < 5000


def test_code_keeps_its_text_in_colours(markdown: Callable[[str], Any]):
    code = "def f(x):  # a comment\n    return \"a # string\" + '<b>' + str(0x1F)\n"
    block = json.dumps(f"```python\n{code}```")
    parts = "[code.textContent, [...code.querySelectorAll('span')].map((each) => each.textContent)]"
    spans = f"((code) => {parts})(shown({block}).querySelector('code'))"
    text, coloured = markdown(spans)
    assert text == code.rstrip("\n")
    assert coloured == ["def", "f", "# a comment", "return", '"a # string"', "'<b>'", "str", "0x1F"]
