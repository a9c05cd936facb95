// Markdown's blocks as plain data: headings, lists, code, tables, quotes, rules, paragraphs.
// Indented code is not known: language models indent by chance, and fence what is code.

const DEEPEST = 12; // lists and quotes inside each other; what is deeper stays text
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]+(.*)|)$/;
const RULE = /^ {0,3}([-*_])[ \t]*(?:\1[ \t]*){2,}$/;
const FENCE = /^([ \t]*)(`{3,}|~{3,})([^`]*)$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])(?:([ \t]+)(.*)|)$/;
const TASK = /^\[([ xX])\][ \t]+/;
// A mark whose next character may make something else of it.
const UNFINISHED = /^[ \t]*(?:[*+_-]{1,3}|#{1,6}|`{1,2}|~{1,2})$/;
const DIVIDER = /^ {0,3}\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;

/**
 * The blocks of some lines, each with `from` and `to`, its lines (`to` not included).
 * open: more text is still to come after the last line, so what looks like a table's head already is one.
 */
export function blocksOf(lines, open = false, depth = 0) {
  if (open && UNFINISHED.test(lines.at(-1))) lines = lines.slice(0, -1);
  const found = [];
  for (let at = 0; at < lines.length;) {
    if (!lines[at].trim()) {
      at++;
      continue;
    }
    const block = read(lines, at, open, depth);
    found.push({ ...block, from: at });
    at = block.to;
  }
  return found;
}

function read(lines, at, open, depth) {
  const line = lines[at];
  const heading = HEADING.exec(line);
  if (heading) {
    const text = (heading[2] ?? "")
      .trim()
      .replace(/(^|[ \t])#+$/, "")
      .trimEnd();
    return { kind: "heading", level: heading[1].length, text, to: at + 1 };
  }
  if (RULE.test(line)) return { kind: "rule", to: at + 1 };
  if (FENCE.test(line)) return fence(lines, at);
  if (QUOTE.test(line) && depth < DEEPEST) return quote(lines, at, open, depth);
  if (isItem(line) && depth < DEEPEST) return list(lines, at, open, depth);
  if (startsTable(lines, at, open)) return table(lines, at);
  return paragraph(lines, at, open);
}

function fence(lines, at) {
  const [, indent, mark, about] = FENCE.exec(lines[at]);
  const [language] = about.trim().split(/\s/);
  const closing = new RegExp(`^[ \\t]*${mark[0]}{${mark.length},}[ \\t]*$`);
  let end = at + 1;
  while (end < lines.length && !closing.test(lines[end])) end++;
  const closed = end < lines.length;
  const inside = lines.slice(at + 1, end).map((line) => dedent(line, indent.length));
  if (!closed && inside.at(-1) === "") inside.pop();
  return { kind: "code", language, text: inside.join("\n"), closed, to: closed ? end + 1 : end };
}

function quote(lines, at, open, depth) {
  let end = at + 1;
  while (end < lines.length && (QUOTE.test(lines[end]) || goesOn(lines, end))) end++;
  const inside = lines.slice(at, end).map((line) => line.replace(QUOTE, ""));
  return { kind: "quote", blocks: blocksOf(inside, open && end === lines.length, depth + 1), to: end };
}

/** A line of text that belongs to the paragraph before it. */
function goesOn(lines, at) {
  return Boolean(lines[at].trim()) && !startsBlock(lines, at, false);
}

function isItem(line) {
  return ITEM.test(line) && !RULE.test(line);
}

function startsBlock(lines, at, open) {
  const line = lines[at];
  // A number in front of a line is mostly a sentence's, unless it may be a list's first.
  const item = /^ *(?:[-*+]|1[.)])[ \t]+\S/.test(line);
  return (
    item || [HEADING, RULE, FENCE, QUOTE].some((start) => start.test(line)) || startsTable(lines, at, open)
  );
}

function list(lines, at, open, depth) {
  const [, margin, first] = ITEM.exec(lines[at]);
  const ordered = /\d/.test(first);
  const items = [];
  let end = at;
  while (end < lines.length && sameList(lines[end], margin.length, first)) {
    const begin = end;
    const [, indent, mark, gap = " ", rest = ""] = ITEM.exec(lines[begin]);
    const width = indent.length + mark.length + (gap.length > 4 ? 1 : gap.length);
    end = itemEnd(lines, begin, indent.length, width);
    const task = TASK.exec(rest);
    const text = task ? rest.slice(task[0].length) : rest;
    const inside = [text, ...lines.slice(begin + 1, end).map((line) => dedent(line, width))];
    const blocks = blocksOf(inside, open && end === lines.length, depth + 1);
    items.push({ blocks, checked: task ? task[1] !== " " : undefined });
    const next = afterBlanks(lines, end);
    if (next < lines.length && sameList(lines[next], margin.length, first)) end = next;
  }
  return { kind: "list", ordered, start: ordered ? parseInt(first, 10) : undefined, items, to: end };
}

function sameList(line, margin, first) {
  const found = isItem(line) ? ITEM.exec(line) : null;
  return found !== null && found[1].length < margin + 2 && found[2].at(-1) === first.at(-1);
}

/** Lines that are indented below the mark are the item's, and so is text that goes on. */
function itemEnd(lines, begin, indent, width) {
  let end = begin + 1;
  while (end < lines.length) {
    const next = afterBlanks(lines, end);
    if (next === lines.length) break;
    const depth = /^[ \t]*/.exec(lines[next])[0].replaceAll("\t", "    ").length;
    const inside = depth >= width || depth >= indent + 2;
    const lazy = next === end && lines[end - 1].trim() && !isItem(lines[end]) && goesOn(lines, end);
    if (!inside && !lazy) break;
    end = next + 1;
  }
  return end;
}

function afterBlanks(lines, at) {
  while (at < lines.length && !lines[at].trim()) at++;
  return at;
}

function dedent(line, width) {
  const spaces = /^[ \t]*/.exec(line)[0];
  const rest = line.slice(spaces.length);
  return " ".repeat(Math.max(0, spaces.replaceAll("\t", "    ").length - width)) + rest;
}

function startsTable(lines, at, open) {
  if (!lines[at].includes("|")) return false;
  const divider = lines[at + 1];
  if (open && lines[at].trimStart().startsWith("|")) {
    // The divider comes mark by mark, too.
    if (divider === undefined || (at + 2 === lines.length && /^[ \t|:-]*$/.test(divider))) return true;
  }
  return divider !== undefined && DIVIDER.test(divider) && cells(divider).length === cells(lines[at]).length;
}

function table(lines, at) {
  const head = cells(lines[at]);
  const align = cells(lines[at + 1] ?? "").map((cell) => {
    if (!cell.endsWith(":")) return "";
    return cell.startsWith(":") ? "center" : "right";
  });
  let end = at + 2;
  while (end < lines.length && lines[end].includes("|") && !startsBlock(lines, end, false)) end++;
  const rows = lines.slice(at + 2, end).map((line) => cells(line).slice(0, head.length));
  return { kind: "table", head, align, rows, to: Math.min(end, lines.length) };
}

/** The texts between the bars; `\|` and bars in code are text. */
function cells(line) {
  const inner = line
    .trim()
    .replace(/^\|/, "")
    .replace(/(?<!\\)\|$/, "");
  const found = [""];
  for (const [part] of inner.matchAll(/\\\||\||`[^`]*`|[^|\\`]+|[\\`]/g)) {
    if (part === "|") found.push("");
    else found.push(found.pop() + (part === "\\|" ? "|" : part));
  }
  return found.map((cell) => cell.trim());
}

function paragraph(lines, at, open) {
  let end = at + 1;
  while (end < lines.length && lines[end].trim() && !startsBlock(lines, end, open)) end++;
  const text = lines
    .slice(at, end)
    .map((line) => line.trimStart())
    .join("\n")
    .trimEnd();
  return { kind: "paragraph", text, to: end };
}
