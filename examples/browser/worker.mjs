// The model in a worker, so that the page stays awake: WebAssembly blocks the thread that it runs on.
// From the page: open, answer, stop. To the page: loading, starting, ready, prompt, writing, done, failed.
import * as ort from "./node_modules/onnxruntime-web/dist/ort.wasm.bundle.min.mjs";
import { Template } from "./node_modules/@huggingface/jinja/dist/index.js";
import { Tokenizer } from "./node_modules/@huggingface/tokenizers/dist/tokenizers.min.mjs";
import { Decoder, best } from "./decoder.mjs";

let decoder, encode, decode;
let stopped = false;

const wakeUp = () => new Promise((resume) => setTimeout(resume)); // lets a message of the page in

async function read(url) {
  const response = await fetch(url).catch(() => Promise.reject(new Error(`${url}: the server does not answer.`)));
  if (!response.ok) {
    const said = `${url}: ${response.status} ${response.statusText}; export a model there with --to onnx --portable.`;
    throw Object.assign(new Error(said), { status: response.status });
  }
  return response;
}

// For files that some models do not have: what stands for them.
const unlessMissing = (instead) => (error) => {
  if (error.status !== 404) throw error;
  return instead;
};

// The bytes of the files; progress(bytes so far, all bytes or 0 if the server does not say).
async function download(urls, progress) {
  const responses = await Promise.all(urls.map(read));
  const sizes = responses.map(({ headers }) => (headers.get("content-encoding") ? 0 : Number(headers.get("content-length"))));
  const total = sizes.every(Boolean) ? sizes.reduce((sum, size) => sum + size) : 0;
  let loaded = 0;
  const files = [];
  for (const [i, { body }] of responses.entries()) {
    let bytes = new Uint8Array(sizes[i]);
    let length = 0;
    for (const reader = body.getReader(); ; ) {
      const { done, value } = await reader.read();
      if (done) break;
      if (length + value.length > bytes.length) {
        const larger = new Uint8Array(2 * (length + value.length));
        larger.set(bytes.subarray(0, length));
        bytes = larger;
      }
      bytes.set(value, length);
      length += value.length;
      progress((loaded += value.length), total);
    }
    if (length < sizes[i]) throw new Error(`${urls[i]}: the download ended after ${length} of ${sizes[i]} bytes.`);
    files.push(bytes.subarray(0, length));
  }
  return files;
}

async function open({ folder, threads }) {
  ort.env.wasm.numThreads = threads;
  const json = async (name) => (await read(`${folder}/${name}`)).json();
  const config = await json("genai_config.json");
  const settings = await json("tokenizer_config.json").catch(unlessMissing({}));
  const tokenizer = new Tokenizer(await json("tokenizer.json"), settings);
  const template = await read(`${folder}/chat_template.jinja`).then((file) => file.text()).catch(unlessMissing(null));
  const special = (name) => settings[name]?.content ?? settings[name] ?? "";
  const [bos_token, eos_token] = ["bos_token", "eos_token"].map(special);

  encode = (messages) => {
    const variables = { messages, add_generation_prompt: true, bos_token, eos_token };
    const text = template ? new Template(template).render(variables) : messages.map(({ content }) => content).join("\n");
    const ids = tokenizer.encode(text, { add_special_tokens: false }).ids;
    const first = config.model.bos_token_id;
    return settings.add_bos_token && ids[0] !== first ? [first, ...ids] : ids;
  };
  decode = (tokens) => tokenizer.decode(tokens, { skip_special_tokens: true });

  const urls = ["model.onnx", "model.onnx.data"].map((name) => `${folder}/${name}`);
  const [model, data] = await download(urls, (bytes, total) => postMessage({ type: "loading", bytes, total }));
  postMessage({ type: "starting" });
  decoder = await Decoder.open(ort, { model, data, config });
  postMessage({ type: "ready" });
}

async function answer({ messages, most }) {
  stopped = false;
  const made = [];
  let started;
  const facts = () => {
    const speed = made.length > 1 ? (made.length - 1) / ((performance.now() - started) / 1000) : null;
    const text = made.length ? decode(made).replace(/\uFFFD+$/, "") : ""; // a character may lack its last bytes
    return { text, tokens: made, speed };
  };
  let logits = await decoder.prefill(encode(messages), async (done, all) => {
    postMessage({ type: "prompt", done, all });
    await wakeUp();
    return !stopped;
  });
  let reason = "stopped";
  while (!stopped) {
    const token = best(logits);
    if (decoder.end.has(token)) {
      reason = "end";
      break;
    }
    made.push(token);
    started ??= performance.now();
    postMessage({ type: "writing", ...facts() });
    if (made.length >= most) reason = "limit";
    else if (decoder.tokens.length >= decoder.context) reason = "context";
    if (reason !== "stopped") break;
    await wakeUp();
    if (!stopped) logits = await decoder.run([token]);
  }
  postMessage({ type: "done", reason, ...facts() });
}

onmessage = async ({ data }) => {
  try {
    if (data.type === "stop") stopped = true;
    else await { open, answer }[data.type](data);
  } catch (error) {
    postMessage({ type: "failed", message: error.message ?? String(error) });
  }
};
