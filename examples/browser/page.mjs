// The page: shows the conversation and what the worker is doing, and stops it. ?folder=model&tokens=256&threads=2
const options = new URLSearchParams(location.search);
const most = Number(options.get("tokens") ?? 256);
const wanted = Number(options.get("threads") ?? Math.min(4, navigator.hardwareConcurrency)); // phones have slow cores too
const threads = crossOriginIsolated ? wanted : 1; // threads share memory, which needs the two headers of serve.py

const [conversation, form, prompt, send, stop, fresh, state, status, figures, bar] =
  "conversation form prompt send stop fresh state status figures bar".split(" ").map((id) => document.getElementById(id));

const worker = new Worker("worker.mjs", { type: "module" });
let messages = []; // that have got an answer
let asked = null; // what is being answered: the message and the two elements that show it

const count = (n, thing) => `${n} ${thing}${n === 1 ? "" : "s"}`;
const megabytes = (bytes) => Math.round(bytes / 1e6);
const workers = crossOriginIsolated ? count(threads, "thread") : "1 thread (the page is not cross-origin isolated: see serve.py)";
const pace = (speed) => [...(speed ? [`${speed.toFixed(1)} tokens/s`] : []), workers].join(", ");

// status: what goes on. figures: numbers of it. done: a part of 1, null for work without a known end, undefined for none.
function show(text, numbers = "", done) {
  status.textContent = text;
  figures.textContent = numbers;
  state.classList.toggle("failed", text.startsWith("Failed"));
  bar.hidden = done === undefined;
  if (done === null) bar.removeAttribute("value");
  else if (done !== undefined) bar.value = done;
}

function enable(ready) {
  const focus = document.activeElement;
  send.disabled = fresh.disabled = !ready;
  stop.disabled = asked === null;
  if (focus === send && !ready) stop.focus();
  if (focus === stop && ready) send.focus();
}

function add(role, text) {
  const element = conversation.appendChild(document.createElement("div"));
  element.className = role;
  element.textContent = text;
  return element;
}

function ask(text) {
  asked = { message: { role: "user", content: text }, question: add("user", text), answer: add("assistant", "") };
  prompt.value = "";
  enable(false);
  show("Computing the prompt", "", null);
  scrollTo(0, document.body.scrollHeight);
  worker.postMessage({ type: "answer", messages: [...messages, asked.message], most });
}

// Question and answer join the conversation. Without an answer the question goes back to where it was typed.
function finish(text) {
  if (text) {
    messages.push(asked.message, { role: "assistant", content: text });
  } else {
    asked.question.remove();
    asked.answer.remove();
    prompt.value ||= asked.message.content;
  }
  asked = null;
  enable(true);
}

const endings = {
  end: (n) => `Done after ${count(n, "token")}`,
  stopped: (n) => `Stopped after ${count(n, "token")}`,
  limit: (n) => `Ended at the limit of ${count(n, "token")}`,
  context: (n) => `Context full after ${count(n, "token")}, begin a new chat`,
};

const heard = {
  loading: ({ bytes, total }) =>
    show("Loading the model", total ? `${megabytes(bytes)} of ${megabytes(total)} MB` : `${megabytes(bytes)} MB`, total ? bytes / total : null),
  starting: () => show("Starting the model", "", null),
  ready: () => {
    show("Ready", workers);
    enable(true);
  },
  prompt: ({ done, all }) => show(`Computing the prompt (${count(all, "token")})`, "", done / all),
  writing: ({ text, tokens, speed }) => {
    const atEnd = innerHeight + scrollY > document.body.scrollHeight - 40;
    asked.answer.textContent = text;
    show("Writing", `${count(tokens.length, "token")}, ${pace(speed)}`);
    if (atEnd) scrollTo(0, document.body.scrollHeight);
  },
  done: ({ text, tokens, reason, speed }) => {
    asked.answer.dataset.tokens = tokens;
    finish(text);
    show(endings[reason](tokens.length), pace(speed));
  },
  failed: ({ message }) => {
    if (asked) finish(asked.answer.textContent);
    show(`Failed: ${message}`);
  },
};

worker.onmessage = ({ data }) => heard[data.type](data);
worker.onerror = ({ message }) => {
  enable(false);
  show(`Failed: ${message || "worker.mjs or a package in node_modules can't be loaded; did npm install run?"}`);
};
worker.postMessage({ type: "open", folder: options.get("folder") ?? "model", threads });

form.onsubmit = (event) => {
  event.preventDefault();
  if (!send.disabled && prompt.value.trim()) ask(prompt.value);
};
stop.onclick = () => worker.postMessage({ type: "stop" });
fresh.onclick = () => {
  messages = [];
  conversation.replaceChildren();
  show("Ready", workers);
  prompt.focus();
};
document.onkeydown = (event) => {
  if (event.isComposing) return; // Esc and Enter belong to the input method
  if (event.key === "Escape" && asked) stop.click();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
};
