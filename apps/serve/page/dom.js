// Elements by function calls. Text is only ever given as text: nothing in this page parses HTML.

const ATTRIBUTES = new Set(["class", "role", "for"]);

/**
 * An element. Functions become listeners; `class`, `role`, `for` and names with a hyphen attributes, what is left
 * properties. Children are nodes and texts.
 */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined) continue;
    if (typeof value === "function") element.addEventListener(name, value);
    else if (ATTRIBUTES.has(name) || name.includes("-")) element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** One of the symbols in index.html. */
export function icon(name) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  svg.append(document.createElementNS(space, "use"));
  svg.firstChild.setAttribute("href", `#icon-${name}`);
  return svg;
}

/** A button that shows an icon and is named by its label. */
export function iconButton(name, label, click, properties = {}) {
  return h(
    "button",
    { type: "button", class: "quiet", title: label, "aria-label": label, click, ...properties },
    icon(name),
  );
}

/** Puts text on the clipboard, also where the page came without HTTPS; false if the browser forbids it. */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = h("textarea", { value: text, class: "out-of-sight" });
    const before = document.activeElement;
    (document.querySelector("dialog[open]") ?? document.body).append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    before?.focus?.();
    return done;
  }
}

/** A short confirmation on a button, where the reader looks. */
export function flash(button, done) {
  button.classList.add(done ? "done" : "failed");
  setTimeout(() => button.classList.remove("done", "failed"), 1500);
}
