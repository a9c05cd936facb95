// The list of conversations beside the chat: on a phone it is a drawer.
import { h, iconButton } from "./dom.js";

const NARROW = matchMedia("(max-width: 52rem)");
const DAY = 86_400_000;

export class Sidebar {
  /** actions: open(id), rename(conversation, title), remove(conversation). */
  constructor(conversations, actions) {
    this.conversations = conversations;
    this.actions = actions;
    [this.element, this.list, this.search, this.backdrop, this.opener] = [
      "sidebar",
      "conversations",
      "search",
      "backdrop",
      "open-sidebar",
    ].map((id) => document.getElementById(id));
    this.search.addEventListener("input", () => this.show(this.current, this.running));
    this.opener.addEventListener("click", () => this.toggle(true));
    for (const each of [this.backdrop, document.getElementById("close-sidebar")])
      each.addEventListener("click", () => this.toggle(false));
    NARROW.addEventListener("change", () => this.toggle(false));
    this.toggle(false);
  }

  get isOpen() {
    return NARROW.matches && this.element.classList.contains("open");
  }

  /** The drawer of narrow pages; beside wide ones the list always stands. */
  toggle(open) {
    const wasOpen = this.isOpen;
    this.element.classList.toggle("open", open);
    this.element.inert = NARROW.matches && !open;
    document.getElementById("main").inert = NARROW.matches && open;
    this.backdrop.hidden = !(NARROW.matches && open);
    this.opener.setAttribute("aria-expanded", String(open));
    if (open) document.getElementById("new-chat").focus();
    else if (wasOpen) this.opener.focus();
  }

  /** current: the id of the conversation that is shown. running: ids of those that are being answered. */
  show(current, running) {
    this.current = current;
    this.running = running;
    const groups = new Map();
    for (const each of this.conversations.list(this.search.value)) {
      const name = dayOf(each.updated);
      groups.set(name, [...(groups.get(name) ?? []), this.#item(each)]);
    }
    const parts = [...groups].map(([name, items]) =>
      h("section", {}, h("h2", {}, name), h("ul", {}, ...items)),
    );
    const nothing = this.search.value.trim()
      ? "Nothing found."
      : "Conversations are kept here, in this browser.";
    this.list.replaceChildren(...(parts.length ? parts : [h("p", { class: "remark" }, nothing)]));
  }

  #item(conversation) {
    const { id, title } = conversation;
    const open = h(
      "button",
      { type: "button", class: "open", title, click: () => this.actions.open(id) },
      title,
    );
    if (id === this.current) open.setAttribute("aria-current", "page");
    const rename = iconButton("edit", `Rename “${title}”`, () => this.#rename(item, conversation));
    const remove = iconButton("delete", `Delete “${title}”`, () => this.actions.remove(conversation));
    const item = h("li", { class: this.running.has(id) ? "running" : "" }, open, rename, remove);
    return item;
  }

  #rename(item, conversation) {
    const field = h("input", { value: conversation.title, "aria-label": "Title", maxLength: 60 });
    let over = false;
    const end = (keep) => {
      if (over) return; // a field that is removed loses the focus, too
      over = true;
      if (keep) this.actions.rename(conversation, field.value);
      else this.show(this.current, this.running);
    };
    field.addEventListener("blur", () => end(true));
    field.addEventListener("keydown", (event) => {
      if (event.isComposing || !["Enter", "Escape"].includes(event.key)) return;
      event.stopPropagation();
      end(event.key === "Enter");
    });
    item.replaceChildren(field);
    field.select();
  }
}

function dayOf(time) {
  const days = Math.floor((new Date().setHours(0, 0, 0, 0) - time) / DAY) + 1;
  if (days <= 0) return "Today";
  if (days === 1) return "Yesterday";
  return days < 8 ? "Last week" : "Earlier";
}
