// Conversations, kept in the browser: one entry of localStorage each, so that two tabs do not undo each other's.
//
// A conversation: { id, title, updated (ms), messages }. A message: { role: "user", content }, or
// { role: "tool", call_id, content }, or { role: "assistant", content, reasoning, calls: [{ id, name, arguments }],
// finish, error, figures }. An answer without finish and error was cut off with its page.

const PREFIX = "edge.conversation.";
export const MOST = 200; // conversations; the oldest go first
const TITLE = 60; // characters

export class Conversations {
  /** changed: called when another tab has changed something. notice: is told in a sentence what could not be kept. */
  constructor({ changed, notice }) {
    this.notice = notice;
    this.all = new Map();
    this.full = false;
    for (const [key, value] of entries()) this.#read(key, value);
    window.addEventListener("storage", ({ key, newValue }) => {
      if (!key?.startsWith(PREFIX)) return;
      if (newValue === null) this.all.delete(key.slice(PREFIX.length));
      else this.#read(key, newValue);
      changed();
    });
  }

  /** Newest first; with a text, only those that have it. */
  list(text = "") {
    const wanted = text.trim().toLowerCase();
    const has = ({ title, messages }) =>
      [title, ...messages.map(({ content }) => content)].some((each) => each?.toLowerCase().includes(wanted));
    const found = [...this.all.values()].filter((each) => !wanted || has(each));
    return found.sort((a, b) => b.updated - a.updated);
  }

  get(id) {
    return this.all.get(id);
  }

  /** A new one; it is kept from its first message on. */
  create() {
    return {
      id: crypto.getRandomValues(new Uint32Array(3)).join("-"),
      title: "",
      updated: Date.now(),
      messages: [],
    };
  }

  save(conversation) {
    conversation.updated = Date.now();
    conversation.title ||= titleOf(conversation.messages);
    this.all.set(conversation.id, conversation);
    for (const oldest of this.list().slice(MOST)) {
      this.remove(oldest.id);
      this.notice(`At most ${MOST} conversations are kept; “${oldest.title}” made room.`);
    }
    this.#write(conversation);
  }

  rename(conversation, title) {
    conversation.title = title.trim().slice(0, TITLE) || titleOf(conversation.messages);
    this.#write(conversation);
  }

  remove(id) {
    this.all.delete(id);
    attempt(() => localStorage.removeItem(PREFIX + id));
  }

  /** Puts back what was removed. */
  restore(conversation) {
    this.all.set(conversation.id, conversation);
    this.#write(conversation);
  }

  #write(conversation) {
    const kept = attempt(() => localStorage.setItem(PREFIX + conversation.id, JSON.stringify(conversation)));
    if (!kept && !this.full) {
      this.notice(
        "The browser's storage is full: this conversation is lost when the page closes. Delete others to make room.",
      );
    }
    this.full = !kept;
  }

  #read(key, value) {
    attempt(() => {
      const found = JSON.parse(value);
      if (typeof found.title !== "string" || !Array.isArray(found.messages)) return;
      found.messages = found.messages.filter((each) => typeof each?.content === "string");
      found.id = key.slice(PREFIX.length);
      found.updated = Number(found.updated) || 0;
      this.all.set(found.id, found);
    });
  }
}

/** As the API wants messages; thinking of earlier answers is left out, as models expect. */
export function asRequest(messages) {
  return messages.flatMap(({ role, content, calls, call_id: id }) => {
    if (role === "tool") return [{ role, tool_call_id: id, content }];
    if (role === "user") return [{ role, content }];
    if (calls?.length) {
      const made = calls.map((call) => ({
        id: call.id,
        type: "function",
        function: { name: call.name, arguments: call.arguments },
      }));
      return [{ role, content: content || null, tool_calls: made }];
    }
    return content ? [{ role, content }] : []; // stopped, or failed, before it began
  });
}

/** Gives the reader a file. */
export function exportConversation({ title, updated, messages }) {
  const document_ = { title, updated: new Date(updated).toISOString(), messages };
  const address = URL.createObjectURL(
    new Blob([JSON.stringify(document_, null, 2)], { type: "application/json" }),
  );
  const name = title.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "") || "conversation";
  const link = Object.assign(document.createElement("a"), { href: address, download: `${name}.json` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}

function titleOf(messages) {
  const first =
    messages
      .find(({ role }) => role === "user")
      ?.content.trim()
      .split("\n")[0] ?? "";
  return first.length > TITLE ? `${first.slice(0, TITLE - 1).trimEnd()}…` : first || "New chat";
}

function entries() {
  const found = [];
  attempt(() => found.push(...Object.entries(localStorage).filter(([key]) => key.startsWith(PREFIX))));
  return found;
}

/** Whether it went well: storage may be full, or forbidden altogether. */
function attempt(work) {
  try {
    work();
    return true;
  } catch {
    return false;
  }
}
