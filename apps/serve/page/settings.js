// What the reader sets: kept in the browser, sent with each request where it is not left to the server.

const KEY = "edge.settings";
const THEMES = ["auto", "light", "dark"];
// The fields of the form, as the API calls them, with how their texts are read.
const NUMBERS = {
  temperature: parseFloat,
  top_p: parseFloat,
  max_tokens: parseInt,
  seed: parseInt,
  thinking_budget: parseInt,
};
const TEXTS = ["system", "thinking", "tools", "api_key"];

export class Settings {
  /** form: #settings-form of index.html. changed: called after each change. */
  constructor(form, changed) {
    this.form = form;
    this.values = stored();
    for (const name of [...TEXTS, ...Object.keys(NUMBERS)]) form.elements[name].value = this.values[name] ?? "";
    form.addEventListener("input", () => {
      this.#check();
      for (const field of form.elements)
        if (field.name && field.validity.valid) this.values[field.name] = field.value;
      keep(KEY, JSON.stringify(this.values));
      changed();
    });
    form.addEventListener("reset", (event) => {
      event.preventDefault();
      for (const field of form.elements) if (field.name) field.value = "";
      form.dispatchEvent(new Event("input"));
    });
  }

  get key() {
    return this.values.api_key?.trim() ?? "";
  }

  get system() {
    return this.values.system?.trim() ?? "";
  }

  /** The fields of a request; what is left empty is the server's to choose. */
  request(model) {
    const body = {};
    for (const [name, read] of Object.entries(NUMBERS)) {
      const number = read(this.values[name], 10);
      if (Number.isFinite(number)) body[name] = number;
    }
    if (model?.thinking && this.values.thinking)
      body.chat_template_kwargs = { enable_thinking: this.values.thinking === "on" };
    if (!model?.thinking || this.values.thinking === "off") delete body.thinking_budget;
    const tools = readTools(this.values.tools);
    if (tools?.length) body.tools = tools;
    return body;
  }

  /** What only some models can. */
  fit(model) {
    for (const each of this.form.querySelectorAll(".thinking-setting")) each.hidden = !model?.thinking;
  }

  #check() {
    const { tools } = this.form.elements;
    tools.setCustomValidity(
      readTools(tools.value) ? "" : "This is no list of tools in JSON, as the OpenAI API has it.",
    );
    for (const field of this.form.elements) {
      const said = document.getElementById(`${field.id}-error`);
      if (said) said.textContent = field.validationMessage;
      if (field.name) field.setAttribute("aria-invalid", String(!field.validity.valid));
    }
  }
}

/** null where the text is none. */
function readTools(text) {
  if (!text?.trim()) return [];
  try {
    const found = JSON.parse(text);
    return Array.isArray(found) ? found : null;
  } catch {
    return null;
  }
}

/** The next of automatic, light and dark. */
export function nextTheme() {
  const root = document.documentElement;
  const theme = THEMES[(THEMES.indexOf(root.dataset.theme) + 1) % THEMES.length];
  root.dataset.theme = theme;
  keep("edge.theme", theme);
  return theme;
}

function stored() {
  try {
    const found = JSON.parse(localStorage.getItem(KEY));
    return Object.fromEntries(Object.entries(found ?? {}).filter(([, value]) => typeof value === "string"));
  } catch {
    return {};
  }
}

function keep(key, value) {
  try {
    localStorage.setItem(key, value);
  } catch {
    // Full or forbidden: the choice holds until the page is closed.
  }
}
