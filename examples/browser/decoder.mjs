// A model of `edge export --to onnx --portable` in onnxruntime-web: one sequence with its KV cache.

export class Decoder {
  // ort: the module onnxruntime-web. model, data: URLs, or the bytes, of model.onnx and model.onnx.data.
  // config: the content of genai_config.json.
  static async open(ort, { model, data, config }) {
    const session = await ort.InferenceSession.create(model, {
      executionProviders: ["wasm"],
      externalData: [{ path: "model.onnx.data", data }],
    });
    return new Decoder(ort, session, config.model);
  }

  constructor(ort, session, config) {
    this.ort = ort;
    this.session = session;
    this.context = config.context_length;
    this.end = new Set(config.eos_token_id);
    const { num_hidden_layers: layers, num_key_value_heads: heads, head_size: size } = config.decoder;
    this.shape = { heads, size };
    this.tokens = [];
    this.past = {};
    for (let layer = 0; layer < layers; layer++)
      for (const part of ["key", "value"])
        this.past[`past_key_values.${layer}.${part}`] = this.cached(new Float32Array(0), 0);
  }

  cached(values, rows) {
    return new this.ort.Tensor("float32", values, [1, this.shape.heads, rows, this.shape.size]);
  }

  // Keeps the first `rows` tokens of the sequence and forgets the others.
  keep(rows) {
    const { heads, size } = this.shape;
    const before = this.tokens.length;
    if (rows === before) return;
    for (const [name, { data }] of Object.entries(this.past)) {
      const kept = new Float32Array(heads * rows * size);
      for (let head = 0; head < heads; head++) {
        const start = head * before * size;
        kept.set(data.subarray(start, start + rows * size), head * rows * size);
      }
      this.past[name] = this.cached(kept, rows);
    }
    this.tokens.length = rows;
  }

  // Appends tokens to the sequence; the logits after the last one, as a Float32Array.
  async run(tokens) {
    const rows = this.tokens.length + tokens.length;
    const int64 = (values) => new this.ort.Tensor("int64", BigInt64Array.from(values, BigInt), [1, values.length]);
    const names = Object.keys(this.past);
    const present = (name) => name.replace("past_key_values", "present");
    const results = await this.session.run(
      { input_ids: int64(tokens), attention_mask: int64(Array(rows).fill(1)), ...this.past },
      ["logits", ...names.map(present)],
    );
    for (const name of names) this.past[name] = results[present(name)];
    this.tokens.push(...tokens);
    return results.logits.data;
  }

  // Makes `prompt` the sequence. Rows that it shares with the sequence before are not computed again; the rest runs in
  // pieces, and `progress(done, all)` is asked before each whether to go on. The logits, or null if it said no.
  async prefill(prompt, progress, piece = 32) {
    if (prompt.length > this.context)
      throw new Error(`The conversation takes ${prompt.length} tokens and the context holds ${this.context}: begin a new chat.`);
    const different = prompt.findIndex((token, at) => token !== this.tokens[at]);
    this.keep(Math.min(different < 0 ? prompt.length : different, prompt.length - 1)); // the last one gives the logits
    const first = this.tokens.length;
    let logits = null;
    for (let at = first; at < prompt.length; at += piece) {
      if (!(await progress(at - first, prompt.length - first))) return null;
      logits = await this.run(prompt.slice(at, at + piece));
    }
    return logits;
  }
}

// The likeliest token.
export const best = (logits) => logits.reduce((found, value, token) => (value > logits[found] ? token : found), 0);
