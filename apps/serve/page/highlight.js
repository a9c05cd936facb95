// Code in a few colours: comments, strings, numbers, keywords. One rough scanner for all languages; text stays text.
import { h } from "./dom.js";

const HASH =
  "bash sh shell zsh python py ruby rb yaml yml toml r perl make makefile dockerfile cmake elixir julia nim";
const DASHES = "sql lua haskell hs ada elm";
const MARKUP = "html xml svg markdown md diff text txt plain csv log console";
const COMMENTS = new Map([
  ...HASH.split(" ").map((name) => [name, "#(?![0-9a-fA-F]{3,8}\\b).*"]),
  ...DASHES.split(" ").map((name) => [name, "--.*"]),
]);
const PLAIN = new Set(["", ...MARKUP.split(" ")]);
const SLASHES = "//.*|/\\*[^]*?\\*/";
const STRINGS =
  "\"\"\"[^]*?\"\"\"|'''[^]*?'''|\"(?:\\\\.|[^\"\\\\\\n])*\"|'(?:\\\\.|[^'\\\\\\n])*'|`(?:\\\\[^]|[^`\\\\])*`";
const NUMBERS = "\\b(?:0[xXbBoO][\\da-fA-F_]+|\\d[\\d_]*(?:\\.\\d+)?(?:[eE][+-]?\\d+)?)\\b";
const KEYWORDS = new Set(
  `and as async await begin bool boolean break case catch char class const continue def default defer del delete
  do done double elif else elsif end enum except export extends extern False false fi final finally float fn
  for foreach from func function global go if impl implements import in include int interface is lambda let
  long match mod module mut namespace new nil None nonlocal not null nullptr operator or override package pass
  private protected pub public raise readonly return self Self short signed sizeof static string struct super
  switch template then this throw throws trait True true try type typedef typename typeof undefined union
  unless unsigned until use using val var virtual void when where while with yield`.split(/\s+/),
);
const SQL = new Set(
  `select from where join left right inner outer on group by order having limit insert into values update set
  delete create table as and or not null distinct union case when then else end in is like primary key`.split(/\s+/),
);

/** The code as text and coloured spans, whose texts together are the code. */
export function highlight(code, language) {
  const name = language.toLowerCase();
  if (PLAIN.has(name) || code.length > 50_000) return [code];
  const pattern = new RegExp(
    `(${COMMENTS.get(name) ?? SLASHES})|(${STRINGS})|(${NUMBERS})|([A-Za-z_]\\w*)`,
    "g",
  );
  const isKeyword = name === "sql" ? (word) => SQL.has(word.toLowerCase()) : (word) => KEYWORDS.has(word);
  const nodes = [];
  let place = 0;
  for (const found of code.matchAll(pattern)) {
    const [text, comment, string, number, word] = found;
    const calls = word && code[found.index + text.length] === "(";
    const kind = comment
      ? "comment"
      : string
        ? "string"
        : number
          ? "number"
          : isKeyword(word)
            ? "keyword"
            : calls
              ? "name"
              : "";
    if (!kind) continue;
    nodes.push(code.slice(place, found.index), h("span", { class: `code-${kind}` }, text));
    place = found.index + text.length;
  }
  return [...nodes, code.slice(place)].filter((node) => node !== "");
}
