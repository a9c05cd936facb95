// Markdown that arrives piece by piece, as elements. While it streams, only its last block is made anew.
import { blocksOf } from "./blocks.js";
import { copyText, flash, h, icon } from "./dom.js";
import { highlight } from "./highlight.js";
import { inline } from "./inline.js";

const COLOURED = 5000; // characters of code that is still being written

/** Shows a text that grows in an element that is otherwise empty. */
export class Markdown {
  constructor(element) {
    this.element = element;
    this.reset();
  }

  reset() {
    this.element.replaceChildren();
    this.settled = ""; // the text whose blocks can't change any more
    this.tail = []; // the elements behind it: [{ source, open, element }]
  }

  /** text: all of it so far. open: more is to come, so what is begun looks closed. */
  update(text, open = false) {
    text = text.replaceAll("\r\n", "\n");
    if (!text.startsWith(this.settled)) this.reset();
    const lines = text.slice(this.settled.length).split("\n");
    const blocks = blocksOf(lines, open);
    const shown = blocks.map((block, index) => ({
      source: lines.slice(block.from, block.to).join("\n"),
      open: open && index === blocks.length - 1,
      block,
    }));
    shown.forEach((each, index) => {
      const before = this.tail[index];
      const same = before && before.source === each.source && before.open === each.open;
      each.element = same ? before.element : element(each.block, each.open);
      if (same) return;
      if (before) before.element.replaceWith(each.element);
      else this.element.append(each.element);
    });
    for (const { element } of this.tail.slice(shown.length)) element.remove();
    // A block stays what it is once the next one was begun by lines that are complete; a table is by two.
    const begun = ({ kind, from }) => from + (kind === "table" ? 1 : 0) < lines.length - 1;
    let keep = 0;
    while (keep + 1 < blocks.length && begun(blocks[keep + 1])) keep++;
    if (keep) this.settled += lines.slice(0, blocks[keep].from).join("\n") + "\n";
    this.tail = shown.slice(keep);
  }
}

function elements(blocks, open) {
  return blocks.map((block, index) => element(block, open && index === blocks.length - 1));
}

const MAKERS = {
  heading: ({ level, text }, open) => h(`h${Math.min(6, level + 1)}`, {}, ...inline(text, open)),
  paragraph: ({ text }, open) => h("p", {}, ...inline(text, open)),
  rule: () => h("hr"),
  code: codeBlock,
  quote: ({ blocks }, open) => h("blockquote", {}, ...elements(blocks, open)),
  list: listOf,
  table: tableOf,
};

function element(block, open) {
  return MAKERS[block.kind](block, open);
}

function codeBlock({ text, language, closed }, open) {
  const still = open && !closed;
  const code = h("code", {}, ...(still && text.length > COLOURED ? [text] : highlight(text, language)));
  return h(
    "figure",
    { class: "code" },
    h(
      "figcaption",
      {},
      h("span", {}, language || "text"),
      copyButton(() => code.textContent),
    ),
    h("pre", { tabIndex: 0 }, code),
  );
}

/** text: a function that gives what is copied. */
export function copyButton(text) {
  const click = async ({ currentTarget }) => flash(currentTarget, await copyText(text()));
  return h(
    "button",
    { type: "button", class: "quiet copy", title: "Copy", "aria-label": "Copy", click },
    icon("copy"),
    icon("check"),
  );
}

function listOf({ ordered, start, items }, open) {
  const children = items.map(({ blocks, checked }, index) => {
    const inside = elements(blocks, open && index === items.length - 1);
    if (checked === undefined) return h("li", {}, ...inside);
    const box = h("input", {
      type: "checkbox",
      checked,
      disabled: true,
      "aria-label": checked ? "done" : "to do",
    });
    if (inside[0]?.tagName === "P") inside[0].prepend(box);
    else inside.unshift(box);
    return h("li", { class: "task" }, ...inside);
  });
  return ordered ? h("ol", { start }, ...children) : h("ul", {}, ...children);
}

function tableOf({ head, align, rows }, open) {
  const row = (tag, texts, last) =>
    h(
      "tr",
      {},
      ...head.map((_, at) => {
        const text = texts[at] ?? "";
        return h(tag, { class: align[at] || undefined }, ...inline(text, last && at === texts.length - 1));
      }),
    );
  const body = rows.map((texts, at) => row("td", texts, open && at === rows.length - 1));
  const table = h("table", {}, h("thead", {}, row("th", head, open && !rows.length)), h("tbody", {}, ...body));
  return h("div", { class: "table", tabIndex: 0, role: "region", "aria-label": "Table" }, table);
}
