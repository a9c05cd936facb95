// How one message looks: a question that can be edited, an answer with its thinking, calls, figures and errors.
import { h, icon, iconButton } from "./dom.js";
import { copyButton, Markdown } from "./markdown.js";

/** `view.element` for a message; answers have `view.update(running)` as well. actions: what the buttons do. */
export function viewOf(message, actions) {
  return message.role === "user" ? new QuestionView(message, actions) : new AnswerView(message, actions);
}

class QuestionView {
  constructor(message, actions) {
    this.message = message;
    this.actions = actions;
    this.element = h("article", { class: "message user", "aria-label": "You" });
    this.show();
  }

  show() {
    const edit = iconButton("edit", "Edit and send again", () => this.edit());
    this.element.replaceChildren(
      h("div", { class: "bubble" }, this.message.content),
      h(
        "div",
        { class: "actions" },
        copyButton(() => this.message.content),
        edit,
      ),
    );
  }

  edit() {
    const area = h("textarea", {
      value: this.message.content,
      rows: 3,
      "aria-label": "Your message",
      class: "bubble",
    });
    const cancel = () => {
      this.show();
      this.element.querySelector(".actions button:last-child").focus();
    };
    const send = () => area.value.trim() && this.actions.edit(this.message, area.value);
    area.addEventListener("keydown", (event) => {
      if (event.key === "Escape") cancel();
      else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) send();
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
    this.element.replaceChildren(
      area,
      h(
        "div",
        { class: "choices" },
        h("button", { type: "button", class: "plain", click: cancel }, "Cancel"),
        h("button", { type: "button", class: "primary", click: send }, "Send again"),
      ),
    );
    area.focus();
    area.setSelectionRange(area.value.length, area.value.length);
  }
}

class AnswerView {
  constructor(message, actions) {
    this.message = message;
    this.actions = actions;
    this.element = h("article", { class: "message assistant", "aria-label": "Answer" });
    const body = h("div", { class: "markdown" });
    this.markdown = new Markdown(body);
    this.calls = h("div", { class: "calls" });
    this.end = h("div", { class: "end" });
    this.element.append(body, this.calls, this.end);
    this.callViews = [];
  }

  /** Shows what the message has by now. running: more is to come. results: { call id: text }. */
  update(running, results = {}) {
    const { message, element } = this;
    element.setAttribute("aria-busy", String(running));
    element.classList.toggle(
      "waiting",
      running && !message.content && !message.reasoning && !message.calls?.length,
    );
    if (message.reasoning) this.#showThinking(running);
    this.markdown.update(message.content, running);
    if (this.callViews.length > (message.calls?.length ?? 0)) {
      this.callViews = []; // a call that was cut off is none
      this.calls.replaceChildren();
    }
    message.calls?.forEach((call, index) => this.#showCall(call, index, results[call.id]));
    const state = JSON.stringify([running, message.finish, message.error]);
    if (state !== this.state) this.end.replaceChildren(...(running ? [] : this.#footer()));
    this.state = state;
  }

  #showThinking(running) {
    const { message } = this;
    const busy = running && !message.content && !message.calls?.length;
    if (!this.thinking) {
      const body = h("div", { class: "markdown inside" });
      this.thinkingText = new Markdown(body);
      this.thinkingLabel = h("span");
      this.thinking = h(
        "details",
        { class: "fold thinking" },
        h("summary", {}, icon("thought"), this.thinkingLabel),
        body,
      );
      this.element.prepend(this.thinking);
    }
    this.thinking.classList.toggle("busy", busy);
    const said = message.thought >= 0.1 ? `Thought for ${seconds(message.thought)}` : "Thought";
    const label = busy ? "Thinking…" : said;
    if (this.thinkingLabel.textContent !== label) this.thinkingLabel.textContent = label;
    this.thinkingText.update(message.reasoning, busy);
  }

  #showCall(call, index, result) {
    const view = (this.callViews[index] ??= this.#newCall());
    view.name.textContent = call.name;
    view.input.textContent = readable(call.arguments);
    view.output.parentElement.hidden = result === undefined;
    view.output.textContent = result ?? "";
  }

  #newCall() {
    const view = { name: h("code"), input: h("pre", { tabIndex: 0 }), output: h("pre", { tabIndex: 0 }) };
    const inside = h(
      "div",
      { class: "inside" },
      view.input,
      h("div", {}, h("p", { class: "remark" }, "Result"), view.output),
    );
    this.calls.append(
      h(
        "details",
        { class: "fold call" },
        h("summary", {}, icon("tool"), h("span", {}, "Called ", view.name)),
        inside,
      ),
    );
    return view;
  }

  #footer() {
    const { message, actions } = this;
    const again = () => actions.again(message);
    const note = noteOf(message);
    const problem =
      message.error &&
      h(
        "div",
        { class: "error", role: "alert" },
        h("p", {}, message.error),
        h("button", { type: "button", class: "plain", click: again }, "Try again"),
      );
    const copy = message.content ? copyButton(() => message.content) : null;
    const buttons = [copy, message.error ? null : iconButton("again", "Answer again", again)];
    const parts = [note && h("p", { class: "note" }, note), problem];
    parts.push(
      h(
        "div",
        { class: "actions" },
        ...buttons,
        h("span", { class: "figures" }, ...figuresOf(message.figures)),
      ),
    );
    return parts.filter(Boolean);
  }
}

function noteOf({ finish, error, content, reasoning, calls, note }) {
  if (error) return "";
  if (note) return note;
  if (finish === "length") return "The answer was cut at the limit of tokens; the settings can raise it.";
  if (finish === "stopped") return "You stopped the answer.";
  if (!finish) return "The page was closed before the answer was complete.";
  if (content || calls?.length) return "";
  return reasoning ? "The model thought, and then said nothing." : "The answer is empty.";
}

function figuresOf(figures = {}) {
  const { tokens, rate, wait, prompt, reused, thinking } = figures;
  const parts = [];
  if (Number.isFinite(tokens))
    parts.push(thinking ? `${count(tokens)} tokens (${count(thinking)} thinking)` : `${count(tokens)} tokens`);
  if (Number.isFinite(rate)) parts.push(`${rate < 100 ? rate.toFixed(1) : count(Math.round(rate))} tokens/s`);
  if (Number.isFinite(wait)) parts.push(`first after ${seconds(wait)}`);
  if (Number.isFinite(prompt))
    parts.push(reused ? `prompt ${count(prompt)}, ${count(reused)} reused` : `prompt ${count(prompt)}`);
  return parts.map((part) => h("span", {}, part));
}

function count(number) {
  return number.toLocaleString("en");
}

function seconds(time) {
  if (time < 0.0995) return `${Math.round(time * 1000)} ms`;
  return time < 10 ? `${time.toFixed(1)} s` : `${Math.round(time)} s`;
}

/** JSON set out in lines, once it is whole. */
function readable(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

/** Asks for the results of an answer's calls. send: is given { call id: text }. */
export function resultsForm(calls, send) {
  const fields = calls.map((call) => {
    const area = h("textarea", { rows: 2, required: true, spellcheck: false, id: `result-${call.id}` });
    return {
      call,
      area,
      element: h(
        "div",
        { class: "field" },
        h("label", { for: area.id }, "Result of ", h("code", {}, call.name)),
        area,
      ),
    };
  });
  const submit = (event) => {
    event.preventDefault();
    send(Object.fromEntries(fields.map(({ call, area }) => [call.id, area.value])));
  };
  const button = h(
    "button",
    { type: "submit", class: "primary" },
    calls.length > 1 ? "Send the results" : "Send the result",
  );
  return h("form", { class: "results", submit }, ...fields.map(({ element }) => element), button);
}
