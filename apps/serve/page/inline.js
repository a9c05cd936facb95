// The text of a paragraph, a heading or a cell as nodes: code, emphasis, links, line breaks.
// HTML in it stays text, and an address becomes a link only with a harmless scheme.
import { h } from "./dom.js";

const SCHEMES = new Set(["http:", "https:", "mailto:"]);
const ELEMENTS = { "*1": "em", _1: "em", "*2": "strong", _2: "strong", "~2": "del" };
const DEEPEST = 40; // marks inside each other; what is deeper stays text

const TOKEN = new RegExp(
  [
    /(?<ticks>`+)/,
    /\\(?<escaped>[!-/:-@[-`{-~])/,
    /(?<run>\*+|_+|~~)/,
    /!?(?<bracket>\[)/,
    /<(?<angled>(?:https?:\/\/|mailto:)[^\s<>]+)>/,
    /(?<bare>https?:\/\/[^\s<>`]+)/,
    /(?<line> *\\?\n|<br *\/?>)/,
  ]
    .map((part) => part.source)
    .join("|"),
  "gi",
);
const LINK =
  /\[((?:[^[\]\\]|\\.|\[[^[\]]*\])*)\]\(\s*<?([^\s<>()]*(?:\([^\s()]*\)[^\s<>()]*)*)>?(?:\s+"[^"]*"|\s+'[^']*')?\s*\)/y;
// What the next tokens may still complete: a mark, or a link whose address is on its way.
const UNFINISHED_MARK = /[*_~`\\]+$/;
const UNFINISHED_LINK = /!?\[([^[\]]*)\]\([^)\s]*$/;

/** The address if it may be followed, else null. */
export function safeAddress(address) {
  try {
    const url = new URL(address);
    return SCHEMES.has(url.protocol) ? url.href : null;
  } catch {
    return null; // relative, or none at all
  }
}

/** Nodes of one piece of text. open: more of it is still to come, so what is begun counts as closed. */
export function inline(text, open = false, depth = 0) {
  if (open) text = text.replace(UNFINISHED_LINK, "$1").replace(UNFINISHED_MARK, "");
  const marks = new Marks();
  let place = 0;
  const token = new RegExp(TOKEN);
  for (let found; (found = token.exec(text)); place = token.lastIndex) {
    marks.add(text.slice(place, found.index));
    const { ticks, escaped, run, bracket, angled, bare, line } = found.groups;
    if (ticks) token.lastIndex = code(marks, text, token.lastIndex, ticks, open);
    else if (escaped) marks.add(escaped);
    else if (run) marks.run(run, text[found.index - 1], text[token.lastIndex]);
    else if (bracket) token.lastIndex = link(marks, text, found, depth);
    else if (angled) marks.add(anchor(angled, [angled]) ?? found[0]);
    else if (bare) token.lastIndex = found.index + bareLink(marks, bare);
    else if (line) marks.add(h("br"));
  }
  marks.add(text.slice(place));
  return marks.finish(open);
}

function code(marks, text, from, ticks, open) {
  const closing = new RegExp(`(?<!\`)${ticks}(?!\`)`, "g");
  closing.lastIndex = from;
  const end = closing.exec(text);
  if (!end && !open) {
    marks.add(ticks);
    return from;
  }
  const inside = text.slice(from, end?.index).replaceAll("\n", " ");
  const padded = inside.startsWith(" ") && inside.endsWith(" ") && inside.trim() !== "";
  marks.add(h("code", {}, padded ? inside.slice(1, -1) : inside));
  return end ? closing.lastIndex : text.length;
}

function link(marks, text, found, depth) {
  LINK.lastIndex = found.index + found[0].length - 1;
  const parts = depth < 3 ? LINK.exec(text) : null;
  const made = parts && anchor(parts[2], inline(parts[1] || parts[2], false, depth + 1));
  marks.add(made ?? (parts ? text.slice(found.index, LINK.lastIndex) : found[0]));
  return parts ? found.index + found[0].length - 1 + parts[0].length : found.index + found[0].length;
}

/** Punctuation at the end belongs to the sentence. How many characters are used up. */
function bareLink(marks, address) {
  let end = address.replace(/[.,;:!?'"*_~\]}]+$/, "");
  if (end.endsWith(")") && !end.includes("(")) end = end.slice(0, -1);
  marks.add(anchor(end, [end]) ?? end);
  return end.length;
}

function anchor(address, children) {
  const href = safeAddress(address);
  return href && h("a", { href, rel: "noopener noreferrer", target: "_blank" }, ...children);
}

/** Nodes in the making, with the marks (`*`, `**`, `_`, `~~`) that are open around them. */
class Marks {
  constructor() {
    this.frames = [{ nodes: [] }];
  }

  get top() {
    return this.frames.at(-1);
  }

  add(node) {
    const { nodes } = this.top;
    if (node === "") return;
    // Neighbouring texts are one, so that a text gives the same nodes however it was cut.
    if (typeof node === "string" && typeof nodes.at(-1) === "string") nodes.push(nodes.pop() + node);
    else nodes.push(node);
  }

  /** A run of marks between two characters, undefined at the ends of the text. */
  run(run, before = " ", after = " ") {
    const mark = run[0];
    const inWord = mark === "_" && /[\p{L}\p{N}]/u.test(before) && /[\p{L}\p{N}]/u.test(after);
    let left = run.length;
    if (/\S/.test(before) && !inWord) left = this.close(mark, left);
    if (left && /\S/.test(after) && !inWord && this.frames.length < DEEPEST && left <= 3) {
      this.frames.push({ mark, count: left, nodes: [], word: /\s/.test(before) });
    } else {
      this.add(mark.repeat(left));
    }
  }

  /** Closes what it can with `left` marks; how many remain. */
  close(mark, left) {
    while (left) {
      const at = this.frames.findLastIndex((frame) => frame.mark === mark);
      if (at < 0 || (at === this.frames.length - 1 && !this.top.nodes.length)) break;
      const count = Math.min(2, left, this.frames[at].count);
      if (mark === "~" && count < 2) break;
      while (this.frames.length - 1 > at) this.giveUp();
      this.wrap(count);
      left -= count;
    }
    return left;
  }

  wrap(count) {
    const frame = this.top;
    const element = h(ELEMENTS[frame.mark + count], {}, ...frame.nodes);
    frame.count -= count;
    frame.nodes = [];
    if (!frame.count) this.frames.pop();
    this.add(element);
  }

  /** The innermost mark was none. */
  giveUp() {
    const { mark, count, nodes } = this.frames.pop();
    this.add(mark.repeat(count));
    for (const node of nodes) this.add(node);
  }

  finish(open) {
    while (this.frames.length > 1) {
      const { count, word, mark } = this.top;
      if (open && (count > 1 || (word && mark !== "~"))) this.wrap(Math.min(2, count));
      else this.giveUp();
    }
    return this.top.nodes;
  }
}
