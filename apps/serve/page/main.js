// The chat page: puts the parts together. What is shown follows from the conversation and its run.
import { listModels } from "./api.js";
import { Conversations, exportConversation } from "./conversations.js";
import { h, icon } from "./dom.js";
import { resultsForm, viewOf } from "./messages.js";
import { Run } from "./run.js";
import { nextTheme, Settings } from "./settings.js";
import { Sidebar } from "./sidebar.js";

const $ = (id) => document.getElementById(id);
const SAVED_EVERY = 1000; // ms, while an answer comes
const AT_END = 60; // pixels from the end that still follow it
const TOUCH = matchMedia("(pointer: coarse)");
const THEMES = { auto: "The system's colours", light: "Light colours", dark: "Dark colours" };

const conversations = new Conversations({ changed: refresh, notice });
const sidebar = new Sidebar(conversations, { open, rename, remove });
const settings = new Settings($("settings-form"), () => settings.fit(model()));
const runs = new Map(); // by the id of the conversation
let models = [];
let shown = conversations.create();
let views = [];
let follows = true; // the end of the conversation is kept in sight

// ---- the model

const model = () => models.find(({ id }) => id === $("model").value) ?? models[0];

async function connect() {
  try {
    models = await listModels(settings.key);
    const options = models.map(({ id }) => h("option", { value: id }, id));
    $("model").replaceChildren(...(options.length ? options : [h("option", {}, "No model")]));
    $("model").disabled = models.length < 2;
    $("model").title = model()?.context ? `${model().context.toLocaleString("en")} tokens of context` : "";
  } catch (error) {
    $("model").replaceChildren(h("option", {}, "Not connected"));
    notice(error.message, "Try again", connect);
  }
  settings.fit(model());
}

// ---- conversations

function open(id) {
  const found = conversations.get(id);
  shown = found ?? conversations.create();
  if (location.hash.slice(1) !== (found?.id ?? ""))
    history.pushState(null, "", found ? `#${found.id}` : location.pathname);
  follows = true;
  sidebar.toggle(false);
  show();
  focusMessage();
}

/** Another tab has changed something. */
function refresh() {
  if (!runs.has(shown.id)) shown = conversations.get(shown.id) ?? shown;
  show();
}

function rename(conversation, title) {
  conversations.rename(conversation, title);
  showHead();
}

function remove(conversation) {
  runs.get(conversation.id)?.stop();
  conversations.remove(conversation.id);
  if (conversation.id === shown.id) open(null);
  else showList();
  notice(`“${conversation.title}” was deleted.`, "Undo", () => {
    conversations.restore(conversation);
    open(conversation.id);
  });
}

// ---- answers

/** Adds messages, and asks for an answer. */
function ask(...messages) {
  if (runs.has(shown.id)) return;
  shown.messages.push(...messages);
  conversations.save(shown);
  if (location.hash.slice(1) !== shown.id) history.replaceState(null, "", `#${shown.id}`);
  answer(shown);
}

async function answer(conversation) {
  let drawn = 0;
  let saved = performance.now();
  const changed = () => {
    drawn ||= requestAnimationFrame(() => {
      drawn = 0;
      if (runs.has(conversation.id) && shown === conversation) showAnswer();
    });
    if (performance.now() - saved < SAVED_EVERY || !conversations.get(conversation.id)) return;
    saved = performance.now();
    conversations.save(conversation);
  };
  const run = new Run({ conversation, settings, model: model(), changed });
  runs.set(conversation.id, run);
  follows = true;
  const over = run.go();
  show();
  await over;
  runs.delete(conversation.id);
  if (conversations.get(conversation.id)) conversations.save(conversation); // unless it was deleted meanwhile
  if (shown === conversation) show();
  else showList();
  if (!models.length) connect();
}

/** Forgets a message and all after it; false while an answer comes. */
function cutBefore(message) {
  const conversation = shown;
  const before = [...shown.messages];
  const at = before.indexOf(message);
  if (at < 0 || runs.has(shown.id)) return false;
  shown.messages.splice(at);
  const undo = () => {
    runs.get(conversation.id)?.stop();
    conversation.messages = before;
    conversations.save(conversation);
    open(conversation.id);
  };
  if (before.length - at > 2) notice("Later messages were removed.", "Undo", undo);
  else notice("");
  return true;
}

const actions = {
  again: (message) => cutBefore(message) && ask(),
  edit: (message, content) => cutBefore(message) && ask({ role: "user", content }),
};

function send() {
  const content = $("message").value;
  if (!content.trim() || runs.has(shown.id)) return;
  $("message").value = "";
  fitMessage();
  notice("");
  ask({ role: "user", content });
}

// ---- what is shown

function showList() {
  sidebar.show(shown.id, runs);
}

function showHead() {
  const title = shown.title || "New chat";
  $("title").textContent = title;
  document.title = shown.title ? `${title} – MiniCPM Edge` : "MiniCPM Edge";
  $("export").hidden = !shown.messages.length;
  showList();
}

/** The whole conversation. What stands there already stays, with what the reader has unfolded. */
function show() {
  const running = runs.has(shown.id);
  const messages = shown.messages.filter(({ role }) => role !== "tool");
  const made = new Map(views.map((view) => [view.message, view]));
  views = messages.map((message) => made.get(message) ?? viewOf(message, actions));
  views.forEach((view, index) =>
    view.update?.(running && index === views.length - 1, resultsAfter(view.message)),
  );
  const elements = views.map(({ element }) => element);
  for (const child of [...$("messages").children]) if (!elements.includes(child)) child.remove();
  $("messages").append(...elements.filter(({ isConnected }) => !isConnected), ...missingResults(running));
  $("welcome").hidden = messages.length > 0;
  document.body.classList.toggle("running", running);
  $("send").hidden = running;
  $("stop").hidden = !running;
  fitMessage();
  showHead();
  followEnd();
}

function showAnswer() {
  views.at(-1).update?.(true);
  followEnd();
}

/** { call id: result } of the messages behind an answer. */
function resultsAfter(message) {
  const found = {};
  for (const { role, call_id: id, content } of shown.messages.slice(shown.messages.indexOf(message) + 1)) {
    if (role !== "tool") break;
    found[id] = content;
  }
  return found;
}

function missingResults(running) {
  const last = shown.messages.at(-1);
  if (running || !last?.calls?.length || last.error) return [];
  const sent = (results) =>
    ask(...last.calls.map(({ id }) => ({ role: "tool", call_id: id, content: results[id] })));
  return [resultsForm(last.calls, sent)];
}

function followEnd() {
  const { scrollHeight, clientHeight } = $("scroll");
  if (follows) $("scroll").scrollTop = scrollHeight;
  $("to-end").hidden = follows || scrollHeight <= clientHeight;
}

/** A sentence above the message field, with one thing to do about it. */
function notice(text, label, act) {
  const button =
    label && h("button", { type: "button", class: "plain", click: () => (notice(""), act()) }, label);
  $("notice").replaceChildren(...(text ? [h("span", {}, text), ...(button ? [button] : [])] : []));
}

function showTheme(theme) {
  $("theme").replaceChildren(icon(theme));
  $("theme").title = THEMES[theme];
  $("theme").setAttribute("aria-label", `${THEMES[theme]}; change them`);
}

/** Not where that brings up a keyboard over half the page. */
function focusMessage() {
  if (!TOUCH.matches) $("message").focus();
}

function fitMessage() {
  const field = $("message");
  $("send").disabled = !field.value.trim();
  if (CSS.supports("field-sizing", "content")) return;
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight}px`;
}

// ---- what the reader does

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
$("message").addEventListener("input", fitMessage);
$("message").addEventListener("keydown", (event) => {
  // A phone's keyboard has no Shift+Enter: there, Enter starts a line.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || TOUCH.matches) return;
  event.preventDefault();
  send();
});
$("stop").addEventListener("click", () => {
  runs.get(shown.id)?.stop();
  focusMessage();
});
$("new-chat").addEventListener("click", () => open(null));
$("export").addEventListener("click", () => exportConversation(shown));
$("theme").addEventListener("click", () => showTheme(nextTheme()));
$("model").addEventListener("change", () => settings.fit(model()));
$("open-settings").addEventListener("click", () => {
  sidebar.toggle(false);
  $("settings").showModal();
});
$("settings").addEventListener("close", () => models.length || connect());
$("settings").addEventListener("click", ({ target }) => target === $("settings") && $("settings").close());
$("to-end").addEventListener("click", () => {
  follows = true;
  followEnd();
});
$("scroll").addEventListener("scroll", () => {
  const { scrollHeight, scrollTop, clientHeight } = $("scroll");
  follows = scrollHeight - scrollTop - clientHeight < AT_END;
  $("to-end").hidden = follows;
});
for (const idea of document.querySelectorAll(".idea")) {
  idea.addEventListener("click", () => {
    $("message").value = idea.textContent.replace(/\s+/g, " ").trim();
    fitMessage();
    $("message").focus();
  });
}
document.addEventListener("keydown", (event) => {
  if ((event.ctrlKey || event.metaKey) && !event.shiftKey && event.key.toLowerCase() === "k") {
    event.preventDefault();
    if ($("settings").open) $("settings").close();
    open(null);
  } else if (event.key === "Escape" && !$("settings").open) {
    if (sidebar.isOpen) sidebar.toggle(false);
    else runs.get(shown.id)?.stop();
  }
});
window.addEventListener("popstate", () => open(location.hash.slice(1)));
window.addEventListener("pagehide", () => {
  for (const { conversation } of runs.values()) conversations.save(conversation);
});

showTheme(document.documentElement.dataset.theme);
open(location.hash.slice(1));
connect();
