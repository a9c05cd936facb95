// The server's API: the model's name, and answers as they come (`/v1/chat/completions`, server-sent events).

/** What went wrong, in one sentence for the reader. status: of HTTP, 0 where no answer came at all. */
export class ServerError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

const UNREACHABLE = "The server can't be reached; is it still running?";
const CUT = "The connection broke off before the answer was complete.";

/** [{ id, context, thinking }]: what the server has. context and thinking are undefined where it does not say. */
export async function listModels(key, signal) {
  const response = await request("v1/models", { headers: headers(key), signal });
  const { data } = await response.json().catch(() => ({}));
  if (!Array.isArray(data))
    throw new ServerError("The server's list of models is not one that this page can read.");
  return data
    .filter(({ id }) => typeof id === "string")
    .map((model) => ({
      id: model.id,
      context: model.max_model_len,
      thinking: model.x_edge?.thinking,
    }));
}

/**
 * The chunks of an answer, as the server sends them. body: a request of chat completions.
 * Throws ServerError; an AbortError once the signal was given.
 */
export async function* streamAnswer(body, key, signal) {
  const streaming = { ...body, stream: true, stream_options: { include_usage: true } };
  const options = { method: "POST", headers: headers(key), body: JSON.stringify(streaming), signal };
  const response = await request("v1/chat/completions", options);
  let complete = false;
  for await (const data of events(response)) {
    if (data === "[DONE]") return;
    const chunk = parse(data);
    if (chunk.error)
      throw new ServerError(sentence(chunk.error, "The server could not finish the answer."), response.status);
    complete ||= Boolean(chunk.choices?.[0]?.finish_reason);
    yield chunk;
  }
  if (!complete) throw new ServerError(CUT);
}

function headers(key) {
  return { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
}

async function request(path, options) {
  let response;
  try {
    response = await fetch(new URL(path, document.baseURI), { ...options, cache: "no-store" });
  } catch (error) {
    throw error.name === "AbortError" ? error : new ServerError(UNREACHABLE);
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  const { status } = response;
  const body = await response.json().catch(() => ({}));
  const said = sentence(body.error ?? body.detail, `The server answered with status ${status}.`);
  const wait = Number(response.headers.get("Retry-After"));
  if (status === 401 || status === 403)
    return new ServerError("The server wants an API key that it knows; set it in the settings.", status);
  if (status === 429)
    return new ServerError(`The server is busy; try again ${wait ? `in ${wait} s` : "soon"}.`, status);
  return new ServerError(said, status);
}

/** An error of the API is an object with a message, or the message. */
function sentence(error, otherwise) {
  const said = typeof error === "string" ? error : error?.message;
  return typeof said === "string" && said.trim() ? said.trim() : otherwise;
}

function parse(data) {
  try {
    return JSON.parse(data) ?? {};
  } catch {
    throw new ServerError("The server sent a piece of the answer that can't be read.");
  }
}

/** The `data` of each event. An event is lines up to an empty one; line ends may be of any kind. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await read(reader);
      if (done) return;
      // A lone \r at the end may be half of \r\n.
      rest = (rest + value).replace(/\r\n|\r(?!$)/g, "\n");
      const parts = rest.split("\n\n");
      rest = parts.pop();
      for (const part of parts) {
        const lines = part.split("\n").filter((line) => line.startsWith("data:"));
        if (lines.length) yield lines.map((line) => line.slice(5).replace(/^ /, "")).join("\n");
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // also where the reader of this page wants no more
  }
}

async function read(reader) {
  try {
    return await reader.read();
  } catch (error) {
    throw error.name === "AbortError" ? error : new ServerError(CUT);
  }
}
