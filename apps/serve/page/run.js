// One answer in the making: what the server sends becomes a message of the conversation.
import { streamAnswer } from "./api.js";
import { asRequest } from "./conversations.js";

let leaving = false;
window.addEventListener("pagehide", () => (leaving = true));
window.addEventListener("pageshow", () => (leaving = false));

const STOPPED = "stopped"; // by the reader; other reasons are the API's

export class Run {
  /** changed: called after each piece; settings and model: as they are when the answer is asked for. */
  constructor({ conversation, settings, model, changed }) {
    this.conversation = conversation;
    this.settings = settings;
    this.model = model;
    this.changed = changed;
    this.controller = new AbortController();
    this.answer = { role: "assistant", content: "", reasoning: "", calls: [] };
  }

  stop() {
    this.controller.abort();
  }

  /** Ends without an error of its own: the answer says what went wrong. */
  async go() {
    const { answer, settings, model, conversation } = this;
    const system = settings.system ? [{ role: "system", content: settings.system }] : [];
    const messages = [...system, ...asRequest(conversation.messages)];
    conversation.messages.push(answer);
    this.begun = performance.now();
    try {
      const body = { ...(model && { model: model.id }), messages, ...settings.request(model) };
      for await (const chunk of streamAnswer(body, settings.key, this.controller.signal)) {
        this.#take(chunk);
        this.changed();
      }
      answer.finish ??= "stop";
    } catch (error) {
      if (error.name === "AbortError") answer.finish = STOPPED;
      else if (leaving)
        return; // the browser ends requests with their page; what came is kept as it is
      else answer.error = error.message;
    }
    this.#measure();
    // What was cut off in the middle can't be sent back as a call.
    if (answer.error || answer.finish === STOPPED) answer.calls = answer.calls.filter(isWhole);
  }

  #take(chunk) {
    const { answer } = this;
    const choice = chunk.choices?.[0];
    const { content, reasoning_content: reasoning, tool_calls: calls = [], refusal } = choice?.delta ?? {};
    if (content || reasoning || refusal || calls?.length) {
      this.last = performance.now();
      this.first ??= this.last;
    }
    if (reasoning) answer.reasoning += reasoning;
    if ((content || calls?.length) && answer.reasoning) answer.thought ??= (this.last - this.first) / 1000;
    if (content ?? refusal) answer.content += content ?? refusal;
    for (const call of calls ?? []) this.#takeCall(call);
    if (choice?.finish_reason) answer.finish = choice.finish_reason;
    if (chunk.usage) this.usage = chunk.usage;
    if (chunk.x_edge) this.timings = chunk.x_edge.choices?.[0] ?? chunk.x_edge;
  }

  #takeCall({ index = 0, id, function: piece = {} }) {
    const call = (this.answer.calls[index] ??= { id: `call_${index}`, name: "", arguments: "" });
    if (id) call.id = id;
    call.name += piece.name ?? "";
    call.arguments += piece.arguments ?? "";
  }

  /** The server's own figures where it gives them, else those of this page's clock. */
  #measure() {
    const { usage, timings, first, last } = this;
    const tokens = usage?.completion_tokens;
    const rate =
      timings?.tokens_per_second ??
      (tokens > 1 && last > first ? ((tokens - 1) * 1000) / (last - first) : undefined);
    this.answer.calls = this.answer.calls.filter(Boolean);
    if (timings?.note) this.answer.note = timings.note; // why there is nothing to read
    this.answer.figures = {
      tokens,
      rate,
      wait: timings?.ttft_seconds ?? (first && (first - this.begun) / 1000),
      prompt: usage?.prompt_tokens,
      reused: usage?.prompt_tokens_details?.cached_tokens,
      thinking: usage?.completion_tokens_details?.reasoning_tokens,
    };
  }
}

function isWhole(call) {
  try {
    JSON.parse(call.arguments);
    return Boolean(call.name);
  } catch {
    return false;
  }
}
